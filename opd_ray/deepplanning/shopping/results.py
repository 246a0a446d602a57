"""Carts and conversations as the benchmark's own evaluation reads them.

Example: ``RESULTS/database_student-1_level3_1/case_7/`` with ``cart.json``, ``messages.json`` and
``validation_cases.json``; a second rollout of the case goes to ``database_student-2_level3_1/``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from opd_ray.borders import writing
from opd_ray.deepplanning.shopping.case import ANSWERS, CART, ShoppingCase
from opd_ray.environments.environment import Message
from opd_ray.whole_file import write_whole


def write_results(
    results: Path,
    name: str,
    level: int,
    case: ShoppingCase,
    cart: Mapping[str, Any] | None,
    messages: Sequence[Message],
) -> Path:
    """Write one rollout into the first run of ``name`` that has none of its case yet.

    Args:
        name: of the student, in the names of the folders.
        cart: as the tools have left it; None where there is none.

    Returns:
        The folder of the case.

    Raises:
        WriteError: it cannot be written.
    """
    folder = _new_folder(results, name, level, case.folder.name)
    if cart is not None:
        _write(folder / CART, cart, indent=4)
    _write(folder / ANSWERS, case.answers, indent=4)
    _write(folder / "messages.json", _record(messages), indent=2)
    return folder


def _new_folder(results: Path, name: str, level: int, case: str) -> Path:
    """A folder that is made here and by no other rollout at the same time."""
    for run in count(1):
        folder = results / f"database_{name}-{run}_level{level}_1" / case
        with writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                folder.mkdir()
            except FileExistsError:
                continue
        return folder
    raise AssertionError("unreachable")


def _record(messages: Sequence[Message]) -> dict[str, Any]:
    turns = sum(message["role"] == "assistant" for message in messages)
    return {
        "step": turns,
        "description": "a rollout of opd-ray",
        "messages": _with_call_ids(messages),
    }


def _with_call_ids(messages: Sequence[Message]) -> list[Message]:
    """Messages in which every result names its call, and arguments are text."""
    written: list[Message] = []
    waiting: list[str] = []  # ids of the calls of the last turn that have no result yet
    number = count(1)
    for message in messages:
        if message["role"] == "assistant" and message.get("tool_calls"):
            calls = [
                {"id": f"call_{next(number)}", **_as_text(call)} for call in message["tool_calls"]
            ]
            waiting = [call["id"] for call in calls]
            written.append({**message, "tool_calls": calls})
        elif message["role"] == "tool":
            # A result without a tool's name answers what could not be read as a call.
            named = "name" in message and waiting
            call_id = waiting.pop(0) if named else f"call_{next(number)}"
            written.append({"role": "tool", "tool_call_id": call_id, "content": message["content"]})
        else:
            written.append(dict(message))
    return written


def _as_text(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = function["arguments"]
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _write(path: Path, value: Any, indent: int) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    # Half characters, which a student can write as \ud83d, have no UTF-8.
    write_whole(path, text.encode(errors="replace"))
