"""Rollouts of which a test of figures looks at the mask and little else."""

from __future__ import annotations

from typing import Any

import numpy as np

from opd_ray.types import Rollout


def masked_rollout(mask: list[int], **fields: Any) -> Rollout:
    """One that the student wrote where ``mask`` is 1; ``fields`` in place of what it has else."""
    ids, floats = np.zeros(len(mask), np.int32), np.zeros(len(mask), np.float32)
    given = {
        "rollout_id": "r",
        "prompt_id": "r",
        "sample": 0,
        "prompt_ids": ids,
        "response_ids": ids,
        "response_mask": np.array(mask, np.uint8),
        "entropy": floats,
        "logprob": floats,
        "finish_reason": "stop",
        "weights_version": 0,
    }
    return Rollout(**(given | fields))
