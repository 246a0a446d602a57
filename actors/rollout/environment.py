"""The environment variables that a rollout actor's process must be started with."""

from __future__ import annotations

import os

from opd_ray.config.schema import RolloutSettings

# The keys under which the engine tells the recorder K and the number of real tokens
# (additional_config), and which requests to record under what name (SamplingParams.extra_args).
TOPK_CONFIG = "opd_ray_record_topk"
VOCAB_CONFIG = "opd_ray_vocab_size"
RECORD_KEY = "opd_ray_record"


def engine_environment(rollout: RolloutSettings) -> dict[str, str]:
    """Variables for the process of one engine, for Ray's ``runtime_env={"env_vars": ...}``.

    OpenMP reads its number of threads when its library loads. Set later, from Python, the number
    would hold for the calling thread alone, and vLLM's own kernels run in another.
    """
    return {
        "OMP_NUM_THREADS": str(engine_threads(rollout)),
        # Engine and scheduler in the actor's process: starts faster, and one step is one call.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # The interface of logits processors that the score recorder implements.
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        # CPU workers in processes of their own (tensor parallel) share cores with the other stages;
        # pinned, several engines would sit on the same core.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        # Many images forbid byte code on disk. vLLM's import then compiles thousands of files at
        # every start, which takes longer than all the rest of it.
        "PYTHONDONTWRITEBYTECODE": "",
        # vLLM and PyTorch warn at length on every start; set these to see it.
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
        "PYTHONWARNINGS": os.environ.get(
            "PYTHONWARNINGS", "ignore::FutureWarning:vllm.triton_utils.dispatcher"
        ),
    }


def engine_threads(rollout: RolloutSettings) -> int:
    """CPU threads of an engine; one where no placement plan has filled them in."""
    return rollout.threads or 1
