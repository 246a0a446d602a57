"""What a step should take, against cases worked out by hand."""

from __future__ import annotations

import pytest
from pipeline_expected import Stages, expected, score, write

# Writing ends at 2, 4 and 10 s, scoring a second later each; reading takes 3, 1 and 2 s.
STAGES = Stages(
    written=[4.0, 2.0, 10.0],
    scored=[5.0, 3.0, 11.0],
    reading=[1.0, 3.0, 2.0],
    optimizer=0.5,
    sync=0.25,
)
# One in which training takes longer than writing.
TRAINING = Stages(written=[1.0], scored=[2.0], reading=[20.0], optimizer=0.5, sync=0.25)


def seconds(running: int) -> float:
    """As many seconds a decode step as sequences run."""
    return float(running)


@pytest.mark.parametrize(
    ("lengths", "engines", "room", "ends"),
    [
        # Three run until 3 s, two until 5 s, then the last alone for two steps.
        ([1, 2, 4], 1, 8, [3.0, 5.0, 7.0]),
        ([4, 1, 2], 1, 8, [7.0, 3.0, 5.0]),
        # Room for two: the third joins at 2 s, and runs with the second until 4 s, then alone.
        ([1, 2, 2], 1, 2, [2.0, 4.0, 5.0]),
        # Two engines, two responses each.
        ([1, 3, 2, 2], 2, 8, [2.0, 4.0, 4.0, 4.0]),
        # Room for one: the second engine is free first, and takes the third and the fourth.
        ([4, 1, 1, 1], 2, 1, [4.0, 1.0, 2.0, 3.0]),
        # More engines than responses.
        ([2], 3, 8, [2.0]),
    ],
)
def test_writing(lengths: list[int], engines: int, room: int, ends: list[float]) -> None:
    assert write(lengths, engines, room, seconds) == ends


@pytest.mark.parametrize(
    ("replicas", "scored"),
    [
        # One replica: begins at 1, 4, 6 (the third in the list is written last).
        (1, [6.0, 4.0, 11.0]),
        (2, [4.0, 4.0, 11.0]),
    ],
)
def test_scoring_is_first_come_first_served(replicas: int, scored: list[float]) -> None:
    assert score([2.0, 1.0, 6.0], [2.0, 3.0, 5.0], replicas) == scored


def test_modes_of_one_step() -> None:
    assert STAGES.training == 6.5
    assert STAGES.synchronous == 11.0 + 6.5 + 0.25
    # Read from 3 to 6 s, from 6 to 7 s, from 11 to 13 s.
    assert STAGES.overlapped == 13.0 + 0.5 + 0.25
    assert STAGES.lagged(STAGES) == 11.0 + 0.25
    assert STAGES.lagged(TRAINING) == 6.5 + 0.25
    assert TRAINING.lagged(STAGES) == 20.5 + 0.25


def test_overlap_of_trainers_that_never_catch_up_begins_with_the_first_score() -> None:
    busy = Stages([1.0, 2.0], [1.0, 2.0], [10.0, 10.0], 0.0, 0.0)
    assert busy.overlapped == 21.0


@pytest.mark.parametrize(("share", "tail"), [(0.5, 6.0), (0.9, 0.0), (0.3, 8.0), (1.0, 0.0)])
def test_tail(share: float, tail: float) -> None:
    assert STAGES.tail(share) == tail


def test_expected_is_the_median_without_the_last_step() -> None:
    steps = [STAGES, TRAINING, STAGES, TRAINING]
    assert expected(steps, "synchronous") == 17.75
    assert expected(steps, "overlap") == 13.75
    # 6.75 (trains STAGES beside writing TRAINING), 20.75, 6.75
    assert expected(steps, "lag") == 6.75
