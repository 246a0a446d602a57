"""The trainer's files: safetensors that others read, and nothing wrong is ever read from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from actors.trainer import checkpoint as subject
from actors.trainer.checkpoint import (
    CheckpointMismatch,
    Entry,
    Snapshot,
    TrainerCheckpoint,
    write_entries,
    write_layout,
)
from opd_ray.checksums import sum_of
from opd_ray.errors import WriteError

SHAPES = {"a.weight": [2, 3], "b:ias": [4]}


def entry(kind: str, name: str, start: int, *values: float) -> Entry:
    return Entry(f"{kind}:{start}:{name}", torch.tensor(values, dtype=torch.float32))


B = entry("master", "b:ias", 0, 7, 8, 9, 10)
A = [entry("master", "a.weight", 0, *range(6))]


def written(folder: Path, *ranks: list[Entry], steps: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    for rank, entries in enumerate(ranks):
        write_entries(folder, rank, entries, dict.fromkeys(SHAPES, steps))
    write_layout(folder, SHAPES, {"ranks": len(ranks)})
    return folder


def two_ranks(folder: Path) -> Path:
    """The first has five numbers, the second the rest."""
    rounded = torch.tensor([0.1, 3.0], dtype=torch.float64)
    return written(
        folder,
        [entry("master", "a.weight", 0, 1, 2, 3, 4, 5), Entry("buffer:0:scale", rounded)],
        [entry("master", "a.weight", 5, 6), entry("master", "b:ias", 0, 7, 8, 9, 1.0009765625)],
    )


def test_the_files_are_read_by_others(tmp_path: Path) -> None:
    folder = two_ranks(tmp_path)
    first = load_file(folder / "rank_00000_00000.safetensors")
    assert {key: values.tolist() for key, values in first.items()} == {
        "master:0:a.weight": [1, 2, 3, 4, 5],
        "buffer:0:scale": [0.1, 3.0],
    }
    with safe_open(folder / "rank_00001_00000.safetensors", "pt") as content:
        assert content.metadata() == {"steps": '{"a.weight": 0, "b:ias": 0}'}
        assert content.get_tensor("master:0:b:ias").tolist() == [7, 8, 9, 1.0009765625]
    header = int.from_bytes((folder / "rank_00000_00000.safetensors").read_bytes()[:8], "little")
    assert header > 100
    assert header % 8 == 0, "the widest numbers would not be aligned"


def test_weights_come_whole_and_rounded_and_buffers_as_they_are(tmp_path: Path) -> None:
    found = TrainerCheckpoint(two_ranks(tmp_path)).weights(torch.bfloat16)
    assert found.keys() == {"a.weight", "b:ias", "scale"}
    assert found["a.weight"].dtype == torch.bfloat16
    assert found["a.weight"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert found["b:ias"].tolist() == [7, 8, 9, 1]
    assert found["scale"].dtype == torch.float64


def test_the_sums_are_those_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "_FILE_BYTES", 12)
    entries = [entry("master", "a.weight", n, n) for n in range(4)]
    entries.append(entry("master", "b:ias", 0, *range(4)))
    sums = write_entries(tmp_path, 7, entries, {})
    names = [f"rank_00007_0000{n}.safetensors" for n in range(3)]
    assert list(sums) == names
    assert sums == {name: sum_of(tmp_path / name) for name in names}
    keys = [set(load_file(tmp_path / name)) for name in names]
    # Three numbers fill a file; what is larger than that is one alone.
    assert [len(found) for found in keys] == [3, 1, 1]


def test_wide_numbers_lie_where_they_can_be_read_in_place(tmp_path: Path) -> None:
    flags = Entry("buffer:0:flags", torch.tensor([1, 2, 3], dtype=torch.uint8))
    counts = Entry("buffer:0:counts", torch.tensor([4, 5]))  # 64 bits
    write_entries(tmp_path, 0, [flags, B, counts], {})
    content = (tmp_path / "rank_00000_00000.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    starts = {key: one["data_offsets"][0] for key, one in header.items() if key[0] != "_"}
    assert starts == {"buffer:0:counts": 0, "master:0:b:ias": 16, "buffer:0:flags": 32}


def test_a_rank_that_owns_nothing_writes_an_empty_file(tmp_path: Path) -> None:
    assert list(write_entries(tmp_path, 0, [], {})) == ["rank_00000_00000.safetensors"]
    assert load_file(tmp_path / "rank_00000_00000.safetensors") == {}


def test_a_part_of_a_tensor_is_read(tmp_path: Path) -> None:
    checkpoint = TrainerCheckpoint(two_ranks(tmp_path))
    asked = []

    def wanted(kind: str, name: str, start: int, length: int) -> tuple[int, int] | None:
        asked.append((kind, name, start, length))
        return (max(start, 3), start + length) if name == "a.weight" else None

    found = [(k, n, s, v.tolist()) for k, n, s, v in checkpoint.read(wanted)]
    assert found == [("master", "a.weight", 3, [4, 5]), ("master", "a.weight", 5, [6])]
    assert sorted(asked) == [
        ("buffer", "scale", 0, 2),
        ("master", "a.weight", 0, 5),
        ("master", "a.weight", 5, 1),
        ("master", "b:ias", 0, 4),
    ]


@pytest.mark.parametrize(
    ("entries", "steps", "said"),
    [
        ([B], 0, "of master of a.weight 6 follows on 0"),
        ([entry("master", "a.weight", 0, 1, 2), B], 0, "a.weight 6 follows on 2"),
        (
            [entry("master", "a.weight", 0, 1, 2), entry("master", "a.weight", 3, 1, 2, 3), B],
            0,
            "a.weight 3 follows on 2",
        ),
        ([*A, entry("master", "a.weight", 5, 1, 2), B], 0, "a.weight 5 follows on 6"),
        ([*A, entry("master", "a.weight", 6, 1), B], 0, "a.weight 6 follows on 7"),
        ([*A, B], 3, "exp_avg of a.weight 6 follows on 0"),
    ],
)
def test_a_parameter_that_is_not_there_once_is_refused(
    tmp_path: Path, entries: list[Entry], steps: int, said: str
) -> None:
    folder = written(tmp_path, entries, steps=steps)
    with pytest.raises(CheckpointMismatch, match=f"not whole: .*{said}.*; use an older checkpoint"):
        TrainerCheckpoint(folder)


def test_cut_anywhere_a_file_is_refused_by_name(tmp_path: Path) -> None:
    file = two_ranks(tmp_path) / "rank_00001_00000.safetensors"
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointMismatch, match=r"rank_00001_00000\.safetensors: .*; use an"):
            TrainerCheckpoint(tmp_path)


def test_with_any_byte_changed_nothing_but_a_known_error_comes(tmp_path: Path) -> None:
    """Without the sums of a whole checkpoint the numbers themselves may have changed."""
    folder = two_ranks(tmp_path)
    refused = 0
    for file in folder.iterdir():
        whole = file.read_bytes()
        for place in range(len(whole)):
            changed = bytearray(whole)
            changed[place] ^= 1 << place % 7
            file.write_bytes(changed)
            try:
                TrainerCheckpoint(folder).weights(torch.float32)
            except CheckpointMismatch:
                refused += 1
        file.write_bytes(whole)
    assert refused > 200
    assert TrainerCheckpoint(folder).weights(torch.float32)["a.weight"].tolist()[1] == [4, 5, 6]


@pytest.mark.parametrize("layout", [[], {"format": 2}, {"format": 2, "parameters": {"a": 3}}, 7])
def test_a_layout_that_says_nothing_is_refused(tmp_path: Path, layout: Any) -> None:
    (two_ranks(tmp_path) / "layout.json").write_text(json.dumps(layout))
    with pytest.raises(CheckpointMismatch, match=r"layout\.json: .*; use an older checkpoint"):
        TrainerCheckpoint(tmp_path)


def test_a_snapshot_keeps_what_was_there() -> None:
    live = torch.tensor([1.0, 2.0, 3.0])
    matrix = torch.arange(6, dtype=torch.bfloat16).view(2, 3).T
    copy = Snapshot([Entry("master:0:a", live), Entry("buffer:0:m", matrix)])
    live.zero_()
    matrix.zero_()
    assert [one.key for one in copy.entries] == ["master:0:a", "buffer:0:m"]
    assert copy.entries[0].tensor.tolist() == [1, 2, 3]
    assert copy.entries[1].tensor.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert Snapshot([]).entries == []


def test_a_disk_that_is_full_is_told_with_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        WriteError,
        match=f"{tmp_path}/rank_00000_00000.safetensors: cannot be written: No space left on",
    ):
        write_entries(tmp_path, 0, [B], {})
