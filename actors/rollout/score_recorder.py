"""Per-token scores as a by-product of sampling: a vLLM logits processor that takes notes.

One log-softmax a step gives the entropy, the top-K and, once the sampler has spoken, the sampled
token's log-probability. It does without vLLM's own ``logprobs``, which would repeat the log-softmax
and build Python objects for every token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from vllm.distributed.parallel_state import get_tp_group
from vllm.v1.sample.logits_processor.interface import (
    BatchUpdate,
    LogitsProcessor,
    MoveDirectionality,
)

from actors.rollout.recorded_scores import (
    RECORD_KEY,
    TOPK_CONFIG,
    VOCAB_CONFIG,
    RecordedScores,
    ScoreArena,
)
from opd_ray.divergence.blocks import likeliest

if TYPE_CHECKING:
    from vllm.config import VllmConfig

# Logit of a vocabulary row that stands for no token. Finite, so that 0 x log 0 is no NaN.
_NO_TOKEN = -1e30
_ENTROPY_ELEMENTS = 1 << 24  # probabilities held at once while entropies are summed: 64 MB


@dataclass
class _Recording:
    """One request: the live list of its output tokens, and the arena row of every position."""

    output_ids: Sequence[int]
    rows: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Step:
    """A step whose sampled tokens were not known yet when its logits passed by."""

    logprobs_CV: torch.Tensor
    recordings: list[_Recording]
    positions: list[int]


class ScoreRecorder(LogitsProcessor):
    """Records entropy, sampled log-probability and top-K of every sampled token (float32, nats).

    A row of logits is recorded under the number of output tokens its request has at that moment,
    and the last write wins. So a row whose sample is thrown away (a partly prefilled prompt) is
    overwritten by the right one, and a preempted request goes on where it was. This relies on
    vLLM's promise that ``output_tok_ids`` is the request's live list; with asynchronous scheduling
    it holds placeholders when a response ends, so the engine must schedule synchronously.

    It runs before temperature, top-p and top-k, and so describes the distribution at temperature 1.
    In a tensor-parallel engine every worker sees the same logits; only the first records.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        if vllm_config.scheduler_config.async_scheduling:
            raise ValueError("ScoreRecorder needs async_scheduling=False")
        self._topk = int(vllm_config.additional_config[TOPK_CONFIG])
        self._vocab_size = int(vllm_config.additional_config[VOCAB_CONFIG])
        self._device = device
        self._records = get_tp_group().rank_in_group == 0
        self.arena = ScoreArena(self._topk, device)
        self._recordings: dict[str, _Recording] = {}
        self._batch: dict[int, _Recording] = {}  # batch row -> request
        self._last_step: _Step | None = None

    def is_argmax_invariant(self) -> bool:
        """False, so that greedy requests pass by too."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests through the batch's rows: removed, added, moved, in this order."""
        if batch_update is None or not self._records:
            return
        for row in batch_update.removed:
            self._batch.pop(row, None)
        for row, params, _, output_ids in batch_update.added:
            self._batch.pop(row, None)
            key = (params.extra_args or {}).get(RECORD_KEY)
            if key is not None:
                recording = self._recordings.setdefault(key, _Recording(output_ids))
                recording.output_ids = output_ids
                self._batch[row] = recording
        for source, target, direction in batch_update.moved:
            moved, replaced = self._batch.pop(source, None), self._batch.pop(target, None)
            if moved is not None:
                self._batch[target] = moved
            if replaced is not None and direction is MoveDirectionality.SWAP:
                self._batch[source] = replaced

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Record the rows of requests that asked for it.

        Rows of the vocabulary that stand for no token get no probability, here as in the trainer,
        so that they are neither sampled nor scored; the logits are otherwise untouched.
        """
        logits[:, self._vocab_size :] = _NO_TOKEN
        self._note_sampled_tokens()
        if not self._batch:
            return logits
        batch_rows = sorted(self._batch)
        recordings = [self._batch[row] for row in batch_rows]
        positions = [len(recording.output_ids) for recording in recordings]
        for recording, position in zip(recordings, positions, strict=True):
            if position == len(recording.rows):
                recording.rows.append(self.arena.take_row())
        rows_C = self._index([r.rows[t] for r, t in zip(recordings, positions, strict=True)])

        # Sampling overwrites the logits, so what is kept of them is a copy; one is enough.
        recorded_CV = logits if len(batch_rows) == len(logits) else logits[self._index(batch_rows)]
        logprobs_CV = torch.log_softmax(recorded_CV, dim=-1, dtype=torch.float32)
        topk_logprobs_CK, topk_ids_CK = likeliest(logprobs_CV, self._topk)
        self.arena.entropy_S[rows_C] = _entropy_C(logprobs_CV)
        self.arena.topk_ids_SK[rows_C] = topk_ids_CK.to(torch.int32)
        self.arena.topk_logprobs_SK[rows_C] = topk_logprobs_CK
        self._last_step = _Step(logprobs_CV, recordings, positions)
        return logits

    # As where vLLM calls apply(): tensors made in that mode cannot be written outside it.
    @torch.inference_mode()
    def pop(self, keys: Sequence[str]) -> list[RecordedScores] | None:
        """The scores of finished requests, one row an output token; forgets the requests.

        None in workers that do not record.

        Raises:
            KeyError: nothing was recorded under a key.
        """
        if not self._records:
            return None
        self._note_sampled_tokens()
        return [self.arena.take(self._recordings.pop(key).rows) for key in keys]

    @torch.inference_mode()
    def forget(self, keys: Sequence[str]) -> None:
        """Forget requests that were given up, whether anything was recorded of them or not."""
        self._note_sampled_tokens()
        for key in keys:
            if recording := self._recordings.pop(key, None):
                self.arena.give_back(recording.rows)

    def _note_sampled_tokens(self) -> None:
        """Write the log-probabilities of the tokens drawn from the last step's logits."""
        if self._last_step is None:
            return
        step, self._last_step = self._last_step, None
        batch_rows, tokens, arena_rows = [], [], []
        for batch_row, (recording, position) in enumerate(
            zip(step.recordings, step.positions, strict=True)
        ):
            if position < len(recording.output_ids):  # else the sample was thrown away
                batch_rows.append(batch_row)
                tokens.append(recording.output_ids[position])
                arena_rows.append(recording.rows[position])
        sampled_C = step.logprobs_CV[self._index(batch_rows), self._index(tokens)]
        self.arena.logprob_S[self._index(arena_rows)] = sampled_C

    def _index(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)


def _entropy_C(logprobs_CV: torch.Tensor) -> torch.Tensor:
    """Entropies in nats; a few rows at a time, so that a large vocabulary costs little memory."""
    rows = max(1, _ENTROPY_ELEMENTS // logprobs_CV.shape[1])
    return torch.cat([-part.exp().mul_(part).sum(dim=-1) for part in logprobs_CV.split(rows)])
