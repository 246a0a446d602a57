"""What a run's teachers share with its trainers: output heads, and weights of those that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

from actors.teacher.dispatch import TeacherPool
from opd_ray.checkpoint import CheckpointError
from opd_ray.config.choices import SignalChoice
from opd_ray.config.teacher import TeacherSettings
from opd_ray.errors import ActorDied
from opd_ray.fleet import Fleet
from opd_ray.trainer_group import TrainerGroup


class Followers:
    """Keeps teachers of kind self that follow the student in step with it.

    Args:
        fleet: watches every wait.
        teachers: every teacher's settings and replicas, by its name.
        trainers: hold the teachers' output heads where the signal is hidden.
    """

    def __init__(
        self,
        fleet: Fleet,
        teachers: Mapping[str, tuple[TeacherSettings, TeacherPool]],
        trainers: TrainerGroup,
    ) -> None:
        self._fleet = fleet
        self._trainers = trainers
        self._pools = {name: pool for name, (_, pool) in teachers.items()}
        self._following = [n for n, (s, _) in teachers.items() if s.follow_decay is not None]
        self._hidden = any(s.signal is SignalChoice.hidden for s, _ in teachers.values())
        self._share_heads(list(teachers))

    def __bool__(self) -> bool:
        """Whether any teacher follows."""
        return bool(self._following)

    def follow(self, chunks: Sequence[ray.ObjectRef]) -> None:
        """Let them take in the student's weights after an optimizer step."""
        for name in self._following:
            self._ask_all(name, "follow", *chunks)
        self._share_heads(self._following)

    def save(self, folder: str) -> None:
        """Write every follower's weights below ``folder``, which is made where there is one."""
        for name in self._following:
            Path(folder).mkdir(parents=True, exist_ok=True)
            owner, handle = self._pools[name].living()[0]
            self._fleet.get(handle.save.remote(_file(folder, name)), owner)

    def load(self, folder: str) -> None:
        """Have every replica go on from what :meth:`save` wrote.

        Raises:
            CheckpointError: it was written where one of them did not follow.
        """
        for name in self._following:
            if not Path(_file(folder, name)).is_file():
                raise CheckpointError(
                    f"checkpoint {folder} holds no weights of the teacher {name!r}, which follows "
                    "the student: resume with the configuration it was written with"
                )
            self._ask_all(name, "load", _file(folder, name))
        self._share_heads(self._following)

    def _ask_all(self, name: str, method: str, *arguments: Any) -> None:
        asked = [
            (getattr(handle, method).remote(*arguments), owner)
            for owner, handle in self._pools[name].living()
        ]
        for ref, owner in asked:
            # The pool hears of a death by itself; no dead replica of a follower is replaced.
            with suppress(ActorDied):
                self._fleet.get(ref, owner)

    def _share_heads(self, names: Sequence[str]) -> None:
        """Hand the teachers' output heads to the trainers, past this process."""
        for name in names if self._hidden else ():
            _, handle = self._pools[name].living()[0]
            self._trainers.set_teacher_head(handle.output_head.remote(), name)


def _file(folder: str, name: str) -> str:
    return str(Path(folder) / f"{name}.safetensors")
