"""Plans of micro-batches: complete, within budget, balanced, little padded."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_ray.balance import exact_width, plan_micro_batches, recurring_width, width_of
from opd_ray.config.choices import Dtype
from opd_ray.config.schema import TrainerSettings


def padded(lengths, micro, width=exact_width):
    return width(max((lengths[i] for i in micro), default=0)) * len(micro)


def test_widths_recur_and_pad_little():
    assert [recurring_width(n) for n in (1, 16, 31, 32, 33, 64, 65, 200, 255, 257)] == [
        *(1, 16, 31, 32, 34, 64, 68, 200, 256, 272)
    ]
    longest = np.arange(1, 5000)
    widths = np.array([recurring_width(int(n)) for n in longest])
    assert (widths >= longest).all()
    assert (widths <= longest * 17 / 16).all()
    assert len(set(widths[256:512])) == 16  # of texts with 257 to 512 tokens


def test_widths_recur_where_kernels_are_kept_for_them():
    assert width_of(TrainerSettings(dtype=Dtype.bfloat16)) is recurring_width
    assert width_of(TrainerSettings(dtype=Dtype.bfloat16, gpus_per_rank=1)) is exact_width
    assert width_of(TrainerSettings()) is exact_width


@given(
    lengths=st.lists(st.integers(1, 300), max_size=60),
    ranks=st.integers(1, 5),
    budget=st.integers(1, 1000),
    width=st.sampled_from([exact_width, recurring_width]),
)
def test_every_plan_keeps_its_promises(lengths, ranks, budget, width):
    plan = plan_micro_batches(lengths, ranks, budget, width)
    assert len(plan) == ranks
    assert len({len(rank) for rank in plan}) == 1
    assert sorted(i for rank in plan for micro in rank for i in micro) == list(range(len(lengths)))
    costs = [[padded(lengths, micro, width) for micro in rank] for rank in plan]
    for rank, rank_costs in zip(plan, costs, strict=True):
        for micro, cost in zip(rank, rank_costs, strict=True):
            assert cost <= budget or len(micro) == 1
    totals = [sum(rank_costs) for rank_costs in costs]
    dearest = max((cost for rank_costs in costs for cost in rank_costs), default=0)
    assert max(totals) - min(totals) <= dearest
    assert sum(totals) * 0.9 <= sum(lengths)
    assert plan == plan_micro_batches(lengths, ranks, budget, width)


def test_hand_computed():
    # Sorted 9 8 | 3 3 3 2 with at most 18 tokens; two groups for two ranks, 2 of 30 are padding.
    assert plan_micro_batches([3, 9, 2, 3, 8, 3], ranks=2, micro_batch_tokens=18) == [
        [[1, 4]],
        [[0, 2, 3, 5]],
    ]


def test_a_round_more_where_padding_would_be_more_than_a_tenth():
    # In one micro-batch of 32 tokens, 10 would be padding; in two of 16 and 6 none are.
    assert plan_micro_batches([8, 3, 8, 3], ranks=1, micro_batch_tokens=100) == [[[0, 2], [1, 3]]]
    # 2 of 32 are no more than a tenth.
    assert plan_micro_batches([8, 7, 8, 7], ranks=1, micro_batch_tokens=100) == [[[0, 1, 2, 3]]]


def test_sixteen_texts_within_the_default_budget():
    """Prompts of 60 to 250 tokens with responses of up to 128: four micro-batches, not sixteen."""
    rng = np.random.default_rng(0)
    for ranks, most in ((1, 5), (2, 3), (4, 2)):
        lengths = (rng.integers(60, 250, 16) + rng.integers(20, 129, 16)).tolist()
        plan = plan_micro_batches(lengths, ranks, TrainerSettings().micro_batch_tokens)
        assert sum(padded(lengths, micro) for rank in plan for micro in rank) <= sum(lengths) / 0.9
        assert len(plan[0]) <= most


def test_the_rank_that_has_had_least_gets_the_dearest_of_a_round():
    lengths = [100, 90, 80, 10]
    plan = plan_micro_batches(lengths, ranks=2, micro_batch_tokens=100)
    assert sorted(padded(lengths, rank[0]) + padded(lengths, rank[1]) for rank in plan) == [
        110,
        170,
    ]


def test_ranks_share_what_one_micro_batch_could_hold():
    plan = plan_micro_batches([10] * 8, ranks=4, micro_batch_tokens=1000)
    assert [[len(micro) for micro in rank] for rank in plan] == [[2]] * 4


def test_no_text_gives_no_micro_batch():
    assert plan_micro_batches([], ranks=3, micro_batch_tokens=10) == [[], [], []]


def test_fewer_texts_than_ranks_leave_some_ranks_an_empty_micro_batch():
    plan = plan_micro_batches([5, 7], ranks=3, micro_batch_tokens=10)
    assert sorted(plan) == [[[]], [[0]], [[1]]]


def test_padding_is_small_on_ragged_lengths():
    """Reasoning lengths: log-normal, many times longer at the top than in the middle."""
    rng = np.random.default_rng(0)
    for ranks in (1, 2, 4, 8):
        lengths = np.clip(rng.lognormal(6.0, 0.7, 512), 20, 8192).astype(int).tolist()
        plan = plan_micro_batches(lengths, ranks, 16384)
        costs = np.array([[padded(lengths, micro) for micro in rank] for rank in plan])
        assert costs.sum() <= 1.10 * sum(lengths)
        assert costs.sum(axis=1).max() <= 1.05 * costs.sum(axis=1).mean()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([3, 0], 1, 10), "text 1 has 0 tokens"),
        (([3], 0, 10), "ranks must be at least 1, not 0"),
        (([3], 1, 0), "micro_batch_tokens must be at least 1, not 0"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan_micro_batches(*arguments)
