"""``~`` and environment variables in every key and option that holds a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd_ray.cli import make_parser
from opd_ray.config.load import load_config
from opd_ray.config.schema import Config
from opd_ray.errors import ConfigError

FILE = """
run: {output_dir: ~/runs/x, resume: ~/runs/y/checkpoints/step_00000001}
student: {path: ~/models/s}
teacher: {path: '${student.path}/../t', cache_dir: ~/cache}
teachers:
  judge: {path: ~/models/judge, cache_dir: ~/more}
data: {kind: jsonl, path: ~/data/*.jsonl, system_prompt: ~/ stays}
eval: {tasks: [{name: a, data: {kind: parquet, path: ~/held.parquet}}]}
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text(FILE)
    return tmp_path


def paths(config: Config) -> list[str | None]:
    run, teacher, judge = config.run, config.teacher, config.teachers["judge"]
    named = config.teacher_set.named["judge"]
    return [
        *(run.output_dir, run.resume, config.student.path, teacher.path, teacher.cache_dir),
        *(judge["path"], judge["cache_dir"], named.path, named.cache_dir),
        *(config.data.path, config.eval.tasks[0].data.path),
    ]


def test_every_path_of_a_file_may_begin_in_the_home_folder(home: Path) -> None:
    config = load_config("~/run.yaml")
    assert paths(config) == [
        *(f"{home}/runs/x", f"{home}/runs/y/checkpoints/step_00000001", f"{home}/models/s"),
        *(f"{home}/models/s/../t", f"{home}/cache", f"{home}/models/judge", f"{home}/more"),
        *(f"{home}/models/judge", f"{home}/more", f"{home}/data/*.jsonl", f"{home}/held.parquet"),
    ]
    assert config.data.system_prompt == "~/ stays"


def test_on_the_command_line_too(home: Path) -> None:
    overrides = ["run.output_dir=~/a", "student.path=~", "teachers.judge.path=~/b"]
    config = load_config("~/run.yaml", [*overrides, "eval.tasks[0].data.path=~/c"])
    assert (config.run.output_dir, config.student.path) == (f"{home}/a", str(home))
    assert config.teachers["judge"]["path"] == f"{home}/b"
    assert config.eval.tasks[0].data.path == f"{home}/c"
    assert load_config("~/run.yaml", ["run.output_dir=a~/~b"]).run.output_dir == "a~/~b"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("run.output_dir=$HOME/x", r"run.output_dir = '\$HOME/x': \$HOME is not replaced here"),
        ("data.path=a/$DATA", r"write \$\{oc.env:DATA\}"),
        ("student.path=~nobody_of_that_name/s", "student.path = '~nobody_of_that_name/s'"),
        ("run.output_dir=", "run.output_dir is empty: give a path"),
        ("student.path=", "student.path is empty: give a path"),
        ("teachers.judge.path=$HOME/x", r"teachers.judge.path = '\$HOME/x'"),
    ],
)
def test_what_is_no_path_yet_is_refused(home: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config("~/run.yaml", [override])


@pytest.mark.parametrize(
    ("arguments", "name", "below"),
    [
        (["export", "--checkpoint=~/c", "--out=~/o"], "checkpoint", "c"),
        (["export", "--checkpoint=~/c", "--out=~/o"], "out", "o"),
        (["eval", "--model=~/m", "--out=~/o"], "model", "m"),
        (["eval", "--model=~/m", "--out=~/o"], "out", "o"),
        (["eval", "--data=~/d"], "data", "d"),
        (["prepare", "gsm8k", "--out=~/f.jsonl"], "out", "f.jsonl"),
        (["make-pair", "--out=~/p"], "out", "p"),
    ],
)
def test_options_that_are_paths(home: Path, arguments: list[str], name: str, below: str) -> None:
    assert str(getattr(make_parser().parse_args(arguments), name)) == f"{home}/{below}"


def test_origins_of_a_prepared_set(home: Path) -> None:
    parsed = make_parser().parse_args(["prepare", "gsm8k", "--from", "~/a.parquet", "hub/name"])
    assert parsed.origins == [f"{home}/a.parquet", "hub/name"]
