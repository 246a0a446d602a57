"""A cell whose trainer dies begins again, with the weights that all cells begin with."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from opd_ray.config.load import load_config
from opd_ray.errors import INTERRUPTED, ActorLost
from opd_ray.output.activity import read_activity
from opd_ray.output.folder import OutputFolder
from opd_ray.output.sinks import read_jsonl
from opd_ray.study import run as subject
from opd_ray.study.cells import study_cells
from opd_ray.study.results import StudyFolder

EVALUATION = {"eval/kl": 0.5, "eval/heldout/accuracy": 0.125, "seconds/eval": 1.0}
STEP = {"train/loss": 0.5, "train/kept_tokens": 10, "rollout/tokens": 100, "seconds/step": 1.5}


class Coordinator:
    """Two steps; a rank dies in the second of the first try."""

    def __init__(self, config: Any, session: Any, prompts: Any, tip: Any, *others: Any) -> None:
        self.config, self.session, self.tip = config, session, tip
        _, _, self.metrics, self.progress = others
        self.done = self.restarts = 0
        session.coordinator = self
        self.ran: list[tuple[int, bool]] = []
        self.saving = SimpleNamespace(abandon=lambda: None)
        self.went_back: list[tuple[int, Any, Path]] = []

    def run(self, done: int, *, evaluated: bool) -> None:
        self.ran.append((done, evaluated))
        activity = read_activity(self.session.status)
        assert activity is not None
        self.seen = (activity.cell, activity.figures, activity.total, activity.step)
        if not evaluated:
            self.metrics.write(0, EVALUATION)
        self.metrics.write(1, STEP)
        self.done = 1
        if len(self.ran) == 1:
            raise ActorLost("trainer-0", "trainer-0", "killed")
        self.metrics.write(2, STEP | EVALUATION)

    def go_back(self, step: int, filter_state: Any, ahead: Path) -> None:
        self.went_back.append((step, filter_state, ahead))
        self.metrics.back_to(step)


def test_a_cell_whose_trainer_dies_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = "study.arms=[{name: a, tip: {rule: random, rho: 0.1}}]"
    config = load_config("study", [arms, "study.seeds=[3]", "run.steps=2"])
    (cell,) = study_cells(config)
    folder = StudyFolder(str(tmp_path))
    events: list[str] = []
    session: Any = SimpleNamespace(
        config=config,
        load=lambda path: events.append(f"load {path}"),
        restart_trainers=lambda: events.append("restart"),
        launcher=SimpleNamespace(
            trainer_names=["trainer-0"], watch=SimpleNamespace(stop_requested=False)
        ),
        status=tmp_path / "status.json",
        tokenizer=None,
        scorer=None,
        teachers=None,
        trainers=None,
    )
    monkeypatch.setattr(subject, "Coordinator", Coordinator)
    monkeypatch.setattr(subject, "Evaluator", lambda *_: None)
    data: Any = {3: ("prompts", [])}
    pairing: Any = None
    status = tmp_path / "status.json"
    subject._Runner(folder, pairing, status, data)._run_cell(session, cell, "2 of 3")
    start = str(folder.start)
    assert events == [f"load {start}", "restart", f"load {start}"]
    coordinator = session.coordinator
    assert coordinator.seen == ("cell 2 of 3 (a, seed 3)", "cells/a/seed_3/metrics.jsonl", 2, 0)
    assert not status.exists()
    assert coordinator.ran == [(0, False), (0, True)]
    ((step, state, ahead),) = coordinator.went_back
    assert (step, state["step"], ahead) == (0, coordinator.tip.state_dict()["step"], folder.start)
    rows = read_jsonl(folder.metrics("a", 3))
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert folder.result(cell) is not None
    said = capsys.readouterr().err
    assert "go on from step 0 (the cell's beginning), 1 step is done again (1 of" in said


def test_actors_begin_alike_whichever_cell_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter is drawn by their seed, and all cells begin with it."""
    seeds: list[int] = []
    monkeypatch.setattr(subject, "check_models", lambda _: SimpleNamespace(tokenizer=None))
    monkeypatch.setattr(subject, "dated", lambda config, *_: config)
    monkeypatch.setattr(subject, "_begin", lambda *_: None)
    monkeypatch.setattr(StudyFolder, "results", lambda *_: [])
    runner = SimpleNamespace(run=lambda config, *_: seeds.append(config.run.seed) or 0)
    monkeypatch.setattr(subject, "_Runner", lambda *_: runner)
    overrides = ["study.seeds=[3,4]", "run.seed=7", f"run.output_dir={tmp_path}"]
    config = load_config("study", overrides)
    for finished in (0, 1, len(config.study.arms)):
        cells = study_cells(config)[:finished]
        monkeypatch.setattr(
            StudyFolder, "result", lambda _, cell, cells=cells: cell if cell in cells else None
        )
        assert subject.study(config) == 0
    assert seeds == [7, 7, 7]


@pytest.mark.parametrize(
    ("ends", "last"),
    [
        (0, {"finished": 1}),
        (INTERRUPTED, {"stopped": 1, "failed": False, "why": "it was asked to stop"}),
        (ActorLost("rollout-0", "rollout-0", "killed"), "rollout-0 failed: killed"),
        (KeyboardInterrupt(), "it was ended at once"),
    ],
)
def test_a_studys_folder_says_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: Any, last: Any
) -> None:
    def run(*_: Any) -> int:
        if isinstance(ends, BaseException):
            raise ends
        return ends

    monkeypatch.setattr(subject, "check_models", lambda _: SimpleNamespace(tokenizer=None))
    monkeypatch.setattr(subject, "dated", lambda config, *_: config)
    monkeypatch.setattr(subject, "report", lambda _: None)
    monkeypatch.setattr(subject, "_Runner", lambda *_: SimpleNamespace(run=run))
    config = load_config("study", ["study.seeds=[3]", f"run.output_dir={tmp_path}"])
    first, *_ = study_cells(config)
    monkeypatch.setattr(
        StudyFolder, "result", lambda _, cell: "x" if cell.arm == first.arm else None
    )
    with suppress(ActorLost, KeyboardInterrupt):
        subject.study(config)
    begun, ended = OutputFolder(tmp_path).history.rows()
    assert (begun["cells"], begun["finished_cells"]) == (len(config.study.arms), 1)
    if isinstance(last, dict):
        assert ended == last
    else:
        assert (ended["stopped"], ended["why"]) == (1, last)
