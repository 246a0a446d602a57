"""The trainer over several steps: optimizer, bfloat16, exact scores, zero loss, and bad input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from broken_models import change_weights
from tiny_models import make_tiny_qwen3
from trainer_data import (
    ROWS,
    VOCAB,
    naive_loss,
    ragged_items,
    share_out,
    student_rows,
    teacher_head,
    total_weight,
)
from trainer_ranks import shared_ranks
from transformers import AutoModelForCausalLM

from actors.trainer.batch import BatchError
from actors.trainer.trainer import TrainerError
from opd_ray.config.choices import Dtype
from opd_ray.config.schema import LossSettings, TrainerSettings
from opd_ray.errors import PeerFailure
from opd_ray.models.weight_files import WeightsError
from opd_ray.types import HiddenSignal, SampledSignal, TopKSignal

STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def ranks():
    return shared_ranks(2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_qwen3(tmp_path_factory.mktemp("student"), vocab=ROWS)


@pytest.fixture(scope="module")
def data():
    items, signals = ragged_items(9)
    return items, signals, teacher_head()


def step(group, items, signals, rate, micro_batches=2):
    total = total_weight(items)
    plan = share_out(items, group.world_size, micro_batches)
    stats = group.call_each("train_step", [(own, total, rate, signals) for own in plan])
    return sum(s.loss_sum for s in stats) / total, stats


OFFLOADED = [
    {"zero_stage": 1, "offload_optimizer": True},
    {"zero_stage": 3, "offload_parameters": True},
    {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True},
]


@pytest.mark.parametrize("memory", [*({"zero_stage": stage} for stage in STAGES), *OFFLOADED])
def test_three_steps_of_adamw_with_clipping_and_a_changing_rate(memory, ranks, folder, data):
    """Wherever the optimizer and the weights are; DeepSpeed compiles its own for main memory.

    Ranks that offload sleep before the last step, as they do where roles take turns.
    """
    items, signals, head = data
    settings = TrainerSettings(
        **memory,
        adam_beta1=0.8,
        adam_beta2=0.9,
        adam_eps=1e-4,
        weight_decay=0.3,
        max_grad_norm=0.5,
    )
    rates = [1e-2, 5e-3, 2e-2]
    ranks.start(folder, settings, vocab_size=VOCAB, head=head)
    found = [step(ranks, items, signals, rate) for rate in rates[:2]]
    if memory in OFFLOADED:
        ranks.call("sleep")
        ranks.call("wake")
    found.append(step(ranks, items, signals, rates[2]))

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.8, 0.9), eps=1e-4, weight_decay=0.3)
    for (loss, stats), rate in zip(found, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        wanted, _ = naive_loss(model, items, signals, head)
        wanted.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        assert norm > 0.5
        optimizer.step()
        assert loss == pytest.approx(wanted.item(), rel=1e-5)
        assert [s.grad_norm for s in stats] == pytest.approx([norm.item()] * 2, rel=1e-5)
        assert [s.learning_rate for s in stats] == [rate] * 2
    weights = ranks.weights()
    for name, parameter in model.named_parameters():
        wanted_weight = parameter.detach().numpy()
        error = np.linalg.norm(weights[name] - wanted_weight) / np.linalg.norm(wanted_weight)
        assert error < 1e-5, f"{name}: relative error {error:.2e}"


@pytest.mark.parametrize("stage", STAGES)
def test_bfloat16_learns(stage, ranks, folder, data):
    items, signals, head = data
    settings = TrainerSettings(zero_stage=stage, dtype=Dtype.bfloat16, weight_decay=0.0)
    ranks.start(folder, settings, vocab_size=VOCAB, head=head)
    losses = [step(ranks, items, signals, 3e-3, micro_batches=3)[0] for _ in range(15)]
    assert losses[-1] < 0.4 * losses[0]


def test_steps_smaller_than_bfloat16_tells_add_up(ranks, folder, data):
    """Weights above 0.25 lie 0.002 apart: one step of 0.0002 moves none of them, twenty do."""
    items, signals, head = data
    settings = TrainerSettings(zero_stage=2, dtype=Dtype.bfloat16, weight_decay=0.0)
    ranks.start(folder, settings, vocab_size=VOCAB, head=head)
    before = ranks.weights()

    def share_moved() -> float:
        now = ranks.weights()
        moved = [(now[n] != w)[np.abs(w) > 0.25] for n, w in before.items() if w.ndim == 2]
        return float(np.concatenate(moved).mean())

    step(ranks, items, signals, 2e-4, micro_batches=3)
    assert share_moved() == 0.0
    for _ in range(20):
        step(ranks, items, signals, 2e-4, micro_batches=3)
    assert share_moved() > 0.5


@pytest.mark.parametrize("stage", [0, 3])
def test_exact_scores_and_that_scoring_disturbs_no_step(stage, ranks, folder, data):
    items, signals, head = data
    ranks.start(folder, TrainerSettings(zero_stage=stage), vocab_size=VOCAB, head=head)
    step(ranks, items, signals, 1e-2)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    model.load_state_dict({n: torch.tensor(w) for n, w in ranks.weights().items()}, strict=False)

    plan = share_out(items, 2, 3)
    answers = ranks.call_each("score", [(own, signals) for own in plan])
    found = {scores.rollout_id: scores for answer in answers for scores in answer}
    assert sorted(found) == sorted(item.rollout_id for item in items)
    head_VD = torch.tensor(head, dtype=torch.float64)
    for item in items:
        scores = found[item.rollout_id]
        with torch.no_grad():
            student, sampled = student_rows(model, item)
        hidden = torch.tensor(signals[item.rollout_id].hidden, dtype=torch.float64)
        teacher = (hidden @ head_VD.T)[:, :VOCAB].log_softmax(-1)
        p, q = student.exp(), teacher.exp()
        middle = ((p + q) / 2).log()
        wanted = {
            "entropy": -(p * student).sum(-1),
            "teacher_entropy": -(q * teacher).sum(-1),
            "reverse_kl": (p * (student - teacher)).sum(-1),
            "forward_kl": (q * (teacher - student)).sum(-1),
            "jsd": ((p * (student - middle)).sum(-1) + (q * (teacher - middle)).sum(-1)) / 2,
            "logprob": student.gather(-1, sampled[:, None])[:, 0],
            "teacher_logprob": teacher.gather(-1, sampled[:, None])[:, 0],
        }
        for name, values in wanted.items():
            np.testing.assert_allclose(scores.columns[name], values, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(
            scores.columns["top1_agree"], student.argmax(-1) == teacher.argmax(-1)
        )

    loss, _ = step(ranks, items, signals, 1e-2)
    with torch.no_grad():
        assert loss == pytest.approx(naive_loss(model, items, signals, head)[0].item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["hidden", "topk", "sampled"])
@pytest.mark.parametrize("stage", [0, 3])
def test_student_as_its_own_teacher_has_nothing_to_learn(stage, kind, ranks, folder, data):
    items, _, _ = data
    model = AutoModelForCausalLM.from_pretrained(folder)
    signals = {}
    for item in items:
        with torch.no_grad():
            text = torch.tensor(np.concatenate([item.prompt_ids, item.response_ids]))[None].long()
            hidden = model.model(text).last_hidden_state[0, len(item.prompt_ids) - 1 : -1]
            logprobs, sampled = student_rows(model, item)
        if kind == "hidden":
            signals[item.rollout_id] = HiddenSignal(hidden[item.rows].numpy())
        elif kind == "topk":
            top = logprobs.topk(VOCAB)
            signals[item.rollout_id] = TopKSignal(top.indices.int().numpy(), top.values.numpy())
        else:
            at_sampled = logprobs.gather(-1, sampled[:, None])[:, 0]
            signals[item.rollout_id] = SampledSignal(at_sampled.numpy())
    head = model.lm_head.weight.detach().numpy()
    ranks.start(folder, TrainerSettings(zero_stage=stage), vocab_size=VOCAB, head=head)
    loss, stats = step(ranks, items, signals, 1e-3)
    assert abs(loss) < 1e-6
    assert all(s.grad_norm < 1e-4 for s in stats)
    if kind == "hidden":
        ranks.start(folder, TrainerSettings(zero_stage=stage), vocab_size=VOCAB, head=head)
        plan = share_out(items, 2, 2)
        for answer in ranks.call_each("score", [(own, signals) for own in plan]):
            for scores in answer:
                for name in ("reverse_kl", "forward_kl", "jsd"):
                    assert np.abs(scores.columns[name]).max(initial=0.0) < 1e-6
                assert scores.columns["top1_agree"].all()


def test_sampled_tokens_of_an_older_student_are_weighed(ranks, folder):
    """And the step's account tells by how much."""
    items, signals = ragged_items(9, kind="sampled")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    rng = np.random.default_rng(3)
    lagged, losses, ratios = [], [], []
    for item in items:
        student, sampled = student_rows(model, item)
        logprob = student.gather(-1, sampled[:, None])[:, 0]
        log_ratio = rng.normal(scale=0.5, size=len(item.rows))
        written = (logprob.detach().numpy() - log_ratio).astype(np.float32)
        lagged.append(replace(item, rollout_logprob=written))
        value = logprob.detach() - torch.tensor(signals[item.rollout_id].logprobs)
        factor = torch.tensor(item.weights * np.exp(log_ratio)) * value
        losses.append(((factor * logprob).sum(), float(factor.sum())))
        ratios.append(np.exp(log_ratio))
    total = total_weight(items)
    (sum(loss for loss, _ in losses) / total).backward()
    norm = np.sqrt(sum((p.grad.numpy() ** 2).sum() for p in model.parameters()))

    ranks.start(folder, TrainerSettings(), vocab_size=VOCAB, lagged=True)
    loss, stats = step(ranks, lagged, signals, 1e-3)
    assert loss == pytest.approx(sum(value for _, value in losses) / total, rel=1e-4)
    assert [s.grad_norm for s in stats] == pytest.approx([norm] * 2, rel=1e-4)
    account, r = stats[0] + stats[1], np.concatenate(ratios)
    assert account.log_ratio_mean == pytest.approx(np.log(r).mean(), abs=1e-5)
    share = r.sum() ** 2 / (len(r) * (r**2).sum())
    assert 0.5 < share < 0.95
    assert account.effective_sample_share == pytest.approx(share, rel=1e-5)


def test_at_another_temperature_gap_and_ratios_are_not_known(ranks, folder, data):
    items, signals, head = data
    loss = LossSettings(temperature=2.0)
    ranks.start(folder, TrainerSettings(), loss, vocab_size=VOCAB, head=head)
    _, stats = step(ranks, items, signals, 1e-3)
    account = stats[0] + stats[1]
    for name in ("gap_mean", "gap_max", "log_ratio_mean", "effective_sample_share"):
        assert np.isnan(getattr(account, name)), name


def poisoned(signals, rollout_id):
    hidden = signals[rollout_id].hidden.copy()
    hidden[0, 0] = np.nan
    return {**signals, rollout_id: HiddenSignal(hidden)}


@pytest.mark.parametrize("stage", STAGES)
def test_a_loss_that_is_no_number_stops_every_rank_before_the_step(stage, ranks, folder, data):
    items, signals, head = data
    ranks.start(folder, TrainerSettings(zero_stage=stage), vocab_size=VOCAB, head=head)
    before = ranks.weights()
    plan = share_out(items, 2, 2)
    broken = poisoned(signals, "r3")
    outcomes = ranks.outcomes(
        "train_step", [(own, total_weight(items), 1e-2, broken) for own in plan]
    )
    assert [type(outcome) for outcome in outcomes] == [PeerFailure, TrainerError]
    assert "NaN or infinite in rollouts of another rank" in str(outcomes[0])
    assert "NaN or infinite in rollouts ['r3']" in str(outcomes[1])
    for name, weight in ranks.weights().items():
        np.testing.assert_array_equal(weight, before[name])


@pytest.mark.parametrize("stage", STAGES)
def test_a_gradient_that_is_no_number_stops_every_rank_before_the_step(stage, ranks, folder, data):
    """Finite divergences, but their weights overflow in the gradient."""
    items, signals, head = data
    settings = TrainerSettings(zero_stage=stage)
    ranks.start(folder, settings, vocab_size=VOCAB, head=head)
    before = ranks.weights()
    huge = [replace(i, weights=np.full(len(i.rows), 3e38, np.float32)) for i in items]
    plan = share_out(huge, 2, 2)
    outcomes = ranks.outcomes("train_step", [(own, 1e-3, 1e-2, signals) for own in plan])
    assert [type(outcome) for outcome in outcomes] == [TrainerError, TrainerError]
    assert "has norm" in str(outcomes[0])
    for name, weight in ranks.weights().items():
        np.testing.assert_array_equal(weight, before[name])


@pytest.mark.parametrize("stage", [2, 3])
def test_weights_that_are_not_the_students_own_are_refused(ranks, tmp_path, stage):
    name = "model.layers.0.mlp.up_proj.weight"

    def change(tensors):
        return tensors | {name: tensors[name][:-1].clone(), "value_head": torch.ones(1)}

    broken = change_weights(make_tiny_qwen3(tmp_path, vocab=ROWS), change)
    with pytest.raises(WeightsError) as caught:
        ranks.start(broken, TrainerSettings(zero_stage=stage), vocab_size=VOCAB)
    assert "1 unknown to the model (value_head)" in str(caught.value)
    assert f"1 of another shape ({name}: [127, 64] in the files, [128, 64]" in str(caught.value)


def test_bad_input_of_one_rank_hangs_nobody_and_the_next_step_works(ranks, folder, data):
    items, signals, head = data
    ranks.start(folder, TrainerSettings(zero_stage=3), vocab_size=VOCAB, head=head)
    plan = share_out(items, 2, 2)
    wrong = replace(items[1], response_ids=np.full_like(items[1].response_ids, VOCAB))
    bad = [plan[0], [[wrong], []]]
    outcomes = ranks.outcomes("train_step", [(own, 1.0, 1e-2, signals) for own in bad])
    assert isinstance(outcomes[0], PeerFailure)
    assert "another rank refused its rollouts" in str(outcomes[0])
    assert isinstance(outcomes[1], BatchError)
    assert f"rollout r1: response token 0 has id {VOCAB}" in str(outcomes[1])
    loss, _ = step(ranks, items, signals, 1e-2)
    assert np.isfinite(loss)
