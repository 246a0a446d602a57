"""Gold answers of an evaluation task before anything is asked: are they there, can they be hit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opd_ray.config.schema import EvalTask
from opd_ray.data.prompt_set import PromptSet
from opd_ray.data.rows import DataError, PromptRow
from opd_ray.tasks import Task, get_task, gold_answer, gold_problem

# Places that a message names.
_SHOWN = 5
_CHARACTERS = 60


@dataclass(frozen=True)
class AskedProblems:
    """The problems of an evaluation task that are asked."""

    task: Task
    rows: Sequence[PromptRow]
    answers: Sequence[str]  # the gold answer of each
    notes: Sequence[str]  # what is worth knowing of them


def asked_problems(settings: EvalTask, rows: PromptSet, section: str) -> AskedProblems:
    """The first problems of ``rows``, as many as the task asks.

    ``section`` is what messages call the settings of the data.

    Raises:
        ConfigError: no such task.
        DataError: problems without an answer, or none with one that a response is likely to give.
    """
    count = len(rows) if settings.problems is None else min(settings.problems, len(rows))
    chosen = [rows.row(index) for index in range(count)]
    places = [row.name for row in chosen]
    task = get_task(settings.task)
    if not getattr(task, "needs_answer", True):
        return AskedProblems(task, chosen, [row.answer or "" for row in chosen], [])
    answers = _whole_answers([row.answer for row in chosen], places, section)
    notes = _answer_notes(settings.name, task, answers, places)
    return AskedProblems(task, chosen, answers, notes)


def _whole_answers(answers: Sequence[str | None], places: Sequence[str], section: str) -> list[str]:
    """``answers`` where there is one to every problem.

    Args:
        answers: gold answers, None for a row without one.
        places: file and line of each.
        section: what messages call the settings.

    Raises:
        DataError: names the rows without an answer.
    """
    without = [place for place, answer in zip(places, answers, strict=True) if answer is None]
    if without:
        raise DataError(
            f"{section}: {len(without)} of {len(answers)} problems have no answer to verify "
            f"against ({_some(without)}): give each one, take them out, or set "
            f"{section}.fields.answer to the answers' column"
        )
    return [answer for answer in answers if answer is not None]


def _answer_notes(
    name: str, task: Task, answers: Sequence[str], places: Sequence[str]
) -> list[str]:
    """What is worth knowing of the gold answers of the evaluation task ``name``.

    Raises:
        DataError: none of them is one that a response is likely to give.
    """
    missed, shortened = [], []
    for place, answer in zip(places, answers, strict=True):
        short = gold_answer(task, answer)
        if problem := gold_problem(task, answer):
            missed.append(f"{place}, {problem}: {_quoted(answer)}")
        elif short != answer.strip():
            shortened.append(f"{place}: {_quoted(short)}")
    notes = []
    if missed:
        note = (
            f"eval task {name!r}: {len(missed)} of its {len(answers)} gold answers are none that "
            f"a response is likely to give ({_some(missed)}): give the final answer alone, or name "
            "another column in data.fields.answer of the task"
        )
        if len(missed) == len(answers):
            raise DataError(note)
        notes.append(f"{note}; until then they count as wrong")
    if shortened:
        notes.append(
            f"eval task {name!r}: {len(shortened)} of its {len(answers)} gold answers are "
            "solutions, of which only the answer counts (behind ####, in a box, or behind "
            f"'answer is'): {_some(shortened)}"
        )
    return notes


def _some(items: Sequence[str]) -> str:
    more = len(items) - _SHOWN
    return "; ".join([*items[:_SHOWN], f"and {more} more"] if more > 0 else items)


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}...")
