"""A node that lacks the run's folder: what the configuration has in there is named."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import actors
from actors import FOLDER_VARIABLE
from actors.rollout.actor import RolloutActor
from actors.run_folder import CONTENTS_VARIABLE, folder_variables, require_run_folder
from actors.teacher.actor import TeacherActor
from actors.teacher.shared import TeacherHost
from actors.trainer.actor import TrainerActor
from opd_ray.config.choices import CacheMode
from opd_ray.config.teacher import TeacherSettings, paths_of
from opd_ray.errors import InputError


def test_what_lies_in_the_runs_folder_is_told_to_its_actors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_model").mkdir()
    monkeypatch.chdir(tmp_path)
    given = folder_variables(
        {"a": "./my_model", "b": "hub/model", "c": str(tmp_path / "my_model"), "d": None}
    )
    assert given[FOLDER_VARIABLE] == str(tmp_path)
    assert json.loads(given[CONTENTS_VARIABLE]) == {"a": "./my_model"}


@pytest.mark.parametrize(("missing", "there"), [("", False), ("gone", True), ("gone", False)])
def test_a_relative_path_without_its_folder_is_no_name_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, there: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    if there:  # in the folder in which Ray has put the actor, as a job's working folder is
        (tmp_path / "my_model").mkdir()
    monkeypatch.setattr(actors, "folder_missing", missing)
    monkeypatch.setenv(FOLDER_VARIABLE, "/home/me/run")
    monkeypatch.setenv(CONTENTS_VARIABLE, '{"student.path": "./my_model"}')
    if not missing or there:
        require_run_folder()
        return
    with pytest.raises(InputError) as raised:
        require_run_folder()
    assert str(raised.value) == (
        "student.path = './my_model': it is in the run's folder /home/me/run, which node "
        f"{socket.gethostname()} lacks (gone); have the folder on every node (a shared file "
        "system, or a copy at the same place), or give an absolute path that every node has"
    )


@pytest.mark.parametrize(
    ("actor", "method", "given"),
    [
        (RolloutActor, "__init__", (None, None, None)),
        (TeacherActor, "ready", ()),
        (TrainerActor, "setup", ("10.0.0.1", 7)),
        (SimpleNamespace(__ray_metadata__=None, plain=TeacherHost), "__init__", (None, None, 0)),
    ],
)
def test_every_actor_looks_before_it_reads_a_model(
    monkeypatch: pytest.MonkeyPatch, actor: Any, method: str, given: tuple[Any, ...]
) -> None:
    def refuse() -> None:
        raise InputError("not here")

    found = actor.__ray_metadata__
    plain = found.modified_class if found else actor.plain
    monkeypatch.setattr(f"{plain.__module__}.require_run_folder", refuse)
    with pytest.raises(InputError, match="not here"):
        getattr(object.__new__(plain), method)(*given)


def test_a_replica_reads_models_and_recorded_answers() -> None:
    recorded = TeacherSettings(path="t", cache=CacheMode.record, cache_dir="kept")
    assert paths_of(recorded) == {"teacher.path": "t", "teacher.cache_dir": "kept"}
    replayed = TeacherSettings(path="t", cache=CacheMode.replay, cache_dir="kept")
    assert paths_of(replayed) == {"teacher.path": None, "teacher.cache_dir": "kept"}
    assert paths_of(TeacherSettings(kind="http", path="for its tokenizer")) == {}
    assert paths_of(TeacherSettings(kind="self", path="s")) == {"student.path": "s"}
