"""What words of the command line and of files become: text stays text, numbers are numbers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from opd_ray.config.keys import all_keys, hint_at, without_none
from opd_ray.config.load import load_config, to_yaml
from opd_ray.config.schema import Config
from opd_ray.errors import ConfigError, OpdError

MINIMAL = "student: {path: s}\nteacher: {path: t}\n"


def loaded(folder: Path, text: str, *overrides: str) -> Config:
    path = folder / "run.yaml"
    path.write_text(MINIMAL + text, encoding="utf-8")
    return load_config(str(path), overrides)


def refusal(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(folder, text, *overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        *(
            "Put the result after ####",
            "exp #3",
            "007",
            "12:30",
            "1e5",
            "yes",
            "off",
            "0x1f",
            "1_0",
        ),
        *(
            "2024-01-31",
            "a: b",
            "- a",
            "[a",
            "{a",
            "'half",
            '"quoted"',
            "'quoted'",
            "*star",
            "&and",
        ),
        *("!tag", "@at", "`tick`", "|", ">", "%", "=", "a=b=c", " leading", "trailing ", "\ttab"),
        *(
            "two\nlines",
            "",
            "back\\slash \\n",
            "$5 and {prompt}",
            "é ü 数",
            "true",
            "null ",
            "~",
            ".",
        ),
    ],
)
def test_text_of_the_command_line_is_taken_as_it_is(tmp_path: Path, words: str) -> None:
    instruction = f"{words}{{prompt}}{words}"
    config = loaded(tmp_path, "", f"data.split={words}", f"data.instruction={instruction}")
    assert (config.data.split, config.data.instruction) == (words, instruction)


@pytest.mark.parametrize(
    ("words", "value"),
    [
        *(("null", None), ("", None), ("'null'", "null"), ('"null"', "null"), ("''", "")),
        *(("nul", "nul"), ("~", "~"), ("Null", "Null"), ("'x'", "'x'"), ("#", "#")),
    ],
)
def test_null_where_a_key_may_be_null_and_its_word_in_quotes(
    tmp_path: Path, words: str, value: str | None
) -> None:
    assert loaded(tmp_path, "", f"data.system_prompt={words}").data.system_prompt == value


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("run.steps=1e5", "run.steps", 100_000),
        ("run.steps=010", "run.steps", 10),
        ("run.steps=0x10", "run.steps", 16),
        ("run.steps=1_000", "run.steps", 1000),
        ("data.limit=", "data.limit", None),
        ("data.limit=null", "data.limit", None),
        ("trainer.learning_rate=1e-6", "trainer.learning_rate", 1e-6),
        ("trainer.learning_rate=.5", "trainer.learning_rate", 0.5),
        ("run.export_at_end=no", "run.export_at_end", False),
        ("run.export_at_end=1", "run.export_at_end", True),
        ("teacher.cache=off", "teacher.cache", "off"),
        ("teacher.accept_mismatch=[eos, no]", "teacher.accept_mismatch", ["eos", "no"]),
        ("study.seeds=[1e1, 07]", "study.seeds", [10, 7]),
        ("teacher.members={on: 1e0, 007: 2}", "teacher.members", {"on": 1.0, "007": 2.0}),
        ("routes={yes: teacher, a.b: 1}", "routes", {"yes": "teacher", "a.b": "1"}),
        ("routes.007=teacher", "routes", {"007": "teacher"}),
        ("teachers.judge.path=007", "teachers", {"judge": {"path": "007"}}),
        (
            "teachers={judge: {path: 12:30, topk: 1e1}}",
            "teachers",
            {"judge": {"path": "12:30", "topk": 10}},
        ),
        (
            "data.arguments={a: 1e3, b: yes, c: 'no'}",
            "data.arguments",
            {"a": 1e3, "b": True, "c": "no"},
        ),
        ("data.arguments.note='a #b'", "data.arguments", {"note": "a #b"}),
        ("rollout.max_new_tokens=${run.seed}2", "rollout.max_new_tokens", 2),
    ],
)
def test_the_key_says_what_the_words_are(
    tmp_path: Path, override: str, key: str, value: object
) -> None:
    got = _value(loaded(tmp_path, "", override), key)
    assert got == value
    assert type(got) is type(value) or isinstance(got, Enum)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("run.steps=12:30", "run.steps = '12:30': expected an integer"),
        ("run.steps=5 # five", "run.steps = '5 # five': expected an integer"),
        ("run.steps=", "run.steps = '': expected an integer"),
        ("run.steps=1e400", "run.steps = inf: expected an integer"),
        ("run.steps=true", "run.steps = 'true': expected an integer"),
        ("data.arguments.at=12:30", "12:30: YAML reads that as another number; quote it"),
        ("data.arguments={at: 007}", "007: YAML reads that as another number; quote it"),
        ("data.arguments.note=a #b", "' #' begins a comment in YAML: put the text into quotes"),
        ("data.arguments={a: &x [*x]}", "recursive"),
        ("data.arguments={a: 1, a: 2}", "duplicate key a"),
        ("data.arguments={[a]: 1}", "data.arguments"),
        ("data.system_prompt=costs ${", r"for these characters themselves write \${"),
        ("data.system_prompt=costs ${x}", r"data.system_prompt: Interpolation key 'x' not found"),
        ("student.path=${student.path}", "student.path"),
        ("routes.train.jsonl=teacher", "routes.train.jsonl"),
        ("student.path=???", "no value for student.path"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, override: str, said: str) -> None:
    message = refusal(tmp_path, "", override)
    assert said in message
    assert "\n" not in message


def test_words_of_a_file_are_what_their_keys_hold(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        """
run: {output_dir: 007, steps: 1e2, wandb_project: off}
student: {path: 1e5}  # of text keys too, a comment is a comment
data: {kind: jsonl, path: 12:30, split: 2024-01-31, system_prompt: yes, subset: null, seed: 010}
teacher: {path: =, cache: off, cache_dir: 1e5, accept_mismatch: [no, 1]}
teachers: {on: {path: 08, topk: 1e1}, 1: {kind: self}}
routes: {007: on, null: on}
eval: {tasks: [{name: 1_000, data: {fields: {answer: ~, id: 0x1}}}]}
study: {arms: [{name: 1e1, tip: {rule: on, rho: 5e-1}}]}
""",
        encoding="utf-8-sig",
    )
    config = load_config(str(path))
    run, data, teacher = config.run, config.data, config.teacher
    assert (run.output_dir, run.steps, run.wandb_project) == ("007", 100, "off")
    assert (data.path, data.split, data.system_prompt) == ("12:30", "2024-01-31", "yes")
    assert (data.subset, data.seed, config.student.path) == (None, 10, "1e5")
    assert (teacher.path, teacher.cache, teacher.cache_dir) == ("=", "off", "1e5")
    assert teacher.accept_mismatch == ["no", "1"]
    assert config.teachers == {"on": {"path": "08", "topk": 10}, "1": {"kind": "self"}}
    assert config.routes == {"007": "on", "null": "on"}
    (task,), (arm,) = config.eval.tasks, config.study.arms
    assert (task.name, task.data.fields.answer, task.data.fields.id) == ("1_000", None, "0x1")
    assert (arm.name, arm.tip) == ("1e1", {"rule": "on", "rho": 0.5})


def test_merged_and_repeated_parts_of_a_file_are_read_the_same_way(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        "data: &d {path: 007, kind: jsonl}\n"
        "eval: {tasks: [{name: a, data: {<<: *d, split: 08}}, {name: b, data: *d}]}\n",
    )
    first, second = (task.data for task in config.eval.tasks)
    assert (first.path, first.split, second.path, second.split) == ("007", "08", "007", "train")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"run:\n\tsteps: 3\n", "cannot start any token; indent with spaces, not with tabs"),
        (b"run: {steps: 3\ndata: {}\n", "not valid YAML: line 2"),
        (b"run: {steps: 1, steps: 2}\n", "line 1, column 17: found duplicate key steps"),
        (b"- run\n", "expected keys and values, found a list"),
        (b"run\n", "expected keys and values, found a str"),
        (b"1: 2\n", "unknown key 1"),
        (b"? [a]\n: 2\n", "line 1, column 3: found unhashable key"),
        (b"run: {output_dir: caf\xe9}\n", "give a readable file of UTF-8 text"),
        (b"run: {output_dir: a\x07b}\n", "not valid YAML"),
        (b"--- {}\n--- {}\n", "expected a single document"),
        (b"run: !!python/object:os.system {}\n", "could not determine a constructor"),
        (b"run: &a {steps: *a}\n", "recursive"),
        (b"data: {arguments: {at: 12:30}}\n", "line 1: 12:30: YAML reads that as another number"),
        (b"run: {output_dir: null}\n", "run.output_dir = null: expected text"),
        (b"run: {output_dir: [a]}\n", "run.output_dir = ['a']: expected text"),
        (b"inherit: nowhere\n", "no packaged config is called 'nowhere'"),
    ],
)
def test_files_that_are_no_configuration_are_told_in_a_line(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(str(path))
    message = str(caught.value)
    assert said in message
    assert str(path) in message
    assert "\n" not in message


def test_a_folder_is_no_configuration(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"run\.yaml is a folder: give a file in it"):
        load_config(str(tmp_path / "run.yaml"))
    with pytest.raises(ConfigError, match="no file ending in .yaml"):
        load_config(str(tmp_path))
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ConfigError, match=r"is a folder: did you mean .*/config\.yaml\?"):
        load_config(str(tmp_path))


# Pieces of which the random words below are made: what YAML, OmegaConf and shells care about.
_PIECES = (
    *(
        "a",
        "7",
        "0",
        ".",
        ":",
        " ",
        "#",
        "'",
        '"',
        "-",
        "+",
        "_",
        "e",
        "{",
        "}",
        "[",
        "]",
        ",",
        "=",
    ),
    *(
        "\\",
        "\n",
        "\t",
        "|",
        ">",
        "&",
        "*",
        "!",
        "%",
        "@",
        "`",
        "?",
        "~",
        "<<",
        "yes",
        "null",
        "é",
        "$",
    ),
)


def words(draw: random.Random) -> str:
    return "".join(draw.choices(_PIECES, k=draw.randint(0, 8)))


def single_keys() -> Iterator[str]:
    for key in all_keys(Config):
        yield key.replace("[]", "[0]")


@pytest.fixture
def with_lists(tmp_path: Path) -> str:
    path = tmp_path / "lists.yaml"
    path.write_text(MINIMAL + "eval: {tasks: [{}]}\nstudy: {arms: [{name: x}]}\n")
    return str(path)


def test_random_text_comes_back_unchanged(with_lists: str, tmp_path: Path) -> None:
    draw = random.Random(5)
    texts = [key for key in single_keys() if without_none(hint_at(Config, key)) is str]
    assert len(texts) > 35
    for _ in range(12):
        given = {key: words(draw) for key in texts}
        for key, text in given.items():
            nullable = hint_at(Config, key) is not str
            # Meant as null, as a reference or as the home folder, as said elsewhere.
            if (nullable and text.strip() in ("", "null", "''")) or "${" in text:
                given[key] = "a"
            if (
                not text
                or text.startswith("~")
                or "$a" in text
                or "$e" in text
                or "$_" in text
                or "$y" in text
            ):
                given[key] = "b"
        config = load_config(with_lists, [f"{key}={text}" for key, text in given.items()])
        again = tmp_path / "again.yaml"
        again.write_text(to_yaml(config), encoding="utf-8")
        for read in (config, load_config(str(again))):
            for key, text in given.items():
                assert _value(read, key) == text, key


def test_random_values_end_in_a_configuration_or_a_message_that_names_the_key(
    with_lists: str,
) -> None:
    draw = random.Random(6)
    keys = [*single_keys(), "data.arguments.x", "teachers.a.topk", "routes.a", "run", "eval.tasks"]
    refused: dict[str, str] = {}
    for key in draw.sample(keys, 60):
        text = words(draw)
        try:
            load_config(with_lists, [f"{key}={text}"])
        except OpdError as error:
            refused[key] = str(error)
    assert len(refused) > 20
    assert [key for key, said in refused.items() if key not in said] == []


def test_references_and_their_signs_survive_a_written_configuration(tmp_path: Path) -> None:
    text = r"a \${run.seed} b \\\${x} {prompt} \ ${run.seed}"
    config = loaded(tmp_path, "", f"data.instruction={text}", "run.seed=3")
    assert config.data.instruction == r"a ${run.seed} b \${x} {prompt} \ 3"
    (tmp_path / "again.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load_config(str(tmp_path / "again.yaml")) == config


def _value(config: Any, key: str) -> Any:
    for part in key.replace("[0]", ".0").split("."):
        config = config[0] if part == "0" else getattr(config, part)
    return config
