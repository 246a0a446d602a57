"""How runs are compared beyond the suite: what is not by the clock must be the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from compared import differences, steps
from kill_campaign import Outcome, costs, table


def run(folder: Path, rows: list[dict[str, Any]], weights: bytes = b"weights") -> Path:
    (folder / "export").mkdir(parents=True)
    (folder / "export" / "model.safetensors").write_bytes(weights)
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


ROWS = [
    {"step": 0, "eval/accuracy": 0.5, "seconds/eval": 1.0},
    {"step": 1, "train/loss": 2.0, "seconds/step": 3.0, "train/restarts": 0.0},
    {"step": 1, "checkpoint/written_seconds": 4.0},
]


def test_only_what_the_clock_decides_may_differ(tmp_path: Path) -> None:
    one = run(tmp_path / "one", ROWS)
    later = [{**ROWS[0], "seconds/eval": 9.0}, {**ROWS[1], "train/restarts": 2.0}]
    assert differences(one, run(tmp_path / "later", later)) == []
    assert steps(one) == [1]
    other = [{**ROWS[0], "eval/accuracy": 0.25}, {"step": 1, "train/loss": 2.0000001, "new": 1.0}]
    assert differences(one, run(tmp_path / "other", other, b"weightz")) == [
        "other weights",
        "step 0: eval/accuracy",
        "step 1: new, train/loss",
    ]
    assert differences(one, run(tmp_path / "short", ROWS[:1])) == ["2 rows of figures and 1"]


def test_a_death_costs_what_it_costs_where_it_is_the_only_one_of_a_whole_run() -> None:
    undisturbed = {"plain": 40.0, "lag": 50.0}
    outcomes = [
        Outcome(2, "plain", 61.0, ["trainer"]),
        Outcome(3, "lag", 80.0, ["trainer"]),
        Outcome(4, "lag", 99.0, ["trainer", "driver"]),
        Outcome(5, "plain", 55.0, ["rollout"], ["other weights"]),
    ]
    assert costs(outcomes, undisturbed) == {"trainer": [21.0, 30.0]}
    said = table(outcomes, undisturbed)
    assert "5 kills in 4 runs; undisturbed: plain 40 s, lag 50 s. 3 runs ended" in said
    assert "| lag | 2 | 3 | 2 |" in said
    assert "| trainer | 3 | 21, 30 |" in said
    assert "| rollout | 1 |  |" in said
    assert "| 5 | plain | rollout | other weights |" in said
