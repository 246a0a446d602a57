"""Evaluation during a run: accuracy per task, and the student's distance from the teacher."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from opd_ray.data.prompts import HeldOutTask, Prompt
from opd_ray.evaluation.ask import answers, eval_modes, sample_requests
from opd_ray.evaluation.figures import figures
from opd_ray.pools.rollouts import RolloutStream
from opd_ray.pools.scorer import RolloutScorer
from opd_ray.pools.teachers.router import TeacherRouter
from opd_ray.pools.trainers import TrainerGroup
from opd_ray.types import Sampling


class Evaluator:
    """Measures the student as vLLM now holds it.

    Args:
        scorer: has responses written and scored.
        teachers: hold the signals of scored responses.
        trainers: compute exact divergences from them.
        tasks: what accuracy is measured on.
        kl_prompts: held-out prompts for KL(teacher || student) and top-1 agreement.
        tokenizer: decodes responses for the verifiers.
        sampling: how the run's rollouts are sampled; so are the responses for the divergence. Its
            length is that of a task's responses too, where the task does not set its own.
        seed: the run's seed.
    """

    def __init__(
        self,
        scorer: RolloutScorer,
        teachers: TeacherRouter,
        trainers: TrainerGroup,
        tasks: Sequence[HeldOutTask],
        kl_prompts: Sequence[Prompt],
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        seed: int,
    ) -> None:
        self._scorer = scorer
        self._teachers = teachers
        self._trainers = trainers
        self._tasks = tasks
        self._kl_prompts = kl_prompts
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._seed = seed

    def run(self) -> dict[str, float]:
        """Every figure, by name: those of :func:`opd_ray.evaluation.figures.figures` a task, and
        ``eval/kl``, ``eval/top1`` and their like. The same prompts and seeds at every call, so that
        figures of two calls compare."""
        begin = time.perf_counter()
        values: dict[str, float] = {}
        for held_out in self._tasks:
            values |= accuracy(
                self._scorer, held_out, self._tokenizer, self._sampling.max_tokens, self._seed
            )
        if self._kl_prompts:
            values |= self._distance()
        values["seconds/eval"] = time.perf_counter() - begin
        return values

    def _distance(self) -> dict[str, float]:
        """Both KLs and top-1 agreement, exact, on fresh student rollouts of held-out prompts."""
        requests = sample_requests(self._kl_prompts, 1, self._seed, "kl")
        teacher_prompts = {prompt.key: prompt.teacher_ids for prompt in self._kl_prompts}
        scored = self._scorer.score(requests, self._sampling, teacher_prompts)
        scores = self._trainers.score([s.whole() for s in scored], self._teachers.take)
        gaps = [
            np.abs(found.columns["logprob"] - s.rollout.logprob[s.rollout.response_mask > 0])
            for found, s in zip(scores, scored, strict=True)
        ]

        def mean(name: str) -> float:
            return float(np.concatenate([s.columns[name] for s in scores]).mean())

        return {
            "eval/kl": mean("forward_kl"),
            "eval/reverse_kl": mean("reverse_kl"),
            "eval/top1": mean("top1_agree"),
            "eval/entropy": mean("entropy"),
            "eval/sync_gap": float(np.concatenate(gaps).mean()),
        }


def accuracy(
    stream: RolloutStream,
    held_out: HeldOutTask,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    seed: int,
) -> dict[str, float]:
    """One task's figures, greedy and sampled as its settings ask; see `figures` for their names."""
    values: dict[str, float] = {}
    for mode in eval_modes(held_out, max_new_tokens):
        records = list(answers(stream, mode, tokenizer, seed))
        values |= figures(held_out.settings.name, mode.samples, records)
    return values
