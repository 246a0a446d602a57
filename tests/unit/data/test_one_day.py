"""Templates that read the clock: what goes on, on another day, has the prompts it began with."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from opd_ray.config.load import load_config
from opd_ray.config.schema import Config, StudyArm
from opd_ray.coordinator import run as training
from opd_ray.data import prompts as prompts_module
from opd_ray.data.prompts import PromptFeed
from opd_ray.errors import OutputFolderError
from opd_ray.evaluation import run as evaluation
from opd_ray.evaluation.folder import EvaluationFolder
from opd_ray.models.pairs.demo import character_tokenizer
from opd_ray.output.folder import OutputFolder, kept_date
from opd_ray.study import run as studying

CLOCK = "{{ strftime_now('%Y-%m-%d') }}{% for m in messages %}?{{ m.content }}\n{% endfor %}"
TOKENIZER = character_tokenizer()
TOKENIZER.chat_template = CLOCK


@pytest.fixture
def config(tmp_path: Path) -> Config:
    overrides = [f"run.output_dir={tmp_path / 'run'}", "run.resume=auto"]
    overrides += ["data.chain_sum.count=16", "rollout.prompts_per_step=4"]
    found = load_config("demo", overrides)
    task = replace(found.eval.tasks[0], name="sums", problems=2)
    task.data.chain_sum.count = 16
    return replace(found, eval=replace(found.eval, tasks=[task], kl_prompts=0))


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is looked at."""
    pairing = SimpleNamespace(teacher_contexts={}, tokenizer=TOKENIZER, end_ids=())
    for module in (training, studying):
        monkeypatch.setattr(module, "check_models", lambda config: pairing)


def on(monkeypatch: pytest.MonkeyPatch, day: str) -> None:
    """From now on it is this day."""
    today = datetime.date.fromisoformat(day)
    clock = SimpleNamespace(today=lambda: today)
    monkeypatch.setattr(prompts_module, "date", clock)


def begins(feed: PromptFeed) -> set[str]:
    """The days that its prompts begin with, the teacher's too."""
    ids = [one for p in feed.batch(0, 4) for one in (p.student_ids, p.teacher_ids)]
    return {TOKENIZER.decode(found)[:10] for found in ids}


def trained(config: Config, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The days in the prompts of a run, which trains nothing."""
    found: list[PromptFeed] = []

    @contextmanager
    def session(*args: Any, **named: Any) -> Iterator[None]:
        yield

    def steer(
        session: None, feed: PromptFeed, tasks: Any, output: OutputFolder, store: Any, part: Any
    ) -> int:
        found.append(feed)
        if part.config.run.resume == "never":
            output.clear()
        output.begin(part.config)
        output.history.add_part(0, feed.identity, [], {})
        output.metrics.write_text('{"step": 0}\n')
        return 0

    monkeypatch.setattr(training, "open_session", session)
    monkeypatch.setattr(training, "_steer", steer)
    assert training.train(config) == 0
    return begins(found[0])


def test_a_run_that_goes_on(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, "2024-03-15")
    assert trained(config, monkeypatch) == {"2024-03-15"}
    on(monkeypatch, "2025-07-26")
    assert trained(config, monkeypatch) == {"2024-03-15"}
    # From a checkpoint, which holds the run's configuration, in a folder of its own too.
    kept = OutputFolder(config.run.output_dir).config
    there = kept.parent / "checkpoints" / "step_00000002"
    there.mkdir(parents=True)
    (there / "config.yaml").write_bytes(kept.read_bytes())
    elsewhere = replace(config.run, output_dir=f"{kept.parent}_2", resume=str(there))
    with pytest.raises(Exception, match="use auto, never, or the folder of a checkpoint"):
        trained(replace(config, run=elsewhere), monkeypatch)
    assert kept_date(elsewhere) == "2024-03-15"
    shutil.rmtree(there.parent)
    # One that begins anew is of the day on which it does.
    anew = replace(config, run=replace(config.run, resume="never"))
    assert trained(anew, monkeypatch) == {"2025-07-26"}
    other = replace(config, run=replace(config.run, date="2024-03-15"))
    with pytest.raises(OutputFolderError, match="other prompts than the run has had so far"):
        trained(other, monkeypatch)


def test_a_run_from_before_days_were_kept(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, "2024-03-15")
    trained(config, monkeypatch)
    kept = OutputFolder(config.run.output_dir).config
    lines = kept.read_text().splitlines(keepends=True)
    kept.write_text("".join(line for line in lines if not line.startswith("  date:")))
    OutputFolder(config.run.output_dir).history.path.unlink()
    on(monkeypatch, "2025-07-26")
    assert trained(config, monkeypatch) == {"2025-07-26"}


def test_an_evaluation_that_goes_on(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        AutoTokenizer, "from_pretrained", classmethod(lambda cls, *args, **options: TOKENIZER)
    )
    asked: list[str] = []

    def ask(config: Config, tokenizer: Any, folder: Any, modes: Any, *, owns_process: bool) -> None:
        for mode in modes:
            asked.extend(TOKENIZER.decode(p.student_ids)[:10] for p in mode.held_out.prompts)

    monkeypatch.setattr(evaluation, "_ask_all", ask)
    out = tmp_path / "out"
    for day in ("2024-03-15", "2025-07-26"):
        on(monkeypatch, day)
        assert evaluation.evaluate(config, out) == 0
    assert asked == ["2024-03-15"] * 4
    assert EvaluationFolder(out).settings["date"] == "2024-03-15"
    other = replace(config, run=replace(config.run, date="2025-07-26"))
    with pytest.raises(OutputFolderError, match="date: 2024-03-15 -> 2025-07-26"):
        evaluation.evaluate(other, out)


def test_a_study_that_goes_on(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    days: list[set[str]] = []

    def run(self: Any, config: Config, cells: Any, waiting: Any) -> int:
        days.append(begins(self._seed_data(waiting[0])[0]))
        return 0

    monkeypatch.setattr(studying._Runner, "run", run)
    config.eval.kl_prompts = 1
    arms = [StudyArm("mine", {}), StudyArm("all", {"rule": "all"})]
    config = replace(config, study=replace(config.study, seeds=[1], arms=arms))
    for day in ("2024-03-15", "2025-07-26"):
        on(monkeypatch, day)
        studying.study(config)
    assert days == [{"2024-03-15"}] * 2


def test_a_day_that_is_none(config: Config) -> None:
    from opd_ray.preflight.config import check_config

    with pytest.raises(ValueError, match=r"run\.date = 'today': no day; write it as 2026-01-31"):
        check_config(replace(config, run=replace(config.run, date="today")))
