"""What waiting actors are made of, without Ray."""

from __future__ import annotations

import numpy as np
import pytest
from pipeline_expected import write
from pipeline_profiles import PROFILES
from waiting_actor import Diary, drawn_columns
from waiting_rollout import Decoder, response_tokens
from waiting_trainer import trunk_tokens

from opd_ray.types import TrainItem


def item(prompt: list[int], response: list[int], kept: list[int]) -> TrainItem:
    rows = np.array(kept, np.int32)
    ones = np.ones(len(rows), np.float32)
    return TrainItem(
        "r", np.array(prompt, np.int32), np.array(response, np.int32), rows, ones, ones
    )


def test_a_sequence_that_joins_slows_the_others_down() -> None:
    decoder = Decoder(float)  # as many seconds a step as sequences run
    decoder.add("long", 4)
    assert decoder.until_next() == 4.0
    assert decoder.advance(2.0) == []
    decoder.add("short", 1)
    assert decoder.until_next() == 2.0  # one step of two
    assert decoder.advance(2.0) == ["short"]
    assert decoder.until_next() == 1.0
    assert decoder.advance(1.0) == ["long"]
    assert len(decoder) == 0


def test_whole_batches_end_when_writing_token_by_token_ends_them() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 40).tolist()
    decoder, now, ends = Decoder(lambda running: 1.0 + 0.1 * running), 0.0, {}
    for number, length in enumerate(lengths):
        decoder.add(str(number), length)
    while len(decoder):
        seconds = decoder.until_next()
        now += seconds
        ends |= {int(name): now for name in decoder.advance(seconds)}
    told = write(lengths, 1, 100, lambda running: 1.0 + 0.1 * running)
    assert [ends[number] for number in range(40)] == pytest.approx(told)


def test_time_of_work_is_counted_within_its_window() -> None:
    diary = Diary(busy=[(0.0, 2.0), (3.0, 4.0), (5.0, 9.0)])
    assert diary.busy_between(1.0, 6.0) == 3.0
    assert diary.busy_between(2.0, 3.0) == 0.0


def test_a_prompt_is_read_once_in_a_row_of_its_responses() -> None:
    # Each text ends where its last kept row is predicted: 1 and 2 response tokens are read.
    first, second = item([1, 2, 3], [4, 5], [0, 1]), item([1, 2, 3], [6, 7, 8], [2])
    other = item([9, 9], [4], [0])
    assert trunk_tokens([first]) == 4
    assert trunk_tokens([first, second]) == 6
    assert trunk_tokens([first, second, other]) == 8
    assert trunk_tokens([]) == 0


def test_a_token_stands_for_many() -> None:
    profile = PROFILES["miles_b200"]
    whole = profile.lengths.draw(7)
    assert response_tokens(profile, 1, 7) == whole
    assert response_tokens(profile, 10, 7) == round(whole / 10)
    assert response_tokens(profile, 10**6, 7) == 1


def test_scores_are_the_same_in_every_run_and_differ_between_rollouts() -> None:
    first, again = drawn_columns("0/1/2", 50), drawn_columns("0/1/2", 50)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["reverse_kl"], drawn_columns("0/1/3", 50)["reverse_kl"])
    assert first["jsd"].max() < 0.69
    assert first["reverse_kl"].min() >= 0.0
