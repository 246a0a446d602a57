"""DeepSpeed's configuration for the trainer's settings."""

from __future__ import annotations

from typing import Any

from opd_ray.config.choices import Dtype
from opd_ray.config.schema import TrainerSettings, effective_zero_stage

_SMALLEST_BUCKET = 1 << 20


def engine_config(settings: TrainerSettings, *, hidden_size: int, on_gpu: bool) -> dict[str, Any]:
    """DeepSpeed's configuration as a dictionary.

    One number of micro-batches a step cannot be given: the trainer marks the last one of each step
    itself, so accumulation steps are 1 here and DeepSpeed divides by nothing but the ranks.

    Args:
        settings: the trainer's.
        hidden_size: of the student; bucket sizes scale with it as in transformers' defaults.
        on_gpu: whether the engine runs on a GPU.
    """
    adam: dict[str, Any] = {
        "lr": settings.learning_rate,
        "betas": (settings.adam_beta1, settings.adam_beta2),
        "eps": settings.adam_eps,
        "weight_decay": settings.weight_decay,
    }
    if not settings.offload_optimizer:
        # torch's AdamW needs no compiler; with optimizer offload DeepSpeed takes its own.
        adam |= {"torch_adam": True, "fused": True}
    zero: dict[str, Any] = {
        "stage": effective_zero_stage(settings),
        "reduce_bucket_size": max(hidden_size**2, _SMALLEST_BUCKET),
        "stage3_prefetch_bucket_size": int(0.9 * hidden_size**2),
        # Vectors stay whole on every rank, matrices are sharded.
        "stage3_param_persistence_threshold": 10 * hidden_size,
    }
    if settings.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm,
        "optimizer": {"type": "AdamW", "params": adam},
        "zero_optimization": zero,
    }
    if settings.dtype == Dtype.bfloat16:
        config["bf16"] = {"enabled": True}
        # Gradients are summed over micro-batches and ranks in float32.
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        config["communication_data_type"] = "fp32"
    return config
