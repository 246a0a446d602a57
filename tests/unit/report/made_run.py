"""The folder of a run that never was, for reports: real filter, real records, drawn scores."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opd_ray.cluster.nodes import Node
from opd_ray.config.load import to_values, to_yaml
from opd_ray.config.schema import Config, EvalTask, ReportSettings, RunSettings
from opd_ray.coordinator.close_ups import CloseUps
from opd_ray.coordinator.metrics import StepSnapshot
from opd_ray.coordinator.who_worked import WhoWorked
from opd_ray.data.prompt_set import PromptsIdentity
from opd_ray.output.close_ups import AnswersView, write_view
from opd_ray.output.folder import OutputFolder, versions
from opd_ray.output.step_rows import StepRows
from opd_ray.pools.scorer import ScoredRollout
from opd_ray.pools.spans import Span
from opd_ray.seeds import derive_seed
from opd_ray.tip import Selection, TipFilter, TipSettings, batch_scores
from opd_ray.types import Likeliest, Rollout, RolloutScores, TopK

# Words, and what must not end an element, run, vanish or turn the text around.
HOSTILE = ["</script><script>alert(1)</script>", "<!--", "<img src=x onerror=alert(1)>", "\u202e"]
WORDS = [
    " the",
    " sum",
    " of",
    "42",
    "=",
    ",",
    ".\n",
    " so",
    "\u200b",
    "&amp;",
    " naïve",
    " 漢",
    *HOSTILE,
]
VOCABULARY = 40


class Words:
    """A tokenizer: the ids of WORDS, again and again."""

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return "".join(WORDS[i % len(WORDS)] for i in ids)


def rollout_of(draw: np.random.Generator, number: int, size: int, acting: bool) -> ScoredRollout:
    """One of so many tokens; with tools every third stretch of them is a tool's."""
    mask, turns = np.ones(size, np.uint8), None
    if acting:
        stretch = np.arange(size) // 7
        mask = (stretch % 3 != 2).astype(np.uint8)
        turns = (stretch // 3).astype(np.int16)
    written = int(mask.sum())
    # Most tokens are sure, some are ties.
    entropy = (
        np.round(draw.beta(0.4, 3.0, size) * math.log(VOCABULARY), 3).astype(np.float32) * mask
    )
    kl = np.round(draw.exponential(0.3, written) ** 2, 3).astype(np.float32)
    share = draw.random(written).astype(np.float32)
    columns = {
        "reverse_kl": kl,
        "forward_kl": (kl * (0.5 + share)).astype(np.float32),
        "jsd": np.minimum(kl / 2, 0.69).astype(np.float32),
        "teacher_logprob": -np.abs(draw.normal(1, 1, written)).astype(np.float32),
        "teacher_mass": share,
        "union_forward_kl": (kl * share).astype(np.float32),
    }
    ids = draw.integers(0, VOCABULARY, (written, 5)).astype(np.int32)
    logprobs = np.sort(-draw.exponential(2, (written, 5)).astype(np.float32))[:, ::-1]
    rollout = Rollout(
        rollout_id=f"{number}/p{number}/0",
        prompt_id=f"p{number}",
        sample=0,
        prompt_ids=draw.integers(0, VOCABULARY, 12).astype(np.int32),
        response_ids=draw.integers(0, VOCABULARY, size).astype(np.int32),
        response_mask=mask,
        entropy=entropy.astype(np.float32),
        logprob=-np.abs(draw.normal(1, 1, size)).astype(np.float32),
        finish_reason="stop",
        weights_version=0,
        turns=turns,
    )
    likeliest = Likeliest(TopK(ids, logprobs), TopK(ids[:, ::-1], logprobs))
    return ScoredRollout(rollout, RolloutScores(rollout.rollout_id, columns, 0, likeliest))


def snapshot_of(
    draw: np.random.Generator, sizes: Sequence[int], tip: TipFilter, *, acting: bool = False
) -> tuple[StepSnapshot, np.ndarray]:
    """A step's rollouts with what the filter chose of them, and their seeds."""
    scored = [rollout_of(draw, number, size, acting) for number, size in enumerate(sizes)]
    scores = batch_scores([s.rollout for s in scored], [s.scores for s in scored], VOCABULARY)
    seeds = [derive_seed(7, 3, s.rollout.rollout_id) for s in scored]
    seeds_R = np.array(seeds, dtype=np.int64)
    selection: Selection = tip.select(scores, seeds_R, 3)
    return StepSnapshot(scored, scores, selection), seeds_R


def row_of(step: int, **more: float) -> dict[str, float]:
    """Figures of a step in which all is well."""
    return {
        "step": step,
        "train/loss": 0.5 / step,
        "train/grad_norm": 0.4,
        "train/learning_rate": 1e-4,
        "train/kept_tokens": 50 + step,
        "rollout/tokens": 100,
        "rollout/length_mean": 10.0,
        "rollout/length_max": 12,
        "rollout/truncated": 0.0,
        "tip/rho": 0.5,
        "tip/kept_fraction": 0.49,
        "scores/entropy_mean": 0.3,
        "sync/gap_mean": 1e-6,
        "tip/overlap/random": 0.33,
        "seconds/step": 2.0,
        "seconds/rollout_and_teacher": 1.0,
        "seconds/train": 0.7,
        "seconds/idle": 0.1,
        "teacher/bottleneck_share": 0.05,
        "tokens_per_second/step": 50.0,
        **{f"tip/Q{number}/share": 0.25 for number in range(1, 5)},
        **more,
    }


def evaluation_of(accuracy: float, kl: float) -> dict[str, float]:
    """Figures of an evaluation."""
    return {
        "eval/sums/accuracy": accuracy,
        "eval/sums/accuracy_se": 0.02,
        "eval/kl": kl,
        "eval/top1": 0.9,
        "seconds/eval": 3.0,
    }


def problem(number: int, response: str, correct: bool) -> dict[str, Any]:
    return {
        "id": f"q{number}",
        "prompt": f"{number} + 1 = <b>?",
        "gold": str(number + 1),
        "response": response,
        "extracted": response,
        "correct": correct,
        "tokens": 3,
        "finish_reason": "stop",
        "messages": [],
    }


def make_run(
    folder: Path,
    sizes: Sequence[int] = (30, 41, 25),
    *,
    tip: Mapping[str, Any] | None = None,
    steps: int = 4,
    acting: bool = False,
    rollouts: int = 20,
    tokens: int = 4096,
    seed: int = 0,
    finished: bool = True,
) -> Path:
    """Write it; of its close-ups each has rollouts of these sizes."""
    draw = np.random.default_rng(seed)
    settings = TipSettings(**(tip or {}))
    config = Config(
        run=RunSettings(steps=steps, output_dir=str(folder)),
        tip=settings,
        report=ReportSettings(close_ups=2, rollouts=rollouts, tokens=tokens),
    )
    config.student.path = config.teacher.path = "models/student"
    config.eval.tasks = [EvalTask(name="own_sums")]
    output = OutputFolder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    output.config.write_text(to_yaml(config))
    output.versions.write_text(json.dumps(versions()))
    output.history.add_part(0, PromptsIdentity(3, "00ff"), [], to_values(config))
    rows = [{"step": 0, **evaluation_of(0.5, 0.3)}, *(row_of(step) for step in range(1, steps + 1))]
    rows.append({"step": steps, **evaluation_of(0.7, 0.1)})
    output.metrics.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    file = StepRows(output.close_ups, 0)
    tokenizer: Any = Words()
    close_ups = CloseUps(config, file, tokenizer)
    close_ups.part(0, [Node("here", 2.0, 2**34, gpus=2)])
    for step, response in ((0, "wrong"), (steps, "2")):
        problems = [problem(1, response, step > 0), problem(2, HOSTILE[0], False)]
        write_view(file, step, AnswersView("sums", "greedy", problems))
    filter_ = TipFilter(settings)
    for step in (0, steps - 1):
        snapshot, seeds_R = snapshot_of(draw, sizes, filter_, acting=acting)
        spans = [Span("rollout-0", 100.0, 101.0), Span("trainers", 101.2, 101.9)]
        lanes = [("rollout-0", "rollouts"), ("trainers", "training")]
        worked = WhoWorked(100.0, 102.0, spans, lanes, [100.5, 100.9, 101.0])
        close_ups.step(step, snapshot, filter_, seeds_R, worked)
    close_ups.teacher(steps, {"eval/sums/accuracy": 0.95, "eval/sums/accuracy_se": 0.01})
    file.close()
    if finished:
        output.history.finish(steps)
    return folder
