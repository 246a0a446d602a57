"""Steps that are kept for a person to see: which, what of them, and none of them twice."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from stand_in_run import StandInRun
from stand_ins import Response

from opd_ray.config.schema import EvalTask, ReportSettings
from opd_ray.coordinator.close_ups import CloseUps, chosen_steps, spread
from opd_ray.coordinator.step_view import _edges_of
from opd_ray.coordinator.who_worked import WhoWorked
from opd_ray.data.prompts import HeldOutTask, Prompt
from opd_ray.data.token_texts import TokenTexts, shortened
from opd_ray.evaluation.ask import EvalMode
from opd_ray.evaluation.folder import ProblemRecord
from opd_ray.output.close_ups import (
    AnswersView,
    RolloutView,
    StepView,
    packed,
    read_views,
    unpacked,
)
from opd_ray.output.step_rows import StepRows
from opd_ray.pools.spans import Span
from opd_ray.tip import TipSettings
from opd_ray.tip.select import ShareOf, keep_greatest, share_counts
from opd_ray.types import Sampling

RESPONSES = {
    "a0": Response([1, 1, 1, 1], [-1.0, -0.5, -2.0, -0.1], [0.1, 0.9, 0.3, 0.7]),
    "a1": Response([1, 0, 0, 1], [-1.0, 0.0, 0.0, -0.1], [0.5, 0.0, 0.0, 0.2]),
    "b0": Response([1, 1], [-1.0, -0.5], [0.4, 0.6]),
    "b1": Response([1, 1, 1], [-0.3, -0.2, -0.1], [0.0, 0.2, 0.1]),
}


class Letters:
    """A tokenizer whose tokens are "<id>", with a space in front of all but a text's first."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(f"<{number}>" for number in ids)


def run_with(path: Path, **settings: int) -> StandInRun:
    run = StandInRun(RESPONSES, report=ReportSettings(**settings))
    tokenizer: Any = Letters()
    close_ups = CloseUps(run.config, StepRows(path, 0), tokenizer)
    run._coordinator.close_ups = close_ups
    run._coordinator.batches.close_ups = close_ups.wanted
    return run


def views(path: Path, kind: type) -> list[tuple[int, Any]]:
    return [(step, view) for step, view in read_views(path) if isinstance(view, kind)]


@pytest.mark.parametrize(
    ("size", "count", "found"),
    [
        (10, 3, [0, 4, 9]),
        (3, 9, [0, 1, 2]),
        (5, 1, [0]),
        (5, 0, []),
        (0, 4, []),
        (120, 4, [0, 40, 79, 119]),
    ],
)
def test_what_is_spread_has_both_ends_and_no_more_than_asked(
    size: int, count: int, found: list[int]
) -> None:
    assert spread(size, count) == found


def test_a_single_step_is_the_last() -> None:
    assert list(chosen_steps(50, 1)) == [49]
    assert list(chosen_steps(0, 1)) == []


def test_few_steps_and_few_rollouts_are_kept_as_they_were_chosen(tmp_path: Path) -> None:
    path = tmp_path / "close_ups.jsonl"
    run = run_with(path, close_ups=3, rollouts=2)
    run.go(0)
    steps = views(path, StepView)
    assert [step for step, _ in steps] == [1, 5, 8]  # of eight
    rollouts = views(path, RolloutView)
    assert [step for step, _ in rollouts] == [1, 1, 5, 5, 8, 8]
    names = [view.rollout_id for step, view in rollouts if step == 8]
    assert names == ["7/a/0", "7/b/1"]  # the first and the last of four
    kept = run.kept_rows()  # of the last step
    for step, view in rollouts:
        if step == 8:
            rows = np.flatnonzero(unpacked(view.weights, "<f4")).tolist()
            assert rows == kept[view.prompt_id + str(view.sample)]
            assert view.texts[str(unpacked(view.ids, "<i4")[0])].startswith(" <")
    last = steps[-1][1]
    assert (last.rollouts, last.tokens, last.kept) == (4, 11, 5)
    assert {role for _, role in last.lanes} == {"rollouts", "teacher", "training", "coordinator"}
    assert {name for name, _, _ in last.spans} >= {"trainers", "filter"}
    assert len(last.written) == 4
    assert all(0 <= begin < end <= last.seconds for _, begin, end in last.spans)


def test_tokens_of_others_have_no_row(tmp_path: Path) -> None:
    path = tmp_path / "close_ups.jsonl"
    run_with(path, close_ups=1, rollouts=4).go(0)
    (view,) = [view for _, view in views(path, RolloutView) if view.rollout_id == "7/a/1"]
    assert unpacked(view.mask, "<u1").tolist() == [1, 0, 0, 1]
    assert unpacked(view.columns["reverse_kl"], "<f4").tolist() == [
        np.float32(0.5),
        np.float32(0.2),
    ]
    assert (view.tokens, view.written) == (4, 2)


def test_of_a_long_rollout_only_its_beginning_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "close_ups.jsonl"
    run_with(path, close_ups=1, rollouts=1, tokens=3).go(0)
    ((_, view),) = views(path, RolloutView)
    assert (view.tokens, len(unpacked(view.ids, "<i4"))) == (4, 3)
    assert len(unpacked(view.columns["score"], "<f4")) == 3


@pytest.mark.parametrize("share_of", list(ShareOf))
def test_a_step_of_which_the_student_wrote_nothing_is_kept_too(
    tmp_path: Path, share_of: ShareOf
) -> None:
    path = tmp_path / "close_ups.jsonl"
    tip = TipSettings(rule="divergence_topk", rho=0.5, share_of=share_of)
    nothing = {name: replace(one, mask=[0] * len(one.mask)) for name, one in RESPONSES.items()}
    run = StandInRun(nothing, report=ReportSettings(close_ups=1), tip=tip)
    tokenizer: Any = Letters()
    run._coordinator.close_ups = CloseUps(run.config, StepRows(path, 0), tokenizer)
    run.go(0)
    ((step, view),) = views(path, StepView)
    assert (step, view.tokens, view.kept, view.edges) == (8, 0, 0, {})
    assert views(path, RolloutView) == []


def test_without_close_ups_nothing_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "close_ups.jsonl"
    run_with(path, close_ups=0).go(0)
    assert read_views(path) == []


def test_steps_that_are_taken_again_are_not_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "close_ups.jsonl"
    run = run_with(path, close_ups=8, rollouts=1)
    run.go(0)
    run._coordinator.go_back(5, {"step": None, "earlier": {}, "current": {}}, None)
    assert [step for step, _ in views(path, StepView)] == [1, 2, 3, 4, 5]
    run.go(5)
    assert [step for step, _ in views(path, StepView)] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_lanes_hold_what_lies_within_the_step_one_after_the_other() -> None:
    spans = [
        Span("teacher-0", 9.0, 11.0),  # began before the step
        Span("teacher-0", 10.5, 12.0),  # sent while it had another
        Span("teacher-0", 12.5, 99.0),  # ends after it
        Span("trainers", 1.0, 9.5),  # of another step
        Span("nobody", 10.0, 11.0),
    ]
    lanes = [("teacher-0", "teacher"), ("trainers", "training")]
    worked = WhoWorked(10.0, 20.0, spans, lanes, [])
    assert worked.shown_spans() == [
        ["teacher-0", 0.0, 1.0],
        ["teacher-0", 1.0, 2.0],
        ["teacher-0", 2.5, 10.0],
    ]


def test_of_a_role_with_many_actors_some_lanes_are_shown() -> None:
    lanes = [(f"rollout-{number}", "rollouts") for number in range(1000)]
    worked = WhoWorked(0.0, 1.0, [], [*lanes, ("trainers", "training")], [])
    assert len(worked.shown_lanes()) == 33


def test_the_edge_of_a_share_of_the_batch_tells_every_token_of_it() -> None:
    """Ties go to the earlier token, as in the filter."""
    draw = np.random.default_rng(0)
    for size in (1, 7, 100, 333):
        values = draw.integers(0, 9, size).astype(np.float32)
        least, last = (
            unpacked(t, kind) for t, kind in zip(_edges_of(values), ("<f4", "<i4"), strict=True)
        )
        for percent in range(101):
            sizes = np.array([size])
            wanted = keep_greatest(values, sizes, share_counts(sizes, percent / 100))
            index = np.arange(size)
            found = (values > least[percent]) | (
                (values == least[percent]) & (index <= last[percent])
            )
            assert found.tolist() == wanted.tolist()


def test_a_token_behind_another_keeps_its_space() -> None:
    tokenizer: Any = Letters()
    texts = TokenTexts(tokenizer)
    assert texts.piece(7) == " <7>"
    assert texts.of(np.array([7, 8])) == "<7> <8>"


def test_a_long_text_loses_its_middle() -> None:
    text, left_out = shortened("a" * 6000 + "b" * 500 + "c" * 6000)
    assert left_out == 500
    assert text == "a" * 6000 + "\n[... 500 characters ...]\n" + "c" * 6000
    assert shortened("short") == ("short", 0)


def test_arrays_are_texts_and_back() -> None:
    values = np.array([0.1, -2.5, 3e9], np.float32)
    assert unpacked(packed(values, "<f4"), "<f4").tolist() == values.tolist()


def test_answers_to_the_first_problems_are_kept_at_every_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "close_ups.jsonl"
    run = run_with(path, problems=2)
    prompts = [
        Prompt(key, np.array([n, n + 1], np.int32), np.zeros(0, np.int32))
        for n, key in enumerate("abc")
    ]
    task: Any = HeldOutTask(EvalTask(name="sums"), cast(Any, None), prompts, ["1", "2", "3"])
    mode = EvalMode(task, 0, Sampling(temperature=0.0))
    # As they were finished, in no order.
    records = [
        ProblemRecord(
            id=key,
            answer="7",
            responses=["x" * 20_000 if key == "a" else "it is 7"],
            extracted=[None if key == "a" else "7"],
            correct=[key != "a"],
            tokens=[3],
            finish_reasons=["stop"],
            messages=[[{"role": "tool", "content": [{"text": "found"}]}]] if key == "b" else [],
        )
        for key in "cba"
    ]

    def measure(show: Any) -> dict[str, float]:
        show(mode, records)
        return {"eval/accuracy": 0.5}

    run._coordinator.evaluator = SimpleNamespace(run=measure)
    written: list[int] = []
    run._coordinator.evaluated = lambda: written.append(len(run.rows))
    run.go(0)
    found = views(path, AnswersView)
    assert [step for step, _ in found] == [0, 8]
    assert written == [1, len(run.rows)], "the page is written once the figures are"
    view = found[0][1]
    assert (view.task, view.mode) == ("sums", "greedy")
    first, second = view.problems
    assert (first["id"], first["prompt"], first["gold"]) == ("a", "<0> <1>", "7")
    assert "8,000 characters" in first["response"]
    assert (first["correct"], first["extracted"]) == (False, None)
    assert second["messages"] == [["tool", '[{"text": "found"}]']]


def test_every_actor_that_had_work_says_when() -> None:
    run = StandInRun(RESPONSES)
    session = run._coordinator.session
    rollouts, taken = session.scorer.rollouts, []
    take = rollouts.take_spans
    rollouts.take_spans = lambda: taken.extend(take()) or []  # type: ignore[method-assign, func-returns-value]
    before = time.monotonic()
    run.step(0)
    after = time.monotonic()
    scored = [span for pool in session.teachers.pools.values() for span in pool.stats().spans]
    assert {span.who for span in taken} == {"rollout-0", "rollout-1"}
    assert {span.who for span in scored} >= {"second-0"}
    assert all(before <= span.begin <= span.end <= after for span in taken)
    assert take() == [], "they are told once"
