"""What a run says at its start where run.deterministic cannot be had, or not by us alone."""

from __future__ import annotations

import pytest

from opd_ray.config.load import load_config
from opd_ray.preflight.deterministic import deterministic_notes

HTTP = ["teacher.kind=http", "teacher.url=http://host:8000/v1", "teacher.signal=topk"]


def notes(*overrides: str) -> list[str]:
    return deterministic_notes(load_config("demo", ["run.deterministic=true", *overrides]))


def test_nothing_is_said_of_what_is_ours() -> None:
    assert notes() == []
    assert notes("run.overlap=true", "tip.normalise_over=rollout", "teacher.replicas=2") == []


def test_nothing_is_said_without_the_key() -> None:
    assert deterministic_notes(load_config("demo", HTTP)) == []


@pytest.mark.parametrize(
    ("overrides", "begins"),
    [
        (HTTP, "run.deterministic = true, but teacher.kind = http: what the server reads beside"),
        (
            ["teacher.kind=actor", "teacher.actor_name=judge"],
            "run.deterministic = true, but teacher.kind = actor: the actor 'judge' is not of this",
        ),
        (
            ["teacher.kind=class", "teacher.class_path=mine:Teacher"],
            "run.deterministic = true, but teacher.kind = class: mine:Teacher is asked in the same",
        ),
        (
            ["teacher.cache=replay_or_ask", "teacher.cache_dir=/nowhere"],
            "run.deterministic = true with teacher.cache = replay_or_ask: which answers are on",
        ),
        (
            ["environment.path=mine:World", "environment.call_timeout_s=7"],
            "run.deterministic = true with environment.path = mine:World: it is up to the",
        ),
        (["trainer.gpus_per_rank=1"], "run.deterministic = true on GPUs: torch, cuBLAS and vLLM"),
        (["rollout.gpus_per_actor=1"], "run.deterministic = true on GPUs: torch, cuBLAS and vLLM"),
        (["teacher.gpus_per_replica=1"], "run.deterministic = true on GPUs: torch, cuBLAS and"),
    ],
)
def test_each_is_said(overrides: list[str], begins: str) -> None:
    (note,) = notes(*overrides)
    assert note.startswith(begins)


def test_a_remedy_names_the_keys_of_the_very_teacher() -> None:
    (note,) = notes(
        "teachers.judge.kind=http",
        "teachers.judge.url=http://host:8000/v1",
        "routes.chain_sum=judge",
        "teacher.signal=topk",
    )
    assert "record them (teachers.judge.cache=record, then replay)" in note


def test_a_recording_that_is_replayed_is_as_good_as_ours() -> None:
    assert notes(*HTTP, "teacher.cache=replay", "teacher.cache_dir=/nowhere") == []


def test_an_environment_is_told_how_long_a_call_may_take() -> None:
    (note,) = notes("environment.path=mine:World", "environment.call_timeout_s=7")
    assert note.endswith("a call longer than environment.call_timeout_s = 7 counts as hung")
