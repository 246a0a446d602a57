"""What travels with a job, and which paths are refused before it is submitted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from opd_ray.cluster import submit, submit_files
from opd_ray.cluster.submit_files import stage
from opd_ray.errors import ConfigError, RunError

OUT = "run.output_dir=/shared/run"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a user who submits, with code, data and a model in it."""
    folder = tmp_path / "here"
    for path in ("own/__init__.py", "own/deep/part.py", "rule.py", "data/a.jsonl", "model/c.json"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("x = 1\n")
    for path in (".git/objects", "own/__pycache__/a.pyc", ".gitignore"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("own\n")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "job").mkdir()
    return tmp_path / "job"


def files(folder: Path) -> set[str]:
    """All but the packages of opd-ray."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in found if path.parts[0] not in submit_files.PACKAGES}


def test_modules_travel_without_what_is_compiled(here: Path, job: Path) -> None:
    modules = [Path("rule.py"), here / "own"]
    assert stage(job, "demo", [OUT], modules)[:3] == ["train", "--config", "demo"]
    assert files(job) == {"rule.py", "own/__init__.py", "own/deep/part.py"}


def test_a_working_folder_travels_whole_and_its_relative_paths_are_found(
    here: Path, job: Path
) -> None:
    data = ["data.kind=jsonl", "data.path=data/*.jsonl", "student.path=./model"]
    stage(job, "demo", [OUT, *data], working_dir=here)
    assert files(job) == {
        *("own/__init__.py", "own/deep/part.py", "rule.py", "data/a.jsonl", "model/c.json")
    }


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["run.output_dir=outputs/run"], "run.output_dir = 'outputs/run': a job's results"),
        ([OUT, "run.resume=runs/step_1"], "run.resume = 'runs/step_1': a job's results"),
        (
            [OUT, "teacher.cache=record", "teacher.cache_dir=answers"],
            "teacher.cache_dir = 'answers': a job's results",
        ),
        ([OUT, "student.path=model"], "student.path = 'model': a relative path"),
        ([OUT, "teacher.path=./gone"], "teacher.path = './gone': a relative path"),
        ([OUT, "data.kind=jsonl", "data.path=data/a.jsonl"], "data.path = 'data/a.jsonl': a rel"),
        ([OUT, "data.kind=prepared", "data.path=sets/aime24"], "data.path = 'sets/aime24': a rel"),
        (
            [OUT, "eval.tasks=[{data: {kind: parquet, path: '*.parquet'}}]"],
            "eval.tasks[0].data.path = '*.parquet': a relative path",
        ),
    ],
)
def test_a_relative_path_is_refused_by_its_key(
    here: Path, job: Path, overrides: list[str], key: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        stage(job, "demo", overrides)
    assert str(raised.value).startswith(key)
    assert list(job.iterdir()) == []


def test_names_of_a_hub_and_absolute_paths_are_no_relative_paths(here: Path, job: Path) -> None:
    stage(job, "demo", [OUT, "student.path=Qwen/Qwen3-8B", "teacher.path=/models/teacher"])
    assert files(job) == set()


@pytest.mark.parametrize(
    ("modules", "working_dir", "words"),
    [
        (["gone.py"], None, "--py-modules = 'gone.py': name a Python file or the folder"),
        (["data/a.jsonl"], None, "--py-modules = 'data/a.jsonl': name a Python file or"),
        (["rule.py", "rule.py"], None, "--py-modules = 'rule.py': rule.py travels already"),
        ([], "gone", "--working-dir = 'gone': no such folder"),
        (["actors"], None, "actors is the name of a package of opd-ray"),
    ],
)
def test_what_cannot_travel_is_named(
    here: Path, job: Path, modules: list[str], working_dir: str | None, words: str
) -> None:
    (here / "actors").mkdir()
    with pytest.raises(ConfigError) as raised:
        stage(job, "demo", [OUT], [*map(Path, modules)], working_dir and Path(working_dir))
    assert words in str(raised.value)


def test_a_folder_too_large_is_refused_before_it_is_copied(
    here: Path, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit_files, "MOST_BYTES", 29)  # five files of six bytes
    with pytest.raises(ConfigError, match="--working-dir = .*: more than 0 MiB"):
        stage(job, "demo", [OUT], working_dir=here)
    assert list(job.iterdir()) == []
    monkeypatch.setattr(submit_files, "MOST_BYTES", 30)
    (here / ".gitignore").unlink()
    stage(job, "demo", [OUT], working_dir=here)


def test_a_module_that_stays_behind_is_a_note(
    here: Path, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "stays.py").write_text("")
    stage(job, "demo", [OUT, "tip.rule=stays:rule"])
    assert capsys.readouterr().err == (
        "submit.sh: tip.rule = 'stays:rule': its module does not travel; unless every node has "
        f"it, add --py-modules {here / 'stays.py'}\n"
    )


@pytest.mark.parametrize("rule", ["rule:x", "json:dumps", "on_the_cluster:x", "soft_or"])
def test_a_module_that_travels_or_is_installed_is_none(
    here: Path, job: Path, rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stage(job, "demo", [OUT, f"tip.rule={rule}"], [Path("rule.py")])
    assert capsys.readouterr().err == ""


def test_a_proxy_does_not_stand_before_the_job_server(monkeypatch: pytest.MonkeyPatch) -> None:
    import requests
    import requests.sessions

    before = dict(os.environ)
    asked = []

    def send(self: object, request: object, **options: dict[str, str]) -> None:
        asked.append(options["proxies"])
        raise requests.exceptions.ConnectionError("nobody")

    monkeypatch.setattr(requests.sessions.Session, "send", send)
    try:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            os.environ[name] = "socks5://127.0.0.1:9"
        os.environ["no_proxy"] = "example.org"
        with pytest.raises(RunError, match="no Ray job server answers at http://10.0.0.1:8265"):
            submit.connect("10.0.0.1:8265")
        assert os.environ["no_proxy"] == "example.org,10.0.0.1"
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert asked == [{}]
