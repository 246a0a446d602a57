"""A step whose rollouts come in waves: the plain step, for every ZeRO stage, split and format."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import reduce
from operator import add

import numpy as np
import pytest
from tiny_models import make_tiny_qwen3
from trainer_data import ROWS, VOCAB, ragged_items, share_out, teacher_head, total_weight
from trainer_ranks import Ranks, shared_ranks

from actors.trainer.batch import BatchError
from actors.trainer.trainer import TrainerError
from opd_ray.config.choices import Dtype
from opd_ray.config.schema import TrainerSettings
from opd_ray.errors import PeerFailure
from opd_ray.step_account import StepAccount
from opd_ray.types import HiddenSignal

# With an epsilon this large Adam's step is in proportion to the gradient, as its size shows.
LARGE = 1e8
MAX_NORM = 1.0
TOLERANCE = {Dtype.float32: 1e-6, Dtype.bfloat16: 2e-3}
STAGES = (0, 1, 2, 3)
FORMATS = [(stage, Dtype.float32) for stage in STAGES]
FORMATS += [(stage, Dtype.bfloat16) for stage in STAGES if stage]  # 0 is 1 in bfloat16


def settings(stage: int, dtype: Dtype = Dtype.float32) -> TrainerSettings:
    return TrainerSettings(
        zero_stage=stage,
        dtype=dtype,
        adam_eps=LARGE,
        weight_decay=0.0,
        max_grad_norm=MAX_NORM,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_qwen3(tmp_path_factory.mktemp("student"), vocab=ROWS)


@pytest.fixture(scope="module")
def data():
    return ragged_items(14)


def plan_of(items, ranks: int):
    """``[rank][micro]``: four micro-batches a rank; in the third only rank 0 has rollouts."""
    plan = share_out(items, ranks, 4)
    for own in plan[1:]:
        own[3] += own[2]
        own[2] = []
    return plan


def plain(group: Ranks, plan, total: float, signals, rate: float = 0.1) -> StepAccount:
    arguments = [(own, total, rate * LARGE, signals) for own in plan]
    return reduce(add, group.call_each("train_step", arguments))


def waves(
    group: Ranks, plan, cuts, total: float, signals, rate: float = 0.1, *, score: bool = False
) -> StepAccount:
    """A wave for each of ``cuts`` (slices of the micro-batches), then a step with what is left."""
    for cut in cuts:
        group.call_each("accumulate", [(own[cut], signals) for own in plan])
        if score:
            group.call_each("score", [(own, signals) for own in plan])
    return plain(group, [own[cuts[-1].stop :] for own in plan], total, signals, rate)


def assert_same_account(found: StepAccount, wanted: StepAccount, tolerance: float) -> None:
    assert found.kept_tokens == wanted.kept_tokens
    assert found.learning_rate == wanted.learning_rate
    for name in ("loss_sum", "weight_sum", "gap_sum", "gap_max", "grad_norm"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=tolerance), name


@pytest.mark.parametrize(("stage", "dtype"), FORMATS)
@pytest.mark.parametrize("world_size", [1, 2])
def test_equal_to_plain_steps(world_size, stage, dtype, folder, data):
    """The first step is clipped, the second is not; the third is plain, whatever went before it.

    Dividing by a power of two rounds nothing: these are equal bit for bit. The last is clipped and
    has another divisor.
    """
    items, signals = data
    group, plan, total = shared_ranks(world_size), plan_of(items, world_size), total_weight(items)
    found = []
    for in_waves in (False, True):
        group.start(folder, settings(stage, dtype), vocab_size=VOCAB, head=teacher_head())
        accounts, weights = [], [group.weights()]
        for number, (divisor, rate, cuts) in enumerate(
            (
                (64.0, 0.1, [slice(0, 1), slice(1, 3)]),
                (2048.0, 2.0, [slice(0, 2), slice(2, 4)]),  # nothing is left for the step itself
                (total, 0.1, None),
                (total, 0.1, [slice(0, 3)]),
            )
        ):
            if in_waves and cuts:
                score = number == 0
                accounts.append(waves(group, plan, cuts, divisor, signals, rate, score=score))
            else:
                accounts.append(plain(group, plan, divisor, signals, rate))
            weights.append(group.weights())
        found.append((accounts, weights))
    (accounts, weights), (accounts_of_waves, weights_of_waves) = found
    assert accounts[0].grad_norm > 2 * MAX_NORM > 4 * accounts[1].grad_norm
    assert accounts[3].grad_norm > 2 * MAX_NORM
    for account, wanted, tolerance in zip(
        accounts_of_waves, accounts, (0.0, 0.0, 0.0, TOLERANCE[dtype]), strict=True
    ):
        assert_same_account(account, wanted, tolerance)
    for name in weights[0]:
        for number in range(4):
            np.testing.assert_array_equal(weights_of_waves[number][name], weights[number][name])
    before, wanted, after = (
        np.concatenate([w.ravel() for w in some.values()])
        for some in (weights[3], weights[4], weights_of_waves[4])
    )
    if dtype == Dtype.float32:
        assert np.linalg.norm(after - wanted) < 1e-5 * np.linalg.norm(wanted - before)
    else:  # a few weights are rounded to their neighbour
        assert np.mean(wanted != before) > 0.3
        assert np.mean(after != wanted) < 0.01


@pytest.mark.parametrize("stage", [0, 3])
def test_a_loss_that_is_no_number_in_the_first_wave_is_found_at_the_step(stage, folder, data):
    items, signals = data
    group = shared_ranks(2)
    group.start(folder, settings(stage), vocab_size=VOCAB, head=teacher_head())
    before = group.weights()
    hidden = signals["r5"].hidden.copy()
    hidden[0, 0] = np.nan
    broken = {**signals, "r5": HiddenSignal(hidden)}
    first, second = share_out(items, 2, 2), share_out(items[:4], 2, 1)
    group.call_each("accumulate", [(own, broken) for own in first])
    group.call_each("accumulate", [(own, signals) for own in second])
    outcomes = group.outcomes("train_step", [([], 9.0, 0.1, signals)] * 2)
    assert [type(outcome) for outcome in outcomes] == [PeerFailure, TrainerError]
    assert "the divergence is NaN or infinite in rollouts ['r5']" in str(outcomes[1])
    for name, weight in group.weights().items():
        np.testing.assert_array_equal(weight, before[name])


def test_a_refused_wave_adds_nothing_and_hangs_nobody(folder, data):
    """So does a refused step: the waves before it are kept."""
    items, signals = data
    group, plan, total = shared_ranks(2), plan_of(items, 2), total_weight(items)
    bad = replace(items[2], response_ids=np.full_like(items[2].response_ids, VOCAB))
    refused = [[plan[0][1]], [[bad]]]
    found = []
    for in_waves in (False, True):
        group.start(folder, settings(2), vocab_size=VOCAB, head=teacher_head())
        if in_waves:
            group.call_each("accumulate", [(own[:2], signals) for own in plan])
            for method, arguments in (("accumulate", ()), ("train_step", (total, 0.1))):
                outcomes = group.outcomes(method, [(own, *arguments, signals) for own in refused])
                assert [type(outcome) for outcome in outcomes] == [PeerFailure, BatchError]
                assert f"rollout r2: response token 0 has id {VOCAB}" in str(outcomes[1])
            found.append(plain(group, [own[2:] for own in plan], total, signals))
        else:
            found.append(plain(group, plan, total, signals))
    assert_same_account(found[1], found[0], 1e-6)


def test_a_step_that_no_rank_takes_ends_the_waves_before_it(folder, data):
    items, signals = data
    group, plan, total = shared_ranks(2), plan_of(items, 2), total_weight(items)
    group.start(folder, settings(2), vocab_size=VOCAB, head=teacher_head())
    wanted = plain(group, plan, total, signals, 0.0)
    nothing = [[[items[1]], []], [[], []]]
    assert len(items[1].rows) == 0
    skipped = waves(group, nothing, [slice(0, 1)], 0.0, signals)
    assert (skipped.skipped, skipped.grad_norm, skipped.trunk_tokens) == (True, 0.0, 2)
    assert_same_account(plain(group, plan, total, signals, 0.0), wanted, 0.0)

    group.call_each("accumulate", [(own[:2], signals) for own in plan])
    outcomes = group.outcomes("train_step", [(own[2:], 0.0, 0.1, signals) for own in plan])
    kept = [sum(len(item.rows) for micro in own[:2] for item in micro) for own in plan]
    assert [str(outcome) for outcome in outcomes] == [
        f"total_weight is 0 after waves with {number} kept tokens" for number in kept
    ]
    found = plain(group, [own[2:] for own in plan], total, signals, 0.0)
    assert_same_account(found, wanted, 1e-6)


def test_the_seconds_are_those_of_the_waves_too(folder, data):
    items, signals = data
    group, plan = shared_ranks(1), plan_of(items, 1)
    group.start(folder, settings(0), vocab_size=VOCAB, head=teacher_head())
    started = time.perf_counter()
    found = waves(group, plan, [slice(0, 3), slice(3, 4)], 9.0, signals)
    passed = time.perf_counter() - started
    alone = plain(group, [[]], 9.0, signals)
    assert alone.seconds < found.seconds < passed
    assert (found.trunk_tokens, alone.trunk_tokens) == (
        sum(len(item.text_ids) for item in items if len(item.rows)) + 1,
        1,
    )
