"""When a trainer rank dies or hangs: all start again, and the run goes back and does steps again.

Rollout actors and teachers stay up. What they have under way is given up, and they get the weights
that the run goes back to.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from opd_ray.coordinator.loop import Coordinator
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

    def run(self, done: int, *, evaluated: bool, then: Callable[[], _Result]) -> _Result:
        """All steps after ``done``, then what else needs the trainers.

        Args:
            done: steps taken before.
            evaluated: see :meth:`Coordinator.run`.
            then: called after the last step, again where a rank dies meanwhile.

        Raises:
            ActorFailure: a rank died, or hung, once more often than ``trainer.max_restarts``; or
                any other actor failed.
            Interrupted: a stop was asked for; also where a rank dies after that.
        """
        loss: ActorLost | None = None
        while True:
            try:
                if loss is not None:
                    done, loss = self._go_back(loss), None
                    evaluated = self.evaluated(done)
                self.coordinator.run(done, evaluated=evaluated)
                return then()
            except ActorFailure as failure:
                loss = self._survivable(failure)

    def _survivable(self, failure: ActorFailure) -> ActorLost:
        """The loss of a rank, if it was one, and ranks may be started again; else raises."""
        coordinator = self.coordinator
        names = coordinator.session.launcher.trainer_names
        # Such connections lead to ranks alone; which one no longer answers may not be known yet.
        if isinstance(failure.__cause__, ConnectionLost):
            failure = ActorLost(names[0], failure.owner, failure.cause)
        if not isinstance(failure, ActorLost) or failure.name not in names:
            raise failure
        loss = failure
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


def _in_a_line(loss: ActorLost) -> str:
    return " ".join(str(loss).split())
