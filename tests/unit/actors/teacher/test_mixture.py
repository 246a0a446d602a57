"""Ensembles: mixtures of a few tokens, and of whole distributions inside the divergence."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from actors.teacher.kinds.ensemble import mixed_logprobs, mixed_topk
from opd_ray.divergence import (
    HiddenTarget,
    LogitsTarget,
    MixtureTarget,
    exact_scores,
    linear_divergence,
)
from opd_ray.types import TopK

VOCAB = 11
KINDS = ("reverse_kl", "forward_kl", "jsd")


def distributions(count: int, rows: int, seed: int = 0) -> list[np.ndarray]:
    """[rows, VOCAB] probabilities of each member."""
    rng = np.random.default_rng(seed)
    weights = np.exp(rng.normal(scale=2.0, size=(count, rows, VOCAB)))
    return list(weights / weights.sum(-1, keepdims=True))


def top_of(p_mV: np.ndarray, k: int) -> TopK:
    ids = np.argsort(-p_mV, axis=1)[:, :k]
    return TopK(
        ids.astype(np.int32), np.log(np.take_along_axis(p_mV, ids, axis=1)).astype(np.float32)
    )


def test_a_token_by_hand() -> None:
    """1/4 x 0.8 + 3/4 x 0.4 = 0.5."""
    logs = [np.log(np.array([[value]], np.float32)) for value in (0.8, 0.4)]
    mixed = mixed_logprobs(logs, [0.25, 0.75])
    assert mixed.dtype == np.float32
    assert mixed.item() == pytest.approx(math.log(0.5), abs=1e-6)


def test_top_k_by_hand() -> None:
    """Token 3 is known exactly; token 2, of one list, has the half of 0.3 that is listed."""
    one = TopK(np.array([[5, 2]], np.int32), np.log(np.array([[0.6, 0.3]], np.float32)))
    other = TopK(np.array([[5, 7]], np.int32), np.log(np.array([[0.5, 0.4]], np.float32)))
    known = np.array([[3, 7, 3]], np.int32), np.log(np.array([[0.04, 0.21, 0.04]], np.float32))
    top = mixed_topk([one, other], [0.5, 0.5], TopK(*known), k=4)
    assert top.ids.tolist() == [[5, 7, 2, 3]]
    np.testing.assert_allclose(np.exp(top.logprobs), [[0.55, 0.21, 0.15, 0.04]], rtol=1e-6)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.1), (0.2, 0.3, 0.5)])
def test_mixed_topk_against_whole_distributions(shares: tuple[float, ...]) -> None:
    rows, k, known = 50, 4, 3
    parts = distributions(len(shares), rows)
    true_mV = sum(share * part for share, part in zip(shares, parts, strict=True))
    rng = np.random.default_rng(1)
    ids_mE = np.stack([rng.choice(VOCAB, known, replace=False) for _ in range(rows)])
    exact_mE = np.log(np.take_along_axis(true_mV, ids_mE, axis=1)).astype(np.float32)
    tops = [top_of(part, k) for part in parts]
    mixed = mixed_topk(tops, shares, TopK(ids_mE.astype(np.int32), exact_mE), k)
    assert mixed.ids.shape == mixed.logprobs.shape == (rows, k)
    for row in range(rows):
        # Naively: every token's listed mass, the known ones replaced.
        listed = np.zeros(VOCAB)
        for share, top in zip(shares, tops, strict=True):
            for token, logprob in zip(top.ids[row], top.logprobs[row], strict=True):
                listed[token] += share * math.exp(logprob)
        for token in ids_mE[row]:
            listed[token] = true_mV[row, token]
        best = np.sort(listed)[::-1][:k]
        np.testing.assert_allclose(np.exp(mixed.logprobs[row]), best, rtol=1e-5)
        np.testing.assert_allclose(listed[mixed.ids[row]], best, rtol=1e-5)
        assert len(set(mixed.ids[row])) == k
        assert (np.exp(mixed.logprobs[row]) <= true_mV[row][mixed.ids[row]] * (1 + 1e-5)).all()


def test_lists_of_everything_give_the_mixture_itself() -> None:
    parts = distributions(2, 20)
    nothing = np.zeros((20, 0), np.int32), np.zeros((20, 0), np.float32)
    mixed = mixed_topk([top_of(p, VOCAB) for p in parts], (0.3, 0.7), TopK(*nothing), k=VOCAB)
    true_mV = 0.3 * parts[0] + 0.7 * parts[1]
    expected = np.take_along_axis(true_mV, mixed.ids.astype(np.int64), axis=1)
    np.testing.assert_allclose(np.exp(mixed.logprobs), expected, rtol=1e-5)


def parts_of(rows: int, sizes: tuple[int, ...], padding: int = 0) -> tuple[HiddenTarget, ...]:
    made = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=made, dtype=torch.float64)

    return tuple(
        HiddenTarget(normal(rows, size), normal(VOCAB + padding, size), normal(VOCAB + padding))
        for size in sizes
    )


def mixture_probabilities(target: MixtureTarget) -> torch.Tensor:
    """[N, VOCAB], the plain way."""
    return sum(
        share * torch.softmax(p.hidden_ND @ p.head_VD[:VOCAB].T + p.bias_V[:VOCAB], -1)
        for share, p in zip(target.shares, target.parts, strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_the_loss_of_a_mixture(kind: str, temperature: float, chunk_size: int | None) -> None:
    """Equal, with gradients, to the loss against the mixture's logits, which others pin."""
    rows = 7
    target = MixtureTarget(parts_of(rows, (3, 5, 4), padding=2), (0.2, 0.5, 0.3))
    plain = LogitsTarget(mixture_probabilities(target).log())
    made = torch.Generator().manual_seed(4)
    found = []
    for one in (target, plain):
        hidden = torch.randn(rows, 6, generator=made.manual_seed(4), dtype=torch.float64)
        head = torch.randn(VOCAB, 6, generator=made, dtype=torch.float64)
        hidden.requires_grad_()
        head.requires_grad_()
        output = linear_divergence(
            hidden,
            head,
            one,
            kind=kind,
            temperature=temperature,
            vocab_size=VOCAB,
            chunk_size=chunk_size,
        )
        output.loss.backward()
        found.append((output.divergence_N, hidden.grad, head.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_a_mixture_by_hand() -> None:
    """P = (1/2, 1/2); Q = 1/4 (1, 0) + 3/4 (1/3, 2/3) = (1/2, 1/2): nothing to learn."""
    one, two = torch.eye(2, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    certain = HiddenTarget(two * 800.0, torch.tensor([[1.0], [0.0]], dtype=torch.float64))
    leaning = HiddenTarget(torch.tensor([[1 / 3, 2 / 3]], dtype=torch.float64).log(), one)
    target = MixtureTarget((certain, leaning), (0.25, 0.75))
    student = torch.zeros(1, 2, dtype=torch.float64)
    for kind in KINDS:
        value = linear_divergence(student, one, target, kind=kind).divergence_N.item()
        assert value == pytest.approx(0.0, abs=1e-12)
    # Against Q = (1/2, 1/2), P = (3/4, 1/4) costs 3/4 ln(3/2) - 1/4 ln 2.
    tilted = torch.tensor([[0.75, 0.25]], dtype=torch.float64).log()
    value = linear_divergence(tilted, one, target).divergence_N.item()
    assert value == pytest.approx(0.75 * math.log(1.5) - 0.25 * math.log(2), abs=1e-12)


def test_a_share_near_one_is_that_teacher() -> None:
    parts = parts_of(5, (3, 4))
    target = MixtureTarget(parts, (1 - 1e-9, 1e-9))
    hidden, head = torch.randn(5, 6).double(), torch.randn(VOCAB, 6).double()
    mixed = linear_divergence(hidden, head, target).divergence_N
    alone = linear_divergence(hidden, head, parts[0]).divergence_N
    torch.testing.assert_close(mixed, alone, rtol=1e-6, atol=1e-7)


def test_exact_scores_of_a_mixture() -> None:
    rows = 6
    target = MixtureTarget(parts_of(rows, (3, 4)), (0.4, 0.6))
    q_NV = mixture_probabilities(target)
    hidden, head = torch.randn(rows, 6).double(), torch.randn(VOCAB, 6).double()
    p_NV = torch.softmax(hidden @ head.T, -1)
    ids_N = torch.arange(rows)
    scores = exact_scores(hidden, head, target, sampled_ids_N=ids_N, chunk_size=4)
    naive = {
        "reverse_kl_N": (p_NV * (p_NV / q_NV).log()).sum(-1),
        "forward_kl_N": (q_NV * (q_NV / p_NV).log()).sum(-1),
        "teacher_entropy_N": -(q_NV * q_NV.log()).sum(-1),
        "teacher_logprob_N": q_NV.log().gather(1, ids_N[:, None])[:, 0],
    }
    for name, expected in naive.items():
        torch.testing.assert_close(getattr(scores, name), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("shares", "sizes", "message"),
    [
        ((1.0,), (3, 4), "2 parts with 1 shares"),
        ((0.5, 0.6), (3, 4), "add up to 1"),
        ((0.0, 1.0), (3, 4), "above 0"),
    ],
)
def test_mixtures_that_do_not_fit(
    shares: tuple[float, ...], sizes: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        MixtureTarget(parts_of(2, sizes), shares)


def test_parts_have_the_same_rows() -> None:
    with pytest.raises(ValueError, match="differ in rows"):
        MixtureTarget((*parts_of(2, (3,)), *parts_of(3, (3,))), (0.5, 0.5))
