"""Whatever a user gives, a command ends with a message that names the place, never a traceback.

Broken input is drawn from a seed; a case that fails is in the assertion's message.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from opd_ray.cli import main
from opd_ray.config.load import load_config, to_yaml
from opd_ray.errors import RunError
from opd_ray.models.pairs.demo import pair_folder

VALUES = (
    *("", "null", "-1", "0", "1e400", "nan", "-inf", "[]", "{}", "[1,2]", "{a: 1}", "x", "true"),
    *("'", '"', "${x}", "${opd:x}", "${oc.env:NOPE}", "${", "???", "a: b", "- x", "2024-01-01"),
    *("\x00", "\ud83d", "é", "%s", "*", "&a", "!!python/object:os.system x", "[[[]]]", "9" * 400),
    *("~", "!!binary x", "@", "`", "1:2:3", "null:", "{a", "}"),
)
OVERRIDES, FILES, MODELS = 25, 20, 8  # cases of each kind
JUNK = (b"", b"{", b"[]", b"3", b"\xff\xfe", b"null", b'"x"', b"{}")
MODEL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
WRONG: dict[str, tuple[str, ...]] = {
    "config.json": (
        *("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
        *("head_dim", "max_position_embeddings", "tie_word_embeddings", "intermediate_size"),
    ),
    "tokenizer.json": ("model", "added_tokens", "pre_tokenizer", "post_processor", "decoder"),
    "tokenizer_config.json": ("tokenizer_class", "eos_token", "model_max_length"),
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of the test's own, in which no run and no evaluation gets as far as Ray."""
    import opd_ray.coordinator.run
    import opd_ray.evaluation.run

    def reached(*_: object, **__: object) -> None:
        raise RunError("it would start")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(opd_ray.coordinator.run, "open_session", reached)
    monkeypatch.setattr(opd_ray.evaluation.run, "RaySession", reached)


@pytest.fixture
def ends_well(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command; what it says, of which nothing is a traceback."""

    def run(*arguments: str) -> str:
        try:
            code = main(arguments)
        except SystemExit as usage:
            code = int(usage.code or 0)
        captured = capsys.readouterr()
        said = captured.out + captured.err
        assert "Traceback" not in said, f"{arguments}\n{said[-3000:]}"
        assert code in (0, 1, 2), arguments
        assert code == 0 or said.strip(), arguments
        return said

    return run


def keys(section: Any, prefix: str = "") -> Iterator[str]:
    for field in fields(section):
        key = f"{prefix}{field.name}"
        yield key
        if is_dataclass(value := getattr(section, field.name)):
            yield from keys(value, f"{key}.")


def test_random_overrides(ends_well: Any) -> None:
    draw = random.Random(0)
    known = [*keys(load_config("demo")), "eval.tasks[9].name", "teachers.a.kind", "a.b", ".", ""]
    for _ in range(OVERRIDES):
        key, value = draw.choice(known), draw.choice(VALUES)
        ends_well("train", "--config", "demo", "--print-config", f"{key}={value}")


def test_values_that_failed_before(ends_well: Any) -> None:
    number = "9" * 400
    for key, value in (
        ("run.output_dir", "\ud83d"),
        ("run.output_dir", "${"),
        ("cluster.start_timeout_s", number),
        ("loss.temperature", number),
    ):
        said = ends_well("train", "--config", "demo", "--print-config", f"{key}={value}")
        assert key.rpartition(".")[2] in said


def test_random_files(ends_well: Any, tmp_path: Path) -> None:
    draw = random.Random(1)
    lines = to_yaml(load_config("demo")).splitlines()
    path = tmp_path / "run.yaml"
    for _ in range(FILES):
        text = list(lines)
        where = draw.randrange(len(text))
        kind = draw.randrange(4)
        if kind == 0:
            value = draw.choice(VALUES).encode("utf-8", "replace").decode()
            text[where] = f"{text[where].split(':')[0]}: {value}"
        elif kind == 1:
            text[where] = " " * draw.randrange(5) + text[where]
        elif kind == 2:
            text.insert(where, draw.choice(lines))
        else:
            text[where] += draw.choice(("\t", ":", "]", "{", "'"))
        path.write_text("\n".join(text))
        ends_well("train", "--config", str(path), "--print-config")


@pytest.mark.parametrize(
    "content",
    [
        *(b"\xff\xfe\x00", b"- 1", b"\x00", b"a: &x [*x]", b"1: 2", b"? [a]\n: b", b"student: 3"),
        *(b"inherit: 3", b"inherit: run.yaml", b"teachers: {1: {}}", b"eval: {tasks: [null]}"),
        *(b"tip: null", b"run: {seed: 1.5}", b"teacher: {arguments: {a: ${x}}}", b"[" * 5000),
        *(b"run: {output_dir: ${run.output_dir}}", b"run: {output_dir: '${'}"),
    ],
    ids=lambda content: repr(content[:30]),
)
def test_a_file_of_another_kind(ends_well: Any, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    ends_well("train", "--config", str(path), "--print-config")
    path.write_bytes(b"inherit: demo\n" + content)
    ends_well("train", "--config", str(path), "--print-config")


def broken_models(draw: random.Random, folder: Path) -> Iterator[tuple[Path, str]]:
    """Copies of the demo's student with one file broken, each with what was done to which."""
    cases: list[tuple[str, str, Any]] = [(name, "", junk) for name in MODEL_FILES for junk in JUNK]
    for name, known in WRONG.items():
        cases += [(name, key, v) for key in known for v in (None, "x", -1, [], {}, [1, "a"], 1.5)]
    for number, (name, key, value) in enumerate(draw.sample(cases, MODELS)):
        copy = folder / f"model-{number}"
        shutil.copytree(pair_folder() / "student", copy)
        if key:
            content = json.loads((copy / name).read_text())
            (copy / name).write_text(json.dumps(content | {key: value}))
        else:
            (copy / name).write_bytes(value)
        yield copy, f"{name}: {key} {value!r}"


def test_random_model_folders(ends_well: Any, tmp_path: Path) -> None:
    for model, what in broken_models(random.Random(2), tmp_path):
        for command in (
            ("doctor", "--config", "demo", f"student.path={model}"),
            ("train", "--config", "demo", f"teacher.path={model}"),
            ("eval", "--config", "demo", "--model", str(model), "--out", f"{model}-out"),
            ("check-rule", "soft_or", "--config", "demo", f"student.path={model}"),
        ):
            said = ends_well(*command)
            if "it would start" not in said and "can be used" not in said and "checks" not in said:
                assert model.name in said or "vocab" in said, f"{what}: {command}\n{said}"


@pytest.mark.parametrize(
    "command",
    [
        ("export", "--checkpoint", "gone", "--out", "o"),
        ("export", "--checkpoint", "broken", "--out", "o"),
        ("eval", "--model", "broken", "--tasks", "gone", "--out", "o"),
        ("eval", "--model", "broken", "--tasks", "math500", "--out", "o"),
        ("study", "--config", "broken/run.yaml"),
        ("study", "--config", "gone"),
        ("prepare", "gone"),
        ("check-teacher", "--config", "broken/run.yaml"),
        ("check-teacher", "--config", "demo", "teacher.path=broken"),
        ("check-rule", "json:dumps"),
        ("check-rule", "broken.run:x"),
        ("serve-teacher", "--config", "broken/run.yaml", "--name", "a"),
    ],
    ids=" ".join,
)
def test_other_commands_on_what_is_broken_or_gone(
    ends_well: Any, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "broken" / "run.yaml").write_text("a: [")
    assert ends_well(*command).strip()
