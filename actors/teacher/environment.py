"""The environment variables that a teacher's process must be started with."""

from __future__ import annotations

from actors.malloc import KEEP_FREED_MEMORY
from actors.vllm_process import vllm_environment
from opd_ray.config.teacher import TeacherSettings


def teacher_environment(settings: TeacherSettings) -> dict[str, str]:
    """Variables for the process of one replica, for Ray's ``runtime_env={"env_vars": ...}``.

    They are read when a process starts its thread pools and allocates for the first time.
    """
    if settings.kind == "vllm":
        return vllm_environment(settings.threads)
    threads = {"OMP_NUM_THREADS": str(settings.threads)}
    return threads if settings.gpus_per_replica else threads | KEEP_FREED_MEMORY
