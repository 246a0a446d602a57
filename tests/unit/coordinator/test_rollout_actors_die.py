"""Whole runs in which rollout actors die at random moments: every step is that of a calm run."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from stand_in_run import StandInRun
from stand_ins import Engine, Response

from opd_ray.config.choices import PlacementChoice, Scoring
from opd_ray.config.schema import ClusterSettings, RolloutSettings, RunSettings
from opd_ray.tip import TipSettings

RESPONSES = {
    f"{prompt}{sample}": Response(
        mask=[1] * (2 + sample),
        logprob=[-0.1] * (2 + sample),
        reverse_kl=[0.1 * (1 + (7 * token + sample) % 5) for token in range(2 + sample)],
        exact_kl=[0.1 * (1 + (7 * token + sample) % 5) for token in range(2 + sample)],
    )
    for prompt in "ab"
    for sample in range(4)
}
STEPS = 4


def run_of(order: int, placement: str = "separate", **run: Any) -> StandInRun:
    return StandInRun(
        RESPONSES,
        order=order,
        cluster=ClusterSettings(placement=PlacementChoice(placement)),
        run=RunSettings(steps=STEPS, **run),
        rollout=RolloutSettings(
            prompts_per_step=2, samples_per_prompt=4, max_num_seqs=2, max_restarts=1000
        ),
        tip=TipSettings(rule="soft_or", rho=0.5, normalise_over="rollout"),
        scoring=Scoring.streamed,
    )


def with_deaths(run: StandInRun, draw: Random, often: float) -> list[Engine]:
    """Every event may come with a death; those that died."""
    turn, died = run.watch.turn, []

    def fatal(what: str) -> None:
        if draw.random() < often:
            engine = draw.choice([e for e in run.watch.current.values() if isinstance(e, Engine)])
            if not engine.dead:
                engine.die()
                died.append(engine)
        turn(what)

    run.watch.turn = fatal
    return died


def trained(run: StandInRun) -> list[dict[str, list[int]]]:
    """The kept rows of every step by response; each rollout is trained on once."""
    steps = []
    for number in range(STEPS):
        items = [item for trainer in run.trainers for item in trainer.steps[number].items]
        named = {run.script.name(item.rollout_id): item.rows.tolist() for item in items}
        assert len(named) == len(items)
        steps.append(named)
    return steps


@pytest.mark.parametrize("mode", [{}, {"overlap": True}, {"lag": 1}, {"placement": "turns"}])
@pytest.mark.parametrize("order", range(6))
def test_every_step_is_that_of_a_run_in_which_nobody_died(mode: Any, order: int) -> None:
    calm, disturbed = run_of(order, **mode), run_of(order, **mode)
    calm.go(0)
    died = with_deaths(disturbed, Random(order), 0.05)
    disturbed.go(0)
    assert died
    assert trained(disturbed) == trained(calm)
    written, steps = [
        [row for row in run.rows if "train/loss" in row[1]] for run in (calm, disturbed)
    ]
    assert [step for step, _ in steps] == [1, 2, 3, 4]
    for (_, before), (_, after) in zip(written, steps, strict=True):
        for name in ("rollout/weights_version", "rollout/tokens", "train/kept_tokens"):
            assert after[name] == before[name], name
        assert before["rollout/restarts"] == before["rollout/rewritten"] == 0
    # Those that come later are in no step any more.
    assert 0 < sum(row["rollout/restarts"] for _, row in steps) <= len(died)
