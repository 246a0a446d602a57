"""What the methods of an environment beside its tools return, read into messages and figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from opd_ray.environments.environment import Message

_EXPECTED = 'return a list of {"role": ..., "content": text}'


def as_messages(made: Any) -> list[Message]:
    """Chat messages that the student can answer.

    Raises:
        TypeError: they are none; says what is expected.
    """
    if not isinstance(made, Iterable) or isinstance(made, str | bytes | Mapping):
        raise TypeError(f"it returned {made!r:.200}: {_EXPECTED}")
    messages: list[Message] = []
    for message in made:
        fits = isinstance(message, Mapping) and "role" in message
        if not fits or not isinstance(message.get("content"), str):
            raise TypeError(f"{message!r:.200} is no chat message: {_EXPECTED}")
        # The text itself, without what a class derived from str may make of it.
        messages.append({**message, "content": str.__str__(message["content"])})
    if not messages or messages[-1]["role"] == "assistant":
        raise TypeError("the last message must be one that the student can answer")
    return messages


def as_follow_up(made: Any) -> list[Message] | None:
    """What follows a turn without a call; None: nothing. Raises as :func:`as_messages`."""
    return None if made is None else as_messages(made)


def as_figures(said: Any) -> dict[str, float]:
    """Figures by name.

    Raises:
        TypeError: it is no mapping.
        ValueError: one of them is no finite number.
    """
    if not isinstance(said, Mapping):
        raise TypeError(f"it returned {said!r:.200}: return figures by name, {{}} for none")
    return {str(name): _number(str(name), value) for name, value in said.items()}


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name!r} is {value!r:.200}: return a finite number")
    return number
