"""Rows of per-token scores in tensors that grow: written by the step, read by the response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

# The keys under which the engine tells the recorder K and the number of real tokens
# (additional_config), and which requests to record under what name (SamplingParams.extra_args).
TOPK_CONFIG = "opd_ray_record_topk"
VOCAB_CONFIG = "opd_ray_vocab_size"
RECORD_KEY = "opd_ray_record"


@dataclass(frozen=True)
class RecordedScores:
    """Scores of a response's m tokens, nats, of the model's distribution at temperature 1."""

    entropy_m: np.ndarray  # float32, over the full vocabulary
    logprob_m: np.ndarray  # float32, of the sampled token
    topk_ids_mK: np.ndarray  # int32, likeliest first
    topk_logprobs_mK: np.ndarray  # float32


class ScoreArena:
    """Storage of 8 + 8 K bytes a row on the engine's device; rows are handed out and given back.

    Args:
        topk: K.
        device: of the tensors.
        rows: rows to begin with; doubled whenever they run out.
    """

    def __init__(self, topk: int, device: torch.device, rows: int = 4096) -> None:
        self._free = list(range(rows))
        self.entropy_S = torch.empty(rows, dtype=torch.float32, device=device)
        self.logprob_S = torch.empty(rows, dtype=torch.float32, device=device)
        self.topk_ids_SK = torch.empty(rows, topk, dtype=torch.int32, device=device)
        self.topk_logprobs_SK = torch.empty(rows, topk, dtype=torch.float32, device=device)

    def take_row(self) -> int:
        """A free row."""
        if not self._free:
            self._double()
        return self._free.pop()

    def take(self, rows: Sequence[int]) -> RecordedScores:
        """What the given rows hold, in that order; the rows are free afterwards."""
        index_m = torch.tensor(rows, dtype=torch.long, device=self.entropy_S.device)
        self.give_back(rows)
        return RecordedScores(
            entropy_m=self.entropy_S[index_m].cpu().numpy(),
            logprob_m=self.logprob_S[index_m].cpu().numpy(),
            topk_ids_mK=self.topk_ids_SK[index_m].cpu().numpy(),
            topk_logprobs_mK=self.topk_logprobs_SK[index_m].cpu().numpy(),
        )

    def give_back(self, rows: Sequence[int]) -> None:
        """Nobody wants to know what these rows hold."""
        self._free.extend(rows)

    def _double(self) -> None:
        rows = len(self.entropy_S)
        self._free.extend(range(rows, 2 * rows))
        for name in ("entropy_S", "logprob_S", "topk_ids_SK", "topk_logprobs_SK"):
            old = getattr(self, name)
            setattr(self, name, torch.cat([old, torch.empty_like(old)]))
