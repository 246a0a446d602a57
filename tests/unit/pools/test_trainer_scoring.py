"""Exact scores of several trainer ranks, each of which answers for its share in its own order."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
from stand_ins import Response, Script, StandInWatch, Trainer

from opd_ray.config.schema import TrainerSettings
from opd_ray.pools.trainers import TrainerGroup
from opd_ray.types import RolloutRequest, RolloutScores, TrainItem

# As long as each other, with a divergence of its own each; the trainers sort by the tokens.
FIRST_TOKENS = [5, 2, 4, 1, 3]
RESPONSES = {
    f"p{number}": Response(
        mask=[1, 1, 1],
        logprob=[-1.0] * 3,
        reverse_kl=[0.0] * 3,
        exact_kl=[0.1 * number, 9.0, 0.1 * number + 0.05],
    )
    for number in range(5)
}


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_exact_scores_come_in_the_order_of_the_items(ranks: int) -> None:
    script = Script(RESPONSES)
    watch: Any = StandInWatch(Random(0))
    named = [(f"trainer-{number}", Trainer(script)) for number in range(ranks)]
    group = TrainerGroup(watch, named, TrainerSettings(micro_batch_tokens=4))
    items = []
    for number, first in enumerate(FIRST_TOKENS):
        prompt = np.array([first], np.int32)
        rollout = script.write(RolloutRequest(f"r{number}", "p", number, prompt, 0), 0)
        rows, ones = np.array([0, 2], np.int32), np.ones(2, np.float32)
        items.append(TrainItem(f"r{number}", prompt, rollout.response_ids, rows, ones, -ones))
    scores = group.score(
        items,
        lambda wanted: [[{key: rows.tolist() for key, rows in one.items()}] for one in wanted],
    )
    assert [one.rollout_id for one in scores] == ["r0", "r1", "r2", "r3", "r4"]
    for number, one in enumerate(scores):
        np.testing.assert_allclose(
            one.columns["reverse_kl"], [0.1 * number, 0.1 * number + 0.05], atol=1e-6
        )


@pytest.mark.parametrize("written", [[1], []])
def test_an_item_without_rows_is_not_sent_and_has_no_scores(written: list[int]) -> None:
    script = Script(RESPONSES)
    watch: Any = StandInWatch(Random(0))
    named = [(f"trainer-{number}", Trainer(script)) for number in range(2)]
    group = TrainerGroup(watch, named, TrainerSettings(micro_batch_tokens=4))
    items, wanted = [], {}
    for number in range(3):
        prompt = np.array([1 + number], np.int32)
        rollout = script.write(RolloutRequest(f"r{number}", "p", number, prompt, 0), 0)
        rows = np.array([0, 2] if number in written else [], np.int32)
        ones = np.ones(len(rows), np.float32)
        items.append(TrainItem(f"r{number}", prompt, rollout.response_ids, rows, ones, -ones))

    def signals(of: Any) -> list[Any]:
        for share in of:
            wanted.update(share)
        return [[{key: rows.tolist() for key, rows in share.items()}] for share in of]

    first, second, third = group.score(items, signals)
    assert wanted.keys() == {f"r{number}" for number in written}
    assert (first, third) == (RolloutScores("r0", {}), RolloutScores("r2", {}))
    assert second.rollout_id == "r1"
    assert len(second.columns.get("reverse_kl", ())) == 2 * len(written)
