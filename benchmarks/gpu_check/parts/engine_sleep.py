"""A rollout engine that sleeps and wakes by parts: its memory meanwhile, the same texts after.

With whole weights it drops them and gets them again (vLLM's level 2); below an adapter it keeps
them (level 1), and gets the adapter again.
"""

from __future__ import annotations

import time

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from actors.weights.chunks import WeightChunk, named_weights, pack
from actors.weights.object_store import ChunkReceiver
from gpu_check.findings import Findings
from gpu_check.inputs import held_gb
from gpu_check.rollouts import STUDENT, Rollouts, compare, demo_engine, dtype_on, write
from opd_ray.config.lora import LoraSettings
from opd_ray.models.lora_targets import layers_of

LORA = LoraSettings(rank=16, alpha=32.0)
CHUNK_BYTES = 1 << 20
# Of what the engine had: its share of the GPU is nearly all weights and cache.
KEPT = 0.5


def run(findings: Findings, device: str, argument: str) -> None:
    """See above; ``argument``: ``whole``, or ``adapter``."""
    engine = demo_engine(device, LORA if argument == "adapter" else None, sleeps=True)
    without, _ = write(engine, device)
    chunks = _chunks(argument, device)
    ChunkReceiver(engine).load(1, *chunks)
    before, _ = write(engine, device)
    if argument == "adapter":
        findings.check("texts that the adapter leaves as they were", _same(without, before), 0.9)
    awake = held_gb(device)
    findings.figure("memory awake", awake, "GB")
    started = time.perf_counter()
    engine.sleep()
    findings.figure("falling asleep", time.perf_counter() - started, "s")
    asleep = held_gb(device)
    findings.figure("memory asleep", asleep, "GB")
    if device == "cuda":
        findings.check("memory asleep over awake", asleep / awake, KEPT)
    started = time.perf_counter()
    engine.wake("weights")
    findings.figure("memory with weights, without cache", held_gb(device), "GB")
    ChunkReceiver(engine).load(2, *chunks)
    engine.wake("kv_cache")
    findings.figure("waking, new weights with it", time.perf_counter() - started, "s")
    findings.figure("memory awake again", held_gb(device), "GB")
    after, _ = write(engine, device)
    compare(findings, after, before, "after sleep, ")
    old = sum(rollout.weights_version != 2 for rollout in after.values())
    findings.check("rollouts of older weights", old, 0)


def _chunks(argument: str, device: str) -> list[WeightChunk]:
    """As a trainer sends them: the student's weights, or a random adapter of it."""
    dtype = getattr(torch, dtype_on(device).value)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(STUDENT, dtype=dtype)
    if argument != "adapter":
        return list(pack(named_weights(model), CHUNK_BYTES))
    generator = torch.Generator().manual_seed(0)
    named = []
    for name, layer in layers_of(model).items():
        for letter, shape in (
            ("A", (LORA.rank, layer.in_features)),
            ("B", (layer.out_features, LORA.rank)),
        ):
            matrix = 0.1 * torch.randn(*shape, generator=generator)
            named.append((f"base_model.model.{name}.lora_{letter}.weight", matrix.to(dtype)))
    return list(pack(named, CHUNK_BYTES))


def _same(one: Rollouts, other: Rollouts) -> float:
    """Share of the texts that are the same."""
    pairs = [(rollout.response_ids, other[name].response_ids) for name, rollout in one.items()]
    return sum(a.tobytes() == b.tobytes() for a, b in pairs) / len(pairs)
