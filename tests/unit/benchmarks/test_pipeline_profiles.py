"""Profiles of published runs: their arithmetic, and whether they give back what was published."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pipeline import own
from pipeline_profiles import PROFILES, Lengths, Profile

SLOW = replace(
    PROFILES["miles_b200"],
    decode_gpus=2,
    decode_seconds=0.5,
    crowding=0.25,
    teacher_tokens_per_second=100.0,
    trainer_tokens_per_second=20.0,
)


@pytest.mark.parametrize(
    ("running", "gpus", "seconds"),
    # 2 ** 0.7 = 1.6245
    [(1, 2, 0.5), (3, 2, 0.75), (5, 2, 1.0), (1, 1, 0.81225), (5, 4, 0.61557)],
)
def test_a_decode_step_grows_with_what_runs_and_shrinks_with_gpus(
    running: int, gpus: int, seconds: float
) -> None:
    assert SLOW.decode_step_seconds(running, gpus) == pytest.approx(seconds, rel=1e-4)


def test_scoring_and_reading_go_by_tokens_and_gpus() -> None:
    assert SLOW.scoring_seconds(1000, 2) == pytest.approx(5.0)
    assert SLOW.reading_seconds(1000, 10) == pytest.approx(5.0)


def test_lengths_are_cut_and_the_same_for_the_same_seed() -> None:
    lengths = Lengths(median=100, sigma=1.0, most=150)
    drawn = [lengths.draw(seed) for seed in range(400)]
    assert drawn == [lengths.draw(seed) for seed in range(400)]
    assert max(drawn) == 150
    assert 1 <= min(drawn) < 20
    # log(1.5) = 0.4055 standard deviations: 34.26 % lie beyond.
    assert lengths.cut_share == pytest.approx(0.34257, abs=1e-5)
    assert sum(length == 150 for length in drawn) / 400 == pytest.approx(0.343, abs=0.05)
    # 164.872 x Phi(-0.5945) + 150 x 0.34257
    assert lengths.mean == pytest.approx(96.90, abs=0.02)
    assert sum(drawn) / 400 == pytest.approx(96.9, abs=5.0)


@pytest.mark.parametrize(
    ("name", "mean", "cut_share"),
    [("tip_b200", 1960, None), ("miles_b200", 2056, 0.001), ("slime_b200", 12722, 0.0456)],
)
def test_lengths_are_those_that_were_published(
    name: str, mean: float, cut_share: float | None
) -> None:
    lengths = PROFILES[name].lengths
    assert lengths.mean == pytest.approx(mean, rel=0.01)
    if cut_share is not None:
        assert lengths.cut_share == pytest.approx(cut_share, rel=0.02)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
def test_a_profile_gives_back_the_seconds_of_its_run(profile: Profile) -> None:
    found = own(profile)
    assert found.writing == pytest.approx(profile.published.writing_seconds, rel=0.03)
    assert found.training == pytest.approx(profile.published.training_seconds, rel=0.01)


def test_a_step_of_lag_as_published_is_its_writing_and_the_way_of_the_weights() -> None:
    profile = PROFILES["slime_b200"]
    assert own(profile).writing + profile.sync_seconds == pytest.approx(197.2, rel=0.02)
