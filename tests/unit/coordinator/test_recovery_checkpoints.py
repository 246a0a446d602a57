"""Trainer ranks that die when checkpoints are damaged, or half written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_replicas import Remote
from recovering_run import KINDS, LOSS, assert_same_end, dying, go, recovery_of, run_of

from opd_ray.errors import RunError
from opd_ray.output.checkpoint import check_trainer, read_state
from opd_ray.output.resume import Start


def flip_a_bit(folder: Path) -> None:
    """In a file that only the ranks read."""
    file = folder / "trainer" / "weights"
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)


def test_a_damaged_checkpoint_is_passed_over_and_written_again(tmp_path: Path) -> None:
    whole, run = run_of(tmp_path / "whole"), run_of(tmp_path / "run")
    whole._coordinator.run(0)
    newest = tmp_path / "run" / "step_00000004"

    def before_call(method: str) -> None:
        if (
            method == "train_step"
            and run.trainers[1].taken == 4
            and not (run.ended or run.watch.death)
        ):
            flip_a_bit(newest)
            run.watch.death = LOSS

    run.before_call = before_call
    assert go(run, tmp_path / "run") == "done"
    assert run._coordinator.restarts == 1
    assert_same_end(run, whole)
    [said] = [line for line in run.printed.getvalue().splitlines() if "passed over" in line]
    assert said == (
        "passed over: weights has the right size, but not the bytes that were written; the run "
        "goes on from step 2 (checkpoint step_00000002)"
    )
    check_trainer(newest)  # the run came by there again


@pytest.mark.parametrize("first", ["its beginning", "a checkpoint"])
def test_where_all_checkpoints_are_damaged(tmp_path: Path, first: str) -> None:
    """A run goes back to its beginning; one that began at a checkpoint has nowhere to go."""
    whole, run = run_of(tmp_path / "whole"), run_of(tmp_path / "run")
    whole._coordinator.run(0)
    start = None
    if first == "a checkpoint":
        place = tmp_path / "whole" / "step_00000002"
        start = Start(place, read_state(place))
        run._coordinator.session.load(str(place / "trainer"))

    def before_call(method: str) -> None:
        if (
            method == "train_step"
            and run.trainers[1].taken == 4
            and not (run.ended or run.watch.death)
        ):
            flip_a_bit(tmp_path / "whole" / "step_00000002")
            for folder in (tmp_path / "run").iterdir():
                flip_a_bit(folder)
            run.watch.death = LOSS

    run.before_call = before_call
    recovery = recovery_of(run, tmp_path / "run", start)
    if start is None:
        recovery.run(0, evaluated=False, then=lambda: None)
        assert "the run goes on from step 0 (its beginning)" in run.printed.getvalue()
        assert_same_end(run, whole)
        return
    with pytest.raises(RunError, match=r"weights has the right .*; none after it can be read"):
        recovery.run(2, evaluated=False, then=lambda: None)


def test_a_checkpoint_that_dead_ranks_were_writing_is_not_waited_for(tmp_path: Path) -> None:
    whole, run = run_of(tmp_path / "whole"), run_of(tmp_path / "run", **KINDS["beside"])
    whole._coordinator.run(0)
    never = SimpleNamespace(dead=False), "lifeline", 0
    folders: list[str] = []
    run.trainers[1].write_snapshot = Remote(lambda folder: folders.append(folder) or never)
    dying(run, "train_step", 7)
    assert go(run, tmp_path / "run") == "done"
    # The first checkpoint was never whole, so the run began again.
    assert folders == [str(tmp_path / "run" / "step_00000002.tmp" / "trainer")]
    assert "go on from step 0 (its beginning), 3 steps are" in run.printed.getvalue()
    assert_same_end(run, whole)
