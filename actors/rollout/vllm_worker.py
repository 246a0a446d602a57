"""What the rollout engine adds to vLLM's workers: scores, weight-transfer backends, RMS norms.

vLLM imports this module in every worker process before it loads the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import actors.kernels.rms_norm  # noqa: F401  (registers kernels)
from actors.rollout.recorded_scores import RecordedScores
from actors.rollout.score_recorder import ScoreRecorder
from actors.weights.registry import register_vllm_engines

register_vllm_engines()


class RolloutWorkerExtension:
    """Methods that ``collective_rpc`` reaches (vLLM mixes them into its worker class)."""

    model_runner: Any  # the worker's

    def pop_scores(self, keys: Sequence[str]) -> list[RecordedScores] | None:
        """See :meth:`ScoreRecorder.pop`."""
        recorder = next(
            processor
            for processor in self.model_runner.input_batch.logitsprocs.all
            if isinstance(processor, ScoreRecorder)
        )
        return recorder.pop(keys)
