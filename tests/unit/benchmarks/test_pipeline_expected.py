"""What a step should take, against cases worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pipeline_expected import Stages, expected, score, write
from pipeline_run import measured_steps

# Writing ends at 2, 4 and 10 s, scoring a second later each; reading takes 3, 1 and 2 s.
STAGES = Stages(
    written=[4.0, 2.0, 10.0],
    scored=[5.0, 3.0, 11.0],
    reading=[1.0, 3.0, 2.0],
    tokens=[10.0, 30.0, 20.0],
    ranks=2,
    optimizer=0.5,
    sync=0.25,
)
# One in which training takes longer than writing.
TRAINING = Stages([1.0], [2.0], [20.0], tokens=[1.0], ranks=1, optimizer=0.5, sync=0.25)


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
    busy = Stages([1.0, 2.0], [1.0, 2.0], [10.0, 10.0], [1.0, 1.0], 1, 0.0, 0.0)
    assert busy.overlapped == 21.0


@pytest.mark.parametrize(
    ("ranks", "least", "seconds"),
    [
        # One rank and any wave: as each by itself.
        (1, 0.0, 13.75),
        # A text takes one of two ranks twice as long: 3 to 9 s, 9 to 11 s, 11 to 15 s.
        (2, 0.0, 15.75),
        # The first two together from 5 to 11 s (6 s beside 2 s), the third from 11 to 15 s.
        (2, 40.0, 15.75),
        # All from 11 s on: 6 s beside 4 s and 2 s.
        (2, 41.0, 17.75),
        # Three ranks: 9 s for the longest text alone.
        (3, 41.0, 20.75),
    ],
)
def test_waves(ranks: int, least: float, seconds: float) -> None:
    assert replace(STAGES, ranks=ranks).in_waves(least) == pytest.approx(seconds)


def test_a_wave_takes_all_that_is_scored_while_the_trainers_are_busy() -> None:
    # The first is read from 0 to 10 s. The others are scored by then, and go together: two ranks
    # have 6 s to do, not three times 4.
    scored = [0.0, 1.0, 2.0, 3.0]
    step = Stages(scored, scored, [5.0, 2.0, 2.0, 2.0], [1.0] * 4, 2, 0.0, 0.0)
    assert step.in_waves(0.0) == pytest.approx(18.0)


@pytest.mark.parametrize(("share", "tail"), [(0.5, 6.0), (0.9, 0.0), (0.3, 8.0), (1.0, 0.0)])
def test_tail(share: float, tail: float) -> None:
    assert STAGES.tail(share) == tail


def test_expected_is_the_median_of_the_steps_that_are_asked_for() -> None:
    steps = [TRAINING, STAGES, TRAINING, STAGES, TRAINING]
    assert expected(steps, "synchronous", [1, 2, 3]) == 17.75
    assert expected(steps, "synchronous", [0, 1, 2]) == 22.75
    assert expected(steps, "overlap", [1, 2, 3]) == 13.75
    # Trains TRAINING beside writing STAGES: 20.75; the other way round: 6.75.
    assert expected(steps, "lag", [0, 1, 2]) == 20.75
    assert expected(steps, "lag", [1, 2, 3]) == 6.75


@pytest.mark.parametrize(
    ("mode", "steps"), [("synchronous", [2, 3, 4]), ("overlap", [2, 3, 4]), ("lag", [1, 2, 3])]
)
def test_every_mode_is_measured_where_it_writes_the_same_texts(mode: str, steps: list[int]) -> None:
    assert list(measured_steps(mode, 6)) == steps
