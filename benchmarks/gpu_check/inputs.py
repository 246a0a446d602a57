"""Random models and texts, larger on a GPU than on a CPU."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from opd_ray.models.pairs.demo import pair_folder


@dataclass(frozen=True)
class Size:
    """Of models and texts."""

    hidden: int
    layers: int
    vocab: int
    prompt: int  # tokens
    response: int  # tokens, at most
    texts: int
    rows: int  # of a loss without a model

    @classmethod
    def on(cls, device: str) -> Size:
        if device == "cuda":
            return cls(1024, 6, 32_768, 96, 384, 16, 1024)
        return cls(128, 2, 512, 12, 24, 6, 48)


def random_model(folder: Path, size: Size, *, window: int | None = None, seed: int = 0) -> Path:
    """Save a float32 Qwen3, or with a sliding ``window`` a Qwen2; its tokenizer is the demo's."""
    kind = "qwen3" if window is None else "qwen2"
    changes: dict[str, Any] = {"head_dim": 64} if window is None else {}
    if window is not None:
        # The first layer sees all, the others the window.
        changes = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1}
    config = AutoConfig.for_model(
        kind,
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        intermediate_size=3 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // 64,
        num_key_value_heads=size.hidden // 128,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        **changes,
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():  # so that distributions are far from even
        model.get_output_embeddings().weight.mul_(3.0)
    model.save_pretrained(folder)
    for file in (pair_folder() / "teacher").glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def random_texts(size: Size, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Prompts and responses of several lengths; every prompt serves two texts."""
    rng = np.random.default_rng(seed)
    texts = []
    for number in range(size.texts):
        if number % 2 == 0:
            prompt = rng.integers(3, size.vocab, size.prompt - number // 2)
        response = rng.integers(3, size.vocab, size.response - number)
        texts.append((prompt.astype(np.int32), response.astype(np.int32)))
    return texts


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def timed(device: str, call: Callable[[], Any], repeats: int = 3) -> float:
    """Least seconds of several calls after one that is not counted."""
    call()
    least = float("inf")
    for _ in range(repeats):
        synchronize(device)
        started = time.perf_counter()
        call()
        synchronize(device)
        least = min(least, time.perf_counter() - started)
    return least


def peak_gb(device: str) -> float:
    """Most that the device has allocated in this process; nothing on a CPU."""
    return torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0


def held_gb(device: str) -> float:
    """What is taken of the GPU, by all that is on it; on a CPU this process's resident set."""
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 1e9
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e9


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference, relative to the largest element of ``other``."""
    scale = float(other.abs().max()) or 1.0
    return float((one.double() - other.double()).abs().max()) / scale
