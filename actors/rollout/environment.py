"""The environment variables that a rollout actor's process must be started with."""

from __future__ import annotations

from actors.vllm_process import vllm_environment
from opd_ray.config.schema import RolloutSettings

# The keys under which the engine tells the recorder K and the number of real tokens
# (additional_config), and which requests to record under what name (SamplingParams.extra_args).
TOPK_CONFIG = "opd_ray_record_topk"
VOCAB_CONFIG = "opd_ray_vocab_size"
RECORD_KEY = "opd_ray_record"


def engine_environment(rollout: RolloutSettings) -> dict[str, str]:
    """Variables for the process of one engine, for Ray's ``runtime_env={"env_vars": ...}``."""
    return vllm_environment(engine_threads(rollout))


def engine_threads(rollout: RolloutSettings) -> int:
    """CPU threads of an engine; one where no placement plan has filled them in."""
    return rollout.threads or 1
