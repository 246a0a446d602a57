"""Which differences between two answers are named, and which count as rounding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from opd_ray.preflight.contract.differences import Tolerance, answer_differences
from opd_ray.types import HiddenSignal, TeacherAnswer, TopKSignal

M, K, D = 10, 4, 6
TOLERANCE = Tolerance(value=1.0, row=0.5, answer=0.2, product=0.1)


def answer() -> TeacherAnswer:
    rng = np.random.default_rng(0)

    def values(*shape: int) -> np.ndarray:
        return rng.normal(-3, 1, shape).astype(np.float32)

    ids = np.tile(np.arange(K, dtype=np.int32), (M, 1))
    return TeacherAnswer(
        rollout_id="r",
        logprob=values(M),
        at_student_topk=values(M, K),
        signal=TopKSignal(ids, values(M, K)),
        entropy=values(M),
    )


def moved(values: np.ndarray, place: int | tuple[int, int] | slice, by: float) -> np.ndarray:
    changed = values.copy()
    changed[place] += by
    return changed


def differences(one: TeacherAnswer, other: TeacherAnswer) -> list[str]:
    found = answer_differences(
        "t", {"r": one}, {"r": other}, "differs", tolerance=TOLERANCE, by="x"
    )
    return list(found)


def test_equal_answers_do_not_differ() -> None:
    assert differences(answer(), answer()) == []


@pytest.mark.parametrize("name", ["logprob", "entropy", "at_student_topk"])
def test_every_array_is_compared_and_the_row_is_named(name: str) -> None:
    one = answer()
    [text] = differences(one, replace(one, **{name: moved(getattr(one, name), 3, 2.0)}))
    assert f"'r', position 3: {name}: differs, by up to 2 (tolerance 1, x)" in text


def test_the_signal_is_compared() -> None:
    one = answer()
    assert isinstance(one.signal, TopKSignal)
    other = replace(one.signal, logprobs=moved(one.signal.logprobs, (3, 1), 2.0))
    [text] = differences(one, replace(one, signal=other))
    assert "position 3: signal.logprobs: differs, by up to 2 (tolerance 1, x)" in text


def test_a_row_is_judged_by_its_average_and_an_array_by_its_own() -> None:
    one = answer()
    values = one.at_student_topk
    [text] = differences(one, replace(one, at_student_topk=moved(values, 3, 0.75)))
    assert "position 3: at_student_topk: differs, by up to 0.75 on a row's average" in text
    assert "(tolerance 0.5, x)" in text
    # The same value alone in its row is rounding.
    assert differences(one, replace(one, at_student_topk=moved(values, (3, 0), 0.75))) == []
    late = moved(values, slice(2, None), 0.4)
    [text] = differences(one, replace(one, at_student_topk=late))
    assert "position 2: at_student_topk: differs, by 0.32 on average (tolerance 0.2, x)" in text
    # Of few rows the average says no more than a single one.
    assert differences(one, replace(one, at_student_topk=moved(values, 0, 0.4)[:7])) == []


def test_hidden_states_are_judged_by_their_mean_size() -> None:
    states = np.full((M, D), 100, np.float32)

    def of(hidden: np.ndarray) -> TeacherAnswer:
        return replace(answer(), signal=HiddenSignal(hidden))

    [text] = differences(of(states), of(moved(states, 3, 60.0)))
    assert "position 3: hidden: differs, by up to 0.6 on a row's average (tolerance 0.5, x)" in text
    assert differences(of(states), of(moved(states, (3, 0), 60.0))) == []


def test_rows_that_only_one_side_has_are_left_out() -> None:
    one = answer()
    shorter = replace(one, logprob=one.logprob[:4], entropy=one.entropy[:0])
    assert differences(one, shorter) == []
