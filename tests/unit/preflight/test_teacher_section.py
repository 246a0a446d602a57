"""Teachers behind a URL and caches of answers: what is refused, and what may be left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from opd_ray.config.choices import CacheMode, SignalChoice
from opd_ray.config.schema import Config, EvalSettings, StudentSettings
from opd_ray.config.teacher import TeacherSettings
from opd_ray.preflight.config import config_problems

URL = "http://127.0.0.1:8000/v1"


def problems(tmp_path: Path, **teacher: Any) -> list[str]:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 100}))
    return config_problems(
        Config(
            student=StudentSettings(path=str(tmp_path)),
            teacher=TeacherSettings(**teacher),
            eval=EvalSettings(kl_prompts=0, teacher_accuracy=False),
        )
    )


def test_a_url_is_enough(tmp_path: Path) -> None:
    assert problems(tmp_path, kind="http", url=URL) == []
    whole = {"model": "m", "api_key_env": "TEACHER_KEY", "signal": SignalChoice.sampled}
    assert problems(tmp_path, kind="http", url="https://host/v1", **whole) == []


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"kind": "http"}, ["teacher.url = null", "http://HOST:8000/v1"]),
        ({"kind": "http", "url": "host:8000"}, ["teacher.url = 'host:8000'", "write it as"]),
        (
            {"kind": "http", "url": URL, "signal": SignalChoice.hidden},
            ["teacher.signal = hidden with teacher.kind = http", "teacher.signal=topk"],
        ),
        ({"kind": "http", "url": URL, "gpus_per_replica": 1}, ["gpus_per_replica = 1", "0"]),
        ({"kind": "http", "url": URL, "named_tokens": 0}, ["teacher.named_tokens = 0"]),
        ({"kind": "http", "url": URL, "concurrency": 0}, ["teacher.concurrency = 0"]),
        ({"kind": "http", "url": URL, "timeout_s": 0.0}, ["teacher.timeout_s = 0.0"]),
        ({"kind": "http", "url": URL, "max_retries": -1}, ["teacher.max_retries = -1"]),
        ({"kind": "class", "url": URL}, ["teacher.url = 'http://127", "teacher.kind=http"]),
        ({"kind": "class", "model": "m"}, ["teacher.model = 'm'", "teacher.kind=http"]),
        ({"kind": "http", "url": URL, "cache_dir": "c"}, ["cache_dir = 'c'", "cache = off"]),
        (
            {"kind": "http", "url": URL, "cache": CacheMode.record},
            ["teacher.cache_dir = null with teacher.cache = record"],
        ),
        (
            {"kind": "http", "url": URL, "cache": CacheMode.replay, "cache_dir": "nowhere"},
            ["teacher.cache_dir = 'nowhere'", "teacher.cache=record"],
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, values: dict[str, Any], parts: list[str]) -> None:
    found = "\n".join(problems(tmp_path, **values))
    for part in parts:
        assert part in found


@pytest.mark.parametrize(
    "values",
    [
        {"url": "http://me:sk-secret@host/v1"},
        {"url": "http://host/v1?key=sk-secret"},
        {"url": URL, "api_key_env": "sk-secret"},
    ],
)
def test_a_key_in_the_config_is_refused_and_not_repeated(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    [found] = problems(tmp_path, kind="http", **values)
    assert "environment variable" in found
    assert "secret" not in found


def test_a_replay_needs_no_teacher(tmp_path: Path) -> None:
    gone = {"path": str(tmp_path / "gone"), "cache_dir": str(tmp_path)}
    assert problems(tmp_path, cache=CacheMode.replay, **gone) == []
    [found] = problems(tmp_path, cache=CacheMode.replay_or_ask, **gone)
    assert "teacher.path" in found


def test_a_replay_cannot_write_answers(tmp_path: Path) -> None:
    config = Config(
        student=StudentSettings(path=str(tmp_path)),
        teacher=TeacherSettings(path="p", cache=CacheMode.replay, cache_dir=str(tmp_path)),
        eval=EvalSettings(teacher_accuracy=True),
    )
    found = "\n".join(config_problems(config))
    assert "eval.teacher_accuracy = true with teacher.cache = replay" in found
