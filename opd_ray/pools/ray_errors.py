"""What Ray's errors say: who is gone and how, and what to do about a full object store."""

from __future__ import annotations

import os

import ray
from ray.exceptions import (
    ActorDiedError,
    ObjectStoreFullError,
    OutOfDiskError,
    RayActorError,
    RayError,
    RayTaskError,
)

from opd_ray.borders import first_line
from opd_ray.errors import ActorLost, is_known


def end_of(lifeline: ray.ObjectRef, name: str) -> ActorLost:
    """How an actor has ended whose lifeline has."""
    try:
        ray.get(lifeline)
    except RayError as error:
        return ActorLost(
            name,
            name,
            told(error),
            never_ran=never_ran(error),
            in_constructor=isinstance(error, RayActorError) and error.actor_init_failed,
        )
    return ActorLost(name, name, "its lifeline ended although the process lives")


def never_ran(error: RayError) -> bool:
    """Whether an actor is gone because its node was, before it began there.

    Ray learns of a node's death seconds late, and gives it actors until then. It has the fact
    (``ActorDiedErrorContext.never_started``) but hands on no more than the words. It says the same
    of an actor whose process dies in its constructor, where engines load: that one has run.
    """
    text = str(error) if isinstance(error, ActorDiedError) else ""
    return "The actor never ran" in text and "its worker process has died" not in text


def told(error: RayError) -> str:
    """The part of a Ray error that says what happened, without Ray's general advice."""
    if full := full_store(error):
        return full
    if isinstance(error, RayTaskError):
        # What an actor raised for the user to read needs none of the actor's frames.
        return str(error.cause if is_known(error) else error).strip()
    if isinstance(error, RayActorError):
        return str(error).split("Some common causes include")[0].strip()
    return f"{type(error).__name__}: {error}"


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
