"""Students compared by how far they are from their teacher on what they write themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from agreement import agreement
from transformers import AutoTokenizer

from opd_ray.models.weights import load_causal_lm


class Judge:
    """A teacher, and held-out prompts to which students write responses of ``new_tokens``."""

    def __init__(self, teacher: Path, prompts: list[str], new_tokens: int) -> None:
        self._new_tokens = new_tokens
        self._teacher = load_causal_lm(str(teacher), dtype=torch.float32).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(teacher, padding_side="left")
        dialogues = [[{"role": "user", "content": text}] for text in prompts]
        texts = self._tokenizer.apply_chat_template(
            dialogues, add_generation_prompt=True, tokenize=False
        )
        self._inputs = self._tokenizer(
            texts, add_special_tokens=False, padding=True, return_tensors="pt"
        )

    def held_out(self, folder: Path) -> tuple[tuple[float, float], list[dict[str, list[int]]]]:
        """KL(teacher || student) on the student's own responses, nats a token, with its standard
        error; and the responses."""
        student = load_causal_lm(str(folder), dtype=torch.float32).eval()
        torch.manual_seed(0)
        prompt_length = self._inputs["input_ids"].shape[1]
        end = self._tokenizer.eos_token_id
        rollouts, sums, counts = [], [], []
        with torch.inference_mode():
            written_BL = student.generate(
                **self._inputs, max_new_tokens=self._new_tokens, do_sample=True, top_k=0
            )
            for ids_L, mask_P in zip(written_BL, self._inputs["attention_mask"], strict=True):
                prompt, response = ids_L[:prompt_length][mask_P == 1], ids_L[prompt_length:]
                # Padding and the end share an id: the first one is the end.
                ends = (response == end).nonzero()
                response = response[: int(ends[0]) + 1] if len(ends) else response
                rollout = {"prompt_ids": prompt.tolist(), "response_ids": response.tolist()}
                divergence, _ = agreement(self._teacher, student, **rollout)
                sums.append(divergence)
                counts.append(len(response))
                rollouts.append(rollout)
        mean = sum(sums) / sum(counts)
        deviations = np.array(sums) - mean * np.array(counts)  # of a ratio of two sums
        return (mean, float(np.sqrt((deviations**2).sum()) / sum(counts))), rollouts
