"""Training and evaluating from Python: what is asked for, what comes back, what is raised."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import opd_ray
from opd_ray.config.load import load_config, to_yaml
from opd_ray.config.schema import Config
from opd_ray.errors import INTERRUPTED, ConfigError, OutputFolderError
from opd_ray.evaluation.folder import EvaluationFolder, ProblemRecord
from opd_ray.output.folder import OutputFolder

ROWS = [
    {"step": 0, "eval/kl": 0.5, "eval/heldout/accuracy": 0.25, "seconds/eval": 1.0},
    {"step": 1, "train/loss": 2.0, "tip/rho": 0.5},
    {"step": 2, "train/loss": 1.0, "tip/rho": None},
    {"step": 2, "eval/kl": 0.25},
]


def run_in(folder: Path) -> Config:
    """A run of two steps, as it leaves its folder."""
    config = load_config("demo", {"run.output_dir": folder})
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    return config


def test_a_result_has_rows_newest_figures_and_those_from_before(tmp_path: Path) -> None:
    run_in(tmp_path)
    result = opd_ray.read_run(tmp_path)
    assert [row["step"] for row in result.rows] == [0, 1, 2]
    assert result.steps == 2
    assert result.rows[2]["train/loss"] == 1.0
    assert result.rows[2]["eval/kl"] == 0.25  # of one step, one row
    assert result.before == {"eval/kl": 0.5, "eval/heldout/accuracy": 0.25}
    figures = result.figures
    assert math.isnan(figures.pop("tip/rho"))
    assert figures == {
        "eval/kl": 0.25,
        "eval/heldout/accuracy": 0.25,
        "seconds/eval": 1.0,
        "train/loss": 1.0,
    }
    folder = OutputFolder(tmp_path)
    of_the_run = {name: value for name, value in vars(folder).items() if name in vars(result.paths)}
    assert vars(result.paths) == {**of_the_run, "folder": tmp_path}
    assert len(of_the_run) == len(vars(result.paths)) - 1


def test_a_run_that_has_measured_nothing_yet(tmp_path: Path) -> None:
    run_in(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    result = opd_ray.read_run(str(tmp_path))
    assert (result.rows, result.steps, result.figures, result.before) == ([], 0, {}, {})


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputFolderError, match="it has no config.yaml; give the run.output_dir"):
        opd_ray.read_run(tmp_path)


def test_training_owns_no_process_and_a_stop_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_in(tmp_path)
    codes = iter([0, INTERRUPTED])
    asked: list[tuple[Config, bool]] = []

    def train(config: Config, *, owns_process: bool) -> int:
        asked.append((config, owns_process))
        return next(codes)

    monkeypatch.setattr("opd_ray.coordinator.run.train", train)
    assert opd_ray.train(config).steps == 2
    with pytest.raises(KeyboardInterrupt, match=f"the same call goes on from {tmp_path}"):
        opd_ray.train(config)
    assert asked == [(config, False)] * 2


def record(number: int, *correct: bool) -> ProblemRecord:
    return ProblemRecord(
        id=str(number),
        answer="7",
        responses=[f"is {one}" for one in correct],
        extracted=["7" if one else None for one in correct],
        correct=list(correct),
        tokens=[3] * len(correct),
        finish_reasons=["stop"] * len(correct),
        figures=[{"score": float(one)} for one in correct] if number else [],
    )


def test_an_evaluation_has_figures_and_a_row_a_response(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "eval"
    asked: list[str] = []

    def evaluate(config: Config, folder: Path, *, owns_process: bool) -> int:
        assert not owns_process
        asked.append(config.student.path)
        way = {"samples": 2, "temperature": 1.0, "top_p": 1.0}
        with EvaluationFolder(folder) as kept:
            kept.begin({"tasks": {"sums": {"problems": 2, "sampled": way}}})
            with kept.appending("sums", "sampled") as keep:
                keep(record(0, True, False))
                keep(record(1, True, True))
        return 0

    monkeypatch.setattr("opd_ray.evaluation.run.evaluate", evaluate)
    result = opd_ray.evaluate(load_config("demo"), "some/model", out=out)
    assert asked == ["some/model"]
    assert result.folder == out
    assert result.figures["eval/sums/mean@2"] == 0.75
    assert [row["correct"] for row in result.rows] == [True, False, True, True]
    assert result.rows[1] == {
        "task": "sums",
        "mode": "sampled",
        "problem": "0",
        "sample": 1,
        "answer": "7",
        "response": "is False",
        "extracted": None,
        "correct": False,
        "tokens": 3,
        "finish_reason": "stop",
    }
    assert result.rows[2]["score"] == 1.0


def test_a_runs_folder_as_the_model_to_evaluate_is_its_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").write_text("{}")
    asked: list[Any] = []

    def evaluate(config: Config, folder: Path, **_: bool) -> int:
        asked.append((config.student.path, folder))
        return 0

    monkeypatch.setattr("opd_ray.evaluation.run.evaluate", evaluate)
    config = load_config("demo")
    opd_ray.evaluate(config, tmp_path)
    opd_ray.evaluate(replace(config, student=replace(config.student, path="a/b")))
    assert asked == [
        (str(tmp_path / "export"), Path("outputs/eval") / tmp_path.name),
        ("a/b", Path("outputs/eval/b")),
    ]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"run.stepss": 7}, "overrides: unknown key run.stepss: did you mean run.steps?"),
        ({"run.steps": "many"}, "overrides: run.steps = 'many': expected an integer"),
        ({"eval.tasks[4].samples": 1}, "overrides: eval.tasks[4].samples: eval.tasks has 1"),
        ({3: 4}, "overrides: unknown key 3"),
        ("run.steps=3", "give a list of texts or a mapping, not 'run.steps=3'"),
    ],
)
def test_python_values_that_no_key_takes(overrides: Any, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        opd_ray.load_config("demo", overrides)
    assert said in str(raised.value)


def test_python_values_in_place_of_texts(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("inherit: demo\nrun: {steps: 5}\n")
    config = opd_ray.load_config(
        path,
        {
            "run.output_dir": tmp_path,
            "tip": {"rule": "random"},
            "eval.tasks[0].samples": 4,
            "rollout.dtype": load_config("demo", ["rollout.dtype=bfloat16"]).rollout.dtype,
            "teacher.path": "${student.path}",
        },
    )
    as_texts = load_config(
        str(path),
        [
            f"run.output_dir={tmp_path}",
            "tip.rule=random",
            "eval.tasks[0].samples=4",
            "rollout.dtype=bfloat16",
            f"teacher.path={config.student.path}",
        ],
    )
    assert config == as_texts
    assert config.tip.rho == 0.5  # what the mapping does not name stays


def test_what_goes_wrong_is_an_exception(tmp_path: Path) -> None:
    config = load_config("demo", {"run.output_dir": tmp_path, "rollout.prompts_per_step": 0})
    with pytest.raises(ConfigError, match=r"rollout\.prompts_per_step = 0: must be at least 1"):
        opd_ray.train(config)
