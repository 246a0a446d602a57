"""Every alarm is raised by what it is about, and by nothing else."""

from __future__ import annotations

import math
from typing import Any

import pytest
from made_run import evaluation_of, row_of

from opd_ray.report.alarms import alarms

CONFIG = {"tip.rule": "soft_or", "tip.selection": "top_share", "sync.max_gap": 0.05}
STEPS = 20


def titles(
    rows: list[dict[str, float]],
    evaluations: list[dict[str, float]] | None = None,
    **config: Any,
) -> list[str]:
    keys = {name.replace("__", "."): value for name, value in config.items()}
    found = alarms({**CONFIG, **keys}, rows, evaluations or [])
    assert all(one.found and one.remedy.endswith(".") for one in found)
    return [one.title for one in found]


def run_of(**figures: Any) -> list[dict[str, float]]:
    """Twenty steps; a figure is a number, or one of the step."""
    return [
        row_of(n, **{k.replace("__", "/"): v(n) if callable(v) else v for k, v in figures.items()})
        for n in range(1, STEPS + 1)
    ]


def test_a_run_in_which_all_is_well_raises_none() -> None:
    assert titles(run_of(), [evaluation_of(0.5, 0.3), evaluation_of(0.6, 0.2)]) == []


def test_a_run_without_steps_raises_none() -> None:
    assert titles([], [evaluation_of(0.5, 0.3)]) == []


@pytest.mark.parametrize(
    ("title", "raised", "not_raised"),
    [
        ("The loss is no number", {"train__loss": math.nan}, {"train__loss": 50.0}),
        ("Steps that learned nothing", {"train__skipped": 1.0}, {"train__skipped": 0.0}),
        (
            "Trainer and rollout engine disagree",
            {"sync__gap_mean": 0.03},
            {"sync__gap_mean": 0.02},
        ),
        (
            "The kept share is off its target",
            {"tip__kept_fraction": 0.39},
            {"tip__kept_fraction": 0.41},
        ),
        (
            "The gradient is clipped in most steps",
            {"train__grad_norm": lambda n: 2.0 if n > 9 else 0.5},
            {"train__grad_norm": lambda n: 2.0 if n > 10 else 0.5},
        ),
        (
            "Responses are cut off",
            {"rollout__truncated": lambda n: 0.2 if n > 15 else 0.0},
            {"rollout__truncated": lambda n: 0.0 if n > 15 else 0.9},
        ),
        (
            "The student's entropy has collapsed",
            {"scores__entropy_mean": lambda n: 0.4 if n < 16 else 0.09},
            {"scores__entropy_mean": lambda n: 0.4 if n < 16 else 0.11},
        ),
        (
            "The teacher is the bottleneck",
            {"teacher__bottleneck_share": 0.3},
            {"teacher__bottleneck_share": 0.2},
        ),
        (
            "Writing rollouts takes most of the time",
            {"seconds__rollout_and_teacher": 1.8},
            {"seconds__rollout_and_teacher": 1.5},
        ),
        (
            "Nobody calls the tools",
            {"rollout__turns_mean": 2.0, "tools__calls_per_rollout": lambda n: float(n < 5)},
            {"rollout__turns_mean": 2.0, "tools__calls_per_rollout": 0.1},
        ),
        (
            "Most tool calls fail",
            {"tools__calls_per_rollout": 2.0, "tools__parse_error_per_rollout": 1.2},
            {"tools__calls_per_rollout": 2.0, "tools__parse_error_per_rollout": 0.8},
        ),
        (
            "The student runs ahead of its rollouts",
            {"lag__effective_sample_share": 0.4},
            {"lag__effective_sample_share": 0.9},
        ),
        (
            "Actors died and were started again",
            {"train__restarts": 1.0},
            {"train__restarts": 0.0},
        ),
    ],
)
def test_an_alarm_is_raised_beyond_its_limit_and_not_below(
    title: str, raised: dict[str, Any], not_raised: dict[str, Any]
) -> None:
    assert titles(run_of(**raised)) == [title]
    assert titles(run_of(**not_raised)) == []


def test_an_environment_without_figures_of_calls_is_one_that_nobody_calls() -> None:
    assert titles(run_of(rollout__turns_mean=1.0)) == ["Nobody calls the tools"]


def test_held_out_figures_are_worse_by_more_than_chance() -> None:
    worse = [evaluation_of(0.5, 0.3), evaluation_of(0.44, 0.3)]  # by 2.1 standard errors
    assert titles(run_of(), worse) == ["sums/accuracy has become worse"]
    chance = [evaluation_of(0.5, 0.3), evaluation_of(0.45, 0.3)]
    assert titles(run_of(), chance) == []


def test_a_figure_without_an_error_tells_nothing() -> None:
    rows = [{"step": n, "eval/sums/pass@4": 0.9 - 0.4 * n} for n in (0, 1)]
    assert titles(run_of(), rows) == []
    single = [{**row, "eval/sums/accuracy_se": math.nan} for row in (evaluation_of(1, 1),) * 2]
    single[1]["eval/sums/accuracy"] = 0.0
    assert titles(run_of(), single) == []


def test_a_student_that_moves_away_from_its_teacher() -> None:
    assert titles(run_of(), [evaluation_of(0.5, 0.3), evaluation_of(0.5, 0.34)]) == [
        "The student moves away from the teacher"
    ]
    assert titles(run_of(), [evaluation_of(0.5, 0.3), evaluation_of(0.5, 0.32)]) == []


def test_of_all_tokens_and_of_thresholds_there_is_no_target() -> None:
    rows = run_of(tip__kept_fraction=1.0)
    assert titles(rows, tip__rule="all") == []
    assert titles(rows, tip__selection="threshold") == []
    assert titles(rows) == ["The kept share is off its target"]


def test_a_clip_that_is_off_clips_nothing() -> None:
    assert titles(run_of(train__grad_norm=9.0), trainer__max_grad_norm=0) == []


def test_the_worst_comes_first() -> None:
    found = titles(run_of(rollout__truncated=0.9, train__grad_norm=5.0, train__restarts=1.0))
    assert found == [
        "Responses are cut off",
        "The gradient is clipped in most steps",
        "Actors died and were started again",
    ]
