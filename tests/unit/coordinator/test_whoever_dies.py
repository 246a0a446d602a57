"""Whole runs in which actors of every role die at random moments, several at once too.

Evaluations write and score as real ones do. What comes out is what a calm run comes to.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from recovering_run import KINDS, LOSS, figures, recovery_of, run_of, trained
from stand_in_run import StandInRun, ids
from stand_ins import Engine, Teacher

from opd_ray.config.schema import RolloutSettings
from opd_ray.errors import RunError
from opd_ray.pools.rollouts import run_sampling
from opd_ray.types import RolloutRequest

ALL_KINDS: dict[str, dict[str, Any]] = {
    **{name: kind for name, kind in KINDS.items() if "followed" not in name},
    "deterministic": {"run": {"deterministic": True}},
    "deterministic lag": {"run": {"deterministic": True, "lag": 1}},
}
OFTEN = 0.02  # of all events


def disturbed(folder: Path, kind: str, order: int) -> StandInRun:
    """A run whose actors may all be started again as often as they die."""
    rollout = RolloutSettings(
        prompts_per_step=2, samples_per_prompt=2, max_num_seqs=2, max_restarts=1000
    )
    run = run_of(folder, order=order, restarts=1000, rollout=rollout, **ALL_KINDS[kind])
    for pool in run._coordinator.session.teachers.pools.values():
        policy = pool._replicas._policy
        pool._replicas._policy = replace(policy, max_restarts=1000)
    run._coordinator.evaluator = SimpleNamespace(run=lambda show: measure(run))
    return run


def measure(run: StandInRun) -> dict[str, float]:
    """Answers that no teacher reads, then rollouts whose rows the trainers score."""
    session, sampling = run._coordinator.session, run_sampling(run.config.rollout)
    session.order.to("rollout")
    answers = session.scorer.rollouts.write(asked("answer"), sampling)
    assert len({one.rollout_id for one in answers}) == 4
    scored = session.scorer.start(asked("kl"), sampling, {}).result().rollouts
    take = session.order.handing_over(session.teachers.take)
    assert len(session.trainers.score([one.whole() for one in scored], take)) == 4
    return {"eval/accuracy": 1.0}


def asked(what: str) -> list[RolloutRequest]:
    return [
        RolloutRequest(f"{what}/{key}/{sample}", key, sample, ids(text), 0, source=source)
        for key, text, source in (("a", "why", "sums"), ("b", "so", "code"))
        for sample in range(2)
    ]


def with_deaths(run: StandInRun, draw: Random) -> set[str]:
    """Every wait and every event in it may come with a death, or with two at once; who died."""
    died: set[str] = set()
    turn = run.watch.turn

    def strike() -> None:
        role = draw.choice([Engine, Teacher, None])
        if role is None:
            run.watch.death = LOSS
            died.add("trainer-1")
            return
        victim = draw.choice([one for one in run.watch.current.values() if isinstance(one, role)])
        victim.die()
        died.add(victim.name)

    def now_and_then(_: object = None) -> None:
        if draw.random() < OFTEN:
            for _ in range(draw.choice([1, 1, 2])):
                strike()

    def fatal(what: str) -> None:
        now_and_then()
        turn(what)

    run.watch.turn = fatal
    run.watch.before_wait = now_and_then
    return died


@pytest.mark.parametrize(("order", "kind"), enumerate(ALL_KINDS))
def test_the_run_comes_to_what_a_calm_one_does(tmp_path: Path, order: int, kind: str) -> None:
    calm, run = disturbed(tmp_path / "calm", kind, order), disturbed(tmp_path / "run", kind, order)
    calm._coordinator.run(0)
    died = with_deaths(run, Random(order))
    try:
        assert recovery_of(run, tmp_path / "run").run(0, evaluated=False, then=list) == []
    except RunError as error:
        # A rollout's writer and its teacher, while the next ones are written: this ends a run.
        if "lag" not in kind or "run the same command to go on" not in str(error):
            raise
    else:
        assert figures(run) == figures(calm)
        assert trained(run) == trained(calm)
        assert [rank.taken for rank in run.trainers] == [5, 5]
    assert len(died) > 1
