"""Some rows of a response, asked of teachers of which some answer whole responses only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from actors.teacher.protocol import Teacher, TeacherError
from opd_ray.types import ScoreRequest, Signal, TeacherAnswer, TeacherInfo, TopK


def ask(
    teacher: Teacher, info: TeacherInfo, requests: Sequence[ScoreRequest]
) -> list[TeacherAnswer]:
    """A teacher's answers about the asked rows, not checked.

    One that does not know of rows (``info.answers_rows``) is asked about whole responses; what it
    says of other rows is cut away unseen.

    Args:
        teacher: any.
        info: what it says of itself.
        requests: as the teacher shall be asked.

    Raises:
        TeacherError: an array of such a teacher has not one row for each response token.
    """
    if info.answers_rows or all(request.rows is None for request in requests):
        return teacher.score(requests)
    answers: Any = teacher.score([whole_request(request) for request in requests])
    if not isinstance(answers, list):
        return answers
    asked = {request.rollout_id: request for request in requests}
    return [
        _cut_answer(info.name, asked[answer.rollout_id], answer)
        if isinstance(answer, TeacherAnswer) and answer.rollout_id in asked
        else answer
        for answer in answers
    ]


def whole_request(request: ScoreRequest) -> ScoreRequest:
    """The request about all m rows of its response.

    A row that is not asked about has the student's top-K of the asked one before it (of the first
    one, where there is none): it stands for nothing, and is there so that arrays have m rows.
    """
    if request.rows is None:
        return request
    places_m = np.arange(len(request.response_ids))
    row_m = np.searchsorted(request.rows, places_m, side="right") - 1
    row_m = np.maximum(row_m, 0)
    topk = request.student_topk
    return replace(request, rows=None, student_topk=TopK(topk.ids[row_m], topk.logprobs[row_m]))


def rows_of(answer: TeacherAnswer, index: np.ndarray) -> TeacherAnswer:
    """The rows at ``index`` of an answer: of every array in it."""
    return replace(answer, **{name: _rows(part, index) for name, part in vars(answer).items()})


def _cut_answer(teacher: str, request: ScoreRequest, answer: TeacherAnswer) -> TeacherAnswer:
    """The asked rows of an answer about all m."""
    m = len(request.response_ids)
    for name, values in _arrays("", vars(answer)):
        if len(values) != m:
            raise TeacherError(
                f"teacher {teacher!r}, rollout {request.rollout_id!r}: {name} has shape "
                f"{list(values.shape)}; expected a row for each of the {m} response tokens"
            )
    return rows_of(answer, request.asked)


def _arrays(prefix: str, parts: dict[str, Any]) -> list[tuple[str, np.ndarray]]:
    """Every array of an answer that has rows, with its name."""
    found: list[tuple[str, np.ndarray]] = []
    for name, part in parts.items():
        if isinstance(part, np.ndarray) and part.ndim:
            found.append((prefix + name, part))
        elif isinstance(part, TopK | Signal):
            found += _arrays(f"{prefix}{name}.", vars(part))
    return found


def _rows(part: Any, index: np.ndarray) -> Any:
    """Of an array or of what holds some; anything else as it is."""
    if isinstance(part, np.ndarray) and part.ndim:
        return part[index]
    if isinstance(part, TopK | Signal):
        return replace(part, **{name: _rows(value, index) for name, value in vars(part).items()})
    return part
