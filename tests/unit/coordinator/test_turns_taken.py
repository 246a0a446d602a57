"""All roles on the same GPUs: who sleeps and wakes when, and that nobody is used asleep.

All parts are real but for the actors, which are plain objects; those refuse to be used asleep, and
every wait of the run sees that no two roles are awake.
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import Any

import pytest
from fake_replicas import Remote
from stand_in_run import StandInRun
from stand_ins import Engine, Response, Teacher

from opd_ray.config.choices import PlacementChoice, Scoring
from opd_ray.config.schema import ClusterSettings, EvalSettings, RolloutSettings, RunSettings
from opd_ray.errors import Asleep
from opd_ray.pools.turns import AllAtOnce, Turns
from opd_ray.pools.watch import Interrupted
from opd_ray.tip import TipSettings

RESPONSES = {
    f"{prompt}{sample}": Response([1] * 3, [-0.1] * 3, [0.1, 0.3, 0.2], [0.3, 0.2, 0.1])
    for prompt in "ab"
    for sample in range(2)
}


def run_of(placement: str = "turns", steps: int = 2, **sections: Any) -> StandInRun:
    return StandInRun(
        RESPONSES,
        cluster=ClusterSettings(placement=PlacementChoice(placement)),
        run=RunSettings(steps=steps),
        eval=EvalSettings(every=2),
        rollout=RolloutSettings(prompts_per_step=2, samples_per_prompt=2, max_restarts=1000),
        tip=TipSettings(rule="divergence_topk", rho=0.5),
        **sections,
    )


def written_down(run: StandInRun) -> list[str]:
    """What one actor of each role is asked for from now on, but for scores and signals."""
    calls: list[str] = []

    def noting(one: Any, name: str, told: str) -> None:
        method = getattr(one, name).remote

        def call(*args: Any) -> Any:
            part = f" {args[0]}" if name == "wake" and args else ""
            calls.append(f"{told} {name}{part}")
            return method(*args)

        setattr(one, name, Remote(call))

    for name in ("sleep", "wake", "generate", "call_transport"):
        noting(run.engines[0], name, "rollout")
    for name in ("sleep", "wake", "follow"):
        noting(run.teachers["first"][0], name, "teacher")
    run.before_call = lambda method: calls.append(f"trainer {method}")
    return calls


def once(calls: list[str]) -> list[str]:
    """Without repetitions: there are two ranks, and a batch may be given out in pieces."""
    return [call for number, call in enumerate(calls) if calls[number - 1 : number] != [call]]


def test_the_order_of_a_step_is_that_of_the_picture() -> None:
    run = run_of()
    calls = written_down(run)
    run.go(0)
    writing = [
        "rollout wake weights",
        "rollout call_transport",
        "rollout wake kv_cache",
    ]
    step = [
        "rollout generate",
        "rollout sleep",
        "teacher wake",
        "teacher sleep",
        "trainer wake",
        "trainer train_step",
        "trainer weights",
    ]
    assert once(calls) == [
        # The weights of the beginning, then the evaluation before the first step.
        *("trainer wake", "trainer weights", "trainer sleep", *writing),
        *step,
        *("trainer sleep", *writing),
        *step,
        # The evaluation after the last step.
        *("trainer sleep", *writing),
    ]
    assert run.versions == [[0, 1, 2], [0, 1, 2]]


def test_a_teacher_that_follows_does_so_in_its_turn() -> None:
    run = run_of(steps=1, follow=True)
    calls = written_down(run)
    run.go(0)
    found = once(calls)
    place = found.index("teacher follow")
    assert found[place - 4 : place + 3] == [
        *("trainer train_step", "trainer weights", "trainer sleep", "teacher wake"),
        *("teacher follow", "teacher sleep", "rollout wake weights"),
    ]


def kept(run: StandInRun) -> list[dict[str, list[int]]]:
    return [
        {
            run.script.name(item.rollout_id): item.rows.tolist()
            for trainer in run.trainers
            for item in trainer.steps[number].items
        }
        for number in range(run.config.run.steps)
    ]


@pytest.mark.parametrize("scoring", list(Scoring))
def test_steps_are_those_of_roles_that_are_apart(scoring: Scoring) -> None:
    apart, turns = (run_of(placement, 4, scoring=scoring) for placement in ("separate", "turns"))
    apart.go(0)
    turns.go(0)
    assert kept(turns) == kept(apart)
    assert turns.versions[0][:1] == apart.versions[0][:1] == [0]
    assert isinstance(apart._coordinator.session.order, AllAtOnce)
    assert isinstance(turns._coordinator.session.order, Turns)


@pytest.mark.parametrize("order", range(10))
def test_engines_and_replicas_that_die_awake_or_asleep_cost_no_step(order: int) -> None:
    calm, disturbed = run_of(steps=4, order=order), run_of(steps=4, order=order)
    calm.go(0)
    draw, turn, died = Random(order), disturbed.watch.turn, []

    def fatal(what: str) -> None:
        if draw.random() < 0.05:
            one = draw.choice([*disturbed.watch.current.values()])
            alone = one.name == "second-0"  # no other holds or scores what it has
            if not (one.dead or alone):
                one.die()
                died.append(one)
        turn(what)

    disturbed.watch.turn = fatal
    for pool in disturbed._coordinator.session.teachers.pools.values():
        object.__setattr__(pool._replicas._policy, "max_restarts", 1000)
    disturbed.go(0)
    assert {type(one) for one in died} <= {Engine, Teacher}
    assert died
    assert kept(disturbed) == kept(calm)


def test_ctrl_c_while_rollouts_are_written_saves_in_the_trainers_turn() -> None:
    run = run_of(steps=4)
    run.stop_after = 2
    with pytest.raises(Interrupted):
        run.go(0)
    assert [state.step for state in run.saved] == [2]


def test_who_is_used_asleep_is_named() -> None:
    run = run_of()
    session = run._coordinator.session
    with pytest.raises(Asleep, match="^the trainer ranks: asleep, as it is not their turn, and"):
        session.trainers.step([], 0.1, lambda shares: [[] for _ in shares])
    asked = {
        "their weights": session.trainers.weights,
        "weight transport, send": partial(session.trainers.call_transport, "send"),
        "a checkpoint": partial(session.trainers.save, "folder"),
        "reading a checkpoint": partial(session.trainers.load, "folder"),
        "an export": partial(session.trainers.export, "folder"),
        "room for a checkpoint": session.trainers.have_room_to_copy,
    }
    for what, call in asked.items():
        with pytest.raises(Asleep, match=f"the trainer ranks.* asked for {what}"):
            call()
    with pytest.raises(Asleep, match="the rollout actors: asleep.* asked for rollouts"):
        session.scorer.rollouts.start([], session.scorer.rollouts._batch.sampling, print, record=0)


def test_nobody_is_put_to_sleep_who_writes() -> None:
    run = run_of()
    session = run._coordinator.session
    session.sync.push(0)
    run._coordinator.batches.of(0)
    with pytest.raises(RuntimeError, match="to sleep while they write"):
        session.order.to("trainer")


def test_where_engines_read_the_trainers_memory_their_weights_alone_stay() -> None:
    run = run_of(steps=1)
    order: Any = run._coordinator.session.order
    order.from_trainers_memory = True
    calls: list[str] = []
    run.watch.check = lambda: None  # the weights are awake beside the engines', and are to be
    group = order.trainers
    for name in ("sleep", "wake"):
        method = getattr(group, name)

        def call(name: str = name, method: Any = method, **how: bool) -> None:
            calls.append(f"trainers {name} {how}")
            method(**how)

        setattr(group, name, call)
    deliver, wake = order.deliver, run.engines[0].wake.remote
    order.deliver = lambda: calls.append("delivered") or deliver()
    run.engines[0].wake = Remote(lambda part: calls.append(f"engine {part}") or wake(part))
    run._coordinator.session.sync.push(0)
    order.to("rollout")
    assert calls == [
        "trainers wake {}",
        "trainers sleep {'but_weights': True}",
        "engine weights",
        "trainers wake {'weights_alone': True}",
        "delivered",
        "trainers sleep {}",
        "engine kv_cache",
    ]
