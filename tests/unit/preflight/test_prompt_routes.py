"""Prompts that no teacher would scorer, or has no room for, are refused when they are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opd_ray.config.load import load_config
from opd_ray.config.schema import Config
from opd_ray.data.prompts import PromptFeed, held_out_tasks
from opd_ray.errors import ConfigError
from opd_ray.models.pairs.demo import character_tokenizer
from opd_ray.preflight.pairing import check_pairings
from opd_ray.preflight.prompts import check_routing

TWO = "teachers={own: {kind: self}}"


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """40 prompts of sums.jsonl, 30 of more.jsonl; the latter's teacher reads 100 tokens."""
    for name, count, shown in (("sums", 40, 3), ("more", 30, 100)):
        rows = [
            {"prompt": f"{name == 'sums':d}{n}+1=", "shown": "1" * shown, "set": name[0]}
            for n in range(count)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return [
        "data.kind=jsonl",
        f"data.path={tmp_path}/*.jsonl",
        "data.fields.answer=null",
        "rollout.prompts_per_step=8",
        "eval.kl_prompts=0",
    ]


def checked(overrides: list[str]) -> tuple[Config, dict[str, int]]:
    config = load_config("demo", overrides)
    tokenizer = character_tokenizer()
    feed, tasks = PromptFeed.load(config, tokenizer), held_out_tasks(config, tokenizer)
    contexts = check_pairings(config).teacher_contexts
    return config, check_routing(config, feed, tasks, contexts)


def test_every_file_with_its_teacher(data: list[str]) -> None:
    _, longest = checked([*data, TWO, "routes={sums.jsonl: teacher, more.jsonl: own}"])
    assert longest == {"teacher": 6 + 32, "own": 6 + 32}


def test_files_of_one_name_have_a_teacher_each(data: list[str], tmp_path: Path) -> None:
    for name in ("sums", "more"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.jsonl").rename(tmp_path / name / "train.jsonl")
    folders = [*data, f"data.path={tmp_path}/*/train.jsonl", TWO]
    routes = "routes={sums/train.jsonl: teacher, more/train.jsonl: own}"
    _, longest = checked([*folders, routes])
    assert longest == {"teacher": 6 + 32, "own": 6 + 32}
    with pytest.raises(ConfigError, match=r"sources 'more/train\.jsonl' \(30 prompts\)"):
        checked([*folders, "routes={sums/train.jsonl: own}"])


def test_a_column_names_the_source(data: list[str]) -> None:
    more = [*data, TWO, "data.fields.source=set", "data.fields.teacher_prompt=shown"]
    _, longest = checked([*more, "routes={s: teacher, m: own}"])
    assert longest == {"teacher": 3 + 32, "own": 100 + 32}


def test_sources_without_a_teacher(data: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        checked([*data, "routes={sums.jsonl: teacher}"])
    assert "no teacher for the sources 'more.jsonl' (30 prompts) of data" in str(error.value)


def test_a_route_that_no_prompt_takes(data: list[str]) -> None:
    routes = "routes={sums.jsonl: teacher, more.jsonl: teacher, mor.jsonl: own}"
    with pytest.raises(ConfigError) as error:
        checked([*data, TWO, routes])
    assert "routes.mor.jsonl = 'own': no prompt of data or eval.kl_prompts" in str(error.value)
    assert "there is 'more.jsonl' (30), 'sums.jsonl' (40)" in str(error.value)


def test_held_out_prompts_that_are_judged_need_one_too(data: list[str]) -> None:
    routes = "routes={sums.jsonl: teacher, more.jsonl: teacher}"
    checked([*data, routes])
    with pytest.raises(ConfigError, match=r"\(5 prompts\) of eval\.kl_prompts"):
        checked([*data, routes, "eval.kl_prompts=5"])


def test_a_teacher_prompt_has_to_fit(data: list[str]) -> None:
    shown = [*data, "data.fields.teacher_prompt=shown", "student.context_length=256"]
    more = ["rollout.max_new_tokens=157", "eval.tasks=[]"]
    with pytest.raises(ConfigError) as error:
        checked([*shown, *more])
    assert "teacher: its longest prompt with rollout.max_new_tokens = 157 has 257" in str(
        error.value
    )
    assert "its context is 256" in str(error.value)
    checked([*shown, "rollout.max_new_tokens=156", "eval.tasks=[]"])


def test_without_routes_everything_is_the_teachers(data: list[str]) -> None:
    _, longest = checked(data)
    assert longest == {"teacher": 6 + 32}


def test_an_environment_that_no_prompt_acts_in(data: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        checked([*data, "environments={mor.jsonl: {max_turns: 3}}"])
    assert "environments.mor.jsonl: no prompt of data or of a task has this source" in str(
        error.value
    )
    checked([*data, "environments={more.jsonl: {max_turns: 3}}"])
