"""Trainer ranks that die at every moment of a run: it goes back, and ends as if nothing had been.

All parts are real but for the actors, which are plain objects.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_replicas import Remote
from stand_in_run import StandInRun
from stand_ins import Response

from opd_ray.config.choices import Scoring
from opd_ray.config.schema import EvalSettings, RunSettings, TrainerSettings
from opd_ray.coordinator.recovery import Point, Recovery
from opd_ray.coordinator.run import Part, _newest
from opd_ray.errors import ActorFailure, ActorLost, ConnectionLost, RunError
from opd_ray.output.checkpoint import CheckpointStore, check_trainer, read_state
from opd_ray.output.resume import Start
from opd_ray.pools.watch import Interrupted
from opd_ray.tip import TipSettings

RESPONSES = {
    "a0": Response([1, 1], [-1.0] * 2, [0.1, 0.2], [0.2, 0.1]),
    "a1": Response([1, 0, 1], [-1.0] * 3, [0.3, 0.4, 0.5], [0.5, 0.4, 0.3]),
    "b0": Response([1, 1], [-1.0] * 2, [0.6, 0.7], [0.7, 0.6]),
    "b1": Response([1] * 4, [-1.0] * 4, [0.8, 0.9, 1.0, 1.1], [0.4, 0.3, 0.2, 0.1]),
}
# The filter remembers what earlier steps showed.
STREAM = TipSettings(rule="divergence_topk", normalise_over="stream", stream_decay=0.9)
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stream": {"tip": STREAM},
    "lag": {"run": {"lag": 1}},
    "overlap": {
        "run": {"overlap": True},
        "tip": TipSettings(
            rule="divergence_topk", normalise_over="rollout", share_of="rollout", rho=0.5
        ),
    },
    "exact": {"scoring": Scoring.exact},
    "beside": {"run": {"checkpoint_beside": True}},
    "followed": {"follow": True},
}
LOSS = ActorLost("trainer-1", "trainer-1", "its process is gone")


def run_of(
    folder: Path | None, order: int = 0, restarts: int = 3, every: int = 2, **others: Any
) -> StandInRun:
    """Five steps, evaluated at every second."""
    return StandInRun(
        RESPONSES,
        order=order,
        checkpoints=None if folder is None else CheckpointStore(folder, keep=9),
        **{
            **others,
            "run": RunSettings(steps=5, checkpoint_every=every, **others.pop("run", {})),
            "eval": EvalSettings(every=2),
            "trainer": TrainerSettings(ranks=2, micro_batch_tokens=8, max_restarts=restarts),
        },
    )


def recovery_of(run: StandInRun, folder: Path, start: Start | None = None) -> Recovery:
    coordinator = run._coordinator
    beginning = coordinator.tip.state_dict()
    store = CheckpointStore(folder, keep=9)

    def newest() -> Point:
        return _newest(Part(run.config, start), store, beginning)

    def evaluated(step: int) -> bool:
        return any(row[0] == step and "eval/accuracy" in row[1] for row in run.rows)

    return Recovery(coordinator, newest, evaluated, store.pass_over)


def go(run: StandInRun, folder: Path, then: Callable[[], Any] = lambda: "done") -> Any:
    return recovery_of(run, folder).run(0, evaluated=False, then=then)


def trained(run: StandInRun) -> list[dict[str, list[int]]]:
    """Kept rows by rollout id, of every step as it was taken last."""
    taken: dict[int, dict[str, list[int]]] = {}
    everyone = [*run.ended, *run.trainers]
    for pair in zip(everyone[::2], everyone[1::2], strict=True):
        for number in range(min(len(rank.steps) for rank in pair)):
            items = [item for rank in pair for item in rank.steps[number].items]
            step = int(items[0].rollout_id.split("/")[0])
            taken[step] = {item.rollout_id: item.rows.tolist() for item in items}
    return [taken[step] for step in sorted(taken)]


TOLD = ("rollout/weights_version", "rollout/tokens", "tip/kept_fraction", "lag/age", "train/loss")


def figures(run: StandInRun) -> list[tuple[int, dict[str, float]]]:
    """What does not depend on the clock, of steps and of evaluations."""
    return [
        (step, {name: row[name] for name in TOLD if name in row} or {"eval": 0.0})
        for step, row in run.rows
        if "train/loss" in row or "eval/accuracy" in row
    ]


def assert_same_end(run: StandInRun, whole: StandInRun) -> None:
    assert figures(run) == figures(whole)
    assert trained(run) == trained(whole)
    assert [engine.version for engine in run.engines] == [5, 5]
    assert [rank.taken for rank in run.trainers] == [5, 5]
    assert run._coordinator.tip.state_dict() == whole._coordinator.tip.state_dict()
    assert [replica.followed for replica in run.replicas] == [
        replica.followed for replica in whole.replicas
    ]
    assert not any(replica.held for replica in run.replicas)


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


def dying(run: StandInRun, method: str, number: int) -> None:
    """A rank dies in the call of this method that has this number, counted over both ranks."""
    calls = iter(range(1_000_000))

    def before_call(called: str) -> None:
        if called == method and next(calls) == number:
            run.watch.death = LOSS

    run.before_call = before_call


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
        run._coordinator.session.trainers.export("folder")
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


@pytest.mark.parametrize("kind", ["plain", "stream", "followed", "lag"])
def test_before_its_first_checkpoint_a_run_begins_again(tmp_path: Path, kind: str) -> None:
    whole = run_of(tmp_path / "whole", every=0, **KINDS[kind])
    whole._coordinator.run(0)
    run = run_of(tmp_path / "run", every=0, **KINDS[kind])
    dying(run, "train_step", 6)
    go(run, tmp_path / "run")
    assert_same_end(run, whole)
    assert "go on from step 0 (its beginning), 3 steps are done again" in run.printed.getvalue()


@pytest.mark.parametrize("kind", ["plain", "stream", "followed", "lag"])
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
