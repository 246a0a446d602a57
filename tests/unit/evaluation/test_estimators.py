"""mean@n, pass@k and maj@n against hand-computed cases and exhaustive drawing."""

from itertools import combinations
from math import isnan

import numpy as np
import pytest

from opd_ray.evaluation.figures import maj_at_n, mean_at_n, pass_at_n

T, F = True, False


def table(*rows: list[bool]) -> np.ndarray:
    return np.array(rows, dtype=bool)


def test_mean_at_n_by_hand() -> None:
    # Per problem 1, 1/2, 0, 1/2: mean 1/2; deviations 1/2, 0, 1/2, 0: variance (1/4+1/4)/3 = 1/6.
    estimate = mean_at_n(table([T, T], [T, F], [F, F], [F, T]))
    assert estimate.value == 0.5
    assert estimate.standard_error == pytest.approx((1 / 6) ** 0.5 / 2)


def test_repeating_samples_adds_no_certainty() -> None:
    once = table([T], [F], [T], [T])
    assert mean_at_n(np.repeat(once, 16, axis=1)) == mean_at_n(once)


def test_one_problem_has_no_standard_error() -> None:
    assert isnan(mean_at_n(table([T, F])).standard_error)


def test_pass_at_n_by_hand() -> None:
    # Two of four correct, k = 2: of 6 pairs one is all wrong. None correct: 0. All correct: 1.
    assert pass_at_n(table([T, T, F, F]), 2) == pytest.approx(5 / 6)
    assert pass_at_n(table([T, T, F, F], [F, F, F, F], [T, T, T, T]), 2) == pytest.approx(
        (5 / 6 + 0 + 1) / 3
    )


def test_pass_at_n_equals_every_way_to_draw() -> None:
    correct = np.random.default_rng(0).random((7, 6)) < 0.3
    for k in range(1, 7):
        drawn = [[row[list(c)].any() for c in combinations(range(6), k)] for row in correct]
        assert pass_at_n(correct, k) == pytest.approx(np.mean(drawn))
    assert pass_at_n(correct, 1) == pytest.approx(mean_at_n(correct).value)
    assert pass_at_n(correct, 6) == pytest.approx(correct.any(axis=1).mean())


@pytest.mark.parametrize("k", [0, 3])
def test_pass_at_n_refuses_k_beyond_the_samples(k: int) -> None:
    with pytest.raises(ValueError, match=f"k = {k}"):
        pass_at_n(table([T, F]), k)


@pytest.mark.parametrize(
    ("correct", "answers", "value"),
    [
        ([T, T, F], ["7", "7", "8"], 1.0),
        ([T, F, F], ["7", "8", "8"], 0.0),
        ([T, F, F, F], ["7", "8", "9", "8"], 0.0),
        # Ties: one of two, one of three.
        ([T, T, F, F], ["7", "7", "8", "8"], 0.5),
        ([T, F, F], ["7", "8", "9"], pytest.approx(1 / 3)),
        # Silence does not vote, however frequent.
        ([T, F, F, F], ["7", None, None, None], 1.0),
        ([F, F], [None, None], 0.0),
        # One verdict of three was lost.
        ([T, T, F], ["7", "7", "7"], pytest.approx(2 / 3)),
    ],
)
def test_maj_at_n_of_one_problem(
    correct: list[bool], answers: list[str | None], value: float
) -> None:
    assert maj_at_n(table(correct), [answers]).value == value


def test_maj_at_n_over_problems() -> None:
    estimate = maj_at_n(table([T, T, F], [F, F, F]), [["1", "1", "2"], ["3", "3", "4"]])
    assert estimate.value == 0.5
    assert estimate.standard_error == pytest.approx(0.5)


def test_tables_of_another_form_are_refused() -> None:
    with pytest.raises(ValueError, match="booleans"):
        mean_at_n(np.array([[1.0, 0.0]]))
    with pytest.raises(ValueError, match="shape"):
        mean_at_n(np.zeros((0, 4), dtype=bool))
    with pytest.raises(ValueError, match="shape"):
        maj_at_n(table([T, F]), [["1"]])
