"""Checkpoints are written beside the next steps, one at a time, and waited for where they must."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stand_in_run import StandInRun
from stand_ins import Response

from opd_ray.checksums import FileSum, sum_of
from opd_ray.config.schema import RunSettings
from opd_ray.coordinator.saving import Saving
from opd_ray.errors import ActorFailure, WriteError
from opd_ray.output.checkpoint import CheckpointStore, RunState, read_state
from opd_ray.pools.watch import Interrupted


class Watch:
    """Answers come when :meth:`arrive` says so, or when somebody waits."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, Any]] = []
        self.waits: list[str] = []

    def when_ready(self, ref: Any, call: Any) -> None:
        self.asked.append((ref, call))

    def arrive(self) -> None:
        ref, call = self.asked.pop(0)
        call(ref)

    def wait_until(self, done: Any, what: str) -> None:
        self.waits.append(what)
        while not done():
            self.arrive()

    def get(self, ref: Any, owner: str) -> Any:
        found = ref()
        if isinstance(found, str):
            raise ActorFailure(owner, found)
        return found


class Session:
    """Two ranks, which write when their answers are looked at."""

    def __init__(self, room: bool = True) -> None:
        self.watch = Watch()
        self.scorer = SimpleNamespace(watch=self.watch)
        self.have_room_to_copy = lambda: room
        self.full = False

    def _write(self, folder: str, name: str) -> dict[str, FileSum] | str:
        path = Path(folder) / name
        if self.full:
            return "no space left"
        path.write_text(name)
        return {name: sum_of(path)}

    def save(self, folder: str) -> dict[str, FileSum]:
        found = [self._write(folder, "at once")]
        assert isinstance(found[0], dict)
        return found[0]

    def begin_save(self, folder: str) -> list[tuple[Any, str]]:
        return [
            (lambda name=name: self._write(folder, name), f"trainer-{name}") for name in ("0", "1")
        ]


def state(step: int) -> RunState:
    return RunState(step, 7, 10, {}, [[step, 2]], {"count": 2, "fingerprint": "ff"})


def nothing(folder: Path) -> bool:
    """No more belongs to it."""
    return True


def parts(folder: Path, beside: bool | None = True, *, room: bool = True) -> Any:
    session: Any = Session(room)
    store = CheckpointStore(folder, keep=9)
    return SimpleNamespace(
        session=session,
        watch=session.watch,
        store=store,
        saving=Saving(session, store, beside),
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def more(folder: Path) -> bool:
    (folder / "more").touch()
    return True


def test_without_what_else_belongs_to_it_there_is_none(tmp_path: Path) -> None:
    run = parts(tmp_path)
    run.saving.save(state(3), lambda folder: not more(folder), last=False)
    assert names(tmp_path) == []
    assert run.saving.take_figures() == {}
    run.saving.save(state(4), more, last=True)
    assert names(tmp_path) == ["step_00000004"]


def test_it_is_in_its_place_once_all_ranks_have_written(tmp_path: Path) -> None:
    run = parts(tmp_path)
    run.saving.save(state(3), more, last=False)
    assert names(tmp_path) == ["step_00000003.tmp"]
    assert run.saving.take_figures().keys() == {"seconds/checkpoint"}
    run.watch.arrive()
    assert names(tmp_path) == ["step_00000003.tmp"]
    run.watch.arrive()
    assert names(tmp_path) == ["step_00000003"]
    assert names(tmp_path / "step_00000003" / "trainer") == ["0", "1", "more"]
    assert read_state(tmp_path / "step_00000003") == state(3)
    assert run.saving.take_figures().keys() == {"checkpoint/written_seconds"}
    assert run.saving.take_figures() == {}
    assert not run.watch.waits


def test_the_next_one_waits_for_the_one_before(tmp_path: Path) -> None:
    run = parts(tmp_path)
    run.saving.save(state(3), nothing, last=False)
    run.saving.save(state(4), nothing, last=False)
    assert names(tmp_path) == ["step_00000003", "step_00000004.tmp"]
    assert run.watch.waits == ["a checkpoint that is being written"]
    run.saving.finish()
    assert names(tmp_path) == ["step_00000003", "step_00000004"]
    run.saving.finish()
    assert len(run.watch.waits) == 2, "nothing was under way"


@pytest.mark.parametrize(
    ("beside", "room", "last"),
    [(True, True, True), (False, True, False), (None, False, False)],
)
def test_it_is_there_at_once_where_nothing_comes_next_or_no_copy_is_wanted_or_fits(
    tmp_path: Path, beside: bool | None, room: bool, last: bool
) -> None:
    run = parts(tmp_path, beside, room=room)
    run.saving.save(state(3), nothing, last=last)
    assert names(tmp_path) == ["step_00000003"]
    assert names(tmp_path / "step_00000003" / "trainer") == ["at once"]
    figures = run.saving.take_figures()
    assert figures.keys() == {"checkpoint/written_seconds", "seconds/checkpoint"}
    assert 0 < figures["checkpoint/written_seconds"] <= figures["seconds/checkpoint"] < 5


@pytest.mark.parametrize(("beside", "room"), [(None, True), (True, False)])
def test_it_is_written_beside_where_that_fits_or_is_asked_for(
    tmp_path: Path, beside: bool | None, room: bool
) -> None:
    run = parts(tmp_path, beside, room=room)
    run.saving.save(state(3), nothing, last=False)
    assert names(tmp_path) == ["step_00000003.tmp"]


def test_a_rank_that_cannot_write_ends_the_wait_and_leaves_the_older_ones(tmp_path: Path) -> None:
    run = parts(tmp_path)
    run.saving.save(state(3), nothing, last=False)
    run.saving.finish()
    run.session.full = True
    run.saving.save(state(4), nothing, last=False)
    with pytest.raises(ActorFailure, match="trainer-0 failed: no space left"):
        run.watch.arrive()
    assert names(tmp_path) == ["step_00000003"]
    run.watch.arrive()  # the other's answer is nobody's any more
    run.saving.finish()


def test_what_else_cannot_be_written_leaves_no_draft(tmp_path: Path) -> None:
    def fail(folder: Path) -> bool:
        raise WriteError(f"{folder} cannot be written")

    run = parts(tmp_path)
    with pytest.raises(WriteError, match="trainer cannot be written"):
        run.saving.save(state(3), fail, last=False)
    assert names(tmp_path) == []


def test_what_cannot_be_put_on_disk_leaves_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: object) -> None:
        raise OSError(28, "no space left")

    def fill(folder: Path) -> bool:
        monkeypatch.setattr("os.fsync", full)
        return True

    run = parts(tmp_path)
    run.saving.save(state(3), fill, last=False)
    run.watch.arrive()
    with pytest.raises(WriteError, match="step_00000003: cannot be written: No space .* make room"):
        run.watch.arrive()
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = parts(tmp_path / "file" / "checkpoints")
    with pytest.raises(WriteError, match="file/checkpoints/step_00000003.tmp: cannot be written: "):
        run.saving.save(state(3), nothing, last=False)


def test_what_is_abandoned_never_comes_into_its_place(tmp_path: Path) -> None:
    run = parts(tmp_path)
    run.saving.abandon()
    run.saving.save(state(3), nothing, last=False)
    late = list(run.watch.asked)
    run.saving.abandon()
    assert names(tmp_path) == []
    run.saving.save(state(3), nothing, last=False)
    for ref, call in late:
        call(ref)
    assert names(tmp_path) == ["step_00000003.tmp"]
    run.watch.asked = run.watch.asked[2:]
    run.saving.finish()
    assert names(tmp_path) == ["step_00000003"]


RESPONSES = {
    name: Response(mask=[1, 1], logprob=[-1.0] * 2, reverse_kl=[0.1, 0.2])
    for name in ("a0", "a1", "b0", "b1")
}


@pytest.mark.parametrize("beside", [True, False])
def test_a_run_says_what_its_checkpoints_cost(tmp_path: Path, beside: bool) -> None:
    settings = RunSettings(steps=4, checkpoint_every=1, checkpoint_beside=beside)
    run = StandInRun(RESPONSES, run=settings, checkpoints=CheckpointStore(tmp_path, keep=9))
    run.go(0)
    assert names(tmp_path) == [f"step_{step:08d}" for step in (1, 2, 3, 4)]
    blocked = [step for step, row in run.rows if "seconds/checkpoint" in row]
    assert blocked == [1, 2, 3, 4]
    assert sum("checkpoint/written_seconds" in row for _, row in run.rows) == 4


def test_a_stop_waits_for_the_checkpoint_under_way(tmp_path: Path) -> None:
    settings = RunSettings(steps=5, checkpoint_every=2, checkpoint_beside=True)
    run = StandInRun(RESPONSES, run=settings, checkpoints=CheckpointStore(tmp_path, keep=9))
    run.stop_after = 2
    with pytest.raises(Interrupted):
        run.go(0)
    assert names(tmp_path) == ["step_00000002"]
