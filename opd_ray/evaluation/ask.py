"""Asking the problems of a task: requests to the rollout actors, responses verified as they end."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from opd_ray.data.prompts import HeldOutTask, Prompt
from opd_ray.evaluation.folder import ProblemRecord
from opd_ray.pools.rollouts import RolloutPool
from opd_ray.seeds import derive_seed
from opd_ray.tasks import Task, verify_many
from opd_ray.tasks.environment_task import EnvironmentTask
from opd_ray.types import Rollout, RolloutFigure, RolloutRequest, Sampling, environment_figures


@dataclass(frozen=True)
class EvalMode:
    """One way to ask every problem of a task: once greedily, or with several samples."""

    held_out: HeldOutTask
    samples: int  # 0: one greedy response
    sampling: Sampling

    @property
    def name(self) -> str:
        """ "greedy" or "sampled"."""
        return "sampled" if self.samples else "greedy"

    def __str__(self) -> str:
        if not self.samples:
            return "greedy"
        sampling = self.sampling
        count = "1 sample" if self.samples == 1 else f"{self.samples} samples"
        return f"{count}, T = {sampling.temperature:g}, top-p = {sampling.top_p:g}"


def eval_modes(held_out: HeldOutTask, max_new_tokens: int) -> list[EvalMode]:
    """Every way in which a task's settings ask for its problems.

    ``max_new_tokens`` is the longest response where the task sets none.
    """
    settings = held_out.settings
    longest = settings.max_new_tokens or max_new_tokens
    found = []
    if settings.greedy:
        found.append(EvalMode(held_out, 0, Sampling(temperature=0.0, max_tokens=longest)))
    if settings.samples:
        sampling = Sampling(settings.temperature, settings.top_p, max_tokens=longest)
        found.append(EvalMode(held_out, settings.samples, sampling))
    return found


def answers(
    pool: RolloutPool,
    mode: EvalMode,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    done: Collection[str] = (),
) -> Iterator[ProblemRecord]:
    """The record of every problem, each as soon as all its responses are written and verified.

    Problems whose ids are in ``done`` are not asked. A response's seed follows from ``seed``, the
    task's name, the problem's id and the sample's number, so it does not matter who else is asked.
    """
    held_out = mode.held_out
    gold = {p.key: answer for p, answer in zip(held_out.prompts, held_out.answers, strict=True)}
    wanted = [prompt for prompt in held_out.prompts if prompt.key not in done]
    samples = max(1, mode.samples)
    if not wanted:
        return
    written: dict[str, list[Rollout]] = {}
    requests = sample_requests(wanted, samples, seed, held_out.settings.name)
    for rollout in pool.write(requests, mode.sampling):
        rollouts = written.setdefault(rollout.prompt_id, [])
        rollouts.append(rollout)
        if len(rollouts) < samples:
            continue
        rollouts = sorted(written.pop(rollout.prompt_id), key=lambda found: found.sample)
        texts = tokenizer.batch_decode(
            [_last_turn(found).tolist() for found in rollouts], skip_special_tokens=True
        )
        answer = gold[rollout.prompt_id]
        acting = [found for found in rollouts if found.messages is not None]
        yield ProblemRecord(
            id=rollout.prompt_id,
            answer=answer,
            responses=texts,
            extracted=[held_out.task.extract(text) for text in texts],
            correct=_verdicts(held_out.task, rollouts, texts, answer),
            tokens=[int(found.response_mask.sum()) for found in rollouts],
            finish_reasons=[found.finish_reason for found in rollouts],
            figures=[dict(found.figures) for found in acting],
            messages=[[dict(message) for message in found.messages or ()] for found in acting],
        )


def _verdicts(
    task: Task, rollouts: Sequence[Rollout], texts: Sequence[str], answer: str
) -> list[bool]:
    if isinstance(task, EnvironmentTask):
        return [
            task.succeeded(
                found.rollout_id,
                environment_figures(found.figures),
                hung=found.figures.get(RolloutFigure.timeout, 0.0) > 0,
            )
            for found in rollouts
        ]
    return verify_many(task, [(text, answer) for text in texts])


def _last_turn(rollout: Rollout) -> np.ndarray:
    """The ids of all that the student wrote in its last turn."""
    own = rollout.response_mask > 0
    if rollout.turns is not None:
        own &= rollout.turns == rollout.turns.max(initial=0)
    return rollout.response_ids[own]


def sample_requests(
    prompts: Sequence[Prompt], samples: int, seed: int, purpose: str
) -> list[RolloutRequest]:
    """``samples`` requests for each prompt, side by side, with seeds of their own."""
    return [
        prompt.request(
            f"eval/{purpose}/{prompt.key}/{sample}",
            sample,
            derive_seed(seed, "eval", purpose, prompt.key, sample),
        )
        for prompt in prompts
        for sample in range(samples)
    ]
