"""Teachers that cannot be served are refused before a cluster is joined, by their own key."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors import FOLDER_VARIABLE
from actors.run_folder import CONTENTS_VARIABLE
from opd_ray import serve_teacher as subject
from opd_ray.config.schema import ClusterSettings, Config, StudentSettings
from opd_ray.config.teacher import TeacherSettings
from opd_ray.errors import ConfigError
from opd_ray.serve_teacher import Serving, serve_teacher


@pytest.mark.parametrize(
    ("own", "name", "said"),
    [
        ({"kind": "self"}, "b", "teachers.b.kind = 'self': this kind belongs to a run"),
        ({"kind": "actor", "actor_name": "t"}, "b", "teachers.b.kind = 'actor': that is how a run"),
        ({"replicas": 0}, "b", "teachers.b.replicas = 0: must be at least 1"),
        ({}, "c", "--teacher c: no such teacher; there is teacher, b"),
    ],
)
def test_what_cannot_be_served(own: dict[str, Any], name: str, said: str) -> None:
    config = Config(
        student=StudentSettings(path="hub/student"),
        # Not the one that is served: what it cannot have is of no account.
        teacher=TeacherSettings(path="hub/teacher", max_retries=-1),
        teachers={"b": {"path": "hub/b", "max_retries": 2, **own}},
        routes={"x": "b"},
        cluster=ClusterSettings(address="auto"),
    )
    if own.get("kind"):
        config.teachers["b"].pop("path")
    with pytest.raises(ConfigError) as error:
        serve_teacher(config, Serving("judge", "opd-ray", teacher=name))
    assert str(error.value).startswith(said)
    assert len(str(error.value).splitlines()) == 1


def test_relative_paths_of_one_that_is_served_begin_where_the_command_is_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: dict[str, Any] = {}

    def options(**options: Any) -> Any:
        given.update(options)
        return SimpleNamespace(remote=lambda *arguments: arguments)

    monkeypatch.setattr(subject.ray, "remote", lambda _: SimpleNamespace(options=options))
    (tmp_path / "models" / "t").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    subject._start(Serving("judge", "opd-ray"), TeacherSettings(path="models/t"), 9, 0)
    assert given["runtime_env"]["env_vars"] == {
        FOLDER_VARIABLE: str(tmp_path),
        CONTENTS_VARIABLE: '{"teacher.path": "models/t"}',
    }
