"""The student's adapter in a rollout engine: vLLM adds it to its own copy of the weights.

Written against vLLM 0.32, which takes an adapter from a folder and keeps what it read. Each version
has a name of its own, which is part of the keys of vLLM's prefix cache, and a number of its own:
vLLM would not read one that it has already.
"""

from __future__ import annotations

import itertools
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from actors.weights.adapter_folder import save_adapter
from actors.weights.chunks import WeightChunk, unpack
from opd_ray.borders import writing
from opd_ray.config.lora import LoraSettings
from opd_ray.config.schema import StudentSettings
from opd_ray.models.lora_targets import linear_layers, targets

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.llm_engine import LLMEngine


class EngineAdapter:
    """The adapter that an engine writes with, and the next one while it arrives.

    Args:
        engine: vLLM's, made with :func:`adapter_args`.
        lora: of the student.

    Attributes:
        request: what every request of the engine carries; None: no adapter has come yet.
    """

    def __init__(self, engine: LLMEngine, lora: LoraSettings) -> None:
        self._engine, self._lora = engine, lora
        self._numbers = itertools.count(1)
        self._arrived: dict[str, torch.Tensor] = {}
        self.request: LoRARequest | None = None

    def begin(self) -> None:
        """Another one comes; what one that broke off has brought is forgotten."""
        self._arrived.clear()

    def receive(self, chunk: WeightChunk) -> None:
        """Take in some of its tensors."""
        self._arrived |= {name: tensor.clone() for name, tensor in unpack(chunk)}

    def finish(self, version: int) -> None:
        """Write with it from now on; the one before is let go of once this one is whole.

        Raises:
            RuntimeError: nothing has arrived.
            ValueError: vLLM refuses it; the one before stays.
            WriteError: its files cannot be written.
        """
        from vllm.lora.request import LoRARequest

        if not self._arrived:
            raise RuntimeError("an update of the adapter without a tensor")
        number = next(self._numbers)
        # vLLM reads it in this call, in all workers, which are on this node, and never again.
        with ExitStack() as stack:
            with writing(Path(tempfile.gettempdir())):
                above = stack.enter_context(tempfile.TemporaryDirectory(prefix="opd_ray_adapter_"))
            folder = f"{above}/version_{version}"
            save_adapter(self._config(), self._arrived, folder)
            request = LoRARequest(f"student-{number}-version-{version}", number, folder)
            if not self._engine.add_lora(request):
                raise RuntimeError(f"vLLM did not take the adapter of version {version}")
        if self.request is not None:
            self._engine.remove_lora(self.request.lora_int_id)
        self.request = request
        self._arrived.clear()

    def _config(self) -> dict[str, Any]:
        """What vLLM reads of an adapter_config.json."""
        layers = {name.split(".")[-3] for name in self._arrived}
        return {
            "peft_type": "LORA",
            "r": self._lora.rank,
            "lora_alpha": self._lora.scale * self._lora.rank,
            "target_modules": sorted(layers),
            "bias": "none",
        }


def adapter_args(student: StudentSettings) -> dict[str, Any]:
    """Arguments of vLLM's ``EngineArgs`` with which it takes such adapters, one at a time.

    vLLM would have room for one of the embedding and the output head, too, and compute with it.
    """
    lora = student.lora
    layers = linear_layers(student.path, trust_remote_code=student.trust_remote_code)
    named = {name.rpartition(".")[2] for name in targets(layers, lora.target_modules)}
    return {
        "enable_lora": True,
        "max_lora_rank": lora.rank,
        "max_loras": 1,
        # Room for the next one beside the one that is in use.
        "max_cpu_loras": 2,
        "lora_target_modules": sorted(named) or None,
    }
