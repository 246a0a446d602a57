"""Kind ``actor``: a teacher that runs already, as a named Ray actor in the same cluster."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.teacher.protocol import TeacherError, Wanted
from opd_ray.types import ScoreRequest, TeacherAnswer, TeacherInfo


class ActorTeacher:
    """Forwards to a named actor whose methods ``info()`` and ``score(requests)`` are a Teacher's.

    An actor that has ``info_as`` and ``score_as`` too, as those of ``opd-ray serve-teacher``, is
    told what this run wants of it.

    Args:
        name: of the actor.
        namespace: the Ray namespace that it was named in.
        wanted: signal and widths that the run asks for.

    Raises:
        TeacherError: no such actor, or one without these methods.
    """

    def __init__(self, name: str, namespace: str, wanted: Wanted) -> None:
        self._name = name
        self._wanted = wanted
        try:
            self._actor = ray.get_actor(name, namespace=namespace)
        except ValueError as error:
            raise TeacherError(
                f"teacher.actor_name = {name!r}: no such actor runs in the Ray namespace "
                f"{namespace!r}; start it first, with lifetime='detached', or set "
                "teacher.actor_namespace to its own"
            ) from error
        missing = [method for method in ("info", "score") if not hasattr(self._actor, method)]
        if missing:
            raise TeacherError(
                f"teacher.actor_name = {name!r}: that actor has no method {', '.join(missing)}; "
                "a teacher has info() and score(requests) (actors.teacher.protocol.Teacher)"
            )

    def info(self) -> TeacherInfo:
        """What the actor says of itself."""
        if self._adapts():
            return self._ask(self._actor.info_as.remote(self._wanted))
        return self._ask(self._actor.info.remote())

    def score(self, requests: Sequence[ScoreRequest]) -> list[TeacherAnswer]:
        """The actor's answers."""
        if self._adapts():
            reference = self._actor.score_as.remote(list(requests), self._wanted)
        else:
            reference = self._actor.score.remote(list(requests))
        answers = self._ask(reference)
        # Arrays from Ray are views into its object store: one signal would keep a batch there.
        return copy.deepcopy(answers)

    def output_head(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Weight [V, D] and bias [V] or None of the actor's output layer, as arrays (``to_array``).

        Raises:
            TeacherError: it has none; only the hidden signal needs it.
        """
        if not hasattr(self._actor, "output_head"):
            raise TeacherError(
                f"teacher.actor_name = {self._name!r}: that actor has no output_head(): set "
                "teacher.signal to topk"
            )
        return self._ask(self._actor.output_head.remote())

    def close(self) -> None:
        """Leave the actor running: it belongs to whoever started it."""

    def _adapts(self) -> bool:
        return hasattr(self._actor, "info_as") and hasattr(self._actor, "score_as")

    def _ask(self, reference: Any) -> Any:
        try:
            return ray.get(reference)
        except (RayTaskError, RayActorError) as error:
            raise TeacherError(f"teacher.actor_name = {self._name!r}: {error}") from error
