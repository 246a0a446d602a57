"""Where two answers of a teacher about the same rollout part, in words."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np

from opd_ray.types import HiddenSignal, TeacherAnswer, TopKSignal
from opd_ray.wire import from_wire


def answer_differences(
    who: str,
    answers: Mapping[str, TeacherAnswer],
    others: Mapping[str, TeacherAnswer],
    what: str,
    *,
    tolerance: float,
    by: str,
    skip: Collection[str] = (),
) -> Iterator[str]:
    """Arrays in which answers to the same rollouts differ, over the rows that both have.

    Args:
        who: the teacher, for the message.
        answers: by rollout id.
        others: by rollout id; rollouts that only one side has are left out.
        what: how the others were asked for, for the message.
        tolerance: nats; a share of their size for hidden states, which have no unit.
        by: where the tolerance comes from, for the message.
        skip: names of arrays that may differ.
    """
    for key in [key for key in answers if key in others]:
        mine, theirs = _numbers(answers[key]), _numbers(others[key])
        for name in sorted(mine.keys() & theirs.keys() - set(skip)):
            one, other = mine[name], theirs[name]
            if one.ndim != other.ndim or one.shape[1:] != other.shape[1:] or not one.ndim:
                continue  # said already
            rows = min(len(one), len(other))
            apart = np.abs(one[:rows] - other[:rows])
            scale = max(1.0, float(np.abs(one[:rows]).max())) if name == "hidden" else 1.0
            bad = apart > tolerance * scale
            if bad.any():
                row = int(np.argwhere(bad)[0][0])
                yield (
                    f"{who}, rollout {key!r}, position {row}: {name}: {what}, by up to "
                    f"{np.nanmax(apart):.3g} (tolerance {tolerance * scale:g}, {by})"
                )


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
        found["hidden"] = from_wire(answer.signal.hidden).float().numpy()
    return found
