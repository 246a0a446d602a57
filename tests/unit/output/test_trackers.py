"""Weights & Biases, MLflow and Trackio, by stand-ins that take what the packages take."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from opd_ray.config.schema import RunSettings
from opd_ray.errors import RunError
from opd_ray.output.folder import OutputFolder
from opd_ray.output.trackers import MlflowSink, TrackioSink, WandbSink, tracker_sinks


class FakeWandb(ModuleType):
    """Weights & Biases: every run that was begun, with what it was begun with."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.begun: list[dict[str, Any]] = []
        self.updated: list[dict[str, Any]] = []

    def init(self, **options: Any) -> Any:
        self.begun.append(options)
        run_id = options.get("id") or f"run{len(self.begun)}"
        config = SimpleNamespace(
            update=lambda values, allow_val_change: self.updated.append(values)
        )
        return SimpleNamespace(id=run_id, config=config)


def test_a_run_that_goes_on_goes_on_in_the_same_wandb_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    known = tmp_path / "wandb.json"

    def begin(project: str, resume_step: int) -> str:
        WandbSink(project, tmp_path, {"a": resume_step}, resume_step, known)
        options = wandb.begun[-1]
        assert (options["project"], options["dir"]) == (project, str(tmp_path))
        return str(options.get("id"))

    assert begin("p", 0) == "None"
    assert json.loads(known.read_text()) == {"project": "p", "id": "run1"}
    assert begin("p", 5) == "run1"
    assert wandb.begun[-1]["resume"] == "allow"
    assert wandb.updated == [{"a": 5}]
    assert begin("other", 5) == "None"
    assert begin("other", 6) == "run3"
    assert begin("other", 0) == "None"  # from the beginning: a run of its own


def test_a_wandb_that_takes_no_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    known = tmp_path / "wandb.json"
    known.write_text("[]")
    with pytest.raises(RunError, match=r"wandb\.json: .*; delete it: a new run then begins"):
        WandbSink("p", tmp_path, {}, 5, known)

    def refuse(**options: Any) -> Any:
        raise ConnectionError("no way")

    wandb.init = refuse  # type: ignore[method-assign]
    with pytest.raises(RunError, match=r"run\.wandb_project = 'p': .* no way; log in"):
        WandbSink("p", tmp_path, {}, 0, known)


class FakeMlflow(ModuleType):
    """MLflow 3.17 as far as a sink calls it; names are checked as MLflow checks them."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.entities = SimpleNamespace(Metric=self._metric)
        self.experiments: list[str] = []
        self.runs: list[tuple[str, str]] = []  # (experiment's id, name)
        self.metrics: list[tuple[str, str, float, int]] = []
        self.dictionaries: list[tuple[str, Any, str]] = []
        self.ended: list[str] = []

    def MlflowClient(self) -> FakeMlflow:
        return self

    @staticmethod
    def _metric(key: str, value: float, timestamp: int, step: int) -> Any:
        if not re.match(r"^[/\w.\- :]*$", key):
            raise ValueError(f"invalid metric name {key!r}")
        assert timestamp > 1.5e12  # milliseconds
        return SimpleNamespace(key=key, value=value, step=step)

    def get_experiment_by_name(self, name: str) -> Any:
        if name not in self.experiments:
            return None
        return SimpleNamespace(experiment_id=str(self.experiments.index(name)))

    def create_experiment(self, name: str) -> str:
        self.experiments.append(name)
        return str(len(self.experiments) - 1)

    def create_run(self, experiment_id: str, run_name: str) -> Any:
        self.runs.append((experiment_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id=f"run{len(self.runs)}"))

    def log_dict(self, run_id: str, dictionary: Any, artifact_file: str) -> None:
        self.dictionaries.append((run_id, dictionary, artifact_file))

    def log_batch(self, run_id: str, metrics: list[Any]) -> None:
        self.metrics += [(run_id, one.key, one.value, one.step) for one in metrics]

    def set_terminated(self, run_id: str) -> None:
        self.ended.append(run_id)


def test_mlflow_gets_every_figure_under_a_name_that_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    known = tmp_path / "mlflow.json"
    sink = MlflowSink("mine", tmp_path, {"a": 1}, 0, known)
    sink.write(3, {"eval/sums/mean@16": 0.5, "train/loss": 2.0, "x": math.nan, "y": math.inf})
    sink.back_to(2)
    sink.close()
    assert mlflow.runs == [("0", tmp_path.name)]
    assert mlflow.metrics == [("run1", "eval/sums/mean_16", 0.5, 3), ("run1", "train/loss", 2.0, 3)]
    assert mlflow.dictionaries == [("run1", {"a": 1}, "config.yaml")]
    assert mlflow.ended == ["run1"]
    MlflowSink("mine", tmp_path, {"a": 2}, 5, known).write(6, {"b": 1.0})  # goes on
    assert mlflow.metrics[-1] == ("run1", "b", 1.0, 6)
    MlflowSink("mine", tmp_path, {}, 0, known).write(1, {"b": 1.0})  # anew
    assert mlflow.metrics[-1] == ("run2", "b", 1.0, 1)
    assert mlflow.experiments == ["mine"]


def test_an_mlflow_that_does_not_answer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = FakeMlflow()

    def refuse(name: str) -> Any:
        raise ConnectionError("no way")

    mlflow.get_experiment_by_name = refuse  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    with pytest.raises(RunError, match=r"run\.mlflow_experiment = 'p': .*; set MLFLOW_TR"):
        MlflowSink("p", tmp_path, {}, 0, tmp_path / "mlflow.json")


def test_an_mlflow_that_answers_no_more_is_named_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    sink = MlflowSink("p", tmp_path, {}, 0, tmp_path / "mlflow.json")

    def refuse(*_: Any) -> Any:
        raise ConnectionError("no way")

    mlflow.log_batch = mlflow.set_terminated = refuse  # type: ignore[method-assign]
    for call in (lambda: sink.write(1, {"a": 1.0}), sink.close):
        with pytest.raises(RunError, match=r"run\.mlflow_experiment = 'p': .*; set MLFLOW_TR"):
            call()


class FakeTrackio(ModuleType):
    """Trackio 0.43 as far as a sink calls it."""

    def __init__(self) -> None:
        super().__init__("trackio")
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[str, dict[str, float], int]] = []
        self.ended: list[str] = []

    def init(self, project: str, name: str | None, config: Any, resume: str, embed: bool) -> Any:
        self.begun.append({"project": project, "name": name, "resume": resume, "embed": embed})
        name = name or f"dainty-sunset-{len(self.begun)}"
        return SimpleNamespace(
            name=name,
            log=lambda values, step: self.logged.append((name, values, step)),
            finish=lambda: self.ended.append(name),
        )


def test_trackio_knows_a_run_that_goes_on_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trackio = FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    known = tmp_path / "trackio.json"
    for resume_step in (0, 4):
        sink = TrackioSink("mine", tmp_path, {}, resume_step, known)
        sink.write(resume_step + 1, {"a": 1.0})
        sink.back_to(0)
        sink.close()
    assert trackio.begun == [
        {"project": "mine", "name": None, "resume": "never", "embed": False},
        {"project": "mine", "name": "dainty-sunset-1", "resume": "allow", "embed": False},
    ]
    assert trackio.logged == [("dainty-sunset-1", {"a": 1.0}, step) for step in (1, 5)]
    assert trackio.ended == ["dainty-sunset-1"] * 2


def test_trackers_are_those_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes = {"wandb": FakeWandb(), "mlflow": FakeMlflow(), "trackio": FakeTrackio()}
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, name, fake)
    assert [*tracker_sinks(RunSettings(), tmp_path, {}, 0)] == []
    asked = RunSettings(wandb_project="w", mlflow_experiment="m", trackio_project="t")
    sinks = [*tracker_sinks(asked, tmp_path, {}, 0)]
    assert [type(sink) for sink in sinks] == [WandbSink, MlflowSink, TrackioSink]
    kept = {json.loads(path.read_text())["project"] for path in OutputFolder(tmp_path).trackers}
    assert kept == {"w", "m", "t"}  # where a run that starts over deletes them
