"""Where two answers of a teacher about the same rollout part, in words."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from opd_ray.config.choices import Dtype
from opd_ray.types import HiddenSignal, TeacherAnswer, TopKSignal, to_tensor


class Tolerance(NamedTuple):
    """How far answers about the same rows may lie apart by rounding alone, nats."""

    value: float
    row: float  # mean over its values
    answer: float  # mean over an array
    product: float  # of hidden states with the output head, which rounds once


# By teacher.dtype. Rounding to bfloat16 moves most values little and a few far: on random tokens
# SmolLM2 differed from itself in another batch by up to 0.76 in a value, 0.35 in a row and 0.1 in
# an array. A row that is wrong differs by whole nats.
TOLERANCE = {
    Dtype.float32: Tolerance(1e-3, 1e-3, 1e-3, 1e-3),
    Dtype.bfloat16: Tolerance(2.0, 0.7, 0.2, 0.1),
}
# The mean over fewer rows than this says no more than a single one.
_FEW_ROWS = 8


def answer_differences(
    who: str,
    answers: Mapping[str, TeacherAnswer],
    others: Mapping[str, TeacherAnswer],
    what: str,
    *,
    tolerance: Tolerance,
    by: str,
    skip: Collection[str] = (),
    positions: np.ndarray | None = None,
) -> Iterator[str]:
    """Arrays in which answers to the same rollouts differ, over the rows that both have.

    Args:
        who: the teacher, for the message.
        answers: by rollout id.
        others: by rollout id; rollouts that only one side has are left out.
        what: how the others were asked for, for the message.
        tolerance: of hidden states, which have no unit, a share of their mean size.
        by: where the tolerance comes from, for the message.
        skip: names of arrays that may differ.
        positions: [n] of the rows in their response; None: row t is at t.
    """
    for key in [key for key in answers if key in others]:
        mine, theirs = _numbers(answers[key]), _numbers(others[key])
        for name in sorted(mine.keys() & theirs.keys() - set(skip)):
            one, other = mine[name], theirs[name]
            rows = min(len(one), len(other)) if one.ndim and other.ndim else 0
            if not rows or one.shape[1:] != other.shape[1:]:
                continue  # said already
            apart = np.abs(one[:rows] - other[:rows]).reshape(rows, -1)
            if name == "hidden":  # a few of a row's are huge and round by as much
                apart = apart.mean(axis=1, keepdims=True) / max(1e-6, np.abs(one[:rows]).mean())
            for row, amount, limit in _beyond(apart, tolerance):
                position = row if positions is None else positions[row]
                yield (
                    f"{who}, rollout {key!r}, position {position}: {name}: {what}, by {amount} "
                    f"(tolerance {limit:g}, {by})"
                )


def _beyond(apart: np.ndarray, tolerance: Tolerance) -> Iterator[tuple[int, str, float]]:
    """Row, size and limit of a difference that rounding does not explain, if there is one.

    ``apart`` holds distances ``[m, K]``.
    """
    value, row, answer, _ = tolerance
    means_m = apart.mean(axis=1)
    if (apart > value).any():
        first = int((apart > value).any(axis=1).argmax())
        yield first, f"up to {np.nanmax(apart):.3g}", value
    elif (means_m > row).any():
        amount = f"up to {np.nanmax(means_m):.3g} on a row's average"
        yield int((means_m > row).argmax()), amount, row
    elif len(apart) >= _FEW_ROWS and means_m.mean() > answer:
        yield int((means_m > answer).argmax()), f"{means_m.mean():.3g} on average", answer


def _numbers(answer: TeacherAnswer) -> dict[str, np.ndarray]:
    """The numbers of an answer that can be compared, by name.

    Ids of likeliest tokens are left out: two equally likely ones may change places.
    """
    values = {
        "logprob": answer.logprob,
        "at_student_topk": answer.at_student_topk,
        "entropy": answer.entropy,
    }
    if isinstance(answer.signal, TopKSignal):
        values["signal.logprobs"] = answer.signal.logprobs
    found = {
        name: value
        for name, value in values.items()
        if isinstance(value, np.ndarray) and value.dtype.kind == "f"
    }
    if isinstance(answer.signal, HiddenSignal) and isinstance(answer.signal.hidden, np.ndarray):
        found["hidden"] = to_tensor(answer.signal.hidden).float().numpy()
    return found
