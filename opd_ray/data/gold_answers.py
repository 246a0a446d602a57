"""Gold answers of an evaluation task before anything is asked: are they there, can they be hit."""

from __future__ import annotations

from collections.abc import Sequence

from opd_ray.data.rows import DataError
from opd_ray.tasks import Task, gold_answer, gold_problem

# Places that a message names.
_SHOWN = 5
_CHARACTERS = 60


def whole_answers(answers: Sequence[str | None], places: Sequence[str], section: str) -> list[str]:
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


def answer_notes(name: str, task: Task, answers: Sequence[str], places: Sequence[str]) -> list[str]:
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
