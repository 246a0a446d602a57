"""One step with real parts over actors that are plain objects: what the trainers are given."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from stand_in_run import StandInRun, ids
from stand_ins import Response

from opd_ray.config.choices import LrSchedule, Scoring
from opd_ray.config.schema import RunSettings, SyncSettings, TrainerSettings
from opd_ray.coordinator.loop import SyncGapError
from opd_ray.tip import Selection, TipSettings
from opd_ray.types import RolloutScores

NAN = math.nan  # what stands at tokens of a tool is never read
RESPONSES = {
    "a0": Response(
        mask=[1, 1, 0, 1, 1],
        logprob=[-0.11, -0.12, -0.13, -0.14, -0.15],
        reverse_kl=[0.1, 0.9, 5.0, 0.3, 0.7],
        exact_kl=[0.8, 0.1, 5.0, 0.9, 0.2],
    ),
    "a1": Response(
        mask=[0, 1, 1],
        logprob=[NAN, -0.22, -0.23],
        reverse_kl=[NAN, 0.2, 0.6],
        exact_kl=[NAN, 0.6, 0.2],
    ),
    "b0": Response(
        mask=[1, 1, 1, 1],
        logprob=[-0.31, -0.32, -0.33, -0.34],
        reverse_kl=[0.8, 0.0, 0.4, 0.5],
        exact_kl=[0.1, 0.9, 0.8, 0.2],
    ),
    "b1": Response(mask=[1], logprob=[-0.41], reverse_kl=[0.9], exact_kl=[0.9]),
}
# The student's tokens, and the half of each response's that diverges most (rounded down).
ALL = {"a0": [0, 1, 3, 4], "a1": [1, 2], "b0": [0, 1, 2, 3], "b1": [0]}
HALF = {"a0": [1, 4], "a1": [2], "b0": [0, 3]}
ORDERS = pytest.mark.parametrize("order", range(6))


@ORDERS
def test_a_step_trains_on_the_kept_rows_of_each_rollout(order: int) -> None:
    run = StandInRun(RESPONSES, order=order)
    run.step(0)
    assert run.kept_rows() == HALF
    trained = run.trained()
    for name, logprob in (("a0", [-0.12, -0.15]), ("a1", [-0.23]), ("b0", [-0.31, -0.34])):
        np.testing.assert_allclose(trained[name].rollout_logprob, logprob, rtol=1e-6)
        assert trained[name].weights.tolist() == [1.0] * len(logprob)
    assert [trained[name].prompt_ids.tolist() for name in HALF] == [
        ids(text).tolist() for text in ("why", "why", "so")
    ]
    assert trained["a0"].response_ids.tolist() == [10, 11, 12, 13, 14]
    assert trained["a1"].response_ids.tolist() == [20, 21, 22]
    assert trained["b0"].response_ids.tolist() == [30, 31, 32, 33]
    assert [rank.steps[0].total_weight for rank in run.trainers] == [5.0, 5.0]


@ORDERS
def test_soft_weights_reach_the_trainers(order: int) -> None:
    tip = TipSettings(rule="divergence_topk", selection="soft")
    run = StandInRun(RESPONSES, order=order, tip=tip)
    run.step(0)
    assert run.kept_rows() == {**ALL, "b0": [0, 2, 3]}  # one of its tokens weighs nothing
    weights = {
        "a0": [0.1, 0.9, 0.3, 0.7],
        "a1": [0.2, 0.6],
        "b0": [0.8, 0.4, 0.5],
        "b1": [0.9],
    }
    for name, item in run.trained().items():
        np.testing.assert_allclose(item.weights, weights[name], rtol=1e-6)
    assert [rank.steps[0].total_weight for rank in run.trainers] == [pytest.approx(5.4)] * 2


@ORDERS
def test_exact_scores_choose_where_they_rank_otherwise(order: int) -> None:
    run = StandInRun(RESPONSES, order=order, scoring=Scoring.exact)
    run.step(0)
    assert run.kept_rows() == {"a0": [0, 3], "a1": [1], "b0": [1, 2]}
    np.testing.assert_allclose(run.trained()["a0"].rollout_logprob, [-0.11, -0.14], rtol=1e-6)


def test_the_share_kept_moves_with_the_step() -> None:
    tip = TipSettings(
        rule="divergence_topk", rho=1.0, rho_schedule="linear", rho_end=0.0, rho_schedule_steps=4
    )
    run = StandInRun(RESPONSES, tip=tip)
    for step, kept in ((0, ALL), (2, HALF), (4, {})):
        run.step(step)
        assert run.kept_rows() == kept
        assert run.rows[-1][1]["tip/rho"] == 1.0 - step / 4


def test_sampling_rules_draw_apart_in_every_rollout_and_step() -> None:
    size = 40
    long = Response(mask=[1] * size, logprob=[-1.0] * size, reverse_kl=[0.1] * size)
    run = StandInRun(dict.fromkeys(RESPONSES, long), tip=TipSettings(rule="random", rho=0.5))
    draws = []
    for step in range(2):
        run.step(step)
        draws += [tuple(rows) for rows in run.kept_rows().values()]
    assert [len(rows) for rows in draws] == [size // 2] * 8
    assert len(set(draws)) == 8


def test_sampling_rules_draw_otherwise_with_another_seed_of_the_run() -> None:
    size = 40
    long = Response(mask=[1] * size, logprob=[-1.0] * size, reverse_kl=[0.1] * size)
    draws = []
    for seed in (1, 1, 2):
        run = StandInRun(
            dict.fromkeys(RESPONSES, long),
            tip=TipSettings(rule="random", rho=0.5),
            run=RunSettings(seed=seed),
        )
        run.step(0)
        draws.append({name: tuple(rows) for name, rows in run.kept_rows().items()})
    first, same, other = draws
    assert first == same
    assert all(first[name] != other[name] for name in first)


# A warm-up of two steps to the peak of 0.8, then a straight line that would be 0 at step 6.
@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.4), (1, 0.8), (2, 0.8), (3, 0.6), (4, 0.4), (5, 0.2)]
)
def test_every_rank_is_given_the_rate_of_its_step(step: int, rate: float) -> None:
    trainer = TrainerSettings(
        ranks=2,
        micro_batch_tokens=8,
        learning_rate=0.8,
        lr_schedule=LrSchedule.linear,
        warmup_steps=2,
    )
    run = StandInRun(RESPONSES, run=RunSettings(steps=6), trainer=trainer)
    run.step(step)
    assert [rank.steps[0].learning_rate for rank in run.trainers] == [pytest.approx(rate)] * 2
    assert run.rows[0][1]["train/learning_rate"] == pytest.approx(rate)


@ORDERS
@pytest.mark.parametrize("scoring", list(Scoring))
def test_the_teachers_keep_nothing_after_a_step(order: int, scoring: Scoring) -> None:
    run = StandInRun(RESPONSES, order=order, scoring=scoring)
    run.step(0)
    assert [replica.held for replica in run.replicas] == [set()] * 3
    dropped = [rollout_id for replica in run.replicas for rollout_id in replica.dropped]
    assert [run.script.name(rollout_id) for rollout_id in dropped] == ["b1"]
    run.step(1)  # nor do they take what is new for what was there
    assert [replica.held for replica in run.replicas] == [set()] * 3


def test_engines_that_disagree_stop_the_run_after_the_steps_figures() -> None:
    near = StandInRun(RESPONSES, gap=0.04, sync=SyncSettings(max_gap=0.05))
    near.step(2)
    far = StandInRun(RESPONSES, gap=0.06, sync=SyncSettings(max_gap=0.05))
    with pytest.raises(SyncGapError, match=r"step 3: .* 0\.0600 nats"):
        far.step(2)
    for run, gap in ((near, 0.04), (far, 0.06)):
        [(step, values)] = run.rows
        assert step == 3
        assert values["sync/gap_mean"] == pytest.approx(gap)
        assert "step 3/8" in run.printed.getvalue()


def test_the_figures_are_those_of_the_step() -> None:
    run = StandInRun(RESPONSES)
    run.step(0)
    run.step(1)
    assert [step for step, _ in run.rows] == [1, 2]
    for _, values in run.rows:
        assert values["rollout/tokens"] == 4 + 2 + 4 + 1  # not those of tools
        # The teachers' prompts are "think" and "so".
        assert values["teacher/tokens"] == (5 + 5) + (5 + 3) + (2 + 4) + (2 + 1)
        assert values["train/kept_tokens"] == 5
        assert values["tip/kept_fraction"] == pytest.approx(5 / 11)
        assert values["scores/reverse_kl_mean"] == pytest.approx((2.0 + 0.8 + 1.7 + 0.9) / 11)
        assert values["memory/trainer-0_bytes"] == 7


def test_new_weights_are_numbered_by_the_steps_taken() -> None:
    run = StandInRun(RESPONSES, follow=True)
    run.step(3)
    new = (("weights after 1 steps",),)
    assert [engine.weights for engine in run.engines] == [[(4, *new)], [(4, *new)]]
    assert [replica.followed for replica in run.replicas] == [[*new]] * 3


def test_a_step_that_keeps_nothing_leaves_the_weights() -> None:
    run = StandInRun(RESPONSES, follow=True, tip=TipSettings(rule="divergence_topk", rho=0.0))
    run.step(0)
    assert run.trained() == {}
    assert run.rows[0][1]["train/skipped"] == 1.0
    assert run.versions == [[], []]
    assert [replica.followed for replica in run.replicas] == [[], [], []]
    assert [replica.held for replica in run.replicas] == [set()] * 3


NOTHING = Response(mask=[0, 0, 0], logprob=[NAN] * 3, reverse_kl=[NAN] * 3, exact_kl=[NAN] * 3)


@ORDERS
@pytest.mark.parametrize("scoring", list(Scoring))
@pytest.mark.parametrize("name", list(RESPONSES))
def test_a_rollout_in_which_the_student_wrote_nothing_changes_nothing_for_the_others(
    order: int, scoring: Scoring, name: str
) -> None:
    whole = StandInRun(RESPONSES, order=order, scoring=scoring)
    whole.step(0)
    run = StandInRun({**RESPONSES, name: NOTHING}, order=order, scoring=scoring)
    run.step(0)
    run.step(1)  # nothing is left behind
    expected = {key: rows for key, rows in whole.kept_rows().items() if key != name}
    assert run.kept_rows() == expected
    asked = {run.script.name(key) for replica in run.replicas for key in replica.prompts}
    assert asked == RESPONSES.keys() - {name}
    assert [replica.held for replica in run.replicas] == [set()] * 3
    written = {"a0": 4, "a1": 2, "b0": 4, "b1": 1}
    assert run.rows[-1][1]["rollout/tokens"] == 11 - written[name]


@pytest.mark.parametrize("scoring", list(Scoring))
def test_a_step_whose_rollouts_are_all_left_out_says_so(scoring: Scoring) -> None:
    run = StandInRun(dict.fromkeys(RESPONSES, NOTHING), scoring=scoring)
    run.step(0)
    [(_, values)] = run.rows
    assert (values["train/skipped"], values["rollout/tokens"]) == (1.0, 0)
    assert not any(name.startswith("scores/") for name in values)
    assert "step 1 learned nothing: the filter kept no token: all 4 rollouts came to a limit" in (
        run.printed.getvalue()
    )
    assert run.versions == [[], []]


def test_a_step_does_not_hold_what_it_no_longer_needs() -> None:
    run = StandInRun(RESPONSES)
    coordinator = run._coordinator
    select, held = coordinator.tip.select, []

    def looked(*args: Any) -> Selection:
        held.append((coordinator.last_step, [one.columns for one in said]))
        return select(*args)

    said: list[RolloutScores] = []
    for teacher in run.replicas:
        scores = teacher._scores
        teacher._scores = lambda key, scores=scores: said.append(scores(key)) or said[-1]
    coordinator.tip.select = looked
    for step in range(2):
        run.step(step)
        assert coordinator.last_step is not None
        assert coordinator.last_step.scores.has("reverse_kl")
    assert held == [(None, [{}] * 4), (None, [{}] * 8)]


def test_scores_that_only_the_figures_show_are_joined_too() -> None:
    run = StandInRun(RESPONSES, tip=TipSettings(rule="random", overlap=False))
    run.step(0)
    shown = {name for name in run.rows[0][1] if name.startswith("scores/") and "_mean" in name}
    assert shown == {f"scores/{name}_mean" for name in ("entropy", "h", "reverse_kl", "forward_kl")}
