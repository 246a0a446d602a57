"""What an evaluation's figures depend on, in a form that a folder can keep and compare."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from opd_ray.config.schema import Config
from opd_ray.data.prompts import HeldOutTask
from opd_ray.evaluation.ask import Asking

_WEIGHTS = (".safetensors", ".bin")
_DESCRIPTIONS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
_SAMPLED_BYTES = 1 << 20


def evaluation_settings(config: Config, asked: Sequence[Asking]) -> dict[str, Any]:
    """Everything that decides the figures, as nested plain values.

    Prompts count as their token ids, so data, instruction, chat template and tokenizer are all in
    it. How many actors write, and where, is not: seeds belong to the samples.
    """
    tasks: dict[str, dict[str, Any]] = {}
    for asking in asked:
        held_out = asking.held_out
        section = tasks.setdefault(held_out.settings.name, _task_settings(held_out))
        mode: dict[str, Any] = {"max_new_tokens": asking.sampling.max_tokens}
        if asking.samples:
            mode["samples"] = asking.samples
            mode["temperature"] = asking.sampling.temperature
            mode["top_p"] = asking.sampling.top_p
        section[asking.mode] = mode
    return {
        "model": model_fingerprint(config.student.path),
        "seed": config.run.seed,
        "dtype": config.rollout.dtype.value,
        "tasks": tasks,
    }


def model_fingerprint(path: str) -> str:
    """A digest of a model folder's descriptions and of samples of its weights, or hub name@commit.

    Of every file of weights the size, the first and the last MiB count: enough to tell two steps of
    a training apart without reading 100 GB.
    """
    folder = Path(path)
    if not folder.is_dir():
        # Lies in the cache in a folder named by the commit.
        return f"{path}@{Path(hf_hub_download(path, 'config.json')).parent.name}"
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(folder.iterdir()):
        if file.name in _DESCRIPTIONS or file.suffix in _WEIGHTS:
            size = file.stat().st_size
            digest.update(f"{file.name} {size} ".encode())
            with file.open("rb") as stream:
                digest.update(stream.read(_SAMPLED_BYTES))
                stream.seek(max(0, size - _SAMPLED_BYTES))
                digest.update(stream.read())
    return digest.hexdigest()


def _task_settings(held_out: HeldOutTask) -> dict[str, Any]:
    digest = hashlib.blake2b(digest_size=16)
    for prompt, answer in zip(held_out.prompts, held_out.answers, strict=True):
        for part in (prompt.key.encode(), prompt.student_ids.tobytes(), answer.encode()):
            digest.update(f"{len(part)} ".encode() + part)
    return {
        "task": held_out.settings.task,
        "problems": len(held_out.prompts),
        "prompts_and_answers": digest.hexdigest(),
    }
