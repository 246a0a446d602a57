"""Where a run goes on, and what its coordinator is made of."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_session import Session, config_of, go

from opd_ray.config.choices import LrSchedule
from opd_ray.config.load import to_yaml
from opd_ray.config.schema import Config, LossSettings, StudentSettings, TrainerSettings
from opd_ray.coordinator import run
from opd_ray.data.prompt_set import PromptsIdentity
from opd_ray.errors import ConfigError, DamagedCheckpoint, OutputFolderError, RunError, WriteError
from opd_ray.output.activity import read_activity
from opd_ray.output.checkpoint import CheckpointError, CheckpointStore, RunState
from opd_ray.output.folder import OutputFolder
from opd_ray.output.resume import Start, find_start
from opd_ray.pools.watch import Interrupted
from opd_ray.tip import TipFilter, TipSettings, TokenScores
from opd_ray.types import Divergence

PROMPTS = {"count": 3, "fingerprint": "00ff"}


def state(step: int, seed: int = 7, tip: TipFilter | None = None) -> RunState:
    tip = tip or TipFilter(TipSettings())
    return RunState(step, seed, 10, tip.state_dict(), [[step, 2]], PROMPTS)


def save(folder: Path, *states: RunState, config: Config | None = None) -> list[Path]:
    written = to_yaml(config) if config else ""
    store = CheckpointStore(folder / "checkpoints", keep=9, config_yaml=written)
    return [store.save(one, lambda trainer: None) for one in states]


@pytest.mark.parametrize("how", ["auto", "path"])
def test_a_checkpoint_of_another_seed_is_not_gone_on_from(tmp_path: Path, how: str) -> None:
    (place,) = save(tmp_path, state(4, seed=8))
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    resume = "auto" if how == "auto" else str(place)
    with pytest.raises(ConfigError, match=r"run\.seed = 7, .*step_00000004 was .* with seed 8"):
        find_start(config_of(resume), store)
    assert find_start(config_of("never"), store) is None


def test_a_run_goes_on_from_the_newest_checkpoint_or_the_one_it_is_told(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    assert find_start(config_of("auto"), store) is None
    first, last = save(tmp_path, state(2), state(4))
    assert find_start(config_of("auto"), store) == Start(last, state(4))
    assert find_start(config_of(str(first)), store) == Start(first, state(2))
    (first / "run.json").unlink()
    with pytest.raises(CheckpointError, match=r"run\.json"):
        find_start(config_of(str(first)), store)


def scores(divergence: list[float], **more: list[float]) -> TokenScores:
    """One rollout whose entropies are all alike."""
    count = len(divergence)
    floats = {f"{name}_N": np.array(values) for name, values in more.items()}
    return TokenScores(
        np.array([count]),
        np.ones(count, bool),
        vocab_size=16,
        entropy_N=np.zeros(count),
        reverse_kl_N=np.array(divergence),
        **floats,  # type: ignore[arg-type]
    )


def test_a_resumed_filter_remembers_the_stream(tmp_path: Path) -> None:
    """5 nats are a quarter of the way to the 20 nats that an earlier step has shown."""
    tip = TipSettings(rule="soft_or", selection="soft", normalise_over="stream")
    before = TipFilter(tip)
    before.select(scores([0.0, 20.0]), np.zeros(1, np.int64), step=3)
    (place,) = save(tmp_path, state(4, tip=before))
    config = config_of(tip=tip)
    start = find_start(config, CheckpointStore(tmp_path / "checkpoints", keep=2))
    assert start is not None

    def later(session: Session) -> np.ndarray:
        chosen = session.made.tip.select(scores([0.0, 5.0]), np.zeros(1, np.int64), step=4)
        return chosen.weights_N

    session = go(tmp_path, config, start)
    assert later(session) == pytest.approx([0.0, 0.25], rel=0.01)
    assert session.events == [f"load {place / 'trainer'}"]
    assert session.made.ran == [(4, False)]
    anew = go(tmp_path / "anew", config)
    assert later(anew) == pytest.approx([0.0, 1.0])
    assert anew.events == []
    assert anew.made.ran == [(0, False)]


def test_going_on_from_an_older_checkpoint_sets_the_later_ones_aside_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, state(2), state(4), state(6))
    seen: list[str] = []

    def look() -> None:
        seen.extend(sorted(path.name for path in (tmp_path / "checkpoints").iterdir()))
        raise Interrupted

    config = config_of(str(tmp_path / "checkpoints" / "step_00000002"))
    start = find_start(config, CheckpointStore(tmp_path / "checkpoints", keep=2))
    assert go(tmp_path, config, start, then=look).exit_code == 130
    assert seen == ["step_00000002", "step_00000004.left", "step_00000006.left"]
    said = capsys.readouterr().err
    assert "step_00000002 at step 2" in said
    assert said.count("a later checkpoint is set aside: ") == 2
    assert "stopped; checkpoint: " in said


def test_a_damaged_checkpoint_is_passed_over_and_the_one_before_it_gone_on_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = save(tmp_path, state(2), state(4), state(6), config=config_of())
    start = Start(places[-1], state(6))
    session = go(tmp_path, config_of(), start, damaged=places[1:])
    assert session.events == [f"load {place / 'trainer'}" for place in reversed(places)]
    assert session.made.ran == [(2, False)]
    assert session.prompts.earlier == [(2, 2)]
    assert session.made.batches.load.__self__.read == [(places[0] / "trainer", 2)]
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "is not what was written" in line] == [
        f"passed over: {place / 'trainer'} is not what was written" for place in places[1:]
    ]
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_00000002", "step_00000004.left", "step_00000006.left"]


def test_without_a_checkpoint_that_can_be_read_the_run_ends(tmp_path: Path) -> None:
    places = save(tmp_path, state(2), state(4), config=config_of())
    start = Start(places[-1], state(4))
    with pytest.raises(
        CheckpointError, match=r"no checkpoint in .* can be read \(.*0004/trainer is"
    ):
        go(tmp_path, config_of(), start, damaged=places)
    config = config_of(str(places[-1]))
    with pytest.raises(DamagedCheckpoint, match="step_00000004/trainer is not what was written"):
        go(tmp_path, config, start, damaged=places)
    assert sorted((tmp_path / "checkpoints").iterdir()) == places


def test_going_on_from_the_newest_sets_nothing_aside(tmp_path: Path) -> None:
    places = save(tmp_path, state(2), state(4))
    go(tmp_path, config_of(), Start(places[-1], state(4)))
    assert sorted((tmp_path / "checkpoints").iterdir()) == places


@pytest.mark.parametrize(("step", "evaluated"), [(4, True), (2, False)])
def test_an_evaluation_in_the_metrics_is_not_made_again(
    tmp_path: Path, step: int, evaluated: bool
) -> None:
    (place,) = save(tmp_path, state(4))
    rows = [{"step": 4, "train/loss": 0.5}, {"step": step, "seconds/eval": 1.0}, {"step": 5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert go(tmp_path, config_of(), Start(place, state(4))).made.ran == [(4, evaluated)]
    left = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").open()]
    assert left == [4, step]  # what came after step 4 is written anew


@pytest.mark.parametrize(
    ("divergence", "mean"),
    [(Divergence.reverse_kl, 2.0), (Divergence.forward_kl, 5.0), (Divergence.jsd, 0.25)],
)
def test_the_quadrants_loss_is_the_divergence_that_is_trained_on(
    tmp_path: Path, divergence: Divergence, mean: float
) -> None:
    config = config_of(loss=LossSettings(divergence=divergence), tip=TipSettings(rule="all"))
    tip = go(tmp_path, config).made.tip
    values = scores([2.0, 2.0], forward_kl=[4.0, 6.0], jsd=[0.125, 0.375])
    report = tip.select(values, np.zeros(1, np.int64), step=0).quadrants
    assert report is not None
    # All alike in entropy and reverse KL: they share one quadrant.
    losses = [quadrant.mean_loss for quadrant in report.quadrants.values() if quadrant.share]
    assert losses == [pytest.approx(mean)]


@pytest.mark.parametrize(
    ("schedule", "old", "note"),
    [
        # Two of eight decaying steps are taken, of four it would be half of them.
        ("linear", 4, r"learning rate of the next step is 0\.75; with 4 it would be 0\.5$"),
        ("linear", 2, r"learning rate of the next step is 0\.75; its schedule had come to its end"),
        ("linear", 8, None),
        ("constant", 4, None),
    ],
)
def test_another_length_of_the_run_is_said_to_change_the_schedule(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], schedule: str, old: int, note: str | None
) -> None:
    tip = TipFilter(TipSettings())
    before = RunState(2, 7, old, tip.state_dict(), [[2, 2]], PROMPTS)
    (place,) = save(tmp_path, before)
    trainer = TrainerSettings(
        learning_rate=1.0, lr_schedule=LrSchedule(schedule), warmup_steps=0, min_lr_ratio=0.0
    )
    config = config_of(trainer=trainer)
    config = replace(config, run=replace(config.run, steps=8))
    go(tmp_path, config, Start(place, before))
    said = capsys.readouterr().err
    lengths = f"run.steps = 8, but the checkpoint was written with run.steps = {old}: the "
    assert (lengths in said) == (note is not None)
    if note:
        assert re.search(note, said, re.MULTILINE)


@pytest.mark.parametrize(
    ("raised", "why", "failed"),
    [
        (Interrupted("stopped"), "it was asked to stop", False),
        (KeyboardInterrupt(), "it was ended at once", False),
        (RunError("teacher-0 failed"), "teacher-0 failed", True),
        (AssertionError(), "AssertionError", True),
    ],
)
def test_what_ends_a_run_stands_in_its_folder(
    tmp_path: Path, raised: BaseException, why: str, failed: bool
) -> None:
    def end() -> None:
        assert read_activity(tmp_path / "status.json") is not None  # it is at work
        raise raised

    with nullcontext() if isinstance(raised, Interrupted) else pytest.raises(type(raised)):
        go(tmp_path, config_of(), then=end)
    last = OutputFolder(tmp_path).history.rows()[-1]
    assert (last["why"], last["failed"]) == (why, failed)
    assert not (tmp_path / "status.json").exists()


def test_what_has_changed_is_said_and_the_folder_tells_which_step_ran_with_what(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place,) = save(tmp_path, state(4))
    config = config_of(tip=TipSettings(rho=0.25))
    go(tmp_path, config_of())
    go(tmp_path, config, Start(place, state(4)), changed=["tip.rho: 0.5 -> 0.25"])
    assert "changed: tip.rho: 0.5 -> 0.25\n" in capsys.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "history.jsonl").open()]
    parts = [row for row in rows if "from_step" in row]
    assert [part["from_step"] for part in parts] == [0, 4]
    assert [part["changed"] for part in parts] == [[], ["tip.rho: 0.5 -> 0.25"]]
    assert [part["config"]["tip"]["rho"] for part in parts] == [0.5, 0.25]
    assert parts[0]["prompts"] == {"count": 3, "fingerprint": "00ff"}
    assert "rho: 0.25" in (tmp_path / "config.yaml").read_text()
    ended = {"stopped": 0, "failed": False, "why": "it was asked to stop"}
    assert [row for row in rows if "from_step" not in row] == [ended, ended | {"stopped": 4}]


def test_the_folder_tells_why_a_run_failed(tmp_path: Path) -> None:
    def fail() -> None:
        raise RunError("trainer-0 ran out of memory")

    with pytest.raises(RunError):
        go(tmp_path, config_of(), then=fail)
    last = (tmp_path / "history.jsonl").read_text().splitlines()[-1]
    why = "trainer-0 ran out of memory"
    assert json.loads(last) == {"stopped": 0, "failed": True, "why": why}


def test_a_page_that_cannot_be_written_makes_no_failed_run_of_a_finished_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise WriteError("report.html: no space is left")

    monkeypatch.setattr(run, "_report", lambda *_: None)
    monkeypatch.setattr(run, "write_report", full)
    with pytest.raises(WriteError):
        go(tmp_path, config_of(), then=lambda: None)
    assert OutputFolder(tmp_path).history.finished == 10


def test_a_checkpoint_that_cannot_be_loaded_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place,) = save(tmp_path, state(4))
    go(tmp_path, config_of())
    before = {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}

    def refuse(self: Session, folder: str) -> None:
        raise CheckpointError("another layout")

    monkeypatch.setattr(Session, "load", refuse)
    with pytest.raises(CheckpointError, match="another layout"):
        go(tmp_path, config_of(tip=TipSettings(rho=0.25)), Start(place, state(4)))
    assert {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before


def test_figures_of_an_attempt_with_other_values_are_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = json.dumps({"step": 0, "seconds/eval": 1.0}) + "\n"
    for changed, evaluated in (((), True), (("tip.rho: 0.5 -> 0.25",), False)):
        (tmp_path / "metrics.jsonl").write_text(row)
        assert go(tmp_path, config_of(), changed=changed).made.ran == [(0, evaluated)]
    assert "left no checkpoint: it begins again, with other values" in capsys.readouterr().err


def test_a_checkpoint_that_is_passed_over_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, last = save(tmp_path, state(2), state(4))
    (last / "run.json").unlink()
    go(tmp_path, config_of(), Start(first, state(2)))
    assert "passed over: checkpoint" in capsys.readouterr().err


def test_a_run_that_is_over_says_so_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(config_of(), student=StudentSettings(path="s"))
    config = replace(
        config, run=replace(config.run, output_dir=str(tmp_path), steps=4, export_at_end=False)
    )
    prompts: Any = SimpleNamespace(identity=PromptsIdentity(3, "00ff"), sources={})
    prompts.going_on_after = lambda batches: prompts
    opened: list[Config] = []

    def open_session(config: Config, *others: object, **named: object) -> Any:
        opened.append(config)
        raise Interrupted

    monkeypatch.setattr(run, "check_config", lambda config: None)
    bare = SimpleNamespace(chat_template=None)
    pairing = SimpleNamespace(teacher_contexts={}, tokenizer=bare, end_ids=())
    monkeypatch.setattr(run, "check_models", lambda config: pairing)
    monkeypatch.setattr(run, "check_routing", lambda *others: {})
    monkeypatch.setattr(run.PromptFeed, "load", lambda config, tokenizer, environments: prompts)
    monkeypatch.setattr(run, "held_out_tasks", lambda config, tokenizer, environments: [])
    monkeypatch.setattr(run, "open_session", open_session)
    store = CheckpointStore(tmp_path / "checkpoints", 2, to_yaml(config))
    store.save(replace(state(4), total_steps=4), lambda trainer: None)
    folder = OutputFolder(tmp_path)
    folder.begin(config)
    before = folder.config.read_bytes()

    def train(**trainer: float) -> int:
        return run.train(replace(config, trainer=TrainerSettings(**trainer)))  # type: ignore[arg-type]

    with pytest.raises(Interrupted):  # its report may be missing
        train()
    folder.history.finish(4)
    assert train(learning_rate=0.5) == 0
    assert len(opened) == 1
    said = capsys.readouterr().err
    assert "has taken its 4 steps already; to go on raise run.steps" in said
    assert "without effect, as no step is left: trainer.learning_rate: 1e-06 -> 0.5" in said
    other = StudentSettings(path="other")
    with pytest.raises(OutputFolderError, match=r"student\.path: .* -> 'other'"):
        run.train(replace(config, student=other))
    assert folder.config.read_bytes() == before
