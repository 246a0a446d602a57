"""What tests do with a pool of replicas that are plain objects."""

from __future__ import annotations

import numpy as np
from fake_replicas import (
    FakeWatch,
    rollout,
)

from opd_ray.pools.teachers.pool import TeacherPool

ROW, NO_ROW = np.array([0], np.int32), np.zeros(0, np.int32)


def submit(pool: TeacherPool, names: str) -> None:
    for name in names:
        pool.submit(rollout(name, topk=f"top-K of {name}"))
    pool.pump()


def drive(pool: TeacherPool, watch: FakeWatch, *, until: int) -> list[str]:
    """Collect until so many scores have come."""
    found: list[str] = []
    pool.deliver = lambda scores: found.append(scores.rollout_id)
    watch.wait_until(lambda: len(found) >= until, "scores")
    return found


def taken(pool: TeacherPool, names: str) -> dict[str, str]:
    """Whose rows came from which replica, by rollout."""
    [refs] = pool.take([dict.fromkeys(names, ROW)])
    return {key: owner for owner, keys in refs for key in keys}
