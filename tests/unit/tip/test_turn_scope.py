"""The scope turn: shares and normalisation within each turn of each rollout."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_ray.tip import (
    RuleInputs,
    TipFilter,
    TipSettings,
    TokenScores,
    batch_scores,
    rule_names,
    selection_rule,
)
from opd_ray.tip.ragged import run_lengths
from opd_ray.types import Rollout, RolloutScores

# Two rollouts: turns of 4 and 2 tokens with 2 of a tool between them, then a turn of 3 and, after
# one of a tool, of 1.
LENGTHS = [8, 5]
MASK = [1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0, 1]
TURNS = [0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1]
KL = [5, 6, 7, 8, 90, 91, 1, 2, 0.3, 0.1, 0.2, 99, 0.4]


def batch(**changes: Any) -> TokenScores:
    fields: dict[str, Any] = {
        "lengths_R": np.array(LENGTHS),
        "response_mask_N": np.array(MASK),
        "vocab_size": 16,
        "entropy_N": np.zeros(13),
        "reverse_kl_N": np.array(KL),
        "turns_N": np.array(TURNS, np.int16),
    }
    return TokenScores(**(fields | changes))


def weights(scores: TokenScores, step: int = 0, **keys: Any) -> np.ndarray:
    seeds_R = np.arange(len(scores.lengths_R)) + 7
    return TipFilter(TipSettings(**keys)).select(scores, seeds_R, step).weights_N


@pytest.mark.parametrize(
    ("share_of", "rho", "kept"),
    [
        # Half of 4, 2, 3 and 1 tokens: 2, 1, 1 and 0.
        ("turn", 0.5, [2, 3, 7, 8]),
        # Half of 6 and 4.
        ("rollout", 0.5, [1, 2, 3, 8, 12]),
        ("batch", 0.5, [0, 1, 2, 3, 7]),
        ("turn", 1.0, [0, 1, 2, 3, 6, 7, 8, 9, 10, 12]),
        ("turn", 0.25, [3]),
    ],
)
def test_the_share_is_taken_in_each_turn(share_of: str, rho: float, kept: list[int]) -> None:
    found = weights(batch(), rule="divergence_topk", rho=rho, share_of=share_of)
    assert np.flatnonzero(found).tolist() == kept


def test_scores_are_normalised_in_each_turn() -> None:
    found = weights(batch(), selection="soft", normalise_over="turn")
    third = 1 / 3
    expected = [0, third, 2 * third, 1, 0, 0, 0, 1, 1, 0, 0.5, 0, 0]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    ranks = weights(batch(), selection="soft", normalise_over="turn", normalisation="rank")
    np.testing.assert_allclose(ranks, expected, atol=1e-6)


def test_others_keep_as_many_tokens_of_each_turn() -> None:
    entropy = np.array([1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0]) * 0.5
    keys = {"rule": "divergence_topk", "rho": 0.5, "share_of": "turn"}
    selection = TipFilter(TipSettings(**keys)).select(batch(entropy_N=entropy), np.zeros(2), 0)
    # 2, 3, 7 and 8 are kept; entropy_topk keeps 0 and 1, 7, and 10.
    assert selection.overlaps["entropy_topk"] == pytest.approx(1 / 7)
    assert selection.kept_fraction == pytest.approx(4 / 10)


def naive(scores: TokenScores, percent: int, values_N: np.ndarray) -> list[int]:
    """Turn by turn: the greatest, of equal ones the earlier, as many as the share allows."""
    kept: list[int] = []
    start = 0
    for length in scores.lengths_R.tolist():
        written = [i for i in range(start, start + length) if scores.response_mask_N[i]]
        start += length
        turns = {int(scores.turns_N[i]) for i in written} if scores.turns_N is not None else {0}
        for turn in turns:
            own = [i for i in written if scores.turns_N is None or scores.turns_N[i] == turn]
            best = sorted(own, key=lambda i: (-values_N[i], i))
            kept += best[: percent * len(own) // 100]
    return sorted(kept)


def naive_min_max(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros(len(values))


@st.composite
def conversations(draw: st.DrawFn) -> TokenScores:
    """Rollouts of turns with tools between them; turns may be of tools alone, or be passed over."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    parts = draw(
        st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), max_size=5), min_size=1)
    )
    lengths, mask, turns = [], [], []
    for rollout in parts:
        before = len(mask)
        for turn, (own, tool) in enumerate(rollout):
            mask += [1] * own + [0] * tool
            turns += [turn] * (own + tool)
        lengths.append(len(mask) - before)
    total = len(mask)
    few = draw(st.booleans())
    kl = rng.integers(0, 3, total).astype(float) if few else rng.gamma(0.5, 1.0, total)
    return TokenScores(
        np.array(lengths),
        np.array(mask, bool),
        16,
        entropy_N=rng.random(total),
        reverse_kl_N=np.where(np.array(mask, bool), kl, np.nan),
        turns_N=np.array(turns, int),
    )


@settings(max_examples=150, deadline=None)
@given(scores=conversations(), percent=st.integers(0, 100))
def test_equals_a_loop_over_turns(scores: TokenScores, percent: int) -> None:
    keys: dict[str, Any] = {"overlap": False, "share_of": "turn", "rho": percent / 100}
    assert scores.reverse_kl_N is not None
    found = weights(scores, rule="divergence_topk", **keys)
    assert np.flatnonzero(found).tolist() == naive(scores, percent, scores.reverse_kl_N)
    assert scores.turns_N is not None
    start, expected = 0, np.zeros(len(found))
    for length in scores.lengths_R.tolist():
        for turn in range(5):
            own = [
                i
                for i in range(start, start + length)
                if scores.response_mask_N[i] and scores.turns_N[i] == turn
            ]
            if own:
                # With an entropy of 0 the soft_or is the normalised divergence.
                expected[own] = naive_min_max(scores.reverse_kl_N[own].astype(np.float64))
        start += length
    flat = TokenScores(
        scores.lengths_R,
        scores.response_mask_N,
        16,
        entropy_N=np.zeros(len(found)),
        reverse_kl_N=scores.reverse_kl_N,
        turns_N=scores.turns_N,
    )
    soft = weights(flat, selection="soft", normalise_over="turn", overlap=False)
    np.testing.assert_allclose(soft, expected, atol=2e-6)


def random_batch(seed: int, turns: np.ndarray | None) -> TokenScores:
    rng = np.random.default_rng(seed)
    lengths = np.array([40, 0, 3, 57])
    return TokenScores(
        lengths,
        rng.random(100) < 0.8,
        16,
        entropy_N=rng.gamma(0.5, 0.5, 100).clip(0, 2),
        reverse_kl_N=rng.gamma(0.5, 1.0, 100),
        forward_kl_N=rng.gamma(0.5, 1.0, 100),
        jsd_N=rng.random(100) / 2,
        teacher_mass_N=rng.random(100),
        union_forward_kl_N=rng.gamma(0.5, 1.0, 100),
        turns_N=turns,
    )


@pytest.mark.parametrize("rule", rule_names())
@pytest.mark.parametrize("turns", [None, np.zeros(100, np.int16)])
@pytest.mark.parametrize("normalisation", ["min_max", "rank"])
def test_of_single_turns_it_is_the_scope_rollout(
    rule: str, turns: np.ndarray | None, normalisation: str
) -> None:
    found = []
    for scope in ("turn", "rollout"):
        tip = TipSettings(
            rule=rule, rho=0.3, share_of=scope, normalise_over=scope, normalisation=normalisation
        )
        found.append(TipFilter(tip).select(random_batch(3, turns), np.arange(4), 0))
    np.testing.assert_array_equal(found[0].weights_N, found[1].weights_N)
    assert found[0].as_metrics() == found[1].as_metrics()
    assert found[0].weights_N.any()


@pytest.mark.parametrize("rule", ["random", "entropy_sample"])
def test_draws_are_made_in_each_turn(rule: str) -> None:
    turns = np.concatenate([np.arange(40) // 10, [0, 0, 1], np.arange(57) // 19])
    scores = random_batch(0, turns)
    found = weights(scores, rule=rule, rho=0.5, share_of="turn") > 0
    assert not found[~scores.response_mask_N].any()
    for start, stop in ((0, 10), (30, 40), (43, 62), (81, 100)):
        assert found[start:stop].sum() == scores.response_mask_N[start:stop].sum() // 2


def test_whatever_a_tools_tokens_hold_they_count_nowhere() -> None:
    # Turn numbers between the student's tokens that say nothing split no turn.
    odd = batch(turns_N=np.array([0, 0, 0, 0, 9, 5, 1, 1, 0, 0, 0, 7, 1]))
    assert odd.student_tokens().turn_lengths().tolist() == [4, 2, 3, 1]
    found = weights(odd, rule="divergence_topk", rho=0.5, share_of="turn")
    assert np.flatnonzero(found).tolist() == [2, 3, 7, 8]
    inside = TokenScores(
        np.array([4]), np.array([1, 0, 0, 1]), 16, reverse_kl_N=[1, 9, 9, 2], turns_N=np.zeros(4)
    )
    kept = weights(inside, rule="divergence_topk", rho=0.5, share_of="turn")
    assert kept.tolist() == [0, 0, 0, 1]  # one of two, not two of four


def test_runs_of_equal_numbers_end_with_their_rollout() -> None:
    numbers = np.array([0, 0, 1, 1, 1, 0, 2])
    assert run_lengths(numbers, np.array([4, 0, 1, 2, 0])).tolist() == [2, 2, 1, 1, 1]
    assert run_lengths(numbers[:0], np.array([0, 0])).tolist() == []


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        (np.zeros(12), r"turns has shape \(12,\).* sum to 13"),
        (
            np.array([0, 0, 0, 0, 0, 0, 1, 1, 0, 2, 0, 0, 1]),
            "turns falls from 2 to 0 at rollout 1, position 2",
        ),
    ],
)
def test_turns_that_cannot_be_are_refused(turns: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batch(turns_N=turns)


@pytest.fixture
def own_rule() -> Iterator[str]:
    """A rule of the user's that prefers late turns, then long ones; import path."""

    @selection_rule(needs=())
    def rule(inputs: RuleInputs) -> np.ndarray:
        assert not inputs.turns_M.flags.writeable
        lengths_M = np.repeat(inputs.lengths_J, inputs.lengths_J)
        return 100.0 * inputs.turns_M + lengths_M

    module = types.ModuleType("rule_that_reads_turns")
    module.rule = rule  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    yield f"{module.__name__}:rule"
    del sys.modules[module.__name__]


def test_rules_of_users_see_turns(own_rule: str) -> None:
    found = weights(batch(), rule=own_rule, selection="soft")
    assert found.tolist() == [4, 4, 4, 4, 0, 0, 102, 102, 3, 3, 3, 0, 101]
    found = weights(batch(turns_N=None), rule=own_rule, selection="soft")
    assert found.tolist() == [6, 6, 6, 6, 0, 0, 6, 6, 4, 4, 4, 0, 4]


def rollout(name: str, turns: list[int] | None, size: int) -> Rollout:
    floats = np.zeros(size, np.float32)
    return Rollout(
        rollout_id=name,
        prompt_id=name,
        sample=0,
        prompt_ids=np.zeros(1, np.int32),
        response_ids=np.zeros(size, np.int32),
        response_mask=np.ones(size, np.uint8),
        entropy=floats,
        logprob=floats,
        finish_reason="stop",
        weights_version=0,
        turns=None if turns is None else np.array(turns, np.int16),
    )


def test_turns_of_rollouts_are_joined_and_none_is_one_turn() -> None:
    scores = [RolloutScores("a", {}), RolloutScores("b", {})]
    joined = batch_scores([rollout("a", [0, 1, 1], 3), rollout("b", None, 2)], scores, 16)
    assert joined.turns_N is not None
    assert joined.turns_N.dtype == np.int16
    assert joined.turns_N.tolist() == [0, 1, 1, 0, 0]
    single = batch_scores([rollout("a", None, 3), rollout("b", None, 2)], scores, 16)
    assert single.turns_N is None
    with pytest.raises(ValueError, match=r"turns of rollout a has shape \(2,\)"):
        batch_scores([rollout("a", [0, 1], 3), rollout("b", None, 2)], scores, 16)
