"""Whoever is done first, with run.deterministic everybody is given the same in the same order."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from stand_in_run import TWELVE, StandInRun
from stand_ins import Engine, Response, Stream

from opd_ray.config.choices import Scoring
from opd_ray.config.schema import RolloutSettings, RunSettings, TrainerSettings
from opd_ray.tip import TipSettings

ORDERS = pytest.mark.parametrize("order", range(8))


def run_of(order: int, responses: Any = TWELVE, **run: Any) -> StandInRun:
    return StandInRun(
        responses,
        order=order,
        batch_tokens=20,
        run=RunSettings(steps=3, **{"deterministic": True, **run}),
        rollout=RolloutSettings(
            prompts_per_step=2, samples_per_prompt=6, max_num_seqs=2, max_restarts=1000
        ),
        trainer=TrainerSettings(ranks=2, micro_batch_tokens=20),
        tip=TipSettings(rule="soft_or", rho=0.3, normalise_over="rollout"),
        scoring=Scoring.streamed,
    )


def named(run: StandInRun, ids: Any) -> list[str]:
    return [run.script.name(rollout_id) for rollout_id in ids]


def written(run: StandInRun) -> list[list[str]]:
    return [named(run, [one.rollout_id for one in engine.given]) for engine in run.engines]


def scored(run: StandInRun, teacher: str) -> list[list[str]]:
    """The batches of all replicas; which replica had which is no matter."""
    batches = [batch for replica in run.teachers[teacher] for batch in replica.batches]
    return sorted(named(run, batch) for batch in batches)


def trained(run: StandInRun) -> list[list[list[str]]]:
    """Of every rank the waves of the last step, and what came after them."""
    return trained_of(run, -1)


def trained_of(run: StandInRun, number: int) -> list[list[list[str]]]:
    """The same of another step."""
    found = []
    for rank in run.trainers:
        step = rank.steps[number]
        in_waves = sum(map(len, step.waves))
        parts = [*step.waves, step.items[in_waves:]]
        found.append([named(run, [item.rollout_id for item in part]) for part in parts])
    return found


@ORDERS
def test_shares_and_batches_follow_from_the_requests(order: int) -> None:
    run = run_of(order)
    run.step(0)
    assert written(run) == [
        ["a0", "a1", "a2", "a3", "a4", "a5"],
        ["b0", "b1", "b2", "b3", "b4", "b5"],
    ]
    # Two replicas, four groups at most, so of two rollouts. The teacher's prompt has 5 tokens:
    # 6 + 7, 8 + 9, and 10 + 11, which are more than the 20 of a batch.
    assert scored(run, "first") == [["a0", "a1"], ["a2", "a3"], ["a4"], ["a5"]]
    # One replica, two groups of three, with a prompt of 2 tokens: 9 + 10, 11; 12, 13, 14.
    assert scored(run, "second") == [["b0", "b1"], ["b2"], ["b3"], ["b4"], ["b5"]]


@ORDERS
def test_a_response_in_which_the_student_wrote_nothing_is_not_waited_for(order: int) -> None:
    nothing = Response(mask=[0, 0], logprob=[0, 0], reverse_kl=[0, 0])
    run = run_of(order, responses={**TWELVE, "a1": nothing, "a4": nothing, "a5": nothing})
    run.step(0)
    assert scored(run, "first") == [["a0"], ["a2", "a3"]]


@ORDERS
def test_waves_follow_from_the_lengths(order: int) -> None:
    run = run_of(order, overlap=True)
    run.step(0)
    # Half of two micro-batches of 20 tokens. With prompts of 3 and 2 tokens the texts have 4, 5, 6,
    # 7 | 8, 9, 9 | 10, 11 | 12, 13 and, in no wave, 14.
    waves = [{"a3"}, {"a4", "a5", "b0"}, {"b1", "b2"}, {"b3", "b4"}, {"b5"}]
    first, second = trained(run)
    assert [{*one, *other} for one, other in zip(first, second, strict=True)] == waves
    assert run.rows[-1][1]["train/waves"] == 4


@pytest.mark.parametrize("mode", [{}, {"overlap": True}, {"lag": 1}])
def test_trainers_are_given_the_same_in_the_same_order(mode: dict[str, Any]) -> None:
    seen = []
    for order in range(6):
        run = run_of(order, **mode)
        for step in range(2):
            run.step(step)
        seen.append((written(run), trained(run), scored(run, "first"), scored(run, "second")))
    assert seen == [seen[0]] * 6


@pytest.mark.parametrize("mode", [{}, {"overlap": True}])
def test_without_it_they_are_not(mode: dict[str, Any]) -> None:
    """That the orders drawn above differ in what they lead to."""
    seen = []
    for order in range(6):
        run = run_of(order, deterministic=False, **mode)
        run.step(0)
        seen.append((written(run), scored(run, "first"), trained(run)))
    assert len({str(one) for one in seen}) > 1
    if mode:
        assert len({str(one[2]) for one in seen}) > 1


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What engines are given with each call, of prompt and sample, whichever engine it is."""
    found: list[list[str]] = []
    generate = Engine._generate

    def recorded(
        self: Engine, requests: Any, sampling: Any, record: bool, more: bool, batch: int
    ) -> Stream:
        assert not more, "nothing may come to a share that is being written"
        found.append([f"{one.prompt_id}{one.sample}" for one in requests])
        return generate(self, requests, sampling, record, more, batch)

    monkeypatch.setattr(Engine, "_generate", recorded)
    return found


def with_deaths(run: StandInRun, draw: Random) -> list[str]:
    """Every event may come with the death of an engine, one with that of a replica; who died."""
    turn, died = run.watch.turn, []

    def fatal(what: str) -> None:
        living = [one for one in run.watch.current.values() if not one.dead]
        engines = [one for one in living if isinstance(one, Engine)]
        if draw.random() < 0.05 and engines:
            victim = draw.choice(engines)
            victim.die()
            died.append(victim.name)
        if draw.random() < 0.05 and not run.teachers["first"][0].dead:
            run.teachers["first"][0].die()
            died.append("first-0")
        turn(what)

    run.watch.turn = fatal
    return died


@pytest.mark.parametrize("mode", [{}, {"overlap": True}, {"lag": 1}])
@pytest.mark.parametrize("order", range(5))
def test_whoever_dies_all_is_written_and_read_beside_the_same(
    order: int, mode: dict[str, Any], shares: list[list[str]]
) -> None:
    calm = run_of(order, **mode)
    for step in range(3):
        calm.step(step)
    whole, at_first = [*shares], len(shares)
    disturbed = run_of(order, **mode)
    died = with_deaths(disturbed, Random(order))
    for step in range(3):
        disturbed.step(step)
        assert trained_of(disturbed, step) == trained_of(calm, step)
    assert died
    assert all(share in whole for share in shares[at_first:])
    for teacher in ("first", "second"):
        assert {*map(tuple, scored(disturbed, teacher))} == {*map(tuple, scored(calm, teacher))}
