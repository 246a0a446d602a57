"""Whatever a config holds: a run may have it, or a message names the file and the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import SCALARS, TEXTS, damaged, examples
from hypothesis import given
from hypothesis import strategies as st

from opd_ray.config.keys import all_keys
from opd_ray.config.load import load_config, to_values, to_yaml
from opd_ray.config.schema import Config
from opd_ray.errors import ConfigError, OpdError
from opd_ray.preflight.config import config_problems
from opd_ray.preflight.unused import unused_options

DEMO = to_values(load_config("demo"))
TOOLS = to_values(load_config("demo_tools"))
KEYS = sorted(key.replace("[]", "[0]") for key in all_keys(Config))
# Words that some key takes, so that draws get beyond the types.
WORDS = st.sampled_from(
    [
        "auto",
        "never",
        "hf",
        "vllm",
        "http",
        "self",
        "ensemble",
        "class",
        "topk",
        "hidden",
        "sampled",
        *["bfloat16", "jsonl", "parquet", "python", "prepared", "math", "turn", "batch", "soft_or"],
        *["json:loads", "gone:x", "json:", "/gone", "{}", "[]", "{a: 1}", "[1, 2]", "http://h/v1"],
    ]
)
FILE = st.binary(max_size=60) | st.text(
    st.sampled_from("run: {}[],\n\t-'\"&*a!|>%@`#${}0:1.e+<>~?x\\") | st.characters(codec="utf-8"),
    max_size=60,
).map(str.encode)


def settle(path: str, overrides: list[str]) -> None:
    """Load and check as ``opd-ray doctor`` and ``train`` begin."""
    try:
        config = load_config(path, overrides)
        problems = config_problems(config)
        if not problems:
            list(unused_options(config))
            assert to_values(again(config)) == to_values(config)
    except OpdError as error:
        problems = [str(error)]
    assert all(len(problem) > 10 for problem in problems)


def again(config: Config) -> Config:
    """What a run's ``config.yaml`` is read as."""
    from opd_ray.config.load import config_from
    from opd_ray.config.words import read_document

    return config_from(read_document(to_yaml(config), Config, "its text"), (), "its text")


@examples(15)
@given(st.sampled_from([DEMO, TOOLS]).flatmap(lambda whole: damaged(whole, SCALARS | WORDS)))
def test_any_values_of_keys(tmp_path: Path, values: Any) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    settle(str(path), [])


@examples(15)
@given(
    st.lists(st.tuples(st.sampled_from(KEYS) | TEXTS, WORDS | TEXTS | SCALARS.map(str)), max_size=2)
)
def test_any_overrides(pairs: list[tuple[str, str]]) -> None:
    settle("demo", [f"{key}={text}" for key, text in pairs])


@examples(30)
@given(FILE)
def test_any_bytes_as_a_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    settle(str(path), [])


@pytest.mark.parametrize(
    "text",
    [
        f"run: {'[' * 300_000}{']' * 300_000}\n",  # ends Python where YAML's C library reads it
        f"run:\n  {'- ' * 300_000}1\n",
        f"run: {'{a: ' * 300_000}1{'}' * 300_000}\n",
    ],
)
def test_a_file_that_nests_without_end_is_refused_by_its_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"run\.yaml: line [12]: nested more than 50 levels deep"):
        load_config(str(path))


def test_numbers_that_are_too_long_to_read(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"run: {{seed: {'1' * 5000}}}\n")
    settle(str(path), [])
