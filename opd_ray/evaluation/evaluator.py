"""Evaluation during a run: accuracy per task, and the student's distance from the teacher."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from opd_ray.config.schema import Config
from opd_ray.data.prompts import HeldOutTask, divergence_prompts, own_teacher_prompts
from opd_ray.evaluation.ask import EvalMode, answers, eval_modes, sample_requests
from opd_ray.evaluation.figures import figures
from opd_ray.evaluation.folder import ProblemRecord
from opd_ray.pools.rollouts import RolloutPool, run_sampling
from opd_ray.pools.scorer import RolloutScorer
from opd_ray.pools.teachers.router import TeacherRouter
from opd_ray.pools.trainers import TrainerGroup

# Is given the records of a task that was asked in one way.
ShowAnswers = Callable[[EvalMode, Sequence[ProblemRecord]], None]


@dataclass
class Evaluator:
    """Measures the student as vLLM now holds it.

    Raises:
        DataError: see :func:`opd_ray.data.prompts.divergence_prompts`.
    """

    # Of the run: its seed, how its rollouts are sampled, which is how responses for the divergence
    # are, and how many held-out prompts those are asked of.
    config: Config
    tasks: Sequence[HeldOutTask]  # what accuracy is measured on
    tokenizer: PreTrainedTokenizerBase  # decodes responses for the verifiers
    scorer: RolloutScorer  # has responses written and scored
    teachers: TeacherRouter  # hold the signals of scored responses
    trainers: TrainerGroup  # compute exact divergences from them

    def __post_init__(self) -> None:
        self._kl_prompts = divergence_prompts(self.tasks, self.config.eval.kl_prompts)
        self._sampling = run_sampling(self.config.rollout)
        self._seed = self.config.run.seed

    def run(self, show: ShowAnswers | None = None) -> dict[str, float]:
        """Every figure, by name: those of :func:`opd_ray.evaluation.figures.figures` a task, and
        ``eval/kl``, ``eval/top1`` and their like. The same prompts and seeds at every call, so that
        figures of two calls compare. ``show`` gets the records of every task."""
        begin = time.perf_counter()
        values: dict[str, float] = {}
        longest = self._sampling.max_tokens
        for task in self.tasks:
            self.scorer.order.to("rollout")
            values |= accuracy(
                self.scorer.rollouts, task, self.tokenizer, longest, self._seed, show
            )
        if self._kl_prompts:
            values |= self._distance()
        values["seconds/eval"] = time.perf_counter() - begin
        return values

    def _distance(self) -> dict[str, float]:
        """Both KLs and top-1 agreement, exact, on fresh student rollouts of held-out prompts.

        None of them where the student wrote no token.
        """
        requests = sample_requests(self._kl_prompts, 1, self._seed, "kl")
        teacher_prompts = own_teacher_prompts(self._kl_prompts)
        under_way = self.scorer.start(requests, self._sampling, teacher_prompts)
        scored = under_way.result().rollouts
        scored = [s for s in scored if s.rollout.written_tokens]
        if not scored:
            return {}
        take = self.scorer.order.handing_over(self.teachers.take)
        scores = self.trainers.score([s.whole() for s in scored], take)
        gaps = [
            np.abs(found.columns["logprob"] - s.rollout.logprob[s.rollout.rows])
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
    pool: RolloutPool,
    held_out: HeldOutTask,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    seed: int,
    show: ShowAnswers | None = None,
) -> dict[str, float]:
    """One task's figures, greedy and sampled as its settings ask; see :func:`figures` for names."""
    values: dict[str, float] = {}
    for mode in eval_modes(held_out, max_new_tokens):
        records = list(answers(pool, mode, tokenizer, seed))
        if show is not None:
            show(mode, records)
        values |= figures(held_out.settings.name, mode.samples, records)
    return values
