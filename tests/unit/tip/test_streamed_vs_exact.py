"""Streamed scores of the student's top-K against exact scores of the whole vocabulary."""

import numpy as np
import pytest
import torch

from opd_ray.divergence import HiddenTarget, exact_scores
from opd_ray.tip import streamed_scores
from opd_ray.types import TopK

ROWS, VOCAB = 400, 96
DIVERGENCES = ("reverse_kl", "forward_kl", "jsd")
# Float32 sums, and the slack in the tail, may lift a lower bound by this much, nats.
TOLERANCE = 2e-5
EXACT_AT_FULL_VOCABULARY = 1e-4


class RandomPair:
    """Student and teacher of differing hidden sizes; the teacher leans on the student's logits."""

    def __init__(self, spread: float, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        # Spread from row to row, so that both sure and unsure rows are there.
        scale_N1 = spread * torch.rand(ROWS, 1, generator=draw)
        self.hidden_ND = scale_N1 * torch.randn(ROWS, 16, generator=draw)
        self.head_VD = torch.randn(VOCAB, 16, generator=draw) / 4
        own_ND = torch.randn(ROWS, 8, generator=draw)
        self.teacher_ND = torch.cat([self.hidden_ND, own_ND], 1)
        self.teacher_VD = torch.cat([self.head_VD, torch.randn(VOCAB, 8, generator=draw) / 3], 1)

    def exact(self):
        scores = exact_scores(
            self.hidden_ND,
            self.head_VD,
            HiddenTarget(self.teacher_ND, self.teacher_VD),
            sampled_ids_N=torch.zeros(ROWS, dtype=torch.int64),
            chunk_size=64,
        )
        return {name: getattr(scores, f"{name}_N").numpy() for name in DIVERGENCES}

    def streamed(self, top_k):
        student_NK, ids_NK = (self.hidden_ND @ self.head_VD.T).log_softmax(1).topk(top_k)
        teacher_NV = (self.teacher_ND @ self.teacher_VD.T).log_softmax(1)
        scores = streamed_scores(
            TopK(ids_NK.numpy(), student_NK.numpy()), teacher_NV.gather(1, ids_NK).numpy()
        )
        return {name: getattr(scores, f"{name}_m") for name in DIVERGENCES}


@pytest.mark.parametrize("spread", [1.0, 4.0, 12.0])
def test_streamed_is_a_bound_that_tightens_to_the_exact_value(spread):
    pair = RandomPair(spread)
    exact = pair.exact()
    gaps = {name: [] for name in DIVERGENCES}
    for top_k in (1, 2, 4, 8, 16, 32, 64, VOCAB):
        for name, streamed_N in pair.streamed(top_k).items():
            gap_N = exact[name].astype(np.float64) - streamed_N
            assert gap_N.min() >= -TOLERANCE, f"{name}, K = {top_k}"
            gaps[name].append(gap_N.mean())
            if top_k == VOCAB:
                assert np.abs(gap_N).max() <= EXACT_AT_FULL_VOCABULARY, name
    for name, means in gaps.items():
        assert np.all(np.diff(means) <= TOLERANCE), f"{name}: mean gaps {means}"
        # Not a bound for want of saying anything: it starts well below and closes.
        assert means[0] > 0.05 * exact[name].mean() > 100 * means[-1], f"{name}: {means}"
