"""Checkpoints: whole or absent, newest readable first, the last k kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from opd_ray.checksums import FileSum
from opd_ray.output.checkpoint import CheckpointError, CheckpointStore, RunState, read_state


def _state(step: int) -> RunState:
    return RunState(step, 7, 10, {"step": step}, [[step, 2]], {"count": 2, "fingerprint": "ff"})


def _write(text: str):
    def write(folder: str) -> None:
        (Path(folder) / "rank_0.bin").write_text(text)

    return write


def test_a_checkpoint_comes_back_as_it_was_written(tmp_path: Path) -> None:
    folder = CheckpointStore(tmp_path, keep=2).save(_state(3), _write("weights"))
    assert read_state(folder) == _state(3)
    assert (folder / "trainer" / "rank_0.bin").read_text() == "weights"


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 2, 3):
        store.save(_state(step), _write("w"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002", "step_00000003"]


def test_going_on_from_an_older_one_sets_the_later_ones_aside(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    CheckpointStore(tmp_path, keep=3).save(_state(3), _write("w"))
    for _ in range(2):  # a second time the one set aside before is replaced
        CheckpointStore(tmp_path, keep=3).save(_state(8), _write("abandoned"))
        assert store.set_aside_after(3) == [tmp_path / "step_00000008.left"]
    final = store.save(_state(5), _write("w"))
    assert store.newest() == (final, _state(5))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step_00000005",
        "step_00000008.left",
    ]


@pytest.mark.parametrize("damage", ["cut", "missing", "no manifest", "no run.json"])
def test_a_broken_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    store.save(_state(1), _write("good"))
    broken = store.save(_state(2), _write("bad"))
    file = broken / "trainer" / "rank_0.bin"
    if damage == "cut":
        file.write_text("b")
    elif damage == "missing":
        file.unlink()
    elif damage == "no manifest":
        (broken / "manifest.json").unlink()
    else:
        (broken / "run.json").unlink()
    with pytest.raises(CheckpointError):
        read_state(broken)
    found = store.newest()
    assert found is not None
    assert found[1].step == 1


def test_a_crash_while_writing_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    store.save(_state(1), _write("good"))

    def crash(folder: str) -> None:
        (Path(folder) / "half").write_text("h")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.save(_state(2), crash)
    found = store.newest()
    assert found is not None
    assert found[1].step == 1
    store.save(_state(2), _write("second try"))
    found = store.newest()
    assert found is not None
    assert found[1].step == 2


@pytest.mark.parametrize(("size", "here"), [(5, "7"), (None, r"none \(missing\)")])
def test_what_a_rank_wrote_into_another_folder_is_named(
    tmp_path: Path, size: int | None, here: str
) -> None:
    """Machines that share no output folder."""
    draft = CheckpointStore(tmp_path, keep=1).begin(_state(2))
    if size is not None:
        _write("weights")(draft.trainer)
    with pytest.raises(
        CheckpointError,
        match=rf"rank_0\.bin was written with 5 bytes, here it has {here}: run\.output_dir must be "
        "a folder that all machines",
    ):
        draft.complete({"rank_0.bin": FileSum(5, 1)})
    assert not (tmp_path / "step_00000002").exists()


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "absent", keep=1).newest() is None


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    state = replace(_state(1), format=99)
    folder = CheckpointStore(tmp_path, keep=1).save(state, _write("w"))
    with pytest.raises(CheckpointError, match="format 99"):
        read_state(folder)
