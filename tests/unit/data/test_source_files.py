"""Sources of several files: their names, shards that differ, files that are broken or packed."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from opd_ray.config.data import DataKind, DataSettings, FieldSettings
from opd_ray.data.files import file_labels
from opd_ray.data.load import load_prompts
from opd_ray.data.prompt_set import PromptSet
from opd_ray.data.rows import DataError

CHAT = [{"role": "user", "content": "x"}]


def write(path: Path, *rows: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def load(kind: str, pattern: Path, **fields: Any) -> PromptSet:
    settings = DataSettings(kind=DataKind(kind), path=str(pattern), deduplicate=False)
    settings.fields = FieldSettings(**fields)
    return load_prompts(settings)


def ids(loaded: PromptSet) -> list[str]:
    return [loaded.row(n).id for n in range(len(loaded))]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path, kind: str) -> None:
    for folder in ("gsm", "math"):
        write(tmp_path / folder / f"train.{kind}", *({"prompt": f"{n}", "answer": n} for n in "ab"))
    loaded = load(kind, tmp_path / "*" / f"train.{kind}")
    assert ids(loaded) == [f"{folder}/train.{kind}:{n}" for folder in ("gsm", "math") for n in "12"]
    assert {name: found.prompts for name, found in loaded.report.sources.items()} == {
        f"gsm/train.{kind}": 2,
        f"math/train.{kind}": 2,
    }


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_other_files_keep_their_bare_names(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "gsm" / f"a.{kind}", {"prompt": "1", "answer": 1})
    write(tmp_path / "math" / f"b.{kind}", {"prompt": "2", "answer": 2})
    assert ids(load(kind, tmp_path / "gsm" / f"a.{kind}")) == [f"a.{kind}:1"]
    assert ids(load(kind, tmp_path / "gsm" / f"*.{kind}")) == [f"a.{kind}:1"]
    assert ids(load(kind, tmp_path / "*" / f"*.{kind}")) == [f"a.{kind}:1", f"b.{kind}:1"]


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        (["d/train.jsonl"], ["train.jsonl"]),
        (["d/a.jsonl", "e/b.jsonl"], ["a.jsonl", "b.jsonl"]),
        (["d/x.jsonl", "e/x.jsonl"], ["d/x.jsonl", "e/x.jsonl"]),
        (["/r/d/1/x", "/r/d/2/x", "/r/d/y"], ["1/x", "2/x", "y"]),
        (["x", "d/x"], ["x", "d/x"]),
        (["../x", "x"], None),
    ],
)
def test_short_names(
    paths: list[str], labels: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert file_labels([Path(path) for path in paths]) == (labels or ["x", "here/x"])


def test_shards_are_read_by_name_whatever_their_order_and_encoding(tmp_path: Path) -> None:
    a = {
        "prompt": pyarrow.array(["a", "b"]),
        "source": pyarrow.array(["gsm", "math"]).dictionary_encode(),
        "answer": pyarrow.array([1, None], pyarrow.int32()),
    }
    b = {
        "source": pyarrow.array(["code", None, "gsm"]).dictionary_encode(),
        "answer": pyarrow.array([2.5, 1e-5, 3.0]),
        "prompt": pyarrow.array(["c", "d", "e"], pyarrow.large_string()),
        "level": pyarrow.array([1, 2, 3]),
    }
    b["source"] = b["source"].fill_null("none")
    c = {
        "prompt": pyarrow.array(["f"]).dictionary_encode(),
        "answer": pyarrow.array([9007199254740993]),
        "source": pyarrow.array(["gsm"], pyarrow.large_string()),
    }
    for name, columns in (("a", a), ("b", b), ("c", c)):
        # Pieces of one row, each with a dictionary of its own.
        path = tmp_path / f"{name}.parquet"
        parquet.write_table(pyarrow.table(columns), path, row_group_size=1)
    loaded = load("parquet", tmp_path / "*.parquet", source="source")
    rows = [loaded.row(n) for n in range(len(loaded))]
    assert [(row.text, row.source, row.answer, row.id) for row in rows] == [
        ("a", "gsm", "1", "a.parquet:1"),
        ("b", "math", None, "a.parquet:2"),
        ("c", "code", "2.5", "b.parquet:1"),
        ("d", "none", "0.00001", "b.parquet:2"),
        ("e", "gsm", "3.0", "b.parquet:3"),
        ("f", "gsm", "9007199254740993", "c.parquet:1"),
    ]


def test_dictionaries_within_nested_columns_are_decoded(tmp_path: Path) -> None:
    for name, gold in (("a", "1"), ("b", "2")):
        inner = pyarrow.array([gold]).dictionary_encode()
        reward = pyarrow.StructArray.from_arrays([inner], names=["gold"])
        table = pyarrow.table({"prompt": [name], "reward": reward})
        parquet.write_table(table, tmp_path / f"{name}.parquet")
    loaded = load("parquet", tmp_path / "*.parquet", answer="reward.gold")
    assert [loaded.row(n).answer for n in range(2)] == ["1", "2"]


def test_a_shard_without_a_needed_column_is_named_by_its_rows(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"prompt": "x", "answer": 1})
    write(tmp_path / "b.parquet", {"prompt": "y", "level": 1})
    with pytest.raises(DataError, match=r"b\.parquet, line 1: column 'answer' .* has 'prompt', "):
        load("parquet", tmp_path / "*.parquet")
    assert len(load("parquet", tmp_path / "*.parquet", answer=None)) == 2


def test_texts_in_one_shard_and_chats_in_another(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"prompt": "x", "answer": 1})
    write(tmp_path / "b.parquet", {"prompt": CHAT, "answer": 1})
    with pytest.raises(DataError, match=r"holds text in .*a\.parquet and chat messages in .*b\.pa"):
        load("parquet", tmp_path / "*.parquet")


def test_a_column_that_python_cannot_have_harms_only_who_asks_for_it(tmp_path: Path) -> None:
    texts = pyarrow.array([b"fine", b"bad \xff"])
    broken = pyarrow.Array.from_buffers(pyarrow.string(), 2, texts.buffers())
    table = pyarrow.table({"prompt": ["x", "y"], "answer": [1, 2], "note": broken})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert len(load("parquet", tmp_path / "a.parquet")) == 2
    with pytest.raises(DataError, match=r"1 of 2 .*\n.*a\.parquet, line 2: column 'note': Unicode"):
        load("parquet", tmp_path / "a.parquet", answer="note")


def test_lists_of_nulls(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"prompt": "x", "answer": 1, "other": [None, None]})
    assert len(load("parquet", tmp_path / "a.parquet")) == 1


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    columns = [pyarrow.array(["x"]), pyarrow.array([1]), pyarrow.array([2])]
    table = pyarrow.Table.from_arrays(columns, names=["prompt", "answer", "answer"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet has several columns named 'answer'"):
        load("parquet", tmp_path / "a.parquet")


def test_broken_parquet_files_are_named(tmp_path: Path) -> None:
    for n in range(3):
        write(tmp_path / f"{n}.parquet", {"prompt": f"x{n}" * 1000, "answer": 1})
    whole = (tmp_path / "1.parquet").read_bytes()
    for broken in (b"", whole[:-40], whole[:100], whole[40:], b"{}\n"):
        (tmp_path / "1.parquet").write_bytes(broken)
        with pytest.raises(DataError, match=r"1\.parquet cannot be read as Parquet: "):
            load("parquet", tmp_path / "*.parquet")


def zstd(content: bytes) -> bytes:
    packed = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(packed, "zstd") as stream:
        stream.write(content)
    return packed.getvalue().to_pybytes()


@pytest.mark.parametrize("pack", [gzip.compress, zstd, bz2.compress])
def test_compressed_lines_are_read(tmp_path: Path, pack: Any) -> None:
    lines = [json.dumps({"prompt": f"p{n}", "answer": n}).encode() + b"\n\n" for n in range(50)]
    # In two members, as tools write that append.
    packed = pack(b"".join(lines[:30])) + pack(b"".join(lines[30:]))
    (tmp_path / "a.jsonl.packed").write_bytes(packed)
    write(tmp_path / "b.jsonl", {"prompt": "last", "answer": 1})
    loaded = load("jsonl", tmp_path / "*.jsonl*")
    assert [loaded.row(n).text for n in (49, 0, 50, 30)] == ["p49", "p0", "last", "p30"]
    assert [loaded.row(n).id for n in (1, 50)] == ["a.jsonl.packed:3", "b.jsonl:1"]
    for cut in (packed[:-15], packed[: len(packed) // 3]):
        (tmp_path / "a.jsonl.packed").write_bytes(cut)
        with pytest.raises(DataError, match=r"a\.jsonl\.packed, compressed with .* damaged"):
            load("jsonl", tmp_path / "*.jsonl*")


ROW = '{"prompt": "x", "answer": 1}'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (ROW.encode("utf-16"), "is UTF-16: write it anew in UTF-8"),
        (ROW.encode("utf-16-le"), "is UTF-16: .*UTF-16LE"),
        (ROW.encode("utf-16-be"), "is UTF-16: .*UTF-16BE"),
        (b"PAR1....", r"is a Parquet file: set data\.kind to parquet"),
        (b"PK\x03\x04....", "is a zip archive"),
        (f'{ROW}\n{{"prompt": "é"}}'.encode("latin-1"), r", line 2: not UTF-8: .* at byte 12 of"),
        (f"{ROW}\n".encode() + b"[" * 100_000, r", line 2: not valid JSON: RecursionError"),
        (f"{ROW}\n".encode() + b"1" * 5000, r", line 2: not valid JSON: ValueError: Exceeds"),
        (f"{ROW}\nnull".encode(), r", line 2: a row must be an object .* not null"),
        (f"{ROW}\n{{'a': 1}}".encode(), r", line 2: not valid JSON: .* at column 2"),
    ],
)
def test_files_that_are_no_lines_of_json(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.jsonl ?{reason}"):
        load("jsonl", tmp_path / "a.jsonl")


def test_a_file_whose_name_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a\udcff.jsonl").write_text(ROW)
    for pattern in ("a\udcff.jsonl", "*.jsonl"):
        with pytest.raises(DataError, match=r"name is no UTF-8: '.*a\\udcff\.jsonl'; rename it"):
            load("jsonl", tmp_path / pattern)


def test_a_python_source_that_takes_other_arguments_or_returns_no_rows() -> None:
    settings = DataSettings(kind=DataKind.python, path=f"{__name__}:zstd", arguments={"x": 1})
    with pytest.raises(DataError, match=r"data\.arguments: TypeError: .*; give what .*:zstd takes"):
        load_prompts(settings)
    settings = DataSettings(kind=DataKind.python, path=f"{__name__}:nothing")
    with pytest.raises(DataError, match=r"nothing' returned NoneType: return a sequence"):
        load_prompts(settings)


def nothing() -> None:
    """A python source that forgets to return its rows."""


def test_columns_of_no_use_are_not_read(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    image = b"an image, not compressed"
    row = {"image": image, "chat": {"question": "1+1=", "image": image}, "answer.short": "2"}
    table = pyarrow.Table.from_pylist([row, row])
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    parquet.write_table(table, file, write_page_checksum=True, **plain)
    whole = file.read_bytes()
    file.write_bytes(whole.replace(image, image[::-1], 1))  # its page's checksum is wrong now
    loaded = load("parquet", file, prompt="chat.question", answer="answer.short")
    assert [(loaded.row(n).text, loaded.row(n).answer) for n in range(2)] == [("1+1=", "2")] * 2
    with pytest.raises(DataError, match="'id' .* has 'image', 'chat', 'answer.short'"):
        load("parquet", file, prompt="chat.question", answer="answer.short", id="id")


def test_rows_of_files_without_any_column_in_use_are_counted(tmp_path: Path) -> None:
    write(
        tmp_path / "a.parquet", {"question": "1+1=", "image": "i"}, {"question": "2", "image": ""}
    )
    with pytest.raises(DataError, match="2 of 2 rows .*\n.* line 1: .* has 'question', 'image'"):
        load("parquet", tmp_path / "a.parquet", answer=None)
    parquet.write_table(pyarrow.table({}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="has no rows"):
        load("parquet", tmp_path / "b.parquet")
