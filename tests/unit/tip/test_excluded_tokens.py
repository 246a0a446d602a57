"""A rule leaves tokens out by -inf, and cannot change the scores that others read."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from opd_ray.errors import ConfigError
from opd_ray.tip import RuleInputs, TipFilter, TipSettings, TokenScores, selection_rule
from opd_ray.user_code import UserCodeError

OUT = -np.inf


@pytest.fixture
def rule() -> Iterator[Callable[..., str]]:
    """Makes a rule of the user's with given scores, or a function; returns its import path."""
    module = types.ModuleType("own_rules_of_a_test")
    sys.modules[module.__name__] = module

    def make(scores: Any, keeps: str = "top", needs: tuple[str, ...] = ("entropy",)) -> str:
        score = scores if callable(scores) else lambda inputs: np.array(scores)
        module.rule = selection_rule(needs=needs, keeps=keeps)(score)  # type: ignore[attr-defined]
        return f"{module.__name__}:rule"

    yield make
    del sys.modules[module.__name__]


def batch(lengths: tuple[int, ...] = (6,), **changes: Any) -> TokenScores:
    total = sum(lengths)
    fields = {
        "lengths_R": np.array(lengths),
        "response_mask_N": np.ones(total, bool),
        "vocab_size": 32,
        "entropy_N": np.linspace(0.1, 1.0, total, dtype=np.float32),
    }
    return TokenScores(**(fields | changes))


def kept(path: str, scores: TokenScores | None = None, **settings: Any) -> list[float]:
    scores = scores or batch()
    tip = TipFilter(TipSettings(rule=path, **({"rho": 0.5} | settings)))
    seeds_R = np.arange(len(scores.lengths_R))
    return tip.select(scores, seeds_R, step=0).weights_N.tolist()


@pytest.mark.parametrize(
    ("keeps", "expected"),
    [
        # Three of the six tokens are the share; two have no score.
        ("top", [1, 0, 0, 1, 0, 1]),
        ("bottom", [0, 0, 1, 1, 0, 1]),
        ("all", [1, 0, 1, 1, 0, 1]),
    ],
)
def test_left_out_is_left_out_whatever_is_kept(
    rule: Callable[..., str], keeps: str, expected: list[int]
) -> None:
    assert kept(rule([6.0, OUT, 1.0, 3.0, OUT, 4.0], keeps)) == expected


def test_the_share_is_of_all_tokens_and_at_most_what_is_left(rule: Callable[..., str]) -> None:
    # rho of six tokens is three, of which two may be kept; the second rollout has none at all.
    path = rule([OUT, 2.0, OUT, OUT, 1.0, OUT, OUT, OUT])
    assert kept(path, batch((6, 2))) == [0, 1, 0, 0, 1, 0, 0, 0]
    path = rule([OUT, 2.0, OUT, 5.0, 1.0, 3.0])
    assert kept(path, rho=0.34) == [0, 0, 0, 1, 0, 1]
    # Of the whole batch four are the share.
    path = rule([OUT, 2.0, OUT, OUT, 1.0, OUT, 0.0, 9.0])
    assert kept(path, batch((6, 2)), share_of="batch") == [0, 1, 0, 0, 1, 0, 1, 1]


def test_none_that_is_left_out_is_drawn(rule: Callable[..., str]) -> None:
    path = rule([OUT, 1.0, OUT, 0.0, 1.0, OUT], "sampled")
    assert kept(path, rho=1.0) == [0, 1, 0, 1, 1, 0]


def test_a_threshold_and_weights_leave_it_out(rule: Callable[..., str]) -> None:
    scores = [OUT, 2.0, 0.5, OUT, 3.0, 0.0]
    assert kept(rule(scores), selection="threshold", threshold=0.5) == [0, 1, 1, 0, 1, 0]
    assert kept(rule(scores, "bottom"), selection="threshold", threshold=0.5) == [0, 0, 1, 0, 0, 1]
    assert kept(rule(scores), selection="soft") == [0, 2, 0.5, 0, 3, 0]


def test_a_tool_token_counts_neither_as_left_out_nor_in_the_share(rule: Callable[..., str]) -> None:
    mask = np.array([1, 0, 1, 1, 0, 1], bool)
    path = rule([OUT, 1.0, 2.0, 3.0])
    assert kept(path, batch(response_mask_N=mask)) == [0, 0, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("bad", "keeps", "words"),
    [
        (np.nan, "top", "a score of nan at rollout 1 of the batch, position 2"),
        (np.inf, "bottom", "a score of inf at rollout 1 of the batch, position 2"),
        (1e300, "top", r"a score of 1e\+300 at rollout 1 of the batch, position 2"),
        (-1e300, "top", r"a score of -1e\+300 at rollout 1"),
        (-0.5, "sampled", "a score of -0.5 at rollout 1 .* at least 0, or -inf"),
    ],
)
def test_what_is_no_score_is_named_by_rollout_and_position(
    rule: Callable[..., str], bad: float, keeps: str, words: str
) -> None:
    # The second rollout begins with a tool token: positions are those of the response.
    mask = np.array([1, 1, 1, 0, 1, 1], bool)
    path = rule([1.0, 1.0, 1.0, 1.0, bad], keeps)
    with pytest.raises(ConfigError, match=words):
        kept(path, batch((3, 3), response_mask_N=mask))


def test_scores_that_are_no_real_numbers(rule: Callable[..., str]) -> None:
    with pytest.raises(ConfigError, match="scores of type complex128; give real numbers"):
        kept(rule([1j] * 6))
    assert kept(rule([True, False, True, False, True, False])) == [1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize("read", ["entropy", "position", "reverse_kl", "normalised", "lengths"])
def test_a_rule_cannot_write_into_what_others_read(rule: Callable[..., str], read: str) -> None:
    def spoil(inputs: RuleInputs) -> np.ndarray:
        if read == "normalised":
            values = inputs.normalised("entropy")
        elif read == "lengths":
            values = inputs.lengths_R
        else:
            values = inputs.raw(read)
        values[:] = 0
        return values

    scores = batch(reverse_kl_N=np.arange(6, dtype=np.float32))
    before = {
        name: values.copy()
        for name, values in vars(scores).items()
        if name.endswith("_N") and values is not None
    }
    path = rule(spoil, needs=("entropy", "reverse_kl"))
    with pytest.raises(UserCodeError) as raised:
        kept(path, scores)
    assert f"tip.rule = '{path}': ValueError: assignment destination is read-only" in str(
        raised.value
    )
    assert f"({__file__}, line " in str(raised.value)
    assert "in spoil)" in str(raised.value)
    for name, values in before.items():
        assert np.array_equal(getattr(scores, name), values), name


def test_a_copy_may_be_changed(rule: Callable[..., str]) -> None:
    def shifted(inputs: RuleInputs) -> np.ndarray:
        values = inputs.raw("entropy").copy()
        values[:3] = OUT
        return values

    assert kept(rule(shifted), rho=1.0) == [0, 0, 0, 1, 1, 1]
