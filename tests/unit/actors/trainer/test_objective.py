"""The trainer's loss follows the section ``loss``, over all targets of a micro-batch."""

from __future__ import annotations

import math
from dataclasses import replace

import divergence_by_definition as definition
import pytest
import torch
from torch import Tensor

from actors.trainer.batch import MicroBatch
from actors.trainer.objective import Objective
from opd_ray.config.schema import LossSettings
from opd_ray.divergence import HiddenTarget, SampledTarget
from opd_ray.types import Divergence

V, D = 11, 5
SCALE = 0.7


def normal(seed: int, *shape: int) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=made, dtype=torch.float64)


def micro_batch() -> MicroBatch:
    """Five kept rows, three of one teacher and two of another, whose heads differ in width."""
    nothing = torch.zeros(0)
    return MicroBatch(
        rollout_ids=("a", "b", "c"),
        rows_per_rollout=(1, 2, 2),
        ids_1T=nothing,
        positions_1T=nothing,
        segments=(),
        padding_tokens=0,
        kept_N=nothing,
        sampled_ids_N=torch.tensor([0, 3, 5, 7, 10]),
        weights_N=torch.tensor([1.0, 0.5, 2.0, 1.0, 0.25]),
        rollout_logprob_N=nothing,
        targets=(
            HiddenTarget(normal(0, 3, 4), normal(1, V + 2, 4)),
            HiddenTarget(normal(2, 2, 6), normal(3, V + 2, 6)),
        ),
    )


@pytest.mark.parametrize("kind", Divergence)
def test_loss_and_gradients_are_those_of_the_settings(kind: Divergence) -> None:
    batch = micro_batch()
    hidden_ND = normal(4, 5, D).requires_grad_()
    head_VD = normal(5, V + 1, D).requires_grad_()
    settings = LossSettings(divergence=kind, beta=0.3, temperature=1.7, chunk_rows=2)
    loss, divergence_N, _ = Objective(settings, V).divergence(
        batch, SCALE, hidden_ND, head_VD, None
    )
    parts = [
        definition.loss(
            hidden_ND[rows],
            head_VD,
            target,
            kind=kind.value,
            beta=settings.beta,
            temperature=settings.temperature,
            weights_N=batch.weights_N[rows] * SCALE,
            vocab_size=V,
        )
        for rows, target in zip((slice(0, 3), slice(3, 5)), batch.targets, strict=True)
    ]
    expected = parts[0][0] + parts[1][0]
    torch.testing.assert_close(divergence_N, torch.cat([of_rows for _, of_rows in parts]))
    torch.testing.assert_close(loss.detach(), expected.detach())
    for found, wanted in zip(
        torch.autograd.grad(loss, (hidden_ND, head_VD)),
        torch.autograd.grad(expected, (hidden_ND, head_VD)),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)


def test_sampled_tokens_of_a_lagged_run_are_weighed_by_what_the_engine_said_of_them() -> None:
    """The student gives all of 4 tokens 1/4; the engine gave the sampled ones 1/2 and 1/8."""
    batch = replace(
        micro_batch(),
        rollout_ids=("a",),
        rows_per_rollout=(2,),
        sampled_ids_N=torch.tensor([1, 2]),
        weights_N=torch.tensor([1.0, 3.0]),
        rollout_logprob_N=torch.tensor([0.5, 0.125]).log(),
        targets=(SampledTarget(torch.tensor([1, 2]), torch.tensor([0.125, 0.0625]).log()),),
    )
    hidden_ND, head_VD = torch.zeros(2, 3), torch.zeros(4, 3)
    found = {
        lagged: Objective(LossSettings(), 4, lagged).divergence(
            batch, 1.0, hidden_ND, head_VD, None
        )
        for lagged in (False, True)
    }
    ln2 = math.log(2)
    assert found[False][1].tolist() == pytest.approx([ln2, 2 * ln2])
    assert found[True][1].tolist() == pytest.approx([ln2 / 2, 4 * ln2])
    assert found[True][0].item() == pytest.approx(12.5 * ln2)
    assert found[True][2].tolist() == pytest.approx([-2 * ln2, -2 * ln2])


def test_other_signals_of_a_lagged_run_need_no_ratio() -> None:
    """The divergence of whole distributions is the current student's, whoever wrote the token."""
    batch = replace(micro_batch(), rollout_logprob_N=torch.full((5,), -3.0))
    hidden_ND, head_VD = normal(4, 5, D), normal(5, V + 1, D)
    plain, lagged = (
        Objective(LossSettings(), V, lagged).divergence(batch, SCALE, hidden_ND, head_VD, None)
        for lagged in (False, True)
    )
    assert all(torch.equal(one, other) for one, other in zip(plain, lagged, strict=True))
