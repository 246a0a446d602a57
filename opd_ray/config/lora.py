"""The section ``student.lora``: the student trained as an adapter of a few ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from opd_ray.config.choices import BaseFormat, LoraForm
from opd_ray.config.ranges import ABOVE_ZERO, at_least
from opd_ray.on_resume import FIXED, FREE

# What vLLM may be told as the largest rank of an engine (``vllm.config.lora.MaxLoRARanks``).
SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

_NOT_SERVED = "vLLM serves no such adapter, so rollouts would not be the student's; leave it out"


@dataclass
class LoraSettings:
    # Rank of the two matrices that every target layer gets; everything else is frozen. With
    # sync.lora = adapter one of 1, 8, 16, 32, 64, 128, 256, 320, 512. 0: the student is trained
    # whole.
    rank: int = field(default=0, metadata=at_least(0) | FIXED)
    # The product of the two is multiplied by alpha / rank; null: alpha is the rank.
    alpha: float | None = field(default=None, metadata=ABOVE_ZERO | FIXED)
    # Linear layers by the last part of their names (q_proj, down_proj, ...); empty: all of the
    # transformer's layers. Not the embedding, nor the output head.
    target_modules: list[str] = field(default_factory=list, metadata=FIXED)
    # Number format of the frozen weights in the trainer: "full" is trainer.dtype, "nf4" four bits
    # (QLoRA; needs trainer.gpus_per_rank and bitsandbytes).
    base: BaseFormat = field(default=BaseFormat.full, metadata=FIXED)
    # What run.export_at_end writes: "merged" a whole model, "adapter" the adapter alone.
    export: LoraForm = field(default=LoraForm.merged, metadata=FREE)

    # Keys of peft's that mean something else here or nothing, and why.
    refused_keys: ClassVar[Mapping[str, str]] = {
        "use_dora": _NOT_SERVED,
        "bias": _NOT_SERVED,
        "lora_bias": _NOT_SERVED,
        "modules_to_save": _NOT_SERVED,
        "target_parameters": _NOT_SERVED,
        "rank_pattern": "all target layers have one rank, student.lora.rank",
        "alpha_pattern": "all target layers have one scale, student.lora.alpha",
        "layers_to_transform": "all layers get the adapter; leave it out",
        "dropout": "rollouts are written without dropout, so it is not trained with it either",
        "lora_dropout": "rollouts are written without dropout, so it is not trained with it either",
        "use_rslora": "for that scale set student.lora.alpha to alpha x sqrt(rank)",
        "init_lora_weights": "the first matrix begins random, the second at zero",
        "r": "it is student.lora.rank",
        "lora_alpha": "it is student.lora.alpha",
    }

    @property
    def on(self) -> bool:
        """Whether the student is trained as an adapter."""
        return self.rank > 0

    @property
    def scale(self) -> float:
        """What the product of an adapter's two matrices is multiplied by."""
        return (self.rank if self.alpha is None else self.alpha) / self.rank
