"""Checkpoints when a save is cut off anywhere, and the newest one where several are whole."""

from __future__ import annotations

import io
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opd_ray.output.checkpoint import CheckpointStore, RunState, read_state

# Every call by which a save changes the disk, or makes a change last.
CALLS = [
    *((os, name) for name in ("mkdir", "replace", "rename", "unlink", "rmdir", "fsync", "open")),
    (io, "open"),
]


class Crash(BaseException):
    """The process is gone: nothing below may catch it and tidy up."""


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody pulls the plug here."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


def state(step: int) -> RunState:
    return RunState(step, 7, 10, {"step": step}, [[step, 2]], {"count": 2, "fingerprint": "ff"})


def write(folder: str) -> None:
    """Two files of a trainer, one of them in a folder of its own."""
    with io.open(Path(folder) / "rank_0.bin", "w") as file:  # noqa: UP020 (the counted one)
        file.write("weights")
    (Path(folder) / "teachers").mkdir()
    (Path(folder) / "teachers" / "rank_0.bin").write_text("a follower's weights")


def save_until(number: int, store: CheckpointStore, step: int) -> bool:
    """Save; the call of that number (from 0), of all CALLS together, crashes before it acts.

    Returns:
        whether there were so many calls.
    """
    numbers = itertools.count()

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def made(*args: Any, **named: Any) -> Any:
            if next(numbers) == number:
                raise Crash
            return call(*args, **named)

        return made

    with pytest.MonkeyPatch.context() as patch:
        for module, name in CALLS:
            patch.setattr(module, name, counted(getattr(module, name)))
        try:
            store.save(state(step), write)
        except Crash:
            return True
        return False


def found(folder: Path) -> dict[int, Path]:
    """Whatever bears a checkpoint's name, by its step."""
    return {int(path.name[5:]): path for path in folder.iterdir() if path.name[5:].isdigit()}


def assert_whole(checkpoint: Path, step: int) -> None:
    assert read_state(checkpoint) == state(step)
    assert (checkpoint / "trainer" / "rank_0.bin").read_text() == "weights"
    assert (checkpoint / "trainer" / "teachers" / "rank_0.bin").is_file()


def test_the_newest_of_three_whole_checkpoints_is_the_last(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    for step in (9, 10, 100):
        store.save(state(step), write)
    assert store.newest() == (tmp_path / "step_00000100", state(100))
    (tmp_path / "step_00000100" / "manifest.json").unlink()
    assert store.newest() == (tmp_path / "step_00000010", state(10))


@pytest.mark.parametrize("keep", [1, 2])
def test_a_crash_at_any_moment_leaves_the_older_checkpoints_and_no_half_written_one(
    tmp_path: Path, keep: int
) -> None:
    for number in itertools.count():
        folder = tmp_path / str(number)
        for step in (1, 2):
            CheckpointStore(folder, keep=2).save(state(step), write)
        store = CheckpointStore(folder, keep)
        crashed = save_until(number, store, 3)
        there = found(folder)
        newest = store.newest()
        assert newest is not None
        assert newest[1].step == (3 if 3 in there else 2)
        # Those beyond `keep` may be on their way out, but only once the new one is there.
        kept = sorted(there)[-keep:] if 3 in there else [1, 2]
        for step in kept:
            assert_whole(there[step], step)
        store.save(state(3), write)  # nothing that a crash left is in the way
        assert sorted(found(folder)) == [1, 2, 3][-keep:]
        assert_whole(found(folder)[3], 3)
        assert not list(folder.glob("*.tmp"))
        if not crashed:
            break
    # Four folders, five files, two of them synced, the rename, its sync, and what goes.
    assert number > 14


def test_a_crash_while_a_checkpoint_is_replaced_leaves_the_older_one(tmp_path: Path) -> None:
    for number in itertools.count():
        store = CheckpointStore(tmp_path / str(number), keep=2)
        for step in (2, 3):
            store.save(state(step), write)
        crashed = save_until(number, store, 3)
        assert_whole(found(tmp_path / str(number))[2], 2)
        newest = store.newest()
        assert newest is not None
        assert_whole(newest[0], newest[1].step)
        if not crashed:
            break
    assert number > 14
    assert newest[1].step == 3


def test_what_is_renamed_into_place_is_whole_by_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced: list[tuple[str, set[str]]] = []
    replace = os.replace

    def watch(source: Any, target: Any) -> None:
        if Path(source).is_dir():
            names = {str(path.relative_to(source)) for path in Path(source).rglob("*")}
            replaced.append((Path(target).name, names))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    final = CheckpointStore(tmp_path, keep=1).save(state(3), write)
    sizes = {
        str(path.relative_to(final)): path.stat().st_size
        for path in final.rglob("*")
        if path.is_file()
    }
    ((name, names),) = replaced
    assert name == final.name == "step_00000003"
    assert names >= sizes.keys()
    trainer = {"trainer/rank_0.bin": 7, "trainer/teachers/rank_0.bin": 20}
    manifest = sizes.pop("manifest.json")
    assert sizes.keys() == {"run.json", "config.yaml"} | trainer.keys()
    assert sizes.items() >= trainer.items()
    assert manifest > 0
    written = json.loads((final / "manifest.json").read_text())
    assert {name: one["size"] for name, one in written.items()} == sizes
    # Of the seven bytes "weights".
    assert written["trainer/rank_0.bin"] == {"size": 7, "crc32": 449999704}
