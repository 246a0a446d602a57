"""What is said of ranks that died, how often they may, and what ends the run instead."""

from __future__ import annotations

from pathlib import Path

import pytest
from recovering_run import LOSS, STREAM, assert_same_end, dying, go, run_of

from opd_ray.coordinator.run import Part, _newest
from opd_ray.errors import ActorFailure, ActorLost, ConnectionLost
from opd_ray.output.checkpoint import CheckpointStore, read_state
from opd_ray.output.resume import Start
from opd_ray.pools.watch import Interrupted


def test_what_happened_is_said_in_one_line_and_counted(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    dying(run, "train_step", 7)
    go(run, tmp_path)
    lines = [line for line in run.printed.getvalue().splitlines() if "trainer-1" in line]
    assert lines == [
        "trainer-1 failed: its process is gone: all ranks start again and go on from step 2 "
        "(checkpoint step_00000002), 1 step is done again (1 of trainer.max_restarts = 3)"
    ]
    counts = [row["train/restarts"] for _, row in run.rows if "train/restarts" in row]
    assert counts == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("allowed", [0, 2])
def test_ranks_are_started_as_often_as_allowed(tmp_path: Path, allowed: int) -> None:
    run = run_of(tmp_path, restarts=allowed)

    def before_call(method: str) -> None:
        if method == "train_step" and run.trainers[1].taken == 2:
            run.watch.death = LOSS

    run.before_call = before_call
    with pytest.raises(ActorFailure) as raised:
        go(run, tmp_path)
    assert str(raised.value) == (
        f"trainer-1 failed: its process is gone; trainer.max_restarts = {allowed} allows no "
        "further start. The same command goes on from checkpoint step_00000002"
    )
    assert run._coordinator.restarts == allowed
    assert len(run.ended) == 2 * allowed


def test_ranks_that_were_given_to_a_dead_node_take_no_start_from_it(tmp_path: Path) -> None:
    run = run_of(tmp_path, restarts=0)
    never_ran = ActorLost("trainer-1", "trainer-1", "its node has died", never_ran=True)

    def before_call(method: str) -> None:
        if method == "train_step" and run.trainers[1].taken == 2 and len(run.ended) < 4:
            run.watch.death = never_ran

    run.before_call = before_call
    assert go(run, tmp_path) == "done"
    assert run._coordinator.restarts == 0
    assert len(run.ended) == 4


def test_the_loss_of_another_actor_ends_the_run(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    other = ActorLost("rollout-0", "rollout-0", "its process is gone")
    run.before_call = lambda method: setattr(run.watch, "death", other)
    with pytest.raises(ActorLost) as raised:
        go(run, tmp_path)
    assert raised.value is other
    assert not run.ended


def test_ranks_that_no_longer_reach_each_other_are_started_again(tmp_path: Path) -> None:
    """One of them says so before anybody knows which of the others has died."""
    whole, run = run_of(tmp_path / "whole"), run_of(tmp_path / "run")
    whole._coordinator.run(0)
    lost = ActorFailure("trainer-0 (a training step)", "closed by peer")
    lost.__cause__ = ConnectionLost("closed by peer")
    run.trainers[0]._train_step = lambda *_: lost  # type: ignore[method-assign]
    assert go(run, tmp_path / "run") == "done"
    assert "trainer-0 (a training step) failed: closed by peer: all" in run.printed.getvalue()
    assert_same_end(run, whole)


def test_a_rank_that_raises_ends_the_run(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    error = ActorFailure("trainer-0 (a training step)", "the divergence is NaN")
    run.trainers[0]._train_step = lambda *_: error  # type: ignore[method-assign]
    with pytest.raises(ActorFailure) as raised:
        go(run, tmp_path)
    assert raised.value is error
    assert not run.ended


def test_after_a_stop_no_rank_is_started_again(tmp_path: Path) -> None:
    run = run_of(tmp_path, every=1)

    def before_call(method: str) -> None:
        if method == "train_step" and run.trainers[1].taken == 2:
            run.watch.stop_requested = True
            run.watch.death = LOSS

    run.before_call = before_call
    with pytest.raises(Interrupted, match="stopped; trainer-1 failed: its process is gone"):
        go(run, tmp_path)
    assert not run.ended
    assert "no rank starts again, and steps after step 2 are lost" in run.printed.getvalue()
    newest = CheckpointStore(tmp_path, keep=9).newest()
    assert newest is not None
    assert newest[1].step == 2


def test_a_run_resumed_from_another_folder_goes_back_to_no_step_of_the_history_it_left(
    tmp_path: Path,
) -> None:
    own, other = (run_of(tmp_path / name, tip=STREAM) for name in ("own", "other"))
    own._coordinator.run(0)
    other._coordinator.run(0)
    place = tmp_path / "other" / "step_00000002"
    start = Start(place, read_state(place))
    store = CheckpointStore(tmp_path / "own", keep=9)
    assert _newest(Part(own.config, start), store, {}).step == 5
    store.set_aside_after(2)  # as a run does that goes on from step 2
    assert _newest(Part(own.config, start), store, {}).trainer == place / "trainer"
