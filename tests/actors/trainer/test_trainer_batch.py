"""Micro-batches: the shift by one, packed texts, stacked signals, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from actors.trainer.batch import (
    BatchError,
    TeacherHead,
    build_micro_batch,
    check_items,
)
from opd_ray.batching.micro_batches import recurring_width
from opd_ray.batching.packing import Segment, exact_width
from opd_ray.divergence import HiddenTarget, MixtureTarget, SampledTarget, TopKTarget
from opd_ray.types import HiddenSignal, SampledSignal, TopKSignal, TrainItem, to_array

CPU = torch.device("cpu")
HEAD = TeacherHead(torch.zeros(10, 2), None)


def item(name: str, prompt: list[int], response: list[int], rows: list[int]) -> TrainItem:
    return TrainItem(
        rollout_id=name,
        prompt_ids=np.array(prompt, np.int32),
        response_ids=np.array(response, np.int32),
        rows=np.array(rows, np.int32),
        weights=np.arange(1, len(rows) + 1, dtype=np.float32),
        rollout_logprob=-np.arange(1, len(rows) + 1, dtype=np.float32),
    )


def build(items, signals, head=HEAD, width=exact_width):
    heads = {"teacher": (head,)}
    check_items(items, signals, vocab_size=10, heads=heads)
    return build_micro_batch(items, signals, vocab_size=10, heads=heads, device=CPU, width=width)


def test_three_tokens_by_hand():
    """Prompt 7 8, response 3 4 5: the tokens are predicted at positions 1, 2, 3 of 7 8 3 4 5."""
    one = item("a", [7, 8], [3, 4, 5], [0, 1, 2])
    batch = build([one], {"a": SampledSignal(np.array([-0.3, -0.4, -0.5], np.float32))})
    # Nothing after the last kept row has a part in the loss, so its own token is not read.
    assert batch.ids_1T.tolist() == [[7, 8, 3, 4]]
    assert batch.kept_N.tolist() == [1, 2, 3]
    assert batch.sampled_ids_N.tolist() == [3, 4, 5]
    # A model whose hidden state is its token id: each kept row sees the token before its own.
    hidden_N = batch.ids_1T[0, batch.kept_N]
    assert hidden_N.tolist() == [8, 3, 4]


def test_a_width_beyond_the_texts_is_padding():
    signals = {"a": SampledSignal(np.full(61, -1.0, np.float32))}
    text = item("a", [1] * 5, [2] * 61, list(range(61)))
    batch = build([text], signals, width=recurring_width)
    assert batch.ids_1T.shape == (1, 66)
    assert batch.positions_1T[0].tolist() == [*range(65), 0]
    assert batch.segments == (Segment(0, 65), Segment(65, 66))
    assert batch.kept_N.tolist() == list(range(4, 65))
    assert batch.padding_tokens == 1


def test_samples_of_a_prompt_share_it():
    prompt = list(range(10)) * 2
    items = [item("a", prompt, [1, 2, 3], [0, 2]), item("b", prompt, [4, 5], [0, 1])]
    signals = {name: SampledSignal(np.zeros(2, np.float32)) for name in "ab"}
    batch = build(items, signals)
    assert batch.ids_1T.tolist() == [[*prompt, 1, 2, 4]]
    assert batch.positions_1T.tolist() == [[*range(20), 20, 21, 20]]
    # Both first tokens are predicted at the prompt's last.
    assert batch.kept_N.tolist() == [19, 21, 19, 22]
    assert batch.sampled_ids_N.tolist() == [1, 3, 4, 5]
    assert (batch.ids_1T.numel(), batch.padding_tokens) == (23, 0)


def test_texts_side_by_side_and_rows_in_order():
    items = [item("a", [1], [2], [0]), item("b", [3, 4], [5, 6, 7], [0, 2])]
    signals = {
        "b": TopKSignal(np.array([[5, 1], [7, 2]]), np.array([[-1.0, -2.0], [-3.0, -4.0]])),
        "a": TopKSignal(np.array([[2, 9]]), np.array([[-5.0, -6.0]])),
    }
    batch = build(items, signals)
    assert batch.rollout_ids == ("a", "b")
    assert batch.rows_per_rollout == (1, 2)
    assert batch.ids_1T.tolist() == [[1, 3, 4, 5, 6]]
    assert batch.positions_1T.tolist() == [[0, 0, 1, 2, 3]]
    assert batch.segments == (Segment(0, 1), Segment(1, 5))
    assert batch.kept_N.tolist() == [0, 1 + 1, 1 + 3]
    assert batch.sampled_ids_N.tolist() == [2, 5, 7]
    assert batch.weights_N.tolist() == [1.0, 1.0, 2.0]
    assert batch.rollout_logprob_N.tolist() == [-1.0, -1.0, -2.0]
    assert (batch.ids_1T.numel(), batch.padding_tokens) == (5, 0)
    assert isinstance(batch.targets[0], TopKTarget)
    assert batch.targets[0].ids_Nk.tolist() == [[2, 9], [5, 1], [7, 2]]
    assert batch.targets[0].logprobs_Nk.tolist() == [[-5.0, -6.0], [-1.0, -2.0], [-3.0, -4.0]]


def test_hidden_signal_in_bfloat16_and_the_teachers_head():
    hidden = torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16)
    head = TeacherHead(
        torch.ones(10, 2, dtype=torch.bfloat16), torch.ones(10, dtype=torch.bfloat16)
    )
    batch = build([item("a", [1], [2], [0])], {"a": HiddenSignal(to_array(hidden))}, head)
    assert isinstance(batch.targets[0], HiddenTarget)
    assert torch.equal(batch.targets[0].hidden_ND, hidden)
    assert batch.targets[0].head_VD is head.weight_VD
    assert batch.targets[0].bias_V is head.bias_V


def test_rollouts_of_two_teachers_lie_side_by_side_by_head():
    """Heads of different hidden sizes; the ensemble's has two parts."""
    one = TeacherHead(torch.ones(10, 2), None)
    parts = (
        TeacherHead(torch.full((10, 1), 2.0), None, 0.25),
        TeacherHead(torch.full((10, 2), 3.0), None, 0.75),
    )
    heads = {"teacher": (one,), "both": parts}
    items = [
        item("a", [1], [2], [0]),
        item("b", [3], [4, 5], [0, 1]),
        item("c", [6], [7], [0]),
    ]
    signals = {
        "a": HiddenSignal(np.array([[1.0, 2.0]], np.float32), "teacher"),
        "b": HiddenSignal(np.array([[3.0, 4.0, 5.0], [6.0, 7.0, 8.0]], np.float32), "both"),
        "c": HiddenSignal(np.array([[9.0, 10.0]], np.float32), "teacher"),
    }
    check_items(items, signals, vocab_size=10, heads=heads)
    batch = build_micro_batch(items, signals, vocab_size=10, heads=heads, device=CPU)
    assert batch.rollout_ids == ("b", "a", "c")
    assert batch.sampled_ids_N.tolist() == [4, 5, 2, 7]
    assert batch.kept_N.tolist() == [1, 2, 0, 3]
    mixture, plain = batch.targets
    assert isinstance(mixture, MixtureTarget)
    assert mixture.shares == (0.25, 0.75)
    assert [part.hidden_ND.tolist() for part in mixture.parts] == [
        [[3.0], [6.0]],
        [[4.0, 5.0], [7.0, 8.0]],
    ]
    assert isinstance(plain, HiddenTarget)
    assert plain.hidden_ND.tolist() == [[1.0, 2.0], [9.0, 10.0]]


def test_sampled_signal_belongs_to_the_sampled_tokens():
    batch = build([item("a", [1], [2, 3], [1])], {"a": SampledSignal(np.array([-0.5], np.float32))})
    assert isinstance(batch.targets[0], SampledTarget)
    assert batch.targets[0].token_ids_N.tolist() == [3]
    assert batch.targets[0].logprobs_N.tolist() == [-0.5]


def test_without_kept_rows_one_weightless_row_stands_in():
    batch = build([item("a", [1], [2, 3], [])], {})
    assert batch.is_empty
    assert (batch.ids_1T.numel(), batch.padding_tokens) == (1, 1)
    assert batch.weights_N.tolist() == [0.0]


GOOD = item("a", [1, 2], [3, 4, 5], [0, 2])
SIGNAL = SampledSignal(np.zeros(2, np.float32))


@pytest.mark.parametrize(
    ("items", "signals", "head", "message"),
    [
        ([GOOD], {}, None, "rollout a came without the teacher's signal"),
        (
            [GOOD],
            {"a": SampledSignal(np.zeros(3, np.float32))},
            None,
            "rollout a: 2 kept rows, but a signal of 3 rows",
        ),
        (
            [replace(GOOD, prompt_ids=np.zeros(0, np.int32))],
            {"a": SIGNAL},
            None,
            "rollout a has an empty prompt",
        ),
        (
            [replace(GOOD, response_ids=np.array([3, 10, 5]))],
            {"a": SIGNAL},
            None,
            "rollout a: response token 1 has id 10, outside the vocabulary of 10",
        ),
        (
            [replace(GOOD, prompt_ids=np.array([1, -1]))],
            {"a": SIGNAL},
            None,
            "rollout a: prompt token 1 has id -1",
        ),
        (
            [replace(GOOD, rows=np.array([0, 3]))],
            {"a": SIGNAL},
            None,
            "rollout a: rows 0 to 3 were kept of a response of 3 tokens",
        ),
        (
            [replace(GOOD, weights=np.ones(1, np.float32))],
            {"a": SIGNAL},
            None,
            "rollout a: 2 rows with 1 weights and 2 log-probabilities",
        ),
        (
            [GOOD],
            {"a": TopKSignal(np.array([[1, 2], [3, 11]]), np.zeros((2, 2)))},
            None,
            "rollout a, row 2: the top-k signal has id 11, outside the vocabulary of 10",
        ),
        (
            [GOOD],
            {"a": HiddenSignal(np.zeros((2, 2), np.float32))},
            None,
            "rollout a came with hidden states of 'teacher', but no head of that teacher was set",
        ),
        (
            [GOOD],
            {"a": HiddenSignal(np.zeros((2, 3), np.float32))},
            HEAD,
            "rollout a: hidden states of size 3 do not fit the head of 'teacher', of size 2",
        ),
        (
            [GOOD, replace(GOOD, rollout_id="b")],
            {"a": SIGNAL, "b": TopKSignal(np.zeros((2, 1), int), np.zeros((2, 1)))},
            None,
            r"one kind and width, not SampledSignal \(rollout a\), top-1 \(rollout b\)",
        ),
        (
            [GOOD, replace(GOOD, rollout_id="b")],
            {
                "a": TopKSignal(np.zeros((2, 3), int), np.zeros((2, 3))),
                "b": TopKSignal(np.zeros((2, 1), int), np.zeros((2, 1))),
            },
            None,
            r"one kind and width, not top-3 \(rollout a\), top-1 \(rollout b\)",
        ),
    ],
)
def test_refused(items, signals, head, message):
    heads = {} if head is None else {"teacher": (head,)}
    with pytest.raises(BatchError, match=message):
        check_items(items, signals, vocab_size=10, heads=heads)
