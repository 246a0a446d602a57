"""Rollouts whose top-K dies with the actor that wrote them, at every moment of their scoring."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
from fake_replicas import pool_of, writers_of
from stand_ins import Engine, Response, Script, StandInWatch, Teacher

from opd_ray.errors import RunError
from opd_ray.pools.scorer import BatchUnderWay, RolloutScorer
from opd_ray.pools.teachers.router import TeacherRouter
from opd_ray.pools.turns import AllAtOnce
from opd_ray.types import RolloutRequest, Sampling

NAMES = [f"{key}{sample}" for key in "ab" for sample in range(3)]
RESPONSES = {
    name: Response(mask=[1] * size, logprob=[-0.1] * size, reverse_kl=[0.1 * size] * size)
    for size, name in enumerate(NAMES, start=1)
}


class Bench:
    """Engines that own the top-Ks, two teacher replicas, a scorer; the test chooses the events."""

    def __init__(self, engines: int = 2, after_writing: bool = False, budget: int = 1000) -> None:
        self.draw, self.script = Random(0), Script(RESPONSES)
        self.watch: Any = StandInWatch(self.draw)
        self.teachers = [Teacher(f"teacher-{n}", self.script) for n in range(2)]
        self.watch._make = self._make
        self.pool, _, _ = pool_of(
            self.teachers, budget, 20, watch=self.watch, after_writing=after_writing
        )
        named = [(f"rollout-{n}", self._make(f"rollout-{n}")) for n in range(engines)]
        self.engines = [engine for _, engine in named]
        self.rollouts = writers_of(self.watch, named, 8, 20)
        router = TeacherRouter({"teacher": self.pool}, {})
        self.scorer = RolloutScorer(self.watch, self.rollouts, router, AllAtOnce(self.watch))

    def _make(self, name: str) -> Any:
        if name.startswith("teacher"):
            return Teacher(name, self.script)
        return Engine(self.script, self.draw, name)

    def start(self, names: list[str] = NAMES) -> BatchUnderWay:
        prompt = np.zeros(1, np.int32)
        asked = [RolloutRequest(n, n[0], int(n[1]), prompt, 0) for n in names]
        return self.scorer.start(asked, Sampling(), {})

    def write_all(self) -> None:
        """Until no rollout is being written; scores may wait."""
        while self.rollouts.busy:
            stream = next(one for one in self.watch.streams if one[0].has_item)
            self.watch._next(stream)

    def read_by_teachers(self) -> list[str]:
        """All rollouts that were sent out, in order."""
        batches = [batch for teacher in self.teachers for batch in teacher.batches]
        return [key for batch in batches for key in batch]

    def lifeline_of(self, actor: Any) -> None:
        self.watch.arrive((actor, "lifeline", 0))


def kill(bench: Bench, number: int) -> None:
    bench.engines[number].die()
    bench.lifeline_of(bench.engines[number])


def names_in(batch: BatchUnderWay) -> list[str]:
    found = batch.result().rollouts
    for one in found:
        size = 1 + NAMES.index(one.rollout.rollout_id)
        assert one.scores.rollout_id == one.rollout.rollout_id
        np.testing.assert_allclose(one.scores.columns["reverse_kl"], [0.1 * size] * size, 1e-6)
    return [one.rollout.rollout_id for one in found]


def test_what_no_teacher_was_sent_is_written_again_and_sent_once() -> None:
    bench = Bench(after_writing=True)
    batch = bench.start()
    bench.watch._next(bench.watch.streams[0])
    assert len(bench.pool._queue) == 1
    kill(bench, 0)
    assert len(bench.pool._queue) == 0
    assert names_in(batch) == NAMES
    assert sorted(bench.read_by_teachers()) == NAMES
    assert bench.rollouts.take_counts() == (1, 3)


def test_what_a_teacher_found_lost_is_written_again() -> None:
    bench = Bench()
    batch = bench.start()
    bench.write_all()
    bench.pool.pump()  # all is sent
    assert sorted(bench.read_by_teachers()) == NAMES
    bench.engines[0].die()
    assert names_in(batch) == NAMES
    assert sorted(bench.read_by_teachers()) == sorted(NAMES + NAMES[:3])
    restarts, rewritten = bench.rollouts.take_counts()
    assert restarts == 1
    assert rewritten >= 3  # more where they were given to the dead once more


def test_a_teacher_may_find_it_lost_before_the_death_is_known() -> None:
    bench = Bench(engines=1)
    batch = bench.start(["a0"])
    bench.write_all()
    bench.pool.pump()
    bench.engines[0].die()
    (sent,) = [ref for ref, _ in bench.watch.pending if ref[1] == "score"]
    bench.watch.arrive(sent)
    assert batch.done is False
    assert names_in(batch) == ["a0"]
    assert bench.rollouts.take_counts() == (1, 1 + 1)  # given out to the dead once more


def test_what_a_teacher_has_read_is_kept() -> None:
    bench = Bench()
    batch = bench.start()
    bench.write_all()
    before = batch.result()
    bench.engines[0].die()
    bench.lifeline_of(bench.engines[0])
    assert bench.rollouts.take_counts() == (1, 0)
    assert batch.done
    assert batch.result().rollouts == before.rollouts


def test_scores_that_nobody_has_seen_are_made_anew() -> None:
    """Both die: the actor that wrote rollouts, and the replica that held what it said of them."""
    bench = Bench(engines=1)
    batch = bench.start(["a0", "a1"])
    bench.write_all()
    bench.watch.wait_until(lambda: batch.done, "scores")
    holder = bench.pool._tasks["a0"].holder
    assert holder is not None
    bench.engines[0].die()
    holder.handle.die()
    bench.lifeline_of(holder.handle)
    bench.watch.wait_until(lambda: not batch.done, "the loss to be noticed")
    assert names_in(batch) == ["a0", "a1"]


def handed_out_and_lost(bench: Bench) -> BatchUnderWay:
    """A batch of one that was handed out, whose engine and holder then die."""
    batch = bench.start(["a1"])
    assert names_in_one(batch) == "a1"
    holder = bench.pool._tasks["a1"].holder
    assert holder is not None
    bench.engines[0].die()
    holder.handle.die()
    return batch


def names_in_one(batch: BatchUnderWay) -> str:
    (one,) = batch.result().rollouts
    return one.rollout.rollout_id


def test_a_rollout_that_is_trained_on_is_written_again_for_its_signal() -> None:
    bench = Bench(engines=1)
    batch = handed_out_and_lost(bench)
    before = batch.result().rollouts[0]
    ((signal,),) = bench.pool.take([{"a1": np.array([0, 1], np.int32)}])
    assert signal == {"a1": [0, 1]}
    assert "a1" not in bench.pool
    after = batch.result().rollouts[0]
    assert after.scores is before.scores
    assert after.rollout is before.rollout
    assert all(
        not teacher.held for teacher in bench.watch.current.values() if hasattr(teacher, "held")
    )


def test_so_is_one_of_a_wave_while_the_batch_goes_on() -> None:
    bench = Bench(engines=1)
    batch = bench.start(["a1", "b1"])
    (before,) = batch.next_wave(1)
    assert not batch.done
    name = before.rollout.rollout_id
    holder = bench.pool._tasks[name].holder
    assert holder is not None
    bench.engines[0].die()
    holder.handle.die()
    ((signal,),) = bench.pool.take([{name: np.array([0], np.int32)}])
    assert signal == {name: [0]}
    rest = batch.next_wave(1)
    assert before not in rest
    assert before in batch.result().rollouts


def test_one_that_comes_out_differently_ends_the_run() -> None:
    bench = Bench(engines=1)
    handed_out_and_lost(bench)
    write = bench.script.write

    def otherwise(request: RolloutRequest, version: int) -> Any:
        rollout = write(request, version)
        return replace(rollout, response_ids=rollout.response_ids + 1)

    bench.script.write = otherwise  # type: ignore[method-assign]
    with pytest.raises(RunError, match="rollout 'a1': .* came out differently; run the same"):
        bench.pool.take([{"a1": np.array([0], np.int32)}])


def test_a_rollout_of_which_nothing_is_kept_is_not_written_again() -> None:
    bench = Bench(engines=1)
    handed_out_and_lost(bench)
    bench.watch.wait_until(lambda: bench.pool._tasks["a1"].lost, "the loss to be noticed")
    bench.pool.drop(["a1"])
    assert bench.rollouts.busy
    # The next batch does not begin before that is over.
    assert bench.start(["b0"]).result().rollouts[0].rollout.rollout_id == "b0"
    assert "a1" not in bench.pool


def test_what_was_trained_on_while_the_next_is_written_cannot_be_written_again() -> None:
    bench = Bench(engines=2)
    bench.start(["a0", "a1"]).result()
    holder = bench.pool._tasks["a0"].holder
    assert holder is not None
    bench.start(["b0", "b1"])
    for engine in bench.engines:
        engine.die()
    holder.handle.die()
    with pytest.raises(RunError, match="rollout 'a[01]': .* other ones are being written"):
        bench.pool.take([{"a0": np.array([0], np.int32)}])


def test_what_is_lost_while_others_are_written_past_the_scorer_cannot_be_written_again() -> None:
    """As an evaluation does, whose answers no teacher reads, when the next step's have been."""
    bench = Bench()
    ahead = bench.start(["a0", "a1"])
    ahead.wait()
    holder = bench.pool._tasks["a0"].holder
    assert holder is not None
    prompt = np.zeros(1, np.int32)
    asked = [RolloutRequest(f"b{n}", "b", n, prompt, 0) for n in range(2)]
    bench.rollouts.start(asked, Sampling(), lambda written: None, record=False)
    for engine in bench.engines:
        engine.die()
    holder.handle.die()
    with pytest.raises(RunError, match="rollout 'a[01]': .* other ones are being written"):
        bench.watch.wait_until(lambda: False, "the deaths to be noticed")


def lost_after_the_push(bench: Bench) -> BatchUnderWay:
    """A batch that was done; then newer weights came, and what wrote and read of it died."""
    batch = bench.start(["a0", "a1", "a2"])
    batch.wait()
    for engine in bench.engines:
        engine.weights.append((1, ()))
    bench._make = lambda name: _later(Bench._make(bench, name))  # type: ignore[method-assign]
    bench.watch._make = bench._make
    for one in (*bench.teachers, *bench.engines):
        one.die()
    for teacher in bench.teachers:
        bench.lifeline_of(teacher)
    return batch


def _later(actor: Any) -> Any:
    if isinstance(actor, Engine):
        actor.weights.append((1, ()))
    return actor


def test_the_next_batch_waits_for_what_was_lost_of_one_that_was_done() -> None:
    bench = Bench()
    first = lost_after_the_push(bench)
    for engine in bench.engines:
        bench.lifeline_of(engine)
    assert not first.done
    second = bench.start(["b0", "b1"])
    assert first.done
    assert names_in(second) == ["b0", "b1"]
    versions = {one.rollout.weights_version for one in first.result().rollouts}
    assert versions <= {0, 1}
    assert 1 in versions


def test_with_the_same_bits_nothing_is_written_again_with_newer_weights() -> None:
    bench = Bench()
    bench.scorer.fixed_waves = True
    lost_after_the_push(bench)
    with pytest.raises(RunError, match=r"rollout 'a[012]': .* \(run.deterministic = true\)"):
        bench.watch.wait_until(lambda: False, "the deaths to be noticed")


@pytest.mark.parametrize("order", range(40))
def test_whoever_dies_whenever_every_rollout_is_scored_once(order: int) -> None:
    draw = Random(order)
    bench = Bench(3, after_writing=draw.random() < 0.3, budget=draw.choice([4, 8, 1000]))
    bench.watch._order = draw
    for _ in range(3):
        batch = bench.start()
        while not batch.done:
            if draw.random() < 0.08:
                draw.choice(list(bench.watch.current.values())).dead = True
            bench.watch.turn("rollouts")
        assert names_in(batch) == NAMES
        taken = bench.pool.take([{name: np.array([0], np.int32) for name in NAMES}])
        assert sorted(key for part in taken[0] for key in part) == NAMES
        assert not bench.pool._tasks
