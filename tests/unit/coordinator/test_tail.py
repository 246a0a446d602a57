"""The tail of a step, and what training on the others meanwhile would gain, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from opd_ray.coordinator.tail import GAIN, HALF, TENTH, overlap_gain, tail_metrics, tail_note
from opd_ray.pools.scorer import ScoredBatch


def test_the_tail_is_counted_from_the_half_and_from_nine_tenths() -> None:
    written_R = np.array([9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 30.0])
    assert tail_metrics(ScoredBatch([], written_R, written_R)) == {HALF: 25.0, TENTH: 21.0}
    one = np.array([3.0])
    assert tail_metrics(ScoredBatch([], one, one)) == {HALF: 0.0, TENTH: 0.0}
    three = np.array([1.0, 5.0, 7.0])
    assert tail_metrics(ScoredBatch([], three, three)) == {HALF: 2.0, TENTH: 0.0}


@pytest.mark.parametrize(
    ("scored", "work", "train", "gain"),
    [
        # Trained from 1 to 3 and from 3 to 5, the last from 10 to 12: 12 in place of 16.
        ([1.0, 2.0, 10.0], [1, 1, 1], 6.0, 4.0),
        # The first takes until 7, the others wait for it: 13 in place of 10 + 12.
        ([1.0, 2.0, 10.0], [2, 1, 1], 12.0, 9.0),
        # Nothing of the last is kept: all is done at 5, and the step is at its end at 10.
        ([1.0, 2.0, 10.0], [1, 1, 0], 4.0, 4.0),
        ([5.0, 5.0], [1, 1], 6.0, 0.0),  # all at once
        ([5.0], [1], 6.0, 0.0),
        ([1.0, 5.0], [0, 0], 0.0, 0.0),  # nothing to train on
    ],
)
def test_the_gain_is_what_fits_into_the_tail(
    scored: list[float], work: list[int], train: float, gain: float
) -> None:
    assert overlap_gain(np.array(scored), np.array(work), train) == pytest.approx(gain)


def test_a_user_is_told_at_the_end() -> None:
    rows = [
        {HALF: tail, TENTH: tail / 2, GAIN: 1.0, "seconds/step": 10.0} for tail in (4.0, 2.0, 3.0)
    ]
    assert tail_note(rows) == (
        "tail of a step (medians): 3.00 s from half of its rollouts written to the last, 1.50 s "
        "from nine tenths; run.overlap=true, which trains meanwhile, would save at most 1.00 s of "
        "10.00 s a step"
    )
    for row in rows:
        del row[GAIN]
    assert str(tail_note(rows)).endswith("1.50 s from nine tenths")
    assert tail_note([{"eval/accuracy": 1.0}]) is None
