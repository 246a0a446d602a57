"""Plans of micro-batches: complete, within budget, balanced, beginnings together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_ray.batching.micro_batches import (
    _Costs,
    plan_micro_batches,
    recurring_width,
    width_of,
)
from opd_ray.batching.packing import exact_width, pack
from opd_ray.config.schema import TrainerSettings


def texts_of(lengths):
    """Texts that begin with numbers of their own, so that none is shared."""
    return [np.arange(length) + 1000 * number for number, length in enumerate(lengths)]


def row(texts, micro, width=exact_width):
    """Tokens that a micro-batch really takes."""
    return len(pack([texts[i] for i in micro], width).ids_T) if micro else 0


def test_widths_recur_and_pad_little():
    assert [recurring_width(n) for n in (1, 32, 63, 64, 65, 128, 129, 400, 511, 513)] == [
        *(1, 32, 63, 64, 66, 128, 132, 400, 512, 528)
    ]
    tokens = np.arange(1, 5000)
    widths = np.array([recurring_width(int(n)) for n in tokens])
    assert (widths >= tokens).all()
    assert (widths <= tokens * 33 / 32).all()
    assert len(set(widths[512:1024])) == 32  # of rows with 513 to 1,024 tokens


def test_widths_recur_where_kernels_are_kept_for_them():
    assert width_of(on_gpu=False, bfloat16=True) is recurring_width
    assert width_of(on_gpu=True, bfloat16=True) is exact_width
    assert width_of(on_gpu=False, bfloat16=False) is exact_width


@given(
    lengths=st.lists(st.integers(1, 300), max_size=60),
    prompts=st.integers(1, 60),
    ranks=st.integers(1, 5),
    budget=st.integers(1, 1000),
    width=st.sampled_from([exact_width, recurring_width]),
)
def test_every_plan_keeps_its_promises(lengths, prompts, ranks, budget, width):
    # Texts of one prompt begin alike, a few tokens or many.
    texts = [
        np.concatenate([np.full(2 * (n % prompts), n % prompts), [99 + n] * length])
        for n, length in enumerate(lengths)
    ]
    plan = plan_micro_batches(texts, ranks, budget, width)
    assert len(plan) == ranks
    assert len({len(rank) for rank in plan}) == 1
    assert sorted(i for rank in plan for micro in rank for i in micro) == list(range(len(texts)))
    costs = [[row(texts, micro, width) for micro in rank] for rank in plan]
    for rank, rank_costs in zip(plan, costs, strict=True):
        for micro, cost in zip(rank, rank_costs, strict=True):
            assert cost <= budget or len(micro) == 1
    totals = [sum(rank_costs) for rank_costs in costs]
    dearest = max((cost for rank_costs in costs for cost in rank_costs), default=0)
    assert max(totals) - min(totals) <= dearest
    assert plan == plan_micro_batches(texts, ranks, budget, width)


@given(
    texts=st.lists(st.tuples(st.integers(1, 300), st.integers(0, 300)), min_size=1, max_size=40),
    cap=st.integers(1, 1000),
    width=st.sampled_from([exact_width, recurring_width]),
)
def test_groups_are_as_long_as_the_cap_allows(texts, cap, width):
    lengths = [length for length, _ in texts]
    shared = [0, *(min(common, length) for length, common in texts[1:])]
    groups = []
    start = 0
    for stop in range(1, len(texts) + 1):
        more = sum(lengths[start : stop + 1]) - sum(shared[start + 1 : stop + 1])
        if stop == len(texts) or width(more) > cap:
            groups.append((start, stop))
            start = stop
    assert _Costs(lengths, shared, width).cut(cap) == groups


def test_hand_computed():
    # 9 and 2 | 8 and 3, as equal as the order by first token allows.
    assert plan_micro_batches(texts_of([9, 2, 8, 3]), ranks=2, micro_batch_tokens=18) == [
        [[0, 1]],
        [[2, 3]],
    ]


def test_samples_of_a_prompt_lie_in_one_micro_batch():
    """Two prompts of 20 tokens with two samples of 5 each: 30 tokens a prompt, not 50."""
    first, second = np.arange(20), np.arange(20) + 50
    texts = [np.append(prompt, np.full(5, end)) for end in (1, 2) for prompt in (first, second)]
    plan = plan_micro_batches(texts, ranks=1, micro_batch_tokens=30)
    assert sorted(plan[0]) == [[0, 2], [1, 3]]
    assert [row(texts, micro) for micro in plan[0]] == [30, 30]


def test_sixteen_texts_within_the_default_budget_are_one_row():
    lengths = np.random.default_rng(0).integers(80, 380, 16).tolist()
    (plan,) = plan_micro_batches(texts_of(lengths), 1, TrainerSettings().micro_batch_tokens)
    assert plan == [list(range(16))]


def test_the_rank_that_has_had_least_gets_the_dearest_of_a_round():
    texts = texts_of([100, 90, 80, 10])
    plan = plan_micro_batches(texts, ranks=2, micro_batch_tokens=100)
    assert sorted(sum(row(texts, micro) for micro in rank) for rank in plan) == [110, 170]


def test_ranks_share_what_one_micro_batch_could_hold():
    plan = plan_micro_batches(texts_of([10] * 8), ranks=4, micro_batch_tokens=1000)
    assert [[len(micro) for micro in rank] for rank in plan] == [[2]] * 4


def test_no_text_gives_no_micro_batch():
    assert plan_micro_batches([], ranks=3, micro_batch_tokens=10) == [[], [], []]


def test_fewer_texts_than_ranks_leave_some_ranks_an_empty_micro_batch():
    plan = plan_micro_batches(texts_of([5, 7]), ranks=3, micro_batch_tokens=10)
    assert sorted(plan) == [[[]], [[0]], [[1]]]


def test_ranks_have_equal_work_on_ragged_lengths():
    """Reasoning lengths: log-normal, many times longer at the top than in the middle."""
    rng = np.random.default_rng(0)
    for ranks in (1, 2, 4, 8):
        lengths = np.clip(rng.lognormal(6.0, 0.7, 512), 20, 8192).astype(int).tolist()
        plan = plan_micro_batches(texts_of(lengths), ranks, 16384)
        work = np.array([sum(lengths[i] for micro in rank for i in micro) for rank in plan])
        assert work.max() <= 1.05 * work.mean()


@pytest.mark.parametrize(
    ("lengths", "ranks", "budget", "message"),
    [
        ([3, 0], 1, 10, "text 1 has 0 tokens"),
        ([3], 0, 10, "ranks must be at least 1, not 0"),
        ([3], 1, 0, "micro_batch_tokens must be at least 1, not 0"),
    ],
)
def test_bad_input_is_refused(lengths, ranks, budget, message):
    with pytest.raises(ValueError, match=message):
        plan_micro_batches(texts_of(lengths), ranks, budget)
