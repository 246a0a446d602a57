"""Paths into a run's folder, and what commands take them for."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd_ray.cli import main
from opd_ray.config.load import load_config
from opd_ray.errors import ConfigError
from opd_ray.output.checkpoint import CheckpointError, CheckpointStore, RunState
from opd_ray.output.meant import meant_checkpoint, meant_model, model_advice
from opd_ray.preflight.config import config_problems


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with whole checkpoints of steps 5 and 10, and one of step 15 that is cut short."""
    folder = tmp_path / "run"
    store = CheckpointStore(folder / "checkpoints", keep=3)
    for step in (5, 10, 15):
        state = RunState(step, 0, 20, {}, [[step, 1]], {"count": 1, "fingerprint": "ff"})
        store.save(state, lambda path: (Path(path) / "weights").write_text("w") and None)
    (folder / "checkpoints" / "step_00000015" / "trainer" / "weights").unlink()
    (folder / "config.yaml").write_text("run: {}\n")
    return folder


def export(run: Path) -> Path:
    (run / "export").mkdir()
    (run / "export" / "config.json").write_text("{}")
    return run / "export"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("", "step_00000010"),
        ("checkpoints", "step_00000010"),
        ("checkpoints/step_00000005", "step_00000005"),
        ("checkpoints/step_00000005/trainer", "step_00000005"),
    ],
)
def test_a_checkpoint_of_a_run(run: Path, given: str, meant: str) -> None:
    assert meant_checkpoint(run / given) == run / "checkpoints" / meant


def test_no_checkpoint(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: no such folder; give a run's folder"):
        meant_checkpoint(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    export_folder = empty / "export"
    export_folder.mkdir(parents=True)
    with pytest.raises(
        CheckpointError, match="empty: neither a checkpoint nor the folder of a run"
    ):
        meant_checkpoint(empty)
    (export_folder / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=f"its exported student is {export_folder}; give"):
        meant_checkpoint(empty)
    for name in ("step_00000005", "step_00000010"):
        (run / "checkpoints" / name / "run.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint in it is whole"):
        meant_checkpoint(run / "checkpoints")


def test_the_model_of_a_run(run: Path) -> None:
    newest = run / "checkpoints" / "step_00000010"
    command = f"export it first: opd-ray export --checkpoint {newest} --out FOLDER"
    with pytest.raises(ConfigError, match=f"the folder of a run, no model folder; {command}"):
        meant_model(str(run))
    with pytest.raises(ConfigError, match=f": a checkpoint, no model folder; {command}"):
        meant_model(str(newest))
    exported = export(run)
    assert meant_model(str(run)) == str(exported)
    assert meant_model(str(exported)) == str(exported)
    assert meant_model("owner/name") == "owner/name"
    (run / "export" / "config.json").unlink()
    assert "no model folder" in str(model_advice(str(run)))


def test_a_run_that_has_nothing_yet(tmp_path: Path) -> None:
    assert model_advice(str(tmp_path)) is None
    (tmp_path / "config.yaml").write_text("run: {}\n")
    assert "without exported student and checkpoint" in str(model_advice(str(tmp_path)))


@pytest.mark.parametrize("key", ["student.path", "teacher.path"])
def test_a_config_that_names_a_run_is_told_the_folder(run: Path, key: str) -> None:
    exported = export(run)
    problems = config_problems(load_config("demo", [f"{key}={run}"]))
    assert problems == [
        f"{key} = {str(run)!r}: the folder of a run; its exported student is {exported}"
    ]


def test_eval_says_which_checkpoint_to_export(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "--config", "demo", "--model", str(run)]) == 2
    assert "opd-ray export --checkpoint" in capsys.readouterr().err


def test_eval_takes_the_export_and_keeps_its_results_by_the_runs_name(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exported = export(run)
    asked = []

    def evaluate(config: object, out: Path) -> int:
        asked.append((config.student.path, out))  # type: ignore[attr-defined]
        return 0

    monkeypatch.setattr("opd_ray.evaluation.run.evaluate", evaluate)
    assert main(["eval", "--config", "demo", "--model", str(run)]) == 0
    assert asked == [(str(exported), Path("outputs/eval/run"))]
    assert f"taking {exported}" in capsys.readouterr().err


def test_a_run_as_run_resume_is_told_its_newest_checkpoint(run: Path) -> None:
    def said(resume: Path) -> list[str]:
        config = load_config("demo", [f"run.resume={resume}"])
        return [problem for problem in config_problems(config) if "resume" in problem]

    newest = run / "checkpoints" / "step_00000010"
    words = "use auto, never, or the folder of a checkpoint"
    assert said(run) == [f"run.resume = {str(run)!r}: {words}; the newest one there is {newest}"]
    assert said(run.parent) == [f"run.resume = {str(run.parent)!r}: {words}"]
    assert said(newest) == []
