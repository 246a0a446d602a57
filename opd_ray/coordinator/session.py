"""The actors of training runs: started, checked against the plan, and at hand as pools."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from ray import ObjectRef
from transformers import PreTrainedTokenizerBase

from opd_ray.checksums import FileSum
from opd_ray.cluster.placement import plan_placement
from opd_ray.cluster.session import RaySession
from opd_ray.config.schema import Config
from opd_ray.pools.launch import ActorLauncher
from opd_ray.pools.scorer import RolloutScorer
from opd_ray.pools.teachers.router import TeacherRouter
from opd_ray.pools.turns import work_order
from opd_ray.pools.watch import ActorWatch, Interrupted
from opd_ray.pools.weights import TeacherWeights, WeightSync
from opd_ray.preflight.pairing import Pairing, check_teacher_info, uncompared_tokenizer
from opd_ray.signals import on_stop
from opd_ray.types import TeacherInfo


@dataclass
class Session:
    """The run's actors, their models loaded; one coordinator after another may work with them."""

    config: Config  # settled by the placement
    launcher: ActorLauncher  # of actors that are ready
    tokenizer: PreTrainedTokenizerBase  # the student's
    vocab_size: int  # real tokens that student and teacher share

    def __post_init__(self) -> None:
        teachers, watch = self.config.teacher_set, self.launcher.watch
        rollouts = self.launcher.rollout_pool()
        pools = self.launcher.teacher_pools()
        self.teachers = TeacherRouter(pools, teachers.routes)
        self.trainers = self.launcher.trainer_group()
        self.order = work_order(self.config.cluster, rollouts, self.teachers, self.trainers)
        fixed = self.config.run.deterministic
        self.scorer = RolloutScorer(watch, rollouts, self.teachers, self.order, fixed)
        settings = {n: (teachers.working[n].settings, pool) for n, pool in pools.items()}
        self._teacher_weights = TeacherWeights(watch, settings, self.trainers, self.order)
        self.sync = WeightSync(
            self.config, self.trainers, rollouts, self._teacher_weights, self.order
        )

    def save(self, folder: str) -> dict[str, FileSum]:
        """Write what trainers hold, and teachers that follow the student, into ``folder``.

        Returns:
            the sums of all files there.
        """
        self._teacher_weights.save(str(Path(folder) / "teachers"))
        self.order.to("trainer")
        return self.trainers.save(folder)

    def begin_save(self, folder: str) -> list[tuple[ObjectRef, str]]:
        """As :meth:`save`, but what trainers hold is copied now and written beside what comes next.

        Returns:
            references to the sums of the files of every rank, and who gives them.
        """
        self._teacher_weights.save(str(Path(folder) / "teachers"))
        self.order.to("trainer")
        return self.trainers.begin_save(folder)

    def have_room_to_copy(self) -> bool:
        """See :meth:`TrainerGroup.have_room_to_copy`."""
        self.order.to("trainer")
        return self.trainers.have_room_to_copy()

    def export(self, folder: str) -> None:
        """Write the student as a plain Hugging Face folder."""
        self.order.to("trainer")
        self.trainers.export(folder)

    def load(self, folder: str) -> None:
        """Read what :meth:`save` wrote."""
        self.order.to("trainer")
        self.trainers.load(folder)
        self._teacher_weights.load(str(Path(folder) / "teachers"))

    def restart_trainers(self) -> None:
        """Start all trainer ranks anew, as they began; what is under way anywhere is given up.

        Raises:
            ActorLost: one of the new ranks died, or did not come up in time.
            Interrupted: a stop was requested.
        """
        self.scorer.abandon()
        self.launcher.end_trainers()  # else their death ends the next wait too
        self.order.make_way()
        self.trainers.replace_by(self.launcher.restart_trainers())
        self.launcher.ask_new_trainers()
        self._teacher_weights.share_heads()
        self.sync.meet()

    def begin_anew(self) -> None:
        """Have what :meth:`load` reads as it was before any step, in trainers that begin anew."""
        self._teacher_weights.begin_anew()


@contextmanager
def open_session(
    config: Config,
    pairing: Pairing,
    own_topk: int,
    longest: Mapping[str, int],
    *,
    owns_process: bool = True,
) -> Iterator[Session]:
    """Ray and the run's actors for the time of the block; a signal to stop asks them to.

    Args:
        config: a whole and checked configuration; the session's is settled by the placement.
        pairing: of its student and teacher.
        own_topk: see :func:`opd_ray.preflight.models.own_topk`.
        longest: see :func:`opd_ray.preflight.prompts.check_routing`.
        owns_process: whether signals are this run's to hear, and a Ray that dies ends the program.
            If not, a KeyboardInterrupt asks for a stop, and a Ray that dies raises a RunError.

    Raises:
        PairingError: a teacher's actor is not the model that was checked.
        ActorFailure, StallError: an actor did not come up.
        KeyboardInterrupt: a stop was asked for while they were coming up.
    """
    with RaySession(config.cluster, ends_program=owns_process) as ray_session:
        placement = plan_placement(config, ray_session.cluster())
        settled = placement.settle(config)
        with (
            ActorLauncher(
                settled, placement, vocab_size=pairing.vocab_size, own_topk=own_topk
            ) as launcher,
            _stop_on_signal(launcher.watch) if owns_process else nullcontext(),
        ):
            ray_session.when_dead(launcher.watch.fail)
            launcher.watch.interrupt_stops = not owns_process
            try:
                infos = launcher.ready()
            except Interrupted as stop:
                # The run has done nothing that it could save.
                raise KeyboardInterrupt(str(stop)) from stop
            for note in _teacher_notes(settled, pairing, infos, longest):
                print(f"opd-ray: {note}", file=sys.stderr)
            yield Session(settled, launcher, pairing.tokenizer, pairing.vocab_size)


def _teacher_notes(
    config: Config, pairing: Pairing, infos: Mapping[str, TeacherInfo], longest: Mapping[str, int]
) -> list[str]:
    """What a user should know of how the teachers differ from the student.

    Raises:
        PairingError: a teacher's actor is not the model that was checked.
    """
    working = config.teacher_set.working
    notes = [f"accepted difference of {text}" for text in pairing.accepted]
    for name, info in infos.items():
        check_teacher_info(
            pairing,
            info,
            context_length=max(config.student.context_length, longest.get(name, 0)),
            accept=working[name].accepted,
        )
        if note := uncompared_tokenizer(info, working[name].models):
            notes.append(note)
    return notes


@contextmanager
def _stop_on_signal(watch: ActorWatch) -> Iterator[None]:
    """The first signal to stop asks for a stop with a checkpoint, a second ends it at once."""

    def ask() -> None:
        if watch.stop_requested:
            raise KeyboardInterrupt
        watch.stop_requested = True

    with on_stop(ask):
        yield
