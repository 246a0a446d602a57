"""Gradients of the DeepSpeed trainer against one plain step, for every ZeRO stage and split."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import make_tiny_qwen3
from trainer_data import (
    ROWS,
    TEACHER_HIDDEN,
    VOCAB,
    naive_loss,
    naive_step,
    ragged_items,
    share_out,
    teacher_head,
    total_weight,
)
from trainer_ranks import Ranks, shared_ranks
from transformers import AutoModelForCausalLM

from actors.teacher.service import SignalStore
from opd_ray.config.schema import TrainerSettings
from opd_ray.pools.scorer import ScoredRollout
from opd_ray.types import HeadPart, HiddenSignal, Rollout, RolloutScores

# With an epsilon this large, Adam's first step is lr / eps x gradient: the gradient can be read off
# the weights, after everything DeepSpeed does to it and through the trainer's own interface.
LARGE = 1e8
STEP_PER_GRADIENT = 1000.0
STAGES = (0, 1, 2, 3)


def sgd(stage: int, **settings) -> TrainerSettings:
    return TrainerSettings(
        zero_stage=stage, adam_eps=LARGE, weight_decay=0.0, max_grad_norm=0.0, **settings
    )


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    return {
        tied: make_tiny_qwen3(tmp_path_factory.mktemp("student"), vocab=ROWS, tied=tied)
        for tied in (True, False)
    }


@pytest.fixture(scope="module")
def data():
    items, signals = ragged_items(11)
    return items, signals, teacher_head()


@pytest.fixture(scope="module")
def expected(students, data):
    return {tied: naive_step(folder, *data) for tied, folder in students.items()}


def train(group: Ranks, plan, total, *signals):
    rate = STEP_PER_GRADIENT * LARGE
    return group.call_each("train_step", [(own, total, rate, *signals) for own in plan])


def one_step(group: Ranks, folder, settings, plan, signals, head, total):
    """What the ranks say of a step, and its gradients by parameter."""
    group.start(folder, settings, vocab_size=VOCAB, head=head)
    before = group.weights()
    stats = train(group, plan, total, signals)
    after = group.weights()
    names = [name for name in before if name in after]
    gradients = {n: (before[n].astype(np.float64) - after[n]) / STEP_PER_GRADIENT for n in names}
    return stats, gradients


def assert_same_gradients(gradients, expected_gradients):
    for name, wanted in expected_gradients.items():
        error = np.linalg.norm(gradients[name] - wanted) / np.linalg.norm(wanted)
        assert error < 1e-5, f"{name}: relative error {error:.2e}"


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("world_size", [1, 2])
def test_equal_to_one_plain_step(world_size, stage, tied, micro_batches, students, data, expected):
    items, signals, head = data
    loss, wanted, logprobs = expected[tied]
    plan = share_out(items, world_size, micro_batches)
    stats, gradients = one_step(
        shared_ranks(world_size),
        students[tied],
        sgd(stage),
        plan,
        signals,
        head,
        total_weight(items),
    )
    assert_same_gradients(gradients, wanted)
    if tied:
        np.testing.assert_array_equal(
            gradients["lm_head.weight"], gradients["model.embed_tokens.weight"]
        )
    assert sum(s.loss_sum for s in stats) / total_weight(items) == pytest.approx(loss, rel=1e-5)
    assert sum(s.weight_sum for s in stats) == pytest.approx(total_weight(items), rel=1e-6)
    assert sum(s.kept_tokens for s in stats) == sum(len(item.rows) for item in items)
    norm = np.sqrt(sum((g**2).sum() for g in wanted.values()))
    assert [s.grad_norm for s in stats] == pytest.approx([norm] * world_size, rel=1e-5)
    # The items say the rollout engine's log-probability was 0, so the gap is the trainer's own.
    gaps = -logprobs
    assert sum(s.gap_sum for s in stats) == pytest.approx(gaps.sum(), rel=1e-5)
    assert max(s.gap_max for s in stats) == pytest.approx(gaps.max(), rel=1e-5)


def trajectories(count: int) -> tuple[list[ScoredRollout], list[np.ndarray], list[np.ndarray]]:
    """Rollouts of two or three turns with tools between them; weights [m] and hidden states [m, D].

    About half of what the student wrote has a weight above 0.
    """
    rng = np.random.default_rng(5)
    scored, weights, hidden = [], [], []
    for number in range(count):
        spans = rng.integers(1, 6, 2 * int(rng.integers(2, 4)))
        mask = np.repeat(np.arange(len(spans)) % 2 == number % 2, spans).astype(np.uint8)
        m = len(mask)
        zero = np.zeros(m, np.float32)
        prompt = rng.integers(3, VOCAB, int(rng.integers(1, 9))).astype(np.int32)
        response = rng.integers(3, VOCAB, m).astype(np.int32)
        name = f"r{number}"
        rollout = Rollout(name, name, 0, prompt, response, mask, zero, zero, "stop", 0)
        scored.append(ScoredRollout(rollout, RolloutScores(name, {})))
        kept = (rng.random(m) < 0.6) & (mask > 0)
        weights.append(np.where(kept, rng.uniform(0.2, 2.0, m), 0).astype(np.float32))
        hidden.append(rng.normal(size=(m, TEACHER_HIDDEN)).astype(np.float32))
    return scored, weights, hidden


def loss_of_all_rows(folder, scored, weights, hidden, head):
    """The mean of weight x reverse KL over every response token of whole texts, float64; its
    gradients."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    loss = torch.zeros((), dtype=torch.float64)
    for one, weights_m, hidden_mD in zip(scored, weights, hidden, strict=True):
        prompt, response = one.rollout.prompt_ids, one.rollout.response_ids
        text = torch.tensor(np.concatenate((prompt, response))).long()
        logits = model(text[None]).logits[0, len(prompt) - 1 : -1, :VOCAB]
        student = logits.log_softmax(-1)
        teacher = torch.tensor(hidden_mD).double() @ torch.tensor(head).double().T
        teacher = teacher[:, :VOCAB].log_softmax(-1)
        divergence_m = (student.exp() * (student - teacher)).sum(-1)
        loss = loss + (torch.tensor(weights_m).double() * divergence_m).sum()
    loss = loss / float(sum(w.sum(dtype=np.float64) for w in weights))
    loss.backward()
    return loss.item(), {name: p.grad.numpy() for name, p in model.named_parameters()}


@pytest.mark.parametrize("world_size", [1, 2])
def test_what_tools_wrote_is_read_and_not_learned_from(world_size, students):
    scored, weights, hidden = trajectories(9)
    head = teacher_head()
    loss, wanted = loss_of_all_rows(students[True], scored, weights, hidden, head)
    store = SignalStore(1 << 20)
    for one, hidden_mD in zip(scored, hidden, strict=True):
        rows = one.rollout.rows
        store.put(one.rollout.rollout_id, HiddenSignal(hidden_mD[rows]), rows)
    items = [one.kept(w) for one, w in zip(scored, weights, strict=True)]
    signals = store.take({item.rollout_id: item.rows for item in items})
    plan = share_out(items, world_size, 2)
    stats, gradients = one_step(
        shared_ranks(world_size), students[True], sgd(2), plan, signals, head, total_weight(items)
    )
    assert_same_gradients(gradients, wanted)
    assert sum(s.loss_sum for s in stats) / total_weight(items) == pytest.approx(loss, rel=1e-5)
    assert sum(s.kept_tokens for s in stats) == sum(int((w > 0).sum()) for w in weights)


@pytest.mark.parametrize("stage", STAGES)
def test_a_rank_that_keeps_nothing(stage, students, data, expected):
    items, signals, head = data
    _, wanted, _ = expected[True]
    plan = [share_out(items, 1, 3)[0], [[], [items[1]], []]]
    assert len(items[1].rows) == 0
    stats, gradients = one_step(
        shared_ranks(2), students[True], sgd(stage), plan, signals, head, total_weight(items)
    )
    assert_same_gradients(gradients, wanted)
    assert (stats[1].kept_tokens, stats[1].loss_sum, stats[1].gap_sum) == (0, 0.0, 0.0)
    assert stats[1].trunk_tokens == stats[1].padding_tokens == 3


@pytest.mark.parametrize("stage", STAGES)
def test_when_no_rank_keeps_anything_no_step_is_taken_and_the_next_is_right(
    stage, students, data, expected
):
    items, signals, head = data
    group = shared_ranks(2)
    group.start(students[False], sgd(stage), vocab_size=VOCAB, head=head)
    before = group.weights()
    stats = train(group, [[], []], 0.0)
    assert [(s.skipped, s.grad_norm, s.kept_tokens) for s in stats] == [(True, 0.0, 0)] * 2
    between = group.weights()
    for name, weight in before.items():
        np.testing.assert_array_equal(between[name], weight)
    plan = share_out(items, 2, 2)
    train(group, plan, total_weight(items), signals)
    after = group.weights()
    _, wanted, _ = expected[False]
    assert_same_gradients({n: (before[n] - after[n]) / STEP_PER_GRADIENT for n in before}, wanted)


@pytest.mark.parametrize("stage", STAGES)
def test_gradient_checkpointing_changes_nothing(stage, students, data, expected):
    items, signals, head = data
    _, wanted, _ = expected[True]
    settings = sgd(stage, gradient_checkpointing=True)
    plan = share_out(items, 2, 3)
    _, gradients = one_step(
        shared_ranks(2), students[True], settings, plan, signals, head, total_weight(items)
    )
    assert_same_gradients(gradients, wanted)


@pytest.mark.parametrize("stage", [0, 3])
def test_several_teachers_in_one_step(stage, students, data):
    """Three heads of different sizes, dealt so that the ranks have different numbers of them.

    "other" has a head of its own; "twice" is an ensemble of the first teacher with itself.
    """
    items, signals, head = data
    total, rng = total_weight(items), np.random.default_rng(5)
    small = rng.normal(scale=0.3, size=(VOCAB, 20)).astype(np.float32)
    mixed, of = {}, {}
    for number, item in enumerate(items):
        hidden = signals[item.rollout_id].hidden
        of[item.rollout_id] = ("teacher", "other", "teacher", "twice")[number % 4]
        if of[item.rollout_id] == "other":
            hidden = rng.normal(size=(len(item.rows), 20)).astype(np.float32)
        elif of[item.rollout_id] == "twice":
            hidden = np.concatenate([hidden, hidden], axis=1)
        mixed[item.rollout_id] = HiddenSignal(hidden, of[item.rollout_id])

    model = AutoModelForCausalLM.from_pretrained(students[True], dtype=torch.float64)
    for names, theirs, some in ((("teacher", "twice"), head, signals), (("other",), small, mixed)):
        part = [item for item in items if of[item.rollout_id] in names]
        loss, _ = naive_loss(model, part, some, theirs)
        (loss * (total_weight(part) / total)).backward()
    wanted = {name: p.grad.numpy() for name, p in model.named_parameters()}

    ranks = shared_ranks(2)
    ranks.start(students[True], sgd(stage), vocab_size=VOCAB, head=head)
    ranks.call("set_teacher_head", (HeadPart(small),), "other")
    ranks.call("set_teacher_head", (HeadPart(head, None, 0.3), HeadPart(head, None, 0.7)), "twice")
    before = ranks.weights()
    train(ranks, share_out(items, 2, 2), total, mixed)
    after = ranks.weights()
    gradients = {n: (before[n].astype(np.float64) - after[n]) / STEP_PER_GRADIENT for n in wanted}
    assert_same_gradients(gradients, wanted)
