"""The call by which the run notices that an actor's process is gone."""

from __future__ import annotations

import threading

import ray

# Every actor class with a lifeline declares this group, so that waiting blocks no other call.
LIFELINE_GROUP = {"lifeline": 1}


class Lifeline:
    """Base of the actors that :class:`opd_ray.pools.watch.ActorWatch` watches."""

    @ray.method(concurrency_group="lifeline")
    def lifeline(self) -> None:
        """Block until the process ends."""
        threading.Event().wait()
