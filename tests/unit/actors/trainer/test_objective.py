"""The trainer's loss follows the section ``loss``, over all targets of a micro-batch."""

from __future__ import annotations

import divergence_by_definition as definition
import pytest
import torch
from torch import Tensor

from actors.trainer.batch import MicroBatch
from actors.trainer.objective import Objective
from opd_ray.config.schema import LossSettings
from opd_ray.divergence import HiddenTarget
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
