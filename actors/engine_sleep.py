"""A vLLM engine that sleeps and wakes: vLLM's own sleep mode on a GPU, ours on a CPU.

vLLM 0.32 has it on GPUs alone; its CPU workers say that they ignore it. There an extension of the
worker (:class:`SleepOnCpu`) drops what a GPU worker would drop. The scheduler's part is vLLM's own
in both cases: asleep, it starts nothing.

What has never run: everything with ``on_gpu``.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, Literal

import torch

from actors.parking import Dropped, Parking, give_back_free_memory

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine

Part = Literal["weights", "kv_cache"]
PARTS: tuple[Part, ...] = ("weights", "kv_cache")  # in the order in which they wake


class Sleep(IntEnum):
    """vLLM's levels."""

    keeping_weights = 1  # in main memory
    dropping_weights = 2  # others come before the engine writes again


def fall_asleep(engine: LLMEngine, level: Sleep, *, on_gpu: bool) -> None:
    """Have an engine without requests give the memory of weights and cache back."""
    engine.sleep(level=int(level))
    if not on_gpu:
        engine.collective_rpc("fall_asleep_on_cpu", args=(int(level),))


def wake_up(engine: LLMEngine, part: Part, *, on_gpu: bool) -> None:
    """Have it take the memory of a part again; once it has both, it may write."""
    if not on_gpu:
        engine.collective_rpc("wake_up_on_cpu", args=(part,))
    engine.wake_up(tags=[part])


class SleepOnCpu:
    """Methods that ``collective_rpc`` reaches (vLLM mixes them into its worker class).

    Weights that vLLM has packed for its CPU kernels lie in objects of those: where other weights
    come, the objects go too, and are made anew from them. Where the engine is to keep its weights,
    they stay.
    """

    model_runner: Any  # the worker's

    def fall_asleep_on_cpu(self, level: int) -> None:
        """Give memory back: of the cache, and of weights, kept elsewhere or dropped."""
        model, cpu = self.model_runner.model, torch.device("cpu")
        self._dropped_cache = Dropped(self.model_runner.kv_caches, cpu)
        self._dropped_weights: Dropped | None = None
        self._parked_weights = Parking(cpu)
        if level == Sleep.dropping_weights:
            self._dropped_weights = Dropped(model.parameters(), cpu)
            for layer in model.modules():
                vars(layer).pop("cpu_linear", None)
            give_back_free_memory(cpu)
        else:
            self._parked_weights.park(model.parameters())

    def wake_up_on_cpu(self, part: Part) -> None:
        """Take memory again. Dropped weights are NaN, so that one that does not come is noticed."""
        if part == "kv_cache":
            self._dropped_cache.take_anew(0)
        elif self._dropped_weights is not None:
            self._dropped_weights.take_anew(0xFF)
        else:
            self._parked_weights.bring_back()
