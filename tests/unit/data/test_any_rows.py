"""Whatever files and rows hold: they become prompts, or a message that names file and row."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from opd_ray.config.data import DataKind, DataSettings
from opd_ray.data.load import load_prompts
from opd_ray.errors import OpdError
from opd_ray.models.pairs.demo import character_tokenizer

TOKENIZER = character_tokenizer()
# A file as such, or a row of it.
PLACE = re.compile(r"rows\.(jsonl|parquet)(, line \d+: | |, compressed)|has no rows|has no tokens")

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters() | st.characters(categories=["Cs"]), max_size=5)
    | st.text("0123456789+=", min_size=1, max_size=5)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner, max_size=3)
        | st.fixed_dictionaries({"role": st.sampled_from(["user", "tool"]), "content": inner})
    ),
    max_leaves=5,
)
ROWS = st.dictionaries(st.sampled_from(["prompt", "answer", "id"]), VALUES, max_size=3) | VALUES
GOOD = b'{"prompt": "1+2=", "answer": 0.5}\n'


def settle(kind: DataKind, path: Path) -> None:
    try:
        loaded = load_prompts(
            DataSettings(kind=kind, path=str(path), chat_template="never"), tokenizer=TOKENIZER
        )
        rows = [loaded.row(n) for n in range(len(loaded))]
        assert all((row.text is None) != (row.messages is None) for row in rows)
        json.dumps([row.answer for row in rows], ensure_ascii=False).encode()
    except OpdError as error:
        message = str(error)
    else:
        return
    assert PLACE.search(message) or "no chat template is in use" in message, message


@examples(60)
@given(st.lists(ROWS, min_size=1, max_size=3))
def test_any_json_rows(tmp_path: Path, rows: list[Any]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settle(DataKind.jsonl, path)


@examples(60)
@given(st.binary(max_size=60), st.integers(0, len(GOOD)), st.integers(0, len(GOOD)))
def test_any_bytes_as_lines(tmp_path: Path, piece: bytes, start: int, end: int) -> None:
    path = tmp_path / "rows.jsonl"
    for content in (piece, GOOD + GOOD[:start] + piece + GOOD[end:]):
        path.write_bytes(content)
        settle(DataKind.jsonl, path)


@examples(60)
@given(st.lists(VALUES, min_size=1, max_size=3), st.lists(SCALARS, min_size=1, max_size=3))
def test_any_columns_of_parquet(tmp_path: Path, prompts: list[Any], answers: list[Any]) -> None:
    path = tmp_path / "rows.parquet"
    count = min(len(prompts), len(answers))
    try:
        columns = {"prompt": prompts[:count], "answer": answers[:count]}
        parquet.write_table(pyarrow.table(columns), path)
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError):
        return  # no Parquet file can hold it
    settle(DataKind.parquet, path)


@pytest.fixture(scope="module")
def parquet_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "a.parquet"
    rows = [{"prompt": f"{n}+1=", "answer": n / 3, "chat": [{"role": "user"}]} for n in range(9)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=4)
    return path.read_bytes()


@examples(60)
@given(st.data())
def test_any_damage_to_a_parquet_file(
    tmp_path: Path, parquet_bytes: bytes, data: st.DataObject
) -> None:
    path = tmp_path / "rows.parquet"
    start = data.draw(st.integers(0, len(parquet_bytes)))
    piece = data.draw(st.binary(max_size=8))
    end = data.draw(st.sampled_from([start, start + len(piece), len(parquet_bytes)]))
    path.write_bytes(parquet_bytes[:start] + piece + parquet_bytes[end:])
    settle(DataKind.parquet, path)
