"""The order of steps, evaluations and checkpoints, and the stop on engines that disagree."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from opd_ray.config.schema import Config, EvalSettings, RunSettings, SyncSettings
from opd_ray.coordinator.loop import Coordinator, SyncGapError
from opd_ray.pools.turns import AllAtOnce
from opd_ray.pools.watch import Interrupted
from opd_ray.step_account import StepAccount


class Recorded(Coordinator):
    """Writes down what it would do; an evaluation or step named ``stop_at`` is interrupted."""

    def __init__(self, stop_at: str = "", **settings: Any) -> None:
        run = RunSettings(steps=4, checkpoint_every=settings.pop("checkpoint_every", 0))
        config = Config(run=run, eval=EvalSettings(every=settings.pop("every", 0)), **settings)
        sync = SimpleNamespace(push=lambda version: self.log(f"push {version}"))
        nothing: Any = None
        scorer = SimpleNamespace(watch=SimpleNamespace(), counts=lambda: None)
        order = AllAtOnce(watch=nothing)
        session: Any = SimpleNamespace(sync=sync, scorer=scorer, order=order)
        progress: Any = SimpleNamespace(tick=lambda: None)
        super().__init__(config, session, *[nothing] * 5, progress)
        self.said: list[str] = []
        self._stop_at = stop_at

    def log(self, what: str) -> None:
        if what == self._stop_at:
            raise Interrupted
        self.said.append(what)

    def step(self, step: int) -> None:
        self.log(f"step {step}")

    def _evaluate(self, step: int) -> None:
        self.log(f"evaluate {step}")

    def _save(self, done: int, *, last: bool) -> None:
        self.log(f"save {done}{' as the last' if last else ''}")


def test_a_whole_run() -> None:
    run = Recorded(every=2, checkpoint_every=3)
    run.run(0)
    assert run.said == [
        "push 0",
        "evaluate 0",
        *("step 0", "step 1", "evaluate 2"),
        *("step 2", "save 3"),
        *("step 3", "evaluate 4", "save 4 as the last"),
    ]


@pytest.mark.parametrize("cut", [2, 4])
def test_an_evaluation_that_was_cut_short_is_made_when_the_run_goes_on(cut: int) -> None:
    first = Recorded(f"evaluate {cut}", every=2)
    with pytest.raises(Interrupted):
        first.run(0)
    assert first.said[-1] == f"save {cut} as the last"
    second = Recorded(every=2)
    second.run(cut)
    assert second.said[:2] == [f"push {cut}", f"evaluate {cut}"]
    third = Recorded(every=2)
    third.run(cut, evaluated=True)
    assert f"evaluate {cut}" not in third.said


def test_going_on_between_two_evaluations_makes_none() -> None:
    run = Recorded(every=2)
    run.run(3)
    assert run.said == ["push 3", "step 3", "evaluate 4", "save 4 as the last"]


def account(gap_mean: float) -> StepAccount:
    return StepAccount(
        loss_sum=0.3,
        weight_sum=3.0,
        kept_tokens=3,
        trunk_tokens=0,
        padding_tokens=0,
        grad_norm=1.0,
        learning_rate=0.1,
        gap_sum=3 * gap_mean,
        gap_max=1.0,
        skipped=False,
        seconds=1.0,
    )


def test_engines_that_disagree_stop_the_run() -> None:
    run = Recorded(sync=SyncSettings(max_gap=0.05))
    run._check_gap(account(0.049).gap_mean, "step 1")
    with pytest.raises(SyncGapError, match=r"0\.051"):
        run._check_gap(account(0.051).gap_mean, "step 1")
