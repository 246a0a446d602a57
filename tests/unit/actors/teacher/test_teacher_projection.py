"""From hidden states to a teacher's answer, against the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from actors.teacher.kinds.projection import project


def by_definition(
    logits_NV: torch.Tensor, sampled_N: np.ndarray, student_NK: np.ndarray, k: int
) -> dict[str, np.ndarray]:
    """The same, row by row, in float64."""
    rows: dict[str, list] = {name: [] for name in ("logprob", "at", "entropy", "top")}
    for logits_V, sampled, student_K in zip(logits_NV.double(), sampled_N, student_NK, strict=True):
        logprobs_V = logits_V - math.log(sum(math.exp(x) for x in logits_V))
        rows["logprob"].append(logprobs_V[sampled])
        rows["at"].append([logprobs_V[i] for i in student_K])
        rows["entropy"].append(-sum(math.exp(x) * x for x in logprobs_V))
        rows["top"].append(sorted(logprobs_V.tolist(), reverse=True)[:k])
    return {name: np.array(values) for name, values in rows.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_project_is_the_definition_whatever_the_chunk_and_the_padding_rows(
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    rows, real, padded, k = 7, 203, 208, 5
    hidden_ND = torch.randn(rows, 12).to(dtype)
    head_VD = torch.randn(padded, 12).to(dtype)
    head_VD[real:] = 50.0  # padding rows that would win everywhere
    generator = np.random.default_rng(0)
    sampled_N = generator.integers(0, real, rows)
    student_NK = generator.integers(0, real, (rows, 4))
    expected = by_definition((hidden_ND @ head_VD.T)[:, :real], sampled_N, student_NK, k)
    for chunk_rows in (1, 3, 100):
        found = project(
            hidden_ND,
            lambda h: h @ head_VD.T,
            sampled_N,
            student_NK,
            topk=k,
            vocab_size=real,
            chunk_bytes=4 * real * chunk_rows,
        )
        # A row alone may be multiplied by another kernel, which rounds bfloat16 otherwise.
        tolerance = 1e-5 if dtype is torch.float32 else 0.1
        np.testing.assert_allclose(found["logprob"], expected["logprob"], atol=tolerance)
        np.testing.assert_allclose(found["at_student_topk"], expected["at"], atol=tolerance)
        np.testing.assert_allclose(found["entropy"], expected["entropy"], atol=tolerance)
        np.testing.assert_allclose(found["top_logprobs"], expected["top"], atol=tolerance)
        assert found["top_ids"].max() < real
        assert found["top_ids"].dtype == np.int32


def test_project_of_a_row_worked_out_by_hand() -> None:
    # Probabilities 1/2, 1/4, 1/4.
    logits_V = torch.tensor([[math.log(2.0), 0.0, 0.0]])
    found = project(
        torch.ones(1, 1),
        lambda h: h * logits_V,
        np.array([2]),
        np.array([[0, 1]]),
        topk=1,
        vocab_size=3,
    )
    assert found["logprob"][0] == pytest.approx(-math.log(4))
    assert found["at_student_topk"][0] == pytest.approx([-math.log(2), -math.log(4)])
    assert found["entropy"][0] == pytest.approx(1.5 * math.log(2))
    assert found["top_ids"].tolist() == [[0]]
