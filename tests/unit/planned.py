"""A machine, a small model and a config, for tests of placement and memory."""

from __future__ import annotations

from typing import Any

from opd_ray.cluster.nodes import Cluster, Node
from opd_ray.config.schema import (
    Config,
    RolloutSettings,
    StudentSettings,
    TrainerSettings,
)
from opd_ray.config.teacher import TeacherSettings
from opd_ray.models.shape import ModelShape

GB = 10**9
SHAPE = ModelShape(
    model_type="qwen3",
    vocab_size=1000,
    hidden_size=64,
    intermediate_size=256,
    layers=4,
    heads=4,
    kv_heads=2,
    head_dim=16,
    context_length=512,
    tied=True,
    qkv_bias=False,
    output_bias=False,
    mlp_bias=False,
    qk_norm=True,
)


def machine(cpus: float, gpus: int = 0, nodes: int = 1, **more: Any) -> Cluster:
    return Cluster(tuple(Node(f"n{i}", cpus, 64 * GB, gpus, **more) for i in range(nodes)))


def make_config(
    trainer: dict[str, Any] | None = None,
    rollout: dict[str, Any] | None = None,
    teacher: dict[str, Any] | None = None,
) -> Config:
    return Config(
        student=StudentSettings(path="s"),
        trainer=TrainerSettings(**(trainer or {})),
        rollout=RolloutSettings(**(rollout or {})),
        teacher=TeacherSettings(path="t", **(teacher or {})),
    )
