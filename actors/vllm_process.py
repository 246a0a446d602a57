"""How a process that holds a vLLM engine is set up: environment variables, threads, logging."""

from __future__ import annotations

import logging
import os


def vllm_environment(threads: int) -> dict[str, str]:
    """Variables for the process of one engine, for Ray's ``runtime_env={"env_vars": ...}``.

    OpenMP reads its number of threads when its library loads. Set later, from Python, the number
    would hold for the calling thread alone, and vLLM's own kernels run in another.

    Args:
        threads: CPU threads of the engine's matrix products, at least 1.
    """
    return {
        "OMP_NUM_THREADS": str(threads),
        # Engine and scheduler in the actor's process: starts faster, and one step is one call.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # The runner whose logits processors record the student's scores, and whose hidden states
        # the teacher reads.
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


def prepare_vllm(threads: int) -> None:
    """Set this process up for an engine; before vLLM's first import."""
    os.environ.update(vllm_environment(threads))
    # vLLM logs while it is imported, before it sets up its own logging.
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
    # Would overrule the configured size of the KV cache.
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
    import torch

    # vLLM's CPU worker forbids this later on.
    torch.set_num_threads(threads)
