"""Some steps of a run are kept from close by, for a person to see: tokens, answers, who worked.

Bounded by the section ``report``: a few steps, of each a few rollouts, and figures of the batch
that do not grow with it. Nothing here is of size tokens x vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from opd_ray.cluster.nodes import Node
from opd_ray.config.schema import Config
from opd_ray.coordinator.metrics import StepSnapshot
from opd_ray.coordinator.step_view import StepTokens
from opd_ray.coordinator.who_worked import WhoWorked
from opd_ray.data.token_texts import TokenTexts, shortened
from opd_ray.evaluation.ask import EvalMode
from opd_ray.evaluation.folder import ProblemRecord
from opd_ray.output.close_ups import (
    AnswersView,
    PartView,
    TeacherView,
    write_view,
)
from opd_ray.output.step_rows import StepRows
from opd_ray.tip import TipFilter
from opd_ray.types import RolloutRequest

# Scores that a person wants to see of a token, whatever the filter reads.
PROBABILITIES = ("rollout_logprob", "teacher_logprob")
# Of an answer of several turns.
_MOST_MESSAGES = 40


@dataclass(frozen=True)
class CloseUps:
    """Writes them, where the run asks for any."""

    config: Config
    rows: StepRows
    tokenizer: PreTrainedTokenizerBase

    def due(self, step: int) -> bool:
        """Whether this step, from 0, is one of those that are kept."""
        settings = self.config.report
        return step in chosen_steps(self.config.run.steps, settings.close_ups)

    def wanted(self, step: int, requests: Sequence[RolloutRequest]) -> Collection[str]:
        """The ids of the rollouts of a step that are kept, before they are written."""
        if not self.due(step):
            return ()
        return {requests[i].rollout_id for i in spread(len(requests), self.config.report.rollouts)}

    def step(
        self,
        step: int,
        snapshot: StepSnapshot,
        tip: TipFilter,
        seeds_R: np.ndarray,
        worked: WhoWorked,
    ) -> None:
        """Keep one step, counted from 0; its rows are named as its metrics are, from 1."""
        batch = StepTokens(snapshot, tip, seeds_R, TokenTexts(self.tokenizer))
        write_view(self.rows, step + 1, batch.view(step, worked))
        if not len(batch.ids_M):
            return
        requests = [one.rollout for one in snapshot.scored]
        for index in spread(len(requests), self.config.report.rollouts):
            if requests[index].written_tokens:
                write_view(self.rows, step + 1, batch.rollout(index, self.config.report))

    def answers(self, step: int, mode: EvalMode, records: Sequence[ProblemRecord]) -> None:
        """Keep what was answered to the first problems of a task."""
        task, count = mode.held_out, self.config.report.problems
        by_id = {record.id: record for record in records}
        shown = [prompt for prompt in task.prompts[:count] if prompt.key in by_id]
        if not shown:
            return
        problems = [_problem(by_id[prompt.key], self._text(prompt.student_ids)) for prompt in shown]
        write_view(self.rows, step, AnswersView(task.settings.name, mode.name, problems))

    def teacher(self, step: int, figures: Mapping[str, float]) -> None:
        """Keep the teacher's own held-out figures."""
        known = {name: value for name, value in figures.items() if np.isfinite(value)}
        if known:
            write_view(self.rows, step, TeacherView(known))

    def part(self, step: int, nodes: Sequence[Node]) -> None:
        """A part of the run begins on these machines."""
        write_view(self.rows, step, PartView([asdict(node) for node in nodes]))

    def _text(self, ids: np.ndarray) -> str:
        return shortened(self.tokenizer.decode(ids.tolist()))[0]


def chosen_steps(steps: int, count: int) -> Collection[int]:
    """Steps, from 0, spread evenly over a run of so many; with one, the last."""
    return [steps - 1] if count == 1 and steps else spread(steps, count)


def spread(size: int, count: int) -> list[int]:
    """At most ``count`` of the numbers below ``size``, as evenly as can be, the ends among them."""
    if count >= size:
        return list(range(size))
    if count < 2:
        return [0][:count]
    return sorted({round(i * (size - 1) / (count - 1)) for i in range(count)})


def _problem(record: ProblemRecord, prompt: str) -> dict[str, Any]:
    messages = record.messages[0][:_MOST_MESSAGES] if record.messages else []
    return {
        "id": record.id,
        "prompt": prompt,
        "gold": shortened(record.answer)[0],
        "response": shortened(record.responses[0])[0],
        "extracted": None if record.extracted[0] is None else shortened(record.extracted[0])[0],
        "correct": record.correct[0],
        "tokens": record.tokens[0],
        "finish_reason": record.finish_reasons[0],
        "messages": [_message(one) for one in messages],
    }


def _message(message: Mapping[str, Any]) -> list[str]:
    """Its role and all that it says, as text."""
    content = message.get("content") or ""
    text = content if isinstance(content, str) else json.dumps(content, default=str)
    if calls := message.get("tool_calls"):
        text += "\n" + json.dumps(calls, default=str)
    return [str(message.get("role", "")), shortened(text)[0]]
