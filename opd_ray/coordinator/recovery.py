"""When a trainer rank dies or hangs: all start again, and the run goes back and does steps again.

Rollout actors and teachers stay up. What they have under way is given up, and they get the weights
that the run goes back to.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from opd_ray.coordinator.loop import Coordinator
from opd_ray.coordinator.session import Session
from opd_ray.errors import ActorFailure, ActorLost, ConnectionLost, DamagedCheckpoint
from opd_ray.pools.watch import Interrupted

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Point:
    """What a run can go back to."""

    step: int  # steps taken
    filter_state: dict[str, Any]
    # What :meth:`Session.load` reads, and rollouts of the next step, if any; None: as it began.
    trainer: Path | None
    name: str  # for messages


@dataclass(frozen=True)
class Recovery:
    """Runs a coordinator to its end, with new trainers where they died."""

    coordinator: Coordinator
    newest: Callable[[], Point]  # of this run
    evaluated: Callable[[int], bool]  # whether the metrics have an evaluation at a step
    # Told of a damaged checkpoint, and why: it is the newest no more. None: there are none.
    pass_over: Callable[[Path, str], None] | None = None

    def run(
        self,
        done: int,
        *,
        evaluated: bool,
        begin: Callable[[], object] = lambda: None,
        then: Callable[[], _Result],
    ) -> _Result:
        """All steps after ``done``, then what else needs the trainers.

        Args:
            done: steps taken before.
            evaluated: see :meth:`Coordinator.run`.
            begin: called before all; where a rank dies meanwhile, going back takes its place.
            then: called after the last step, again where a rank dies meanwhile.

        Raises:
            ActorFailure: a rank died, or hung, once more often than ``trainer.max_restarts``; or
                any other actor failed.
            Interrupted: a stop was asked for; also where a rank dies after that.
        """
        self.coordinator.done = done
        loss: ActorLost | None = None
        while True:
            try:
                if loss is None:
                    begin()
                else:
                    done, loss = self._go_back(loss), None
                    evaluated = self.evaluated(done)
                self.coordinator.run(done, evaluated=evaluated)
                return then()
            except ActorFailure as failure:
                loss = self._survivable(failure)

    def _survivable(self, failure: ActorFailure) -> ActorLost:
        """The loss of a rank, if it was one, and ranks may be started again; else raises."""
        coordinator = self.coordinator
        loss = _loss_of_a_rank(failure, coordinator.session.launcher.trainer_names)
        if loss is None:
            raise failure
        if coordinator.session.launcher.watch.stop_requested:
            coordinator.saving.abandon()
            coordinator.progress.say(
                f"{_in_a_line(loss)}: as the run is to stop, no rank starts again, and steps after "
                f"step {self.newest().step} are lost"
            )
            raise Interrupted(f"stopped; {loss}") from loss
        allowed = coordinator.config.trainer.max_restarts
        if coordinator.restarts >= allowed and not loss.never_ran:
            raise ActorFailure(
                loss.owner,
                f"{loss.cause}; trainer.max_restarts = {allowed} allows no further start. The same "
                f"command goes on from {self.newest().name}",
            ) from loss
        return loss

    def _go_back(self, loss: ActorLost) -> int:
        """New trainers, and the run as it was at the newest point; the steps taken by then."""
        coordinator, begin = self.coordinator, time.monotonic()
        session, say = coordinator.session, coordinator.progress.say
        point = self.newest()
        coordinator.restarts += not loss.never_ran
        again = coordinator.done - point.step
        say(
            f"{_in_a_line(loss)}: all ranks start again and go on from step "
            f"{point.step} ({point.name}), "
            f"{again} {'step is' if again == 1 else 'steps are'} done again "
            f"({coordinator.restarts} of trainer.max_restarts = "
            f"{coordinator.config.trainer.max_restarts})"
        )
        coordinator.saving.abandon()
        session.restart_trainers()
        point = self._load(point)
        coordinator.go_back(point.step, point.filter_state, point.trainer)
        say(f"all ranks are up again, after {time.monotonic() - begin:.1f} s")
        return point.step

    def _load(self, point: Point) -> Point:
        """Have the new trainers go on from there, or from before it if that is damaged."""
        coordinator = self.coordinator
        while True:
            if point.trainer is None:
                coordinator.session.begin_anew()
                return point
            try:
                coordinator.session.load(str(point.trainer))
                return point
            except DamagedCheckpoint as damage:
                if self.pass_over is None:
                    raise
                self.pass_over(point.trainer.parent, str(damage))
                point = self.newest()
                coordinator.progress.say(
                    f"passed over: {damage}; the run goes on from step {point.step} ({point.name})"
                )


def load_first(session: Session, folder: str) -> None:
    """As :meth:`Session.load`, by ranks that have just come up; where one dies, all start again.

    These starts are counted apart, as those of ranks that die while they come up.

    Raises:
        DamagedCheckpoint: see :meth:`TrainerGroup.load`.
        ActorFailure: a rank died once more often than ``trainer.max_restarts``; or any other actor
            failed.
        KeyboardInterrupt: a stop was asked for meanwhile: the run has done nothing to be saved.
    """
    allowed, restarts = session.config.trainer.max_restarts, 0
    loss: ActorLost | None = None
    while True:
        try:
            if loss is not None:
                session.restart_trainers()
            session.load(folder)
            return
        except Interrupted as stop:
            raise KeyboardInterrupt(str(stop)) from stop
        except ActorFailure as failure:
            loss = _loss_of_a_rank(failure, session.launcher.trainer_names)
            if loss is None:
                raise
            if restarts >= allowed and not loss.never_ran:
                raise ActorFailure(
                    loss.owner,
                    f"{loss.cause}; it died while the run's checkpoint was read, and "
                    f"trainer.max_restarts = {allowed} allows no further start",
                ) from loss
            restarts += not loss.never_ran
            print(
                f"opd-ray: {_in_a_line(loss)} while the run's checkpoint was read: all ranks start "
                f"again ({restarts} of trainer.max_restarts = {allowed})",
                file=sys.stderr,
            )


def _loss_of_a_rank(failure: ActorFailure, names: Sequence[str]) -> ActorLost | None:
    """That of one of these ranks, if it was one."""
    # Such connections lead to ranks alone; which one no longer answers may not be known yet.
    if isinstance(failure.__cause__, ConnectionLost):
        return ActorLost(names[0], failure.owner, failure.cause)
    if isinstance(failure, ActorLost) and failure.name in names:
        return failure
    return None


def _in_a_line(loss: ActorLost) -> str:
    return " ".join(str(loss).split())
