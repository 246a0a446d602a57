"""Responses to the tasks, from the records of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd_ray.borders import border
from opd_ray.errors import InputError

SOURCE = "deepplanning_travel"  # of the travel prompts
_REMEDY = "give a file that opd-ray eval wrote, such as OUT/deepplanning/sampled.jsonl"


def prompt_id(task_id: object) -> str:
    """The id of a task's prompt, in prompts and in the records of an evaluation."""
    return f"{SOURCE}-{task_id}"


@dataclass(frozen=True)
class Response:
    """One sample: the text of the last turn, and the whole conversation where it was kept."""

    text: str  # "" where the conversation ended before its answer
    messages: Sequence[Mapping[str, Any]] = ()


def final_answer(messages: Sequence[Mapping[str, Any]]) -> str:
    """The text of the turn that a conversation ends with; "" if that called tools.

    As in the benchmark: what stands beside a call is no answer, even where no turn came after it.
    """
    last = messages[-1] if messages else {}
    if last.get("role") != "assistant" or last.get("tool_calls"):
        return ""
    return str(last.get("content") or "")


def read_responses(files: Sequence[Path], task_ids: Sequence[str]) -> dict[str, list[Response]]:
    """The responses to every one of the tasks, by task id; files add samples to each other's.

    Args:
        files: JSONL, a record a problem with ``id``, ``responses`` and, if kept, ``messages``.
        task_ids: of the tasks that are scored; records of others are left out.

    Raises:
        InputError: a line that is no record; a task without responses, or with another number of
            them than the others.
    """
    found: dict[str, list[Response]] = {task: [] for task in task_ids}
    by_prompt = {prompt_id(task): task for task in task_ids}
    for file in files:
        for number, line in enumerate(_lines(file), 1):
            if not line.strip():
                continue
            place = f"--responses {file}, line {number}"
            with border(place, _REMEDY):
                record = json.loads(line)
            key, responses = _record(record, place)
            task = by_prompt.get(key, key)
            if task in found:
                found[task] += responses
    lacking = [task for task, responses in found.items() if not responses]
    if lacking:
        raise InputError(
            f"--responses: {len(lacking)} of {len(found)} tasks have none (task {lacking[0]!r} is "
            "the first): let the evaluation end, or give --test a file of those that it has asked"
        )
    counts = {len(responses) for responses in found.values()}
    if len(counts) > 1:
        few = min(found, key=lambda task: len(found[task]))
        raise InputError(
            f"--responses: task {few!r} has {len(found[few])} responses, others up to "
            f"{max(counts)}: give the same number for all"
        )
    return found


def _lines(file: Path) -> list[str]:
    with border(f"--responses {file}", _REMEDY):
        # A last line without its end was cut off when it was written.
        return file.read_text(encoding="utf-8").split("\n")[:-1]


def _record(record: Any, place: str) -> tuple[str, list[Response]]:
    texts = record.get("responses") if isinstance(record, dict) else None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{place}: has no list of texts as 'responses'; {_REMEDY}")
    if not isinstance(record.get("id"), str):
        raise InputError(f"{place}: has no text as 'id'; {_REMEDY}")
    messages = record.get("messages") or [()] * len(texts)
    if not isinstance(messages, list) or len(messages) != len(texts):
        raise InputError(f"{place}: 'messages' are not one list a response; {_REMEDY}")
    with border(f"{place}: 'messages'", _REMEDY):
        return record["id"], [
            Response("" if said and not final_answer(said) else text, said)
            for text, said in zip(texts, messages, strict=True)
        ]
