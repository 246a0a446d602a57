"""Answers, ids and sources of any type: numbers keep their value as text, the rest is refused."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from opd_ray.config.data import DataKind, DataSettings, FieldSettings
from opd_ray.data.load import load_prompts
from opd_ray.data.rows import DataError
from opd_ray.errors import ConfigError

NUMBERS = [
    ("0.00001", "0.00001"),
    ("1e-05", "0.00001"),
    ("1e22", "10000000000000000000000"),
    ("1E5", "100000"),
    ("-2.5e-3", "-0.0025"),
    ("12345678901234567.0", "12345678901234567.0"),
    ("123456789012345678901234567890.5", "123456789012345678901234567890.5"),
    ("0.1000000000000000055511151231257827", "0.1000000000000000055511151231257827"),
    ("9007199254740993", "9007199254740993"),
    ("123456789012345678901234567890", "123456789012345678901234567890"),
    ("1.50", "1.50"),
    ("102.0", "102.0"),
    ("7", "7"),
    ('"1e-05"', "1e-05"),  # text is text
    ('" 7"', " 7"),
    ("null", None),
]


@pytest.mark.parametrize(("written", "answer"), NUMBERS)
def test_json_numbers_keep_their_value(tmp_path: Path, written: str, answer: str | None) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"prompt": "x", "answer": {written}}}\n')
    settings = DataSettings(kind=DataKind.jsonl, path=str(tmp_path / "a.jsonl"))
    assert load_prompts(settings).row(0).answer == answer


PARQUET = [
    (pyarrow.array([0.00001]), "0.00001"),
    (pyarrow.array([1e22]), "10000000000000000000000"),
    (pyarrow.array([102.0]), "102.0"),
    (pyarrow.array([0.1], pyarrow.float32()), "0.1"),
    (pyarrow.array([1e-5], pyarrow.float32()), "0.00001"),
    (pyarrow.array([np.float16(0.1)], pyarrow.float16()), "0.1"),
    (pyarrow.array([2**63 - 1]), "9223372036854775807"),
    (pyarrow.array([2**64 - 1], pyarrow.uint64()), "18446744073709551615"),
    (pyarrow.array([Decimal("1.50")]), "1.50"),
    (pyarrow.array([None], pyarrow.float64()), None),
    (pyarrow.array([None]), None),
    (pyarrow.array(["x"]).dictionary_encode(), "x"),
]


@pytest.mark.parametrize(("column", "answer"), PARQUET)
def test_parquet_numbers_keep_their_value(
    tmp_path: Path, column: pyarrow.Array, answer: str | None
) -> None:
    table = pyarrow.table({"prompt": ["x"], "answer": column})
    parquet.write_table(table, tmp_path / "a.parquet")
    settings = DataSettings(kind=DataKind.parquet, path=str(tmp_path / "a.parquet"))
    assert load_prompts(settings).row(0).answer == answer


def test_a_short_float_in_a_nested_column(tmp_path: Path) -> None:
    gold = pyarrow.array(
        [{"gold": 0.1, "others": [0.2]}],
        pyarrow.struct([("gold", pyarrow.float32()), ("others", pyarrow.list_(pyarrow.float32()))]),
    )
    table = pyarrow.table({"prompt": ["x"], "reward": gold})
    parquet.write_table(table, tmp_path / "a.parquet")
    settings = DataSettings(kind=DataKind.parquet, path=str(tmp_path / "a.parquet"))
    settings.fields.answer = "reward.gold"
    assert load_prompts(settings).row(0).answer == "0.1"


def given(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A python source."""
    return iter(rows)


def from_python(rows: list[dict[str, Any]]) -> DataSettings:
    return DataSettings(
        kind=DataKind.python, path=f"{__name__}:given", arguments={"rows": rows}, deduplicate=False
    )


PYTHON = [
    (np.float64(1e-5), "0.00001"),
    (np.float32(0.1), "0.1"),
    (np.int64(2**60), "1152921504606846976"),
    (np.str_("x"), "x"),
    (Decimal("1E+3"), "1000"),
    (Fraction(1, 3), "1/3"),
    (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
    (10**30, "1000000000000000000000000000000"),
]


@pytest.mark.parametrize(("value", "answer"), PYTHON)
def test_values_of_python_and_numpy(value: Any, answer: str) -> None:
    assert load_prompts(from_python([{"prompt": "x", "answer": value}])).row(0).answer == answer


class NAType:
    """Stands in for pandas.NA, which is known by the name of its class."""


REFUSED = [
    (float("nan"), r"a missing value \(nan\): write null"),
    (np.float32("nan"), "a missing value"),
    (Decimal("NaN"), "a missing value"),
    (NAType(), "a missing value"),
    (float("-inf"), r"is infinite \(-inf\)"),
    (True, r"not bool \(True\): write the word"),
    (np.True_, r"not bool"),
    (datetime.date(2024, 1, 31), r"not date \(2024-01-31\): write it as text"),
    ([1, 2], r"not list: write it as one text"),
    (np.array([1, 2]), "not ndarray: write it as one text"),
    ({"a": 1}, "not dict"),
    (b"7", "not bytes"),
    (Decimal("1e999999999"), "more than 1000 digits: write it as text"),
    ("half \ud83d", r"half a character .* at position 5: 'half \\ud83d'"),
]


@pytest.mark.parametrize(("value", "reason"), REFUSED)
def test_what_has_no_text_is_refused_by_row(value: Any, reason: str) -> None:
    rows = [{"prompt": "x", "answer": 1}, {"prompt": "y", "answer": value}]
    with pytest.raises(DataError, match=rf"1 of 2 rows.*\n.*:given, line 2: .*'answer'.*{reason}"):
        load_prompts(from_python(rows))


def test_a_number_that_python_does_not_write_out() -> None:
    with pytest.raises(DataError, match=r"line 1: .*'answer'.* a number too long to write out"):
        load_prompts(from_python([{"prompt": "x", "answer": 10**5000}]))


def test_a_missing_value_in_json_is_refused_by_line(tmp_path: Path) -> None:
    for word in ("NaN", "Infinity", "-Infinity"):
        (tmp_path / "a.jsonl").write_text(
            f'{{"prompt": "x", "answer": 1}}\n{{"prompt": "y", "answer": {word}}}\n'
        )
        settings = DataSettings(kind=DataKind.jsonl, path=str(tmp_path / "a.jsonl"))
        with pytest.raises(DataError, match=r"a\.jsonl, line 2: column 'answer'"):
            load_prompts(settings)
        settings.fields.answer = None  # nobody asks for it
        assert len(load_prompts(settings)) == 2


HALVES = [
    {"prompt": "smile \ud83d"},
    {"prompt": [{"role": "user", "content": "\udc00"}]},
    {"prompt": [{"role": "user", "content": "x", "tool_calls": [{"name": "\ud83d"}]}]},
    {"prompt": "x", "answer": "\ud83d"},
    {"prompt": "x", "key": "\ud83d"},
    {"prompt": "x", "set": "\ud83d"},
    {"prompt": "x", "shown": "\ud83d"},
]


@pytest.mark.parametrize("row", HALVES)
def test_half_a_character_anywhere_is_a_bad_row(tmp_path: Path, row: dict[str, Any]) -> None:
    usual = {"prompt": "p", "answer": "1", "key": "k", "set": "s", "shown": "t"}
    rows = [usual, {**usual, "key": "l", **row}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = DataSettings(kind=DataKind.jsonl, path=str(tmp_path / "a.jsonl"))
    settings.fields = FieldSettings("prompt", "answer", "key", "set", "shown")
    with pytest.raises(DataError, match=r"1 of 2 rows.*\n.*a\.jsonl, line 2: .*half a character"):
        load_prompts(settings)


@pytest.mark.parametrize("key", ["system_prompt", "instruction"])
def test_half_a_character_in_the_settings(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{key} = '.*\\ud83d.*' holds half a character"):
        DataSettings(**{key: "{prompt} \ud83d"}).validate()


def test_whole_characters_of_any_kind_pass(tmp_path: Path) -> None:
    row = {"prompt": "\U0001f600 \u0000 é 三", "answer": "三"}
    # Written as a pair of escapes, as json.dumps does.
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    settings = DataSettings(kind=DataKind.jsonl, path=str(tmp_path / "a.jsonl"))
    assert load_prompts(settings).row(0).text == row["prompt"]
