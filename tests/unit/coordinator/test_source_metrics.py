"""Figures by the source of the prompts, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from masked_rollouts import masked_rollout

from opd_ray.coordinator.source_metrics import MOST_SOURCES, source_metrics
from opd_ray.tip import Selection, TokenScores
from opd_ray.types import Rollout


def rollout(source: str, mask: list[int], ending: str = "stop") -> Rollout:
    return masked_rollout(mask, source=source, finish_reason=ending)


def found(rollouts: list[Rollout], entropy: list[float], kept: list[int]) -> dict[str, float]:
    mask_N = np.concatenate([one.response_mask for one in rollouts]).astype(bool)
    lengths_R = np.array([len(one.response_mask) for one in rollouts])
    scores = TokenScores(lengths_R, mask_N, 100, entropy_N=np.array(entropy, np.float32))
    return source_metrics(rollouts, scores, Selection(np.array(kept, np.float64), 0.5, 0.5))


def test_each_source_has_the_means_of_its_own_tokens() -> None:
    rollouts = [
        rollout("sums", [1, 1]),
        rollout("code.jsonl", [1, 0, 1]),  # a tool wrote the second
        rollout("sums", [1], "length"),
    ]
    values = found(rollouts, [0.1, 0.3, 1.0, 2.5, 3.0, 0.5], [1, 0, 1, 0, 1, 0])
    assert values == {
        "source/code.jsonl/rollouts": 1,
        "source/code.jsonl/tokens": 2,
        "source/code.jsonl/truncated": 0.0,
        "source/code.jsonl/kept_share": 1.0,
        "source/code.jsonl/entropy_mean": 2.0,
        "source/sums/rollouts": 2,
        "source/sums/tokens": 3,
        "source/sums/truncated": 0.5,
        "source/sums/kept_share": pytest.approx(1 / 3),
        "source/sums/entropy_mean": pytest.approx(0.3),
    }


def test_a_source_of_which_nothing_was_written_has_no_means() -> None:
    values = found([rollout("a", [1]), rollout("b", [0])], [0.5, 0.0], [1, 0])
    assert values["source/b/tokens"] == 0
    assert "source/b/kept_share" not in values
    assert "source/b/entropy_mean" not in values


@pytest.mark.parametrize("count", [1, MOST_SOURCES + 1])
def test_one_source_or_very_many_have_no_figures_of_their_own(count: int) -> None:
    rollouts = [rollout(str(number), [1]) for number in range(count)]
    assert found(rollouts, [0.5] * count, [1] * count) == {}
