"""Rollouts by vLLM with CUDA graphs and without: the same tokens, scores and how many a second."""

from __future__ import annotations

import gc
import time

import numpy as np
import torch

from actors.rollout.engine import RolloutEngine
from gpu_check.findings import Findings
from gpu_check.inputs import synchronize
from opd_ray.config.choices import Dtype
from opd_ray.config.schema import RolloutSettings, StudentSettings, SyncSettings
from opd_ray.models.pairs.demo import pair_folder
from opd_ray.types import Rollout, RolloutRequest, Sampling

PROMPTS, CONTEXT, NEW_TOKENS, TOP_K = 64, 128, 32, 8
# Matrix products round by kernel and shape: a few tokens with close rivals may differ.
DIFFERENT_TEXTS, LOGPROB_LIMIT = 0.2, 5e-2


def run(findings: Findings, device: str, argument: str) -> None:
    """See above; on a CPU, where there are no graphs, both are the same engine."""
    graphs = _write(findings, device, False)
    eager = _write(findings, device, True)
    if device != "cuda":
        findings.figure("graphs", "none on a CPU: both engines are the same")
    same = [
        name
        for name, rollout in graphs.items()
        if np.array_equal(rollout.response_ids, eager[name].response_ids)
    ]
    findings.check("share of texts that differ", 1 - len(same) / len(graphs), DIFFERENT_TEXTS)
    apart = [np.abs(graphs[name].logprob - eager[name].logprob).max() for name in same]
    findings.check(
        "log-probabilities of equal texts, nats", float(max(apart, default=np.nan)), LOGPROB_LIMIT
    )


def _write(findings: Findings, device: str, eager: bool) -> dict[str, Rollout]:
    """All rollouts, greedily, by an engine of its own."""
    on_gpu = device == "cuda"
    name = "without graphs" if eager else "with graphs"
    started = time.perf_counter()
    engine = RolloutEngine(
        StudentSettings(path=str(pair_folder() / "student"), context_length=CONTEXT),
        RolloutSettings(
            gpus_per_actor=int(on_gpu),
            # What vLLM's attention on GPUs is made for.
            dtype=Dtype.bfloat16 if on_gpu else Dtype.float32,
            enforce_eager=eager,
            record_topk=TOP_K,
            gpu_memory_utilization=0.3,
            kv_cache_bytes=1 << 26,
            threads=1,
        ),
        SyncSettings(),
    )
    findings.figure(f"start {name}", time.perf_counter() - started, "s")
    rng = np.random.default_rng(0)
    requests = [
        RolloutRequest(str(n), str(n), 0, rng.integers(4, 24, 12).astype(np.int32), seed=n)
        for n in range(PROMPTS)
    ]
    sampling = Sampling(temperature=0.0, max_tokens=NEW_TOKENS)
    found: dict[str, Rollout] = {}
    for _ in range(2):  # the first call compiles
        engine.add(requests, sampling, record=True)
        rollouts = []
        synchronize(device)
        started = time.perf_counter()
        while engine.has_unfinished():
            rollouts += engine.step()
        seconds = time.perf_counter() - started
        found = {rollout.rollout_id: rollout for rollout in rollouts}
    tokens = sum(len(rollout.response_ids) for rollout in found.values())
    findings.figure(f"tokens/s {name}", tokens / seconds)
    del engine
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
    return found
