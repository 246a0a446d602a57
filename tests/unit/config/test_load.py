"""Loading a configuration: inheritance, overrides, refusals, the way back to YAML."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from opd_ray.config import files
from opd_ray.config.choices import Dtype, LrSchedule, SignalChoice
from opd_ray.config.keys import all_keys
from opd_ray.config.load import load_config, to_yaml
from opd_ray.config.schema import Config
from opd_ray.errors import ConfigError

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes tmp_path/NAME.yaml."""

    def write_file(name: str, text: str) -> Path:
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


@pytest.fixture
def packaged(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """As ``write``, into the folder of packaged configs."""
    folder = tmp_path / "packaged"
    monkeypatch.setattr(files, "packaged_folder", lambda: folder)
    return lambda name, text: write(f"packaged/{name}", text)


def refusal(path: Path | str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(str(path), overrides)
    return str(caught.value)


MINIMAL = "student: {path: s}\nteacher: {path: t}\n"


def test_file_fills_a_typed_config(write: Write) -> None:
    path = write(
        "run",
        MINIMAL
        + """
trainer: {learning_rate: 1e-3, dtype: bfloat16, lr_schedule: linear}
run: {wandb_project: null}
eval:
  tasks:
    - {name: a, data: {chain_sum: {terms: 4}}}
""",
    )
    config = load_config(str(path))
    assert isinstance(config, Config)
    assert config.trainer.learning_rate == pytest.approx(1e-3)
    assert config.trainer.dtype is Dtype.bfloat16
    assert config.trainer.lr_schedule is LrSchedule.linear
    assert config.teacher.signal is SignalChoice.topk
    assert config.eval.tasks[0].data.chain_sum.terms == 4
    assert config.eval.tasks[0].data.chain_sum.digits == 2
    assert config.tip.rule == "soft_or"


def test_later_layers_win_and_lists_are_replaced(packaged: Write, write: Write) -> None:
    packaged("base", "trainer: {ranks: 2, zero_stage: 1}\nteacher: {accept_mismatch: [eos, pad]}\n")
    packaged("sub/other", "inherit: base\ntrainer: {zero_stage: 2}\ntip: {rho: 0.1}\n")
    write(
        "near",
        "student: {path: s}\ntip: {rho: 0.2}\nteacher: {path: t, accept_mismatch: [probes]}\n",
    )
    path = write("mine", "inherit: [sub/other, near.yaml]\nrun: {steps: 7}\n")
    config = load_config(str(path), ["trainer.zero_stage=3"])
    assert (config.trainer.ranks, config.trainer.zero_stage) == (2, 3)
    assert config.tip.rho == pytest.approx(0.2)
    assert config.teacher.accept_mismatch == ["probes"]
    assert (config.run.steps, config.student.path) == (7, "s")


def test_one_configuration_leaves_nothing_in_the_next(write: Write) -> None:
    changed = (
        MINIMAL + "run: {steps: 7}\neval: {tasks: [{name: a}]}\nteacher: {arguments: {x: 1}}\n"
    )
    path = str(write("changed", changed.replace("teacher: {path: t}\n", "")))
    first = load_config(path, ["teacher.path=t", "tip.rho=0.25"])
    first.teacher.arguments["y"] = 2
    first.eval.tasks.clear()
    again = load_config(path, ["teacher.path=t"])
    assert (again.run.steps, [task.name for task in again.eval.tasks]) == (7, ["a"])
    assert (again.teacher.arguments, again.tip.rho) == ({"x": 1}, 0.5)
    plain = load_config(str(write("plain", MINIMAL)))
    assert (plain.run.steps, plain.eval.tasks, plain.teacher.arguments) == (100, [], {})


def test_inherited_paths_start_at_the_inheriting_file(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("a/parent", MINIMAL)
    path = write("b/child", "inherit: ../a/parent.yaml\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_config(str(path)).student.path == "s"


def test_circle_and_missing_parent_are_refused(packaged: Write) -> None:
    packaged("one", "inherit: two\n")
    packaged("two", "inherit: one\n")
    assert "one.yaml -> two.yaml -> one.yaml" in refusal("one")
    packaged("three", "inherit: twoo\n")
    assert "did you mean two?" in refusal("three")
    packaged("four", "inherit: {a: 1}\n")
    assert "inherit" in refusal("four")


def test_a_diamond_is_no_circle(packaged: Write) -> None:
    packaged("root", MINIMAL)
    packaged("left", "inherit: root\ntrainer: {ranks: 2}\n")
    packaged("right", "inherit: root\nrun: {seed: 3}\n")
    packaged("both", "inherit: [left, right]\n")
    config = load_config("both")
    assert (config.trainer.ranks, config.run.seed) == (2, 3)


def test_unknown_config_names_the_nearest(packaged: Write) -> None:
    packaged("demo", MINIMAL)
    assert "did you mean demo?" in refusal("demmo")
    assert "no config file nowhere.yaml" in refusal("nowhere.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "rollout: {temprature: 1}",
            "unknown key rollout.temprature: did you mean rollout.temperature?",
        ),
        ("trainer: {gpus: 1}", "unknown key trainer.gpus: did you mean trainer.gpus_per_rank?"),
        ("lora: {rank: 8}", "unknown key lora: did you mean student.lora or sync.lora?"),
        ("trainer: {lr: 1}", "unknown key trainer.lr: did you mean trainer.learning_rate?"),
        ("learning_rate: 1", "unknown key learning_rate: did you mean trainer.learning_rate?"),
        ("trianer: {ranks: 1}", "unknown key trianer: did you mean trainer?"),
        ("trainer.ranks: 2", "trainer.ranks: dotted keys are for the command line"),
        ("sync: {qqqq: 2}", "unknown key sync.qqqq: the keys of sync are backend"),
        (
            "eval: {tasks: [{name: a}, {data: {chain_sum: {term: 2}}}]}",
            "unknown key eval.tasks[1].data.chain_sum.term: "
            "did you mean eval.tasks[1].data.chain_sum.terms?",
        ),
        ("trainer: {ranks: two}", "trainer.ranks = 'two': expected an integer"),
        ("trainer: {ranks: 1.5}", "trainer.ranks = 1.5: expected an integer"),
        ("trainer: {ranks: null}", "trainer.ranks = null: expected an integer"),
        ("tip: {rho: half}", "tip.rho = 'half': expected a number"),
        ("scoring: exakt", "scoring = 'exakt': expected one of streamed, exact"),
        ("run: {export_at_end: maybe}", "run.export_at_end = 'maybe': expected true or false"),
        ("teacher: {accept_mismatch: eos}", "accept_mismatch = 'eos': expected a list of text"),
        ("data: {limit: many}", "data.limit = 'many': expected an integer or null"),
        ("trainer: 3", "trainer = 3: expected a section with keys ranks"),
        ("trainer:", "trainer = null: expected a section"),
        ("eval: {tasks: {name: a}}", "eval.tasks = {'name': 'a'}: expected a list of sections"),
        ("eval: {tasks: [3]}", "eval.tasks[0] = 3: expected a section with keys name"),
        ("a: 1\na: 2", "duplicate key a"),
        ("a: [1", "not valid YAML"),
        ("- 1", "expected keys and values"),
    ],
)
def test_bad_files_are_refused_by_file_and_key(write: Write, text: str, expected: str) -> None:
    path = write("bad", text)
    message = refusal(path)
    assert expected in message
    assert str(path) in message


def test_all_problems_are_told_at_once(write: Write) -> None:
    path = write("bad", "run: {stepps: 1}\ntrainer: {ranks: x}\n")
    message = refusal(path, "tip.rhoo=1")
    assert all(part in message for part in ("run.steps?", "trainer.ranks", "tip.rho?"))


def test_required_keys_are_named(write: Write) -> None:
    message = refusal(write("empty", ""))
    assert "no value for student.path" in message
    assert "student.path=VALUE" in message


def test_overrides(write: Write) -> None:
    path = write("run", MINIMAL + "eval: {tasks: [{name: a}, {name: b}]}\n")
    config = load_config(
        str(path),
        [
            "trainer.learning_rate=3e-4",
            "student.path=folder=with=signs",
            "eval.tasks[1].samples=4",
            "eval.tasks.0.name=first",
            "data.arguments.depth={a: [1, 2]}",
            "rollout.dtype=bfloat16",
            "run.wandb_project=",
            "tip.rho=1",
        ],
    )
    assert config.trainer.learning_rate == pytest.approx(3e-4)
    assert config.student.path == "folder=with=signs"
    assert [(task.name, task.samples) for task in config.eval.tasks] == [("first", 0), ("b", 4)]
    assert config.data.arguments == {"depth": {"a": [1, 2]}}
    assert config.rollout.dtype is Dtype.bfloat16
    assert config.run.wandb_project is None
    assert isinstance(config.tip.rho, float)
    assert load_config(str(path), ["eval.tasks=[{name: c}]"]).eval.tasks[0].name == "c"
    assert load_config(str(path), ["eval.tasks=[]"]).eval.tasks == []


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainer.rank=2", "command line: unknown key trainer.rank: did you mean trainer.ranks?"),
        ("trainer.ranks=two", "command line: trainer.ranks = 'two': expected an integer"),
        ("trainer.ranks.more=2", "unknown key trainer.ranks.more: trainer.ranks is a single value"),
        ("trainer=2", "trainer = 2: expected a section"),
        ("eval.tasks[2].samples=1", "eval.tasks has 1 entries, counted from 0"),
        ("eval.tasks.samples=1", "eval.tasks is a list: write eval.tasks[0]"),
        ("eval.tasks[0].sample=1", "did you mean eval.tasks[0].samples?"),
        ("eval.tasks=[{nam: a}]", "did you mean eval.tasks[0].name?"),
        (
            "tip.selection=sofd",
            "tip.selection = 'sofd': expected one of top_share, threshold, soft",
        ),
        ("tip.divergence=3", "tip.divergence = '3': expected one of reverse_kl, forward_kl, jsd"),
        ("trainer.ranks", "'trainer.ranks': expected key=value"),
        ("=3", "expected key=value"),
        ("eval.tasks=[a", "not valid YAML"),
    ],
)
def test_bad_overrides_are_refused(write: Write, override: str, expected: str) -> None:
    assert expected in refusal(write("run", MINIMAL + "eval: {tasks: [{name: a}]}\n"), override)


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("tip.selection=sofft", "soft"),
        ("loss.divergence=revers_kl", "reverse_kl"),
        ("trainer.dtype=bf16", "bfloat16"),
        ("teacher.signal=TopK", "topk"),
        ("eval.tasks[0].data.kind=parket", "parquet"),
        ("trainer.dtype=fp8", None),
        ("sync.backend=3", None),
        ("trainer.ranks=two", None),
    ],
)
def test_a_value_that_is_none_of_the_choices_names_the_nearest(
    write: Write, override: str, meant: str | None
) -> None:
    said = refusal(write("run", MINIMAL + "eval: {tasks: [{name: a}]}\n"), override)
    if meant is None:
        assert "did you mean" not in said
    else:
        assert said.endswith(f"; did you mean {meant}?")


def test_sections_that_check_themselves_are_heard(write: Write) -> None:
    assert "rho=1.5 must lie in [0, 1]" in refusal(write("run", MINIMAL), "tip.rho=1.5")


def test_interpolations(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPD_TEST_FOLDER", "/models")
    path = write("run", "student: {path: '${oc.env:OPD_TEST_FOLDER}/s'}\nteacher: {path: t}\n")
    assert load_config(str(path)).student.path == "/models/s"
    assert load_config(str(path), ["teacher.path=${student.path}"]).teacher.path == "/models/s"
    assert "student.path" in refusal(path, "student.path=${nowhere}")
    said = refusal(path, "student.path=${opd:other}")
    assert said.endswith(
        "student.path: ${opd:other}: only demo_pair, demo_tools_pair and smollm2 are known"
    )


@pytest.mark.parametrize("name", ["HF_TOKEN", "openai_api_key", "KEY", "MY_SECRET_2", "X_PASSWORD"])
def test_variables_that_hold_keys_are_refused(
    write: Write, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "canary")
    path = write("run", MINIMAL)
    for value in (f"${{oc.env:{name}}}", f"a ${{oc.env:{name},other}}"):
        said = refusal(path, f"environment.arguments={{x: '{value}'}}")
        assert f"environment.arguments.x: ${{oc.env:{name}}}: by its name a key" in said
        assert "canary" not in said


@pytest.mark.parametrize("name", ["TOKENIZER_FOLDER", "MONKEY", "KEYS", "HOME_OF_MODELS"])
def test_variables_that_only_sound_like_keys_are_taken(
    write: Write, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "/x")
    path = write("run", MINIMAL)
    assert load_config(str(path), [f"student.path=${{oc.env:{name}}}"]).student.path == "/x"


def test_yaml_of_a_config_gives_the_same_config(write: Write) -> None:
    path = write(
        "run",
        MINIMAL
        + """
run: {wandb_project: 'null'}
data: {kind: jsonl, path: a.jsonl, instruction: "Q: {prompt}\\nA:", arguments: {x: [1, {y: z}]}}
trainer: {learning_rate: 1.0e-06}
eval: {tasks: [{name: '007'}]}
""",
    )
    config = load_config(str(path))
    text = to_yaml(config)
    assert "kind: jsonl" in text
    assert "dtype: float32" in text
    again = load_config(str(write("again", text)))
    assert again == config
    assert again.run.wandb_project == "null"


def test_every_key_has_a_comment() -> None:
    """The schema is the reference manual of the configuration: no key without a word on it."""
    from opd_ray.config import data as data
    from opd_ray.config import schema
    from opd_ray.tip import settings as tip

    for module in (schema, data, tip):
        lines = Path(str(module.__file__)).read_text(encoding="utf-8").splitlines()
        section = None
        for before, line in pairwise(lines):
            if line.startswith("class "):
                section = line.split("(")[0].split()[1].rstrip(":")
            name = line.strip().split(":")[0]
            is_key = line.startswith("    ") and name.isidentifier() and ": " in line
            if is_key and section != "Config" and not line.startswith("     "):
                assert before.strip().startswith("#"), f"{section}.{name} has no comment"
    assert {"trainer.ranks", "eval.tasks[].data.chain_sum.terms"} <= set(all_keys(Config))
