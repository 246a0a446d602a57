"""Training while the last rollouts are being written: the same step, in waves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stand_in_run import TWELVE, StandInRun

from opd_ray.config.choices import Scoring
from opd_ray.config.schema import RolloutSettings, RunSettings
from opd_ray.errors import ConfigError
from opd_ray.pools.watch import Interrupted
from opd_ray.tip import TipSettings, selection_rule
from opd_ray.tip.rule import RuleInputs

ROLLOUT = RolloutSettings(prompts_per_step=2, samples_per_prompt=6, max_num_seqs=2)
ORDERS = pytest.mark.parametrize("order", range(8))


def run_of(order: int, overlap: bool, **sections: Any) -> StandInRun:
    tip = {"rule": "soft_or", "rho": 0.3, "normalise_over": "rollout"} | sections.pop("tip", {})
    return StandInRun(
        TWELVE,
        order=order,
        run=RunSettings(steps=3, overlap=overlap),
        rollout=ROLLOUT,
        tip=TipSettings(**tip),
        **sections,
    )


def trained(run: StandInRun) -> dict[str, tuple[list[int], list[float]]]:
    return {n: (i.rows.tolist(), i.weights.tolist()) for n, i in sorted(run.trained().items())}


def waves(run: StandInRun) -> int:
    return len(run.trainers[0].steps[-1].waves)


@ORDERS
@pytest.mark.parametrize(
    ("tip", "scoring"),
    [
        ({}, Scoring.streamed),
        ({}, Scoring.exact),
        ({"selection": "soft"}, Scoring.streamed),
        ({"rule": "random"}, Scoring.streamed),
        ({"normalise_over": "turn", "share_of": "turn"}, Scoring.streamed),
    ],
)
def test_the_trainers_get_what_they_would_without(
    order: int, tip: dict[str, Any], scoring: Scoring
) -> None:
    plain, early = (run_of(order, on, tip=tip, scoring=scoring) for on in (False, True))
    for step in range(2):
        plain.step(step)
        early.step(step)
        assert trained(early) == trained(plain)
        assert waves(plain) == 0
        assert waves(early) > 0
        for one, other in zip(plain.trainers, early.trainers, strict=True):
            assert other.steps[-1].total_weight == pytest.approx(one.steps[-1].total_weight)
        ours, theirs = early.rows[-1][1], plain.rows[-1][1]
        for name in ("tip/kept_fraction", "tip/Q3/share", "train/kept_tokens"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-6), name
    assert not any(replica.held for replica in early.replicas)


@ORDERS
def test_a_wave_fills_the_micro_batches_of_all_ranks_and_comes_before_the_last_rollout(
    order: int,
) -> None:
    run = run_of(order, True)
    run.step(0)
    # Prompts of 2 and 3 tokens; two ranks with micro-batches of 8 tokens.
    rounds = [
        sum(len(item.text_ids) for rank in run.trainers for item in rank.steps[0].waves[number])
        for number in range(waves(run))
    ]
    assert all(rounds)
    first = [item for rank in run.trainers for item in rank.steps[0].waves[0]]
    assert {run.script.name(item.rollout_id) for item in first} < run.trained().keys()


def test_the_first_step_of_a_stream_waits_for_all_and_later_ones_do_not() -> None:
    tip = {"normalise_over": "stream"}
    plain, early = (run_of(0, on, tip=tip) for on in (False, True))
    for step, on in enumerate((False, True, True)):
        plain.step(step)
        early.step(step)
        assert (waves(early) > 0) is on
        assert trained(early) == trained(plain)


def test_a_score_that_a_stream_has_not_shown_yet_waits_for_the_whole_step() -> None:
    tip = {"normalise_over": "stream", "overlap": False}
    other = {"divergence": "forward_kl"}  # as a run may go on with
    first = run_of(0, True, tip=tip)
    first.step(0)
    plain, early = (run_of(0, on, tip=tip | other) for on in (False, True))
    for run in (plain, early):
        run._coordinator.tip.load_state_dict(first._coordinator.tip.state_dict())
    for step, on in ((1, False), (2, True)):
        plain.step(step)
        early.step(step)
        assert (waves(early) > 0) is on
        assert trained(early) == trained(plain)


@selection_rule(needs=("reverse_kl",))
def beyond(inputs: RuleInputs) -> np.ndarray:
    """Prefers small values as soon as there are many."""
    values = inputs.raw("reverse_kl")
    return values if len(values) < 70 else -values


def test_a_rule_that_looks_beyond_a_rollout_is_found_out() -> None:
    run = run_of(0, True, tip={"rule": f"{__name__}:beyond"})
    with pytest.raises(ConfigError, match=r"run.overlap = true: of rollout 0/.*looks beyond"):
        run.step(0)
    assert not run.trainers[0].steps, "no weight moves"


@selection_rule(needs=("reverse_kl",))
def rounding(inputs: RuleInputs) -> np.ndarray:
    """The last bit depends on how many values there are, as with some vectorised functions."""
    values = inputs.raw("reverse_kl") + np.float32(1)
    return values if len(values) < 70 else np.nextafter(values, np.float32(np.inf))


@selection_rule(needs=("reverse_kl",))
def relative(inputs: RuleInputs) -> np.ndarray:
    """By the mean of whatever is there."""
    values = inputs.raw("reverse_kl")
    return values / values.mean()


def test_a_weight_that_is_rounded_otherwise_is_no_other_choice() -> None:
    run = run_of(0, True, tip={"rule": f"{__name__}:rounding", "selection": "soft"})
    run.step(0)
    assert waves(run) > 0
    run = run_of(0, True, tip={"rule": f"{__name__}:relative", "selection": "soft"})
    with pytest.raises(ConfigError, match="looks beyond"):
        run.step(0)


def test_a_stop_in_the_tail_leaves_the_weights_of_the_last_whole_step() -> None:
    run = run_of(1, True)
    accumulate = run.trainers[0]._accumulate

    def stop(*given: Any) -> None:
        accumulate(*given)
        run.watch.stop_requested = len(run.trainers[0].steps) == 1

    run.trainers[0]._accumulate = stop  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        run.go(0)
    assert [state.step for state in run.saved] == [1]
    assert len(run.trainers[0].steps) == 1
