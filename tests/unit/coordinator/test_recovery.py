"""Trainer ranks die at every moment of a run: it goes back, and ends as if nothing had been."""

from __future__ import annotations

from pathlib import Path

import pytest
from recovering_run import (
    KINDS,
    LOSS,
    assert_same_end,
    dying,
    figures,
    go,
    recovery_of,
    run_of,
    trained,
)
from stand_in_run import StandInRun

from opd_ray.output.checkpoint import read_state
from opd_ray.output.resume import Start


@pytest.mark.parametrize("kind", KINDS)
def test_a_death_in_whatever_wait_leaves_the_run_as_it_was(tmp_path: Path, kind: str) -> None:
    whole = run_of(tmp_path / "whole", **KINDS[kind])
    whole._coordinator.run(0)
    count = whole.watch.waits
    assert count > 60
    for moment in range(1 + list(KINDS).index(kind), count, 13):
        folder = tmp_path / str(moment)
        run = run_of(folder, **KINDS[kind])

        def die(number: int, run: StandInRun = run, moment: int = moment) -> None:
            if number == moment:
                run.watch.death = LOSS

        run.watch.before_wait = die
        assert go(run, folder) == "done"
        assert run._coordinator.restarts == 1, moment
        assert_same_end(run, whole)


@pytest.mark.parametrize(
    ("kind", "method", "number"),
    [
        ("plain", "train_step", 7),  # by the second rank, in the fourth step
        ("overlap", "accumulate", 5),
        ("exact", "score", 2),
        ("plain", "weights", 6),
        ("plain", "engine.save", 2),  # the second checkpoint
        ("lag", "engine.save", 2),
        ("beside", "engine.save", 2),
        ("turns", "train_step", 7),
        ("turns", "sleep", 7),
        ("turns followed", "wake", 7),
        ("turns exact", "score", 2),
    ],
)
def test_a_death_in_any_call_of_the_ranks(
    tmp_path: Path, kind: str, method: str, number: int
) -> None:
    whole = run_of(tmp_path / "whole", **KINDS[kind])
    whole._coordinator.run(0)
    run = run_of(tmp_path / "run", **KINDS[kind])
    dying(run, method, number)
    assert go(run, tmp_path / "run") == "done"
    assert run._coordinator.restarts == 1
    assert_same_end(run, whole)
    # The draft of the checkpoint in which the rank died is gone, and the checkpoint is there.
    names = [f"step_{step:08d}" for step in (2, 4, 5)]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == names


def test_a_death_while_the_student_is_measured_measures_it_again(tmp_path: Path) -> None:
    whole, run = run_of(tmp_path / "whole"), run_of(tmp_path / "run")
    whole._coordinator.run(0)
    measure = run._coordinator.evaluator.run

    def die(show: object) -> dict[str, float]:
        if len(run.evaluated) == 2:  # after four steps
            run.evaluated.append([])
            run.watch.death = LOSS
            run.watch.wait_until(lambda: False, "answers")
        return measure(show)

    run._coordinator.evaluator = type("", (), {"run": staticmethod(die)})()
    go(run, tmp_path / "run")
    # From the checkpoint after two steps, at which it had been measured, but not yet after four.
    assert run.evaluated == [[0, 0], [2, 2], [], [4, 4], [5, 5]]
    assert_same_end(run, whole)


def test_a_death_at_the_export_takes_no_step_again(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    tries: list[int] = []

    def export() -> str:
        tries.append(len(run.rows))
        if len(tries) == 1:
            run.watch.death = LOSS
        run._coordinator.session.export("folder")
        return "exported"

    assert go(run, tmp_path, export) == "exported"
    assert len(tries) == 2
    assert tries[0] == tries[1] == len(run.rows)
    assert [len(rank.steps) for rank in [*run.ended, *run.trainers]] == [5, 5, 0, 0]
    assert [rank.taken for rank in run.trainers] == [5, 5]


def test_new_ranks_that_die_too_are_started_again(tmp_path: Path) -> None:
    whole, run = run_of(tmp_path / "whole"), run_of(tmp_path / "run")
    whole._coordinator.run(0)
    calls: dict[str, int] = {}

    def before_call(method: str) -> None:
        calls[method] = calls.get(method, 0) + 1
        if (method, calls[method]) in (("train_step", 7), ("engine.load", 2)):
            run.watch.death = LOSS

    run.before_call = before_call
    go(run, tmp_path / "run")
    assert run._coordinator.restarts == 2
    assert_same_end(run, whole)


@pytest.mark.parametrize("kind", ["plain", "stream", "followed", "lag", "turns followed"])
def test_before_its_first_checkpoint_a_run_begins_again(tmp_path: Path, kind: str) -> None:
    whole = run_of(tmp_path / "whole", every=0, **KINDS[kind])
    whole._coordinator.run(0)
    run = run_of(tmp_path / "run", every=0, **KINDS[kind])
    dying(run, "train_step", 6)
    go(run, tmp_path / "run")
    assert_same_end(run, whole)
    assert "go on from step 0 (its beginning), 3 steps are done again" in run.printed.getvalue()


@pytest.mark.parametrize("kind", ["plain", "stream", "followed", "lag", "turns followed"])
def test_a_run_that_was_resumed_goes_back_to_where_it_was(tmp_path: Path, kind: str) -> None:
    whole = run_of(tmp_path / "whole", **KINDS[kind])
    whole._coordinator.run(0)
    place = tmp_path / "whole" / "step_00000002"
    state = read_state(place)
    run = run_of(tmp_path / "run", every=0, **KINDS[kind])
    coordinator = run._coordinator
    coordinator.session.load(str(place / "trainer"))
    coordinator.tip.load_state_dict(state.filter_state)
    coordinator.batches.load(place / "trainer", 2)
    dying(run, "train_step", 2)
    recovery_of(run, tmp_path / "run", Start(place, state)).run(
        2, evaluated=False, then=lambda: None
    )
    assert "go on from step 2 (checkpoint step_00000002), 1 step is done" in run.printed.getvalue()
    # It was measured where it goes on, and once: these are figures of another folder.
    both = figures(whole)
    assert figures(run) == both[both.index((2, {"eval": 0.0})) :]
    assert trained(run) == trained(whole)[2:]
    assert run._coordinator.tip.state_dict() == whole._coordinator.tip.state_dict()
    assert [replica.followed for replica in run.replicas] == [
        replica.followed for replica in whole.replicas
    ]
