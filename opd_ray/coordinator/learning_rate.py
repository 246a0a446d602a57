"""Learning rate of a step: linear warm-up, then constant, linear or cosine decay."""

from __future__ import annotations

import math

from opd_ray.config.choices import LrSchedule
from opd_ray.config.schema import TrainerSettings


def learning_rate(step: int, total_steps: int, settings: TrainerSettings) -> float:
    """Learning rate of the optimizer step number ``step``, counted from 0.

    Warm-up step s of w takes (s + 1) / w of the peak, so that no step is lost to a rate of 0.
    Afterwards the decay runs from the peak to ``min_lr_ratio`` of it, which it would reach one step
    after the last, so that no decaying step is lost either.

    Args:
        step: 0 <= step < total_steps.
        total_steps: optimizer steps of the run.
        settings: ``learning_rate`` (the peak), ``lr_schedule``, ``warmup_steps``, ``min_lr_ratio``.

    Raises:
        ValueError: the step lies outside the run.
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"step {step} lies outside a run of {total_steps} steps")
    peak, warmup = settings.learning_rate, settings.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    if settings.lr_schedule == LrSchedule.constant:
        return peak
    progress = (step - warmup) / (total_steps - warmup)
    left = 1.0 - progress
    if settings.lr_schedule == LrSchedule.cosine:
        left = 0.5 * (1.0 + math.cos(math.pi * progress))
    return peak * (settings.min_lr_ratio + (1.0 - settings.min_lr_ratio) * left)
