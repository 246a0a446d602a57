"""Trainer ranks die while a run that goes on reads its checkpoint, before its first step."""

from __future__ import annotations

from pathlib import Path

import pytest
from recovering_run import KINDS, LOSS, dying, recovery_of, run_of, trained
from stand_in_run import StandInRun

from opd_ray.coordinator.recovery import load_first
from opd_ray.errors import ActorFailure, DamagedCheckpoint
from opd_ray.output.checkpoint import read_state
from opd_ray.output.resume import Start


@pytest.fixture
def whole(tmp_path: Path) -> StandInRun:
    run = run_of(tmp_path / "whole", **KINDS["lag"])
    run._coordinator.run(0)
    return run


def place_of(tmp_path: Path) -> Path:
    return tmp_path / "whole" / "step_00000002"


@pytest.mark.parametrize("method", ["engine.check_files", "engine.load"])
def test_ranks_that_die_while_they_read_start_again_and_read_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], whole: StandInRun, method: str
) -> None:
    run = run_of(tmp_path / "run", **KINDS["lag"])
    dying(run, method, 1)
    load_first(run._coordinator.session, str(place_of(tmp_path) / "trainer"))
    assert [rank.taken for rank in run.trainers] == [2, 2]
    assert run._coordinator.restarts == 0
    assert capsys.readouterr().err.splitlines() == [
        "opd-ray: trainer-1 failed: its process is gone while the run's checkpoint was read: all "
        "ranks start again (1 of trainer.max_restarts = 3)"
    ]


def test_ranks_that_always_die_there_end_the_run(tmp_path: Path, whole: StandInRun) -> None:
    run = run_of(tmp_path / "run", restarts=2)
    run.before_call = lambda method: setattr(run.watch, "death", LOSS)
    with pytest.raises(ActorFailure, match=r"was read, and trainer\.max_restarts = 2 allows no"):
        load_first(run._coordinator.session, str(place_of(tmp_path) / "trainer"))
    assert len(run.ended) == 2 * 2


def test_a_stop_while_ranks_start_again_ends_the_run(tmp_path: Path, whole: StandInRun) -> None:
    run = run_of(tmp_path / "run")

    def stop(method: str) -> None:
        run.watch.stop_requested, run.watch.death = True, LOSS

    run.before_call = stop
    with pytest.raises(KeyboardInterrupt):
        load_first(run._coordinator.session, str(place_of(tmp_path) / "trainer"))


def test_a_damaged_checkpoint_is_no_death(tmp_path: Path, whole: StandInRun) -> None:
    (place_of(tmp_path) / "trainer" / "weights").write_text("9")
    run = run_of(tmp_path / "run")
    with pytest.raises(DamagedCheckpoint):
        load_first(run._coordinator.session, str(place_of(tmp_path) / "trainer"))
    assert not run.ended


def test_a_death_while_rollouts_in_flight_are_scored_again(
    tmp_path: Path, whole: StandInRun
) -> None:
    place = place_of(tmp_path)
    state = read_state(place)
    for moment in range(1, 4):
        run = run_of(tmp_path / str(moment), **KINDS["lag"])
        session = run._coordinator.session
        session.load(str(place / "trainer"))
        begun = run.watch.waits

        def die(number: int, run: StandInRun = run, last: int = begun + moment) -> None:
            if number == last:
                run.watch.death = LOSS

        run.watch.before_wait = die
        recovery_of(run, tmp_path / str(moment), Start(place, state)).run(
            2,
            evaluated=True,
            begin=lambda run=run: run.read_ahead(place, 2),
            then=lambda: None,
        )
        assert run._coordinator.restarts == 1
        said = "go on from step 2 (checkpoint step_00000002), 0 steps are done again"
        assert said in run.printed.getvalue()
        assert trained(run) == trained(whole)[2:]
