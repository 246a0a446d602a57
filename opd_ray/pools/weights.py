"""How new weights get from the trainers to the rollout engines, and to teachers that follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError

from actors.weights.registry import TRANSPORTS
from opd_ray.borders import writing
from opd_ray.config.choices import SignalChoice
from opd_ray.config.schema import Config
from opd_ray.config.teacher import TeacherSettings
from opd_ray.errors import ActorDied, ActorFailure, ActorLost, RunError
from opd_ray.output.checkpoint import CheckpointError
from opd_ray.pools.rollouts import RolloutPool
from opd_ray.pools.teachers.pool import TeacherPool
from opd_ray.pools.trainers import TrainerGroup
from opd_ray.pools.turns import Order, Turns
from opd_ray.pools.watch import ActorWatch


@dataclass
class WeightSync:
    """Brings new weights by the transport that ``sync.backend`` names.

    A rollout actor that was started again gets those of the last push before it writes. While
    rollouts are written, the trainers still hold them; where a run lags they may not, and where
    roles take turns they are asleep, so the chunks of the last push stay in the object store until
    the next one. Then, too, the engines take the weights in when their turn comes.
    """

    config: Config
    trainers: TrainerGroup  # make them
    rollouts: RolloutPool  # write with them
    teacher_weights: TeacherWeights  # of the teachers that follow the student
    order: Order  # in which roles work

    def __post_init__(self) -> None:
        self.meet()
        if isinstance(self.order, Turns):
            self.order.deliver = self._deliver
            self.order.from_trainers_memory = self._transport.from_trainers_memory

    def meet(self) -> None:
        """Connect the ends of the transport, anew where trainers have started again."""
        transport = TRANSPORTS[self.config.sync.backend]
        self._transport = transport(self.trainers, self.rollouts, self.config.rollout)
        self._version = 0  # of the last push
        self._kept: Sequence[ray.ObjectRef] | None = None  # the chunks of the last push

    def push(self, version: int, *, stepped: bool = False) -> None:
        """Put the trainers' current weights into every rollout engine, under this version.

        ``stepped``: an optimizer step has just made them, so teachers that follow take them in.
        """
        self._version, self._kept = version, None
        self.rollouts.bring_weights_by(self._catch_up)
        if self.order.alternate:
            self.order.to("trainer")
            chunks = self._kept = self._transport.collect()
        else:
            with self.rollouts.updating():
                chunks = self._transport.collect()
                self._transport.deliver(version, chunks)
            if self.config.run.lag:
                self._kept = chunks
        if stepped and self.teacher_weights:
            self.teacher_weights.follow(self.trainers.weights() if chunks is None else chunks)

    def _deliver(self) -> None:
        """Put the weights of the last push into every rollout engine."""
        self._transport.deliver(self._version, self._kept)

    def _catch_up(
        self, name: str, handle: Any, sent: Callable[[], object], done: Callable[[bool], object]
    ) -> bool:
        """Bring the weights of the last push to one rollout actor.

        Args:
            name: of the actor.
            handle: Ray's.
            sent: called once they are on their way to it: now it has to answer.
            done: called once it has them; with False where there are newer ones by then, or the
                trainers died.

        Returns:
            Whether the transport can do that.
        """
        if not self._transport.brings_to_one:
            return False
        version, transport, watch = self._version, self._transport, self.rollouts.watch

        def bring(chunks: Sequence[ray.ObjectRef]) -> None:
            sent()
            watch.when_ready(transport.bring(handle, version, chunks), loaded)

        def gathered(ref: ray.ObjectRef) -> None:
            if self._transport is not transport:
                done(False)  # these trainers were replaced
                return
            try:
                chunks = watch.get(ref, owner)
            except ActorDied:
                done(False)
                return
            if self._version == version:
                bring(chunks)
            else:
                done(False)

        def loaded(ref: ray.ObjectRef) -> None:
            if self._transport is not transport:
                done(False)
                return
            try:
                watch.get(ref, name)
            except ActorDied:
                return  # the pool hears of it by itself
            except ActorFailure as failure:
                if not isinstance(failure.__cause__, ObjectLostError):
                    raise
                done(False)  # the trainer that had put them there is gone
                return
            done(self._version == version)

        if self._kept is not None:
            bring(self._kept)
            return True
        owner = self.trainers.ranks[0][0]
        # A collective: every rank is asked. They answer in the order in which they are asked, so
        # no optimizer step can come before.
        answers = [rank.weights.remote() for _, rank in self.trainers.ranks]
        watch.when_ready(answers[0], gathered)
        return True


@dataclass
class TeacherWeights:
    """Keeps teachers of kind self that follow the student in step with it."""

    watch: ActorWatch
    teachers: Mapping[str, tuple[TeacherSettings, TeacherPool]]  # by name
    trainers: TrainerGroup  # hold the teachers' output heads where the signal is hidden
    order: Order  # in which roles work

    def __post_init__(self) -> None:
        teachers = self.teachers
        self._pools = {name: pool for name, (_, pool) in teachers.items()}
        self._following = [n for n, (s, _) in teachers.items() if s.follow_decay is not None]
        self._hidden = any(s.signal is SignalChoice.hidden for s, _ in teachers.values())
        self.share_heads()

    def __bool__(self) -> bool:
        """Whether any teacher follows."""
        return bool(self._following)

    def share_heads(self) -> None:
        """Hand every teacher's output head to the trainers, where their signals need it."""
        for name, pool in self._pools.items() if self._hidden else ():
            self._share_head(name, self._living(name, pool))

    def follow(self, chunks: Sequence[ray.ObjectRef]) -> None:
        """Let them take in the student's weights after an optimizer step."""
        for name in self._following:
            self._share_head(name, self._ask_all(name, "follow", *chunks)[0])

    def save(self, folder: str) -> None:
        """Write every follower's weights below ``folder``, which is made where there is one.

        Raises:
            RunError: no replica of one of them is left.
        """
        for name in self._following:
            with writing(Path(folder)):
                Path(folder).mkdir(parents=True, exist_ok=True)
            self._save(name, _file(folder, name))

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
            self._share_head(name, self._ask_all(name, "load", _file(folder, name))[0])

    def begin_anew(self) -> None:
        """Have every follower as it was before the first step."""
        for name in self._following:
            self._share_head(name, self._ask_all(name, "begin_anew")[0])

    def _living(self, name: str, pool: TeacherPool) -> Any:
        """The handle of a replica; waits for one that is being started again."""
        self.order.to("teacher")
        self.watch.wait_until(lambda: bool(pool.living()), f"a replica of teacher {name!r}")
        return pool.living()[0][1]

    def _ask_all(self, name: str, method: str, *arguments: Any) -> list[Any]:
        """Ask every replica; the handles of those that did it, at least one."""
        self.order.to("teacher")
        asked = [
            (getattr(handle, method).remote(*arguments), owner, handle)
            for owner, handle in self._pools[name].living()
        ]
        done = []
        for ref, owner, handle in asked:
            # The pool hears of a death by itself; no dead replica of a follower is replaced.
            with suppress(ActorDied):
                self.watch.get(ref, owner)
                done.append(handle)
        if not done:
            raise _none_left(name)
        return done

    def _save(self, name: str, path: str) -> None:
        """Have the first replica that lives write its weights: all have the same."""
        self.order.to("teacher")
        for owner, handle in self._pools[name].living():
            with suppress(ActorDied):
                self.watch.get(handle.save.remote(path), owner)
                return
        raise _none_left(name)

    def _share_head(self, name: str, handle: Any) -> None:
        """Hand a teacher's output head to the trainers, past this process.

        Where the replica dies before they have it, another gives it: all have the same.
        """
        while self._hidden:
            try:
                self.trainers.set_teacher_head(handle.output_head.remote(), name)
                return
            except ActorFailure as failure:
                # The ranks live, or else it were the loss of one: what they were to take is lost.
                if isinstance(failure, ActorLost) or not isinstance(
                    failure.__cause__, RayActorError
                ):
                    raise
                handle = self._other(name, handle)

    def _other(self, name: str, dead: Any) -> Any:
        """The handle of a replica once it is known that this one has died.

        Raises:
            ActorFailure: none is left, and none may be started.
        """
        pool = self._pools[name]
        self.watch.wait_until(
            lambda: dead not in [handle for _, handle in pool.living()],
            f"the death of a replica of teacher {name!r}",
        )
        return self._living(name, pool)


def _none_left(name: str) -> RunError:
    return RunError(
        f"teacher {name!r}, which follows the student: every replica died; resume the run from its "
        "last checkpoint"
    )


def _file(folder: str, name: str) -> str:
    return str(Path(folder) / f"{name}.safetensors")
