"""Several trainer ranks as one: who gets which rollouts, and how accounts add up."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ObjectLostError

from opd_ray.batching.micro_batches import recurring_width
from opd_ray.batching.packing import exact_width
from opd_ray.config.choices import Dtype
from opd_ray.config.schema import TrainerSettings
from opd_ray.errors import ActorFailure, ActorLost, Unanswered
from opd_ray.pools.trainers import TrainerGroup
from opd_ray.pools.watch import AnswerLimit
from opd_ray.step_account import StepAccount
from opd_ray.types import TrainItem

STATS = StepAccount(
    loss_sum=3.0,
    weight_sum=6.0,
    kept_tokens=8,
    trunk_tokens=50,
    padding_tokens=5,
    grad_norm=2.0,
    learning_rate=0.1,
    gap_sum=0.8,
    gap_max=0.3,
    skipped=False,
    seconds=1.5,
    log_ratio_sum=-4.0,
    ratio_sum=6.0,
    ratio_square_sum=9.0,
)


class Rank:
    """Stands for a trainer actor: keeps what it is called with, answers with its account."""

    def __init__(self, stats: StepAccount) -> None:
        self.call = SimpleNamespace(remote=self._call)
        self.calls: list[tuple[Any, ...]] = []
        self.waves: list[tuple[Any, ...]] = []
        self._stats = stats

    def _call(self, method: str, *arguments: Any) -> StepAccount | None:
        if method == "accumulate":
            self.waves.append(arguments)
            return None
        assert method == "train_step"
        self.calls.append(arguments)
        return self._stats


class Answers:
    """Stands for the watch: every reference is its value."""

    def get_all(self, refs: Any, **_: Any) -> list[Any]:
        return [value for value, _ in refs]


def item(name: str, length: int, weights: list[float]) -> TrainItem:
    return TrainItem(
        rollout_id=name,
        prompt_ids=np.zeros(2, np.int32),
        response_ids=np.zeros(length, np.int32),
        rows=np.arange(len(weights), dtype=np.int32),
        weights=np.array(weights, np.float32),
        rollout_logprob=np.zeros(len(weights), np.float32),
    )


ITEMS = [item("a", 8, [1.0, 0.5]), item("b", 4, []), item("c", 8, [2.0]), item("d", 6, [1.0])]


def group(*stats: StepAccount) -> tuple[TrainerGroup, list[Rank]]:
    ranks = [Rank(one) for one in stats]
    watch: Any = Answers()
    named = [(f"trainer-{number}", rank) for number, rank in enumerate(ranks)]
    return TrainerGroup(watch, named, TrainerSettings(micro_batch_tokens=10)), ranks


def test_every_kept_rollout_goes_to_one_rank_with_its_own_signals_alone():
    several, ranks = group(STATS, STATS)
    several.step(ITEMS, 0.1, lambda wanted: [[sorted(share)] for share in wanted])
    given = []
    for rank in ranks:
        [(micro_batches, total_weight, learning_rate, found)] = rank.calls
        names = [one.rollout_id for micro in micro_batches for one in micro]
        assert found == sorted(names)
        assert (total_weight, learning_rate) == (4.5, 0.1)
        given += names
    assert sorted(given) == ["a", "c", "d"]  # b keeps nothing
    assert len({len(rank.calls[0][0]) for rank in ranks}) == 1  # as many micro-batches each


@pytest.mark.parametrize(
    ("gpus", "dtype", "width"),
    [
        (0, Dtype.bfloat16, recurring_width),
        (1, Dtype.bfloat16, exact_width),
        (0, Dtype.float32, exact_width),
    ],
)
def test_rows_are_as_wide_as_the_ranks_make_them(monkeypatch, gpus, dtype, width):
    planned = []
    monkeypatch.setattr(
        "opd_ray.pools.trainers.plan_micro_batches",
        lambda texts, ranks, tokens, width: (
            planned.append((len(texts), ranks, tokens, width)) or []
        ),
    )
    watch: Any = Answers()
    settings = TrainerSettings(micro_batch_tokens=10, gpus_per_rank=gpus, dtype=dtype)
    group = TrainerGroup(watch, [], settings)
    with pytest.raises(TypeError):  # no account of no rank
        group.step(ITEMS, 0.1, lambda wanted: [[] for _ in wanted])
    assert planned == [(3, 0, 10, width)]


def test_waves_reach_every_rank_and_the_step_divides_by_all_weights():
    several, ranks = group(STATS, STATS)

    def named(wanted):
        return [[sorted(share)] for share in wanted]

    several.accumulate(ITEMS[:2], named)
    several.accumulate([ITEMS[1]], named)  # keeps nothing: nobody is called
    several.accumulate(ITEMS[2:], named)
    several.step([], 0.1, named)
    for number, names in ((0, ["a"]), (1, ["c", "d"])):
        waves = [rank.waves[number] for rank in ranks]
        assert len({len(micro_batches) for micro_batches, _ in waves}) == 1
        given = [[one.rollout_id for micro in micros for one in micro] for micros, _ in waves]
        assert [sorted(ids) for ids in given] == [found for _, found in waves]
        assert sorted(given[0] + given[1]) == names
    assert [len(rank.waves) for rank in ranks] == [2, 2]
    assert [rank.calls for rank in ranks] == [[([], 4.5, 0.1, [])]] * 2
    several.step(ITEMS, 0.1, named)  # those waves were of the step before
    assert ranks[0].calls[1][1] == 4.5
    several.accumulate(ITEMS[:1], named)
    several.step(ITEMS[2:], 0.1, named)
    assert ranks[0].calls[2][1] == 4.5


def test_accounts_add_up_by_hand():
    other = replace(
        STATS,
        loss_sum=1.0,
        weight_sum=2.0,
        kept_tokens=2,
        trunk_tokens=30,
        padding_tokens=3,
        gap_sum=0.2,
        gap_max=0.7,
        seconds=2.5,
        log_ratio_sum=1.0,
        ratio_sum=3.0,
        ratio_square_sum=7.2,
    )
    several, _ = group(STATS, other)
    account = several.step(ITEMS, 0.1, lambda wanted: [[] for _ in wanted])
    assert account.loss == pytest.approx(4.0 / 8.0)
    assert account.kept_tokens == 10
    assert account.trunk_tokens == 80
    assert account.padding_share == pytest.approx(8.0 / 80.0)
    assert account.gap_mean == pytest.approx(1.0 / 10.0)
    assert (account.gap_max, account.grad_norm, account.seconds) == (0.7, 2.0, 2.5)
    # Over 10 tokens: (6 + 3)^2 / (10 x (9 + 7.2)).
    assert account.log_ratio_mean == pytest.approx(-0.3)
    assert account.effective_sample_share == pytest.approx(0.5)
    assert account.learning_rate == 0.1
    assert not account.skipped


def test_a_step_without_kept_tokens_divides_by_nothing():
    nothing = replace(
        STATS, loss_sum=0.0, weight_sum=0.0, kept_tokens=0, trunk_tokens=0, padding_tokens=0
    )
    nothing = replace(nothing, log_ratio_sum=0.0, ratio_sum=0.0, ratio_square_sum=0.0)
    several, _ = group(replace(nothing, gap_sum=0.0, gap_max=0.0, skipped=True))
    account = several.step([item("b", 4, [])], 0.1, lambda wanted: [[] for _ in wanted])
    assert account.skipped
    assert (account.loss, account.padding_share, account.gap_mean) == (0.0, 0.0, 0.0)
    assert (account.log_ratio_mean, account.effective_sample_share) == (0.0, 0.0)


def test_an_unknown_gap_stays_unknown():
    unknown = replace(STATS, gap_sum=math.nan, gap_max=math.nan)
    several, _ = group(unknown, unknown)
    assert math.isnan(several.step(ITEMS, 0.1, lambda wanted: [[] for _ in wanted]).gap_mean)


class Late:
    """A watch in which one rank does not answer; it was asked with a limit."""

    def get_all(self, refs: Any, *, limit: AnswerLimit, interruptible: bool) -> list[Any]:
        assert limit == AnswerLimit(40.0, "trainer.answer_timeout_s")
        owners = [owner for _, owner in refs]
        raise Unanswered(owners[1:], "no answer for 40 s (trainer.answer_timeout_s)")


def test_ranks_that_do_not_answer_are_lost():
    watch: Any = Late()
    named = [(f"trainer-{number}", Rank(STATS)) for number in range(2)]
    several = TrainerGroup(watch, named, TrainerSettings(answer_timeout_s=40.0))
    with pytest.raises(ActorLost) as raised:
        several.step(ITEMS, 0.1, lambda wanted: [[] for _ in wanted])
    assert str(raised.value) == (
        "trainer-1 (a training step) failed: no answer for 40 s (trainer.answer_timeout_s)"
    )
    assert raised.value.name in ("trainer-0", "trainer-1")


class Failing:
    """A watch whose actors raise."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause

    def get_all(self, refs: Any, **options: Any) -> list[Any]:
        raise ActorFailure("trainer-1 (a training step)", "no rows") from self.cause


@pytest.mark.parametrize(
    ("cause", "lost"),
    [(ObjectLostError("a" * 56, None, ""), True), (ValueError("no rows"), False)],
)
def test_ranks_whose_rows_went_with_a_node_are_lost(cause: Exception, lost: bool):
    watch: Any = Failing(cause)
    named = [(f"trainer-{number}", Rank(STATS)) for number in range(2)]
    said = "what it was to read is lost with the node that held it" if lost else "no rows"
    with pytest.raises(ActorFailure, match=f"trainer-1 .* failed: {said}") as raised:
        TrainerGroup(watch, named, TrainerSettings()).step(
            ITEMS, 0.1, lambda wanted: [[] for _ in wanted]
        )
    assert isinstance(raised.value, ActorLost) == lost


def test_new_ranks_know_nothing_of_the_waves_of_the_old():
    several, _ = group(STATS, STATS)
    several.accumulate(ITEMS[:1], lambda wanted: [[] for _ in wanted])
    ranks = [Rank(STATS), Rank(STATS)]
    several.replace_by([(f"trainer-{number}", rank) for number, rank in enumerate(ranks)])
    several.step(ITEMS[2:], 0.1, lambda wanted: [[] for _ in wanted])
    assert [rank.calls[0][1] for rank in ranks] == [3.0, 3.0]
