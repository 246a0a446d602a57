"""What a rank adds up over the micro-batches of a step, by hand."""

from __future__ import annotations

import pytest
import torch

from actors.trainer.batch import MicroBatch
from actors.trainer.tally import StepTally

NOTHING = torch.zeros(0)


def micro_batch(names: tuple[str, ...], engine: list[float], trunk_tokens: int) -> MicroBatch:
    """Rollouts of a kept row each, to whose token the engine gave these probabilities."""
    return MicroBatch(
        rollout_ids=names,
        rows_per_rollout=(1,) * len(names),
        ids_1T=torch.zeros(1, trunk_tokens),
        positions_1T=NOTHING,
        segments=(),
        padding_tokens=1,
        kept_N=NOTHING,
        sampled_ids_N=NOTHING,
        weights_N=torch.ones(len(engine)),
        rollout_logprob_N=torch.tensor(engine).log(),
        targets=(),
    )


def test_gaps_and_ratios_by_hand() -> None:
    """Ratios 2, 1 and 1/4."""
    tally = StepTally(torch.device("cpu"))
    assert (tally.is_empty, tally.gap(), tally.ratios()) == (True, (0.0, 0.0), (0.0, 0.0, 0.0))
    first = micro_batch(("a", "b"), [0.25, 0.5], 7)
    tally.add(first, torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.5]).log())
    tally.add(micro_batch((), [1.0], 1), torch.tensor([9.0]), torch.tensor([9.0]))  # a stand-in
    tally.add(micro_batch(("c",), [0.5], 4), torch.tensor([0.5]), torch.tensor([0.125]).log())
    ln2 = 0.6931471805599453
    assert tally.gap() == pytest.approx((3 * ln2, 2 * ln2))
    assert tally.ratios() == pytest.approx((-ln2, 3.25, 5.0625))
    assert (tally.is_empty, tally.kept_tokens, tally.trunk_tokens) == (False, 3, 12)
    assert (tally.loss_sum, tally.weight_sum, tally.padding_tokens) == (3.5, 3.0, 3)
    assert (tally.rollout_ids, tally.not_finite()) == (["a", "b", "c"], [])


def test_rollouts_of_every_micro_batch_are_named() -> None:
    tally = StepTally(torch.device("cpu"))
    for names, values in ((("a", "b"), [1.0, torch.nan]), (("c",), [torch.inf])):
        engine = [0.5] * len(names)
        tally.add(micro_batch(names, engine, 2), torch.tensor(values), torch.zeros(len(names)))
    assert tally.not_finite() == ["b", "c"]
