"""Ray's object store and the disk that it spills to, where both are full."""

from __future__ import annotations

import os

from ray.exceptions import ObjectStoreFullError, OutOfDiskError, RayError, RayTaskError

from opd_ray.borders import first_line


def full_store(error: RayError) -> str | None:
    """What to do where an error says that no object fits any more; None: it says something else."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if not isinstance(cause, ObjectStoreFullError | OutOfDiskError):
        return None
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    return (
        f"Ray's object store is full, and what it spills to as well ({first_line(cause)}): make "
        f"room in {folder}/ray on that node (RAY_TMPDIR names another folder), raise "
        "cluster.object_store_bytes, or lower rollout.prompts_per_step"
    )
