"""A checkpoint that is torn or changed at any byte is never taken for a whole one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opd_ray.output.checkpoint import (
    CheckpointError,
    CheckpointStore,
    RunState,
    check_trainer,
    read_state,
    sums_of_trainer,
)

STATE = RunState(3, 7, 10, {"step": 2}, [[3, 2]], {"count": 2, "fingerprint": "ff"})


def write(folder: str) -> None:
    (Path(folder) / "rank_00000_00000.safetensors").write_bytes(bytes(range(40)))
    (Path(folder) / "teachers").mkdir()
    (Path(folder) / "teachers" / "own.safetensors").write_bytes(b"weights")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return CheckpointStore(tmp_path, 1, "run: {steps: 10}\n").save(STATE, write)


def read(checkpoint: Path) -> RunState:
    """What is looked at when it is found, and then what is when it is loaded or exported."""
    state = read_state(checkpoint)
    check_trainer(checkpoint)
    return state


def files(checkpoint: Path) -> Iterator[Path]:
    yield from sorted(path for path in checkpoint.rglob("*") if path.is_file())


def test_cut_anywhere_it_is_refused(checkpoint: Path) -> None:
    assert read(checkpoint) == STATE
    count = 0
    for file in files(checkpoint):
        whole = file.read_bytes()
        for length in range(len(whole)):
            file.write_bytes(whole[:length])
            with pytest.raises(CheckpointError):
                read(checkpoint)
            count += 1
        file.write_bytes(whole)
    assert read(checkpoint) == STATE
    assert count > 500


def test_with_any_bit_changed_it_is_refused_or_the_same(checkpoint: Path) -> None:
    """The same: blanks of the manifest's are no part of what it says."""
    refused, same = 0, []
    for file in files(checkpoint):
        whole = file.read_bytes()
        for place in range(len(whole)):
            changed = bytearray(whole)
            changed[place] ^= 1 << place % 8
            file.write_bytes(changed)
            try:
                assert read(checkpoint) == STATE
                same.append((file.name, whole[place : place + 1]))
            except CheckpointError:
                refused += 1
        file.write_bytes(whole)
    assert refused > 500
    assert set(same) <= {("manifest.json", b"\n"), ("manifest.json", b" ")}


@pytest.mark.parametrize("which", ["missing", "too many"])
def test_another_number_of_files_is_refused(checkpoint: Path, which: str) -> None:
    file = checkpoint / "trainer" / "teachers" / "own.safetensors"
    if which == "missing":
        file.unlink()
        said = "teachers/own.safetensors should have 7 bytes, is missing"
    else:
        file.with_name("other.safetensors").touch()
        said = "teachers/other.safetensors is not one of its files"
    with pytest.raises(CheckpointError, match=f"step_00000003 is not whole: trainer/{said}"):
        read_state(checkpoint)


def test_the_large_files_are_not_read_before_they_are_loaded(checkpoint: Path) -> None:
    """Those below ``trainer`` are the ranks' to look over: only their sizes count until then."""
    file = checkpoint / "trainer" / "rank_00000_00000.safetensors"
    file.write_bytes(bytes(40))
    assert read_state(checkpoint) == STATE
    with pytest.raises(CheckpointError, match="rank_00000_00000.safetensors has the right size"):
        read(checkpoint)


def test_a_folder_that_is_in_no_checkpoint_has_no_sums(tmp_path: Path) -> None:
    assert sums_of_trainer(tmp_path / "start") == {}


def test_a_checkpoint_of_the_former_format_names_who_reads_it(checkpoint: Path) -> None:
    state = json.loads((checkpoint / "run.json").read_text())
    (checkpoint / "run.json").write_text(json.dumps(state | {"format": 1}))
    (checkpoint / "manifest.json").write_text('{"run.json": 31}')
    with pytest.raises(
        CheckpointError,
        match=r"step_00000003 has format 1, this version reads 2; opd-ray 0.1.0 goes on from it$",
    ):
        read_state(checkpoint)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["format", "step", "size", "crc32", "\0", "../x"]), inner)
    ),
    max_leaves=6,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=st.sampled_from(["run.json", "manifest.json"]), value=VALUES)
def test_whatever_stands_in_its_json_files_it_is_refused(
    checkpoint: Path, name: str, value: object
) -> None:
    other = checkpoint.with_name("other")
    shutil.rmtree(other, ignore_errors=True)
    shutil.copytree(checkpoint, other)
    (other / name).write_text(json.dumps(value))
    with pytest.raises(CheckpointError):
        read_state(other)
    (other / name).write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        read_state(other)
