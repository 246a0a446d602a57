"""Kind ``actor``: a teacher that runs already, as a named Ray actor in the same cluster."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.teacher.contract.answers import check_size
from actors.teacher.protocol import TeacherError, Wanted
from opd_ray.borders import first_line
from opd_ray.config.teacher import TeacherSettings
from opd_ray.errors import is_known
from opd_ray.types import ScoreRequest, TeacherAnswer, TeacherInfo
from opd_ray.user_code import place_in


class ActorTeacher:
    """Forwards to a named actor whose methods ``info()`` and ``score(requests)`` are a Teacher's.

    What it has as ``info_as`` or ``score_as`` too, as the actors of ``opd-ray serve-teacher``, is
    told what this run wants of it.

    Args: as :func:`actors.teacher.registry.make_teacher`; of ``settings``, ``actor_name``,
        ``actor_namespace``, ``signal`` and ``topk``.

    Raises:
        TeacherError: no such actor, one without these methods, or one with a larger vocabulary.
    """

    def __init__(
        self, settings: TeacherSettings, *, vocab_size: int | None = None, own_topk: int = 0
    ) -> None:
        name, namespace = settings.actor_name or "", settings.actor_namespace
        self._said = f"{settings.key}.actor_name = {name!r}"
        self._wanted = Wanted(settings.signal, settings.topk, own_topk)
        try:
            self._actor = ray.get_actor(name, namespace=namespace)
        except ValueError as error:
            raise TeacherError(
                f"{self._said}: no such actor runs in the Ray namespace {namespace!r}; start it "
                f"first, with lifetime='detached', or set {settings.key}.actor_namespace to its own"
            ) from error
        missing = [method for method in ("info", "score") if not hasattr(self._actor, method)]
        if missing:
            raise TeacherError(
                f"{self._said}: that actor has no method {', '.join(missing)}; a teacher has "
                "info() and score(requests) (actors.teacher.protocol.Teacher)"
            )
        check_size(self.info(), vocab_size)

    def info(self) -> TeacherInfo:
        """What the actor says of itself."""
        return self._call("info")

    def score(self, requests: Sequence[ScoreRequest]) -> list[TeacherAnswer]:
        """The actor's answers."""
        answers = self._call("score", list(requests))
        # Arrays from Ray are views into its object store: one signal would keep a batch there.
        return copy.deepcopy(answers)

    def output_head(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Weight [V, D] and bias [V] or None of the actor's output layer, as arrays (``to_array``).

        Raises:
            TeacherError: it has none; only the hidden signal needs it.
        """
        if not hasattr(self._actor, "output_head"):
            raise TeacherError(
                f"{self._said}: that actor has no output_head(): set teacher.signal to topk"
            )
        return self._call("output_head")

    def close(self) -> None:
        """Leave the actor running: it belongs to whoever started it."""

    def _call(self, method: str, *given: Any) -> Any:
        if hasattr(self._actor, f"{method}_as"):
            method, given = f"{method}_as", (*given, self._wanted)
        try:
            return ray.get(getattr(self._actor, method).remote(*given))
        except RayActorError as error:
            raise TeacherError(f"{self._said}: {error}") from error
        except RayTaskError as error:
            cause = error.cause
            told = str(cause) if is_known(cause) else first_line(cause) + place_in(str(error))
            raise TeacherError(f"{self._said}: {told}") from error
