"""Rollouts of the demo's student by an engine, and how two times that it wrote them compare."""

from __future__ import annotations

import time

import numpy as np

from actors.rollout.engine import RolloutEngine
from gpu_check.findings import Findings
from gpu_check.inputs import synchronize
from opd_ray.config.choices import Dtype
from opd_ray.config.lora import LoraSettings
from opd_ray.config.schema import RolloutSettings, StudentSettings, SyncSettings
from opd_ray.models.pairs.demo import pair_folder
from opd_ray.types import Rollout, RolloutRequest, Sampling

STUDENT = pair_folder() / "student"
PROMPTS, CONTEXT, NEW_TOKENS, TOP_K = 64, 128, 32, 8
# Matrix products round by kernel and shape: a few tokens with close rivals may differ.
DIFFERENT_TEXTS, LOGPROB_LIMIT = 0.2, 5e-2

Rollouts = dict[str, Rollout]  # by id


def dtype_on(device: str) -> Dtype:
    """What vLLM's attention on GPUs is made for."""
    return Dtype.bfloat16 if device == "cuda" else Dtype.float32


def demo_engine(
    device: str, lora: LoraSettings | None = None, *, eager: bool = False, sleeps: bool = False
) -> RolloutEngine:
    """An engine in this process; with ``lora`` it takes adapters."""
    return RolloutEngine(
        StudentSettings(str(STUDENT), context_length=CONTEXT, lora=lora or LoraSettings()),
        RolloutSettings(
            gpus_per_actor=int(device == "cuda"),
            dtype=dtype_on(device),
            enforce_eager=eager,
            record_topk=TOP_K,
            gpu_memory_utilization=0.3,
            kv_cache_bytes=1 << 26,
            threads=1,
        ),
        SyncSettings(),
        sleeps=sleeps,
    )


def write(engine: RolloutEngine, device: str) -> tuple[Rollouts, float]:
    """Greedy responses to the same prompts at every call, and how many tokens a second."""
    rng = np.random.default_rng(0)
    requests = [
        RolloutRequest(str(n), str(n), 0, rng.integers(4, 24, 12).astype(np.int32), seed=n)
        for n in range(PROMPTS)
    ]
    engine.add(requests, Sampling(temperature=0.0, max_tokens=NEW_TOKENS), record=True)
    rollouts: list[Rollout] = []
    synchronize(device)
    started = time.perf_counter()
    while engine.has_unfinished():
        rollouts += engine.step()
    seconds = time.perf_counter() - started
    tokens = sum(len(rollout.response_ids) for rollout in rollouts)
    return {rollout.rollout_id: rollout for rollout in rollouts}, tokens / seconds


def compare(findings: Findings, found: Rollouts, expected: Rollouts, what: str = "") -> None:
    """Check that they are the same texts with the same scores; ``what`` begins the names."""
    same = [
        name
        for name, rollout in found.items()
        if np.array_equal(rollout.response_ids, expected[name].response_ids)
    ]
    share = 1 - len(same) / len(expected)
    findings.check(f"{what}share of texts that differ", share, DIFFERENT_TEXTS)
    apart = [np.abs(found[name].logprob - expected[name].logprob).max() for name in same]
    worst = float(max(apart, default=np.nan))
    findings.check(f"{what}log-probabilities of equal texts, nats", worst, LOGPROB_LIMIT)
