"""Texts packed in one row, shared beginnings once, against the model's own pass over each alone."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from actors.kernels.packed_attention import PACKED, packed_row
from gpu_check.findings import Findings
from gpu_check.inputs import Size, distance, peak_gb, random_model, random_texts, timed
from opd_ray.batching.packing import pack

FLOAT32_LIMIT = 1e-4
TIMES_ALONE, HALF_FLOOR = 2.0, 5e-3


def run(findings: Findings, device: str, argument: str) -> None:
    """See above."""
    size = Size.on(device)
    texts = [np.concatenate(text) for text in random_texts(size)]
    with tempfile.TemporaryDirectory() as folder:
        for name, window in (("full", None), ("sliding window", size.response // 2)):
            path = random_model(Path(folder) / name, size, window=window)
            truth = _Model(path, "sdpa", torch.float32, device).alone(texts)
            packed = _Model(path, PACKED, torch.float32, device).packed(texts)
            _compare(findings, f"{name}, float32", packed, truth, FLOAT32_LIMIT)
            alone = _Model(path, "sdpa", torch.bfloat16, device)
            side_by_side = _Model(path, PACKED, torch.bfloat16, device)
            by_one = alone.alone(texts)
            for what, value, reference, exact in zip(
                ("logits", "gradient"), side_by_side.packed(texts), by_one, truth, strict=True
            ):
                limit = max(TIMES_ALONE * distance(reference, exact), HALF_FLOOR)
                findings.check(f"{name}, bfloat16: {what}", distance(value, exact), limit)
            for how, call in (
                ("one at a time", lambda alone=alone: alone.alone(texts)),
                ("in one row", lambda packed=side_by_side: packed.packed(texts)),
            ):
                findings.figure(f"{name}, bfloat16, {how}", timed(device, call) * 1e3, "ms")
    findings.figure("most memory", peak_gb(device), "GB")


def _compare(
    findings: Findings,
    name: str,
    found: tuple[Tensor, Tensor],
    truth: tuple[Tensor, Tensor],
    limit: float,
) -> None:
    for what, value, exact in zip(("logits", "gradient"), found, truth, strict=True):
        findings.check(f"{name}: {what}", distance(value, exact), limit)


class _Model:
    """One model with one kind of attention; gives logits and the gradient of its embedding."""

    def __init__(self, path: Path, attention: str, dtype: torch.dtype, device: str) -> None:
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, attn_implementation=attention
        )
        self._model = model.to(device).train()
        self._device = torch.device(device)

    def alone(self, texts: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        ids = [torch.from_numpy(text)[None].long().to(self._device) for text in texts]
        return self._of([self._logits(input_ids=ids_1T)[0] for ids_1T in ids])

    def packed(self, texts: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        packing = pack(texts)
        ids_1T, positions_1T = packed_row(packing, self._device)
        logits_TV = self._logits(
            input_ids=ids_1T, position_ids=positions_1T, segments=packing.segments
        )[0]
        places = [torch.from_numpy(own).to(self._device) for own in packing.places]
        return self._of([logits_TV[own] for own in places])

    def _logits(self, **row: Any) -> Tensor:
        return self._model(**row, use_cache=False).logits

    def _of(self, logits: list[Tensor]) -> tuple[Tensor, Tensor]:
        """All logits in the order of the texts, and the gradient of their log-probabilities."""
        self._model.zero_grad()
        all_NV = torch.cat(logits)
        all_NV.float().log_softmax(-1)[:, ::7].mean().backward()
        gradient = self._model.get_input_embeddings().weight.grad
        return all_NV.detach(), gradient.detach().clone()
