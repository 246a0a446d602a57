"""What a single call into an environment breaks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from opd_ray.environments.tool_list import shortened
from opd_ray.preflight.contract.played_rollout import Step, said_of

_MESSAGES = 'expected a list of {"role": ..., "content": text}'
# What is told once is told by the first call of its kind: ("late", "look").
Problem = tuple[tuple[str, ...], str]


def step_problems(step: Step, call_timeout_s: float) -> Iterator[Problem]:
    """What is wrong with one call, and of what it is to be told once.

    Args:
        step: the call.
        call_timeout_s: seconds that it may take.
    """
    about = (step.method, step.tool)
    if step.late:
        text = f"{step.what} took longer than call_timeout_s = {call_timeout_s:g} s"
        yield ("late", *about), text
    elif step.unreadable:
        yield (
            ("unreadable", *about),
            f"{step.what} returned {shortened(step.value)}, which is neither text nor JSON: "
            f"{step.error}",
        )
    elif step.error is not None:
        if step.method != "call_tool":  # what a tool raises the student reads
            yield ("raised", *about), f"{step.what} raised {said_of(step.error)}"
    elif step.method == "reset" or (step.method == "respond" and step.value is not None):
        for text in _message_problems(step.what, step.value):
            yield (text,), text
    elif step.method == "verify":
        for text in _figure_problems(step.value):
            yield (text,), text


def _message_problems(what: str, made: Any) -> Iterator[str]:
    if not isinstance(made, list | tuple) or not made:
        yield f"{what} returned {shortened(made)}; {_MESSAGES}"
        return
    for message in made:
        said = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(said, str) or not isinstance(message.get("role"), str):
            yield f"{what} returned the message {shortened(message)}; {_MESSAGES}"
            return
        if said != said.encode(errors="replace").decode():
            yield f"{what} returned half a character (a surrogate) in a message"
    if made[-1]["role"] == "assistant":
        yield f"{what} ends with a message of the assistant: the next turn must be its own"


def _figure_problems(figures: Any) -> Iterator[str]:
    if not isinstance(figures, Mapping):
        yield f"verify returned {shortened(figures)}; expected figures by name"
        return
    for name, value in figures.items():
        try:
            finite = isinstance(name, str) and math.isfinite(float(value))
        except (TypeError, ValueError, OverflowError):
            finite = False
        if not finite:
            yield f"verify: {name!r} is {shortened(value)}; expected a finite number"
