"""The closing table's columns, and the response whose kept tokens are marked."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from rich.console import Console

from opd_ray.coordinator.metrics import StepSnapshot
from opd_ray.coordinator.report import closing_table, marked_response, print_report
from opd_ray.models.pairs.demo import character_tokenizer
from opd_ray.pools.scorer import ScoredRollout
from opd_ray.tip import Selection, TokenScores
from opd_ray.types import Rollout, RolloutScores

TOKENIZER = character_tokenizer()
STEP = {
    "train/loss": 1.0,
    "rollout/tokens": 100.0,
    "train/kept_tokens": 25.0,
    "seconds/rollout_and_teacher": 4.0,
    "seconds/train": 1.0,
    "seconds/step": 5.0,
    "seconds/idle": 0.5,
}


def cells(
    rows: list[dict[str, float]], teacher: dict[str, float], peaks: dict[str, int]
) -> dict[str, list[str]]:
    """What the printed table says beside each figure."""
    file = io.StringIO()
    Console(file=file, width=120).print(closing_table(rows, teacher, peaks))
    lines = [line[1:-1] for line in file.getvalue().splitlines() if line[0] in "│┃"]
    split = [[cell.strip() for cell in line.replace("┃", "│").split("│")] for line in lines]
    return {name: rest for name, *rest in split}


def evaluation(accuracy: float, kl: float) -> dict[str, float]:
    return {"eval/sums/accuracy": accuracy, "eval/sums/accuracy_se": 0.01, "eval/kl": kl}


def test_the_table_sets_before_after_and_teacher_side_by_side() -> None:
    rows = [
        {"step": 0, **evaluation(0.25, 0.5)},
        {"step": 1, **STEP, **evaluation(0.5, 0.125)},
        {"step": 2, **STEP, **evaluation(0.75, 0.0625)},
    ]
    teacher = {"eval/sums/accuracy": 0.875, "eval/sums/accuracy_se": 0.01}
    found = cells(rows, teacher, {"trainer-0": 3 << 29})
    assert found["figure"] == ["student before", "student after", "teacher"]
    assert found["sums/accuracy"] == ["0.2500", "0.7500", "0.8750"]
    assert found["kl"] == ["0.5000", "0.0625", ""]  # the teacher has no distance from itself
    assert "sums/accuracy_se" not in found
    assert found["tokens written and judged"][1] == "200"
    assert found["tokens trained on"][1] == "50 (25%)"
    assert found["tokens/s, step"][1] == "20"
    assert found["time in which no stage worked"][1] == "10.0%"
    assert found["peak memory, trainer-0"][1] == "1.50 GiB"


def test_a_figure_that_only_the_last_evaluation_has_leaves_the_first_column_empty() -> None:
    rows = [{"step": 0, "eval/kl": 0.5}, {"step": 1, **evaluation(0.75, 0.25)}]
    found = cells(rows, {}, {})
    assert found["kl"] == ["0.5000", "0.2500", ""]
    assert found["sums/accuracy"] == ["", "0.7500", ""]


def ids(text: str) -> np.ndarray:
    return np.array(TOKENIZER(text)["input_ids"], dtype=np.int32)


def scored(prompt: str, response: str, mask: list[int]) -> ScoredRollout:
    response_ids = ids(response)
    floats = np.zeros(len(response_ids), np.float32)
    rollout = Rollout(
        rollout_id=prompt,
        prompt_id=prompt,
        sample=0,
        prompt_ids=ids(prompt),
        response_ids=response_ids,
        response_mask=np.array(mask, np.uint8),
        entropy=floats,
        logprob=floats,
        finish_reason="stop",
        weights_version=0,
    )
    return ScoredRollout(rollout, RolloutScores(prompt, {"reverse_kl": floats}))


def snapshot(rollouts: list[ScoredRollout], weights: list[float]) -> StepSnapshot:
    masks = np.concatenate([j.rollout.response_mask for j in rollouts])
    lengths = np.array([len(j.rollout.response_ids) for j in rollouts])
    return StepSnapshot(
        scored=rollouts,
        scores=TokenScores(lengths, masks, vocab_size=24),
        selection=Selection(np.array(weights, np.float32), rho=0.5, kept_fraction=0.5),
    )


def test_the_first_response_is_shown_with_its_own_marks() -> None:
    first, second = scored("1+2=", "3.", [1, 1]), scored("4+5=", "90", [1, 1])
    assert marked_response(snapshot([first, second], [1, 0, 0, 1]), TOKENIZER).plain == "1+2=[3]."
    assert marked_response(snapshot([second, first], [0, 1, 1, 0]), TOKENIZER).plain == "4+5=9[0]"


def test_a_token_with_any_weight_is_kept_and_those_of_a_tool_are_told_apart() -> None:
    rollouts = [scored("1+2=", "12:+3.", [1, 1, 0, 0, 1, 1]), scored("4+5=", "9", [1])]
    text = marked_response(snapshot(rollouts, [0.5, 0, 0, 0, 1e-6, 0, 1]), TOKENIZER)
    assert text.plain == "1+2=[1]2<<:+>>[3]."
    styles = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    assert styles == {
        "[1]": "bold reverse",
        "2": "dim",
        "<<:+>>": "italic cyan",
        "[3]": "bold reverse",
        ".": "dim",
    }


def test_a_response_that_is_left_out_is_not_the_one_that_is_shown() -> None:
    rollouts = [scored("1+2=", "12", [0, 0]), scored("4+5=", "90", [1, 1])]
    assert marked_response(snapshot(rollouts, [0, 0, 1, 0]), TOKENIZER).plain == "4+5=[9]0"
    assert marked_response(snapshot(rollouts[:1], [0, 0]), TOKENIZER).plain == "1+2=<<12>>"


def test_of_a_long_prompt_the_end_is_shown() -> None:
    rollouts = [scored("1" * 500 + "2" * 1499 + "=", "34", [1, 1])]
    text = marked_response(snapshot(rollouts, [1, 0]), TOKENIZER)
    assert text.plain == (f"(500 characters of the prompt are left out)\n{'2' * 1499}=[3]4")
    rollouts = [scored("2" * 1499 + "=", "34", [1, 1])]
    assert marked_response(snapshot(rollouts, [1, 0]), TOKENIZER).plain == f"{'2' * 1499}=[3]4"


def test_names_of_figures_are_whole_on_a_narrow_terminal() -> None:
    rows = [{"step": 0, "eval/travel/environment/constraints_met@16": 0.5}]
    file = io.StringIO()
    Console(file=file, width=80).print(closing_table(rows, {}, {}))
    said = "".join(
        line.split("│")[1].strip() for line in file.getvalue().splitlines() if "│" in line
    )
    assert "travel/environment/constraints_met@16" in said


def test_the_marks_are_explained_where_they_are(tmp_path: Path) -> None:
    said = []
    for mask in ([1, 1], [1, 0]):
        response = marked_response(snapshot([scored("1=", "12", mask)], [1, 0]), TOKENIZER)
        print_report(closing_table([], {}, {}), response, {}, tmp_path / "report.txt")
        said.append((tmp_path / "report.txt").read_text(encoding="utf-8").splitlines()[-3:-1])
    assert said == [
        ["one response of the last step, kept tokens in [brackets]:", "1=[1]2"],
        [
            "one response of the last step, kept tokens in [brackets], what the student did not "
            "write in <<angles>>:",
            "1=[1]<<2>>",
        ],
    ]


def test_what_rollouts_did_with_their_tools() -> None:
    acting = {
        "rollout/turns_mean": 3.0,
        "rollout/truncated": 0.25,
        "tools/calls_per_rollout": 2.0,
        "tools/parse_error_per_rollout": 0.25,
        "tools/unknown_per_rollout": 0.125,
        "tools/failed_per_rollout": 0.0625,
        "tools/timeout_per_rollout": 0.0625,
        "tools/cut_per_rollout": 1.0,  # has its result
        "tools/seconds_per_rollout": 0.5,
    }
    quiet = {"rollout/turns_mean": 1.0, "rollout/truncated": 0.75}
    found = cells([{**STEP, **acting}, {**STEP, **quiet}, STEP], {}, {})
    assert found["turns a rollout"][1] == "2.0"
    assert found["tool calls a rollout"][1] == "1.0"
    assert found["tool calls with an error"][1] == "25.0%"
    assert found["seconds in tools a rollout"][1] == "0.25"
    assert found["rollouts that came to a limit"][1] == "50.0%"
    assert "turns a rollout" not in cells([STEP], {}, {})
    assert "tool calls with an error" not in cells([{**STEP, **quiet}], {}, {})


def test_line_breaks_of_the_response_can_be_told_from_its_end() -> None:
    text = marked_response(snapshot([scored("1=", "1\n2", [1, 1, 1])], [0, 1, 0]), TOKENIZER)
    assert text.plain == "1=1[\\n\n]2"
