"""What the rollout engine adds to vLLM's workers: scores, weight-transfer backends, RMS norms.

vLLM imports this module in every worker process before it loads the model.
"""

from __future__ import annotations

from collections.abc import Sequence

from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

import actors.kernels.one_adapter
import actors.kernels.rms_norm  # noqa: F401  (registers kernels)
from actors.engine_sleep import SleepOnCpu
from actors.rollout.recorded_scores import RecordedScores
from actors.rollout.score_recorder import ScoreRecorder
from actors.weights.registry import register_vllm_engines

register_vllm_engines()


class RolloutWorkerExtension(SleepOnCpu):
    """Methods that ``collective_rpc`` reaches (vLLM mixes them into its worker class)."""

    _weight_update_active: bool  # the worker's, too

    def pop_scores(self, keys: Sequence[str]) -> list[RecordedScores] | None:
        """See :meth:`ScoreRecorder.pop`."""
        return self._recorder.pop(keys)

    def forget_scores(self, keys: Sequence[str]) -> None:
        """See :meth:`ScoreRecorder.forget`."""
        self._recorder.forget(keys)

    def drop_weight_update(self) -> None:
        """Forget what a weight update that broke off has brought, so that another can begin.

        Layers that were whole have new weights already, the others go on collecting: vLLM would
        count what they have and take it for the next update's.
        """
        self._weight_update_active = False
        for layer in self.model_runner.model.modules():
            info = get_layerwise_info(layer)
            if info.can_load():
                info.load_numel = 0
                info.loaded_weights.clear()

    @property
    def _recorder(self) -> ScoreRecorder:
        return next(
            processor
            for processor in self.model_runner.input_batch.logitsprocs.all
            if isinstance(processor, ScoreRecorder)
        )
