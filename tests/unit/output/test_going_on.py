"""What may change in a folder that holds a run: declared beside every key, told or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from opd_ray.config.keys import all_keys
from opd_ray.config.load import load_config, to_yaml
from opd_ray.config.schema import Config
from opd_ray.data.prompt_set import PromptsIdentity
from opd_ray.errors import ConfigError, OpdError, OutputFolderError
from opd_ray.on_resume import OnResume, declared
from opd_ray.output.checkpoint import CheckpointError, CheckpointStore, RunState
from opd_ray.output.folder import OutputFolder
from opd_ray.output.resume import Change, Start, changes, check_changes, find_start, rule_of, told

PROMPTS = PromptsIdentity(64, "aa")
BASE = """
run: {output_dir: out, steps: 8}
student: {path: models/s}
teacher: {path: t}
teachers: {judge: {path: j, topk: 8}}
data: {kind: jsonl, path: a.jsonl}
rollout: {prompts_per_step: 12}
eval: {tasks: [{name: a}]}
"""

Load = Callable[..., Config]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(BASE)
    return lambda *overrides: load_config("base.yaml", overrides)


def started(config: Config, step: int = 4, **state: Any) -> Start:
    """A checkpoint that ``config`` has written."""
    store = CheckpointStore(Path(config.run.output_dir) / "checkpoints", 9, to_yaml(config))
    kept = {"batches": [[step, 12]], "prompts": {"count": 64, "fingerprint": "aa"}, **state}
    made = RunState(step, config.run.seed, config.run.steps, {}, **kept)
    return Start(store.save(made, lambda trainer: None), made)


def accepted(config: Config, start: Start | None, prompts: PromptsIdentity | None) -> list[str]:
    return told(OutputFolder(config.run.output_dir).accept(config, start, prompts))


def leaves(settings: Any, place: str = "") -> list[tuple[str, OnResume | None]]:
    """Every single key with what it says; a list or mapping counts as one."""
    found = []
    for field in fields(settings):
        value, rule = getattr(settings, field.name), declared(field.metadata)
        if is_dataclass(value) and rule is None:
            found += leaves(value, f"{place}{field.name}.")
        else:
            found.append((f"{place}{field.name}", rule))
    return found


def test_every_key_says_what_another_value_means() -> None:
    said = leaves(Config())
    assert [key for key, rule in said if rule is None] == []
    assert {key.split("[")[0] for key in all_keys(Config)} >= {
        key for key, _ in said if not key.startswith("data.")
    }


@pytest.mark.parametrize(
    ("key", "rule"),
    [
        ("run.output_dir", "free"),
        ("run.steps", "told"),
        ("run.seed", "fixed"),
        ("student.path", "fixed"),
        ("trainer.learning_rate", "told"),
        ("trainer.ranks", "told"),
        ("trainer.zero_stage", "told"),
        ("trainer.dtype", "told"),
        ("trainer.offload_optimizer", "told"),
        ("trainer.offload_parameters", "told"),
        ("trainer.recomputed_layers", "free"),
        ("run.checkpoint_beside", "free"),
        ("trainer.threads", "free"),
        ("rollout.actors", "free"),
        ("rollout.prompts_per_step", "told"),
        ("loss.divergence", "told"),
        ("tip.normalise_over", "fixed"),
        ("data.limit", "same_prompts"),
        ("data.fields.id", "same_prompts"),
        ("data.shuffle", "fixed"),
        ("eval.tasks[0].data.path", "told"),
        ("eval.tasks", "told"),
        ("teacher.follow_decay", "fixed"),
        ("teachers.judge.follow_decay", "fixed"),
        ("teachers.judge.replicas", "free"),
        ("teachers.judge.path", "told"),
        ("teachers.7.path", "told"),
        ("study.arms[0].tip.rho", "free"),
        ("trainer.gone", "told"),
    ],
)
def test_what_a_key_says(key: str, rule: str) -> None:
    assert rule_of(key) == rule


def test_what_has_changed_is_named_with_both_values(load: Load) -> None:
    start = started(load())
    found = accepted(
        load(
            *("trainer.learning_rate=0.5", "rollout.prompts_per_step=6", "rollout.actors=2"),
            *("run.checkpoint_every=3", "eval.tasks=[{name: a, samples: 2}, {name: b}]"),
            *("teachers.judge.topk=16", "teachers.judge.replicas=2", "run.steps=20"),
        ),
        start,
        PROMPTS,
    )
    assert found == [
        "eval.tasks[0].samples: 0 -> 2",
        "rollout.prompts_per_step: 12 -> 6",
        "run.steps: 8 -> 20",
        "teachers.judge.topk: 8 -> 16",
        "trainer.learning_rate: 1e-06 -> 0.5",
        "eval.tasks: 1 entries -> 2 entries",
    ]
    assert accepted(load(), start, PROMPTS) == []


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("student.path=other", "student.path: 'models/s' -> 'other'"),
        ("tip.normalise_over=stream", "tip.normalise_over: 'batch' -> 'stream'"),
        ("teachers.judge.follow_decay=0.5", "teachers.judge.follow_decay: (none) -> 0.5"),
        ("data.seed=3", "data.seed: null -> 3"),
    ],
)
def test_another_run_is_refused_with_key_values_and_remedy(
    load: Load, override: str, said: str
) -> None:
    start = started(load())
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    with pytest.raises(OutputFolderError) as caught:
        accepted(load(override), start, PROMPTS)
    assert said in str(caught.value)
    assert "put back what it was, or choose another run.output_dir" in str(caught.value)
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before


def test_a_run_goes_on_with_other_trainer_ranks_and_says_so(load: Load) -> None:
    ranks = ("trainer.ranks=3", "trainer.zero_stage=2", "trainer.dtype=bfloat16")
    assert accepted(load(*ranks), started(load()), PROMPTS) == [
        "trainer.dtype: 'float32' -> 'bfloat16'",
        "trainer.ranks: 1 -> 3",
        "trainer.zero_stage: 0 -> 2",
    ]


def test_two_ways_to_write_a_folder_are_no_change(load: Load, tmp_path: Path) -> None:
    start = started(load())
    assert accepted(load(f"student.path={tmp_path}/models/../models/s"), start, PROMPTS) == []


def test_prompts_are_compared_as_they_are_not_as_they_are_named(load: Load) -> None:
    start = started(load())
    moved = load("data.path=b.jsonl", "data.limit=64")
    assert accepted(moved, start, PROMPTS) == [
        "data.limit: null -> 64",
        "data.path: 'a.jsonl' -> 'b.jsonl'",
    ]
    with pytest.raises(
        OutputFolderError, match=r"data\.limit: null -> 64; .*64 of .* aa, now 9 of"
    ):
        accepted(moved, start, PromptsIdentity(9, "bb"))
    with pytest.raises(OutputFolderError, match="or what the chat template makes of it"):
        accepted(load(), start, PromptsIdentity(64, "bb"))
    assert accepted(moved, start, None)  # as opd-ray doctor asks


def test_keys_of_other_versions_are_no_obstacle(load: Load) -> None:
    config = load()
    file = Path("old.yaml")
    text = to_yaml(config).replace("  learning_rate: 1.0e-06\n", "  warm_restarts: 3\n")
    file.write_text(text)
    assert "warm_restarts" in text
    [gone] = changes(file, config)
    assert (str(gone), gone.rule) == ("trainer.warm_restarts: 3 -> (none)", OnResume.told)
    [rate, _] = changes(file, load("trainer.learning_rate=0.5"))
    assert str(rate) == "trainer.learning_rate: 1e-06 -> 0.5"


def test_a_run_that_left_no_checkpoint_begins_again_and_says_with_what(load: Load) -> None:
    folder = OutputFolder("out")
    with folder:
        folder.begin(load())
        folder.metrics.write_text('{"step": 3}\n')
    assert accepted(load("tip.rho=0.25"), None, PROMPTS) == ["tip.rho: 0.5 -> 0.25"]


def test_a_checkpoint_from_elsewhere_does_not_replace_another_run(load: Load) -> None:
    started(load("run.output_dir=other", "run.seed=1", "student.path=models/other"))
    OutputFolder("other").begin(load("run.output_dir=other", "student.path=models/other"))
    start = started(load())
    with pytest.raises(
        OutputFolderError, match=r"run\.output_dir = 'other': holds .*student\.path"
    ):
        accepted(load("run.output_dir=other"), start, PROMPTS)


def test_where_a_run_goes_on(load: Load) -> None:
    store = CheckpointStore(Path("out/checkpoints"), 9)
    assert find_start(load(), store) is None
    start = started(load())
    assert find_start(load(), store) == start
    assert find_start(load("run.resume=never"), store) is None
    with pytest.raises(
        ConfigError, match=r"run\.steps = 3, but .*step_00000004 has 4 steps behind"
    ):
        find_start(load("run.steps=3"), store)


def test_checkpoints_of_which_none_can_be_read_are_no_reason_to_begin_again(load: Load) -> None:
    start = started(load())
    (start.checkpoint / "run.json").unlink()
    store = CheckpointStore(Path("out/checkpoints"), 9)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be read .*run\.json"):
        find_start(load(), store)
    later = started(load(), step=2)
    assert find_start(load(), store) == later
    [reason] = store.broken(after=2)
    assert "step_00000004/run.json cannot be read" in reason


def test_the_history_says_which_step_ran_with_what(load: Load, tmp_path: Path) -> None:
    history = OutputFolder(tmp_path).history
    assert (history.finished, history.prompts) == (None, None)
    history.add_part(0, PROMPTS, [], {"tip": {"rho": 0.5}})
    history.add_part(4, PROMPTS, ["tip.rho: 0.5 -> 0.25"], {"tip": {"rho": 0.25}})
    assert (history.finished, history.prompts) == (None, PROMPTS)
    history.finish(8)
    assert history.finished == 8
    rows = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [row.get("from_step") for row in rows] == [0, 4, None]
    assert rows[1]["changed"] == ["tip.rho: 0.5 -> 0.25"]
    assert rows[1]["config"] == {"tip": {"rho": 0.25}}
    history.path.write_text("{\n")
    with pytest.raises(OpdError, match=r"history\.jsonl: .*delete it"):
        _ = history.finished


def test_another_day_is_named_where_the_prompts_are_others() -> None:
    day = Change("run.date", "'2026-01-31'", "'2020-01-01'", OnResume.told)
    before, now = PromptsIdentity(3, "aa"), PromptsIdentity(3, "bb")
    check_changes([day], before, before, "runs/a:")
    with pytest.raises(OutputFolderError) as raised:
        check_changes([day], before, now, "runs/a:")
    assert (
        "other prompts than the run has had so far (run.date: '2026-01-31' -> '2020-01-01'): 3 of "
        "fingerprint aa, now 3 of bb; put back what it was"
    ) in str(raised.value)
