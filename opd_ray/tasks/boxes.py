r"""Which ``\boxed{...}`` of a text is its answer."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

# A box's opening, a character behind a backslash (brace or not), or a brace.
_TOKEN = re.compile(r"\\+(?P<box>boxed|fbox)\s*\{|\\.|(?P<brace>[{}])", re.DOTALL)
_OPENING = re.compile(r"\\+(?:boxed|fbox)\s*\{")
# What may stand between boxes that are one answer in several parts.
_JOINT = re.compile(r"(?:[\s$,;.]|\\[,;! ]|\\q?quad\b|\\[()\[\]]|\\text\{|\}|\band\b|\bor\b)*")
_END_OF_THINKING = re.compile(r"</think(?:ing)?>")


@dataclass(frozen=True)
class _Box:
    """Places in the text: of the whole box, and of its content."""

    start: int
    end: int
    inner_start: int
    inner_end: int


def final_part(text: str) -> str:
    """What a response says after thinking; all of it where it does not think, or says no more."""
    *_, last = _END_OF_THINKING.split(text)
    return last if last.strip() else text


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete ``\boxed{...}`` or ``\fbox{...}``, or None.

    Braces are balanced and ``\{``, ``\}`` do not count. A box that never closes (a response cut
    off) and an empty one are passed over for one before; of boxes in a box the outer counts.
    """
    parts = boxed_parts(text)
    return parts[-1] if parts else None


def boxed_parts(text: str) -> list[str]:
    r"""The contents of the last box and of those directly before it, in order of the text.

    "Directly" allows for commas, "and", "or", white space and dollar signs between two of them.
    """
    boxes = _boxes(text)
    first = len(boxes) - 1
    while first > 0 and _JOINT.fullmatch(text, boxes[first - 1].end, boxes[first].start):
        first -= 1
    # A box within the content means nothing but what it holds.
    return [
        _OPENING.sub("{", text[box.inner_start : box.inner_end]).strip()
        for box in boxes[max(0, first) :]
    ]


def _boxes(text: str) -> list[_Box]:
    """Complete boxes that lie in no other and hold something, in order; one pass over the text.

    Where none holds anything, the last empty one.
    """
    found: list[_Box] = []
    opened: list[tuple[bool, int, int]] = []  # is it a box, its start, the start of its content
    for token in _TOKEN.finditer(text):
        if token["box"]:
            opened.append((True, token.start(), token.end()))
        elif token["brace"] == "{":
            opened.append((False, token.start(), token.end()))
        elif token["brace"] == "}" and opened:
            is_box, start, inner = opened.pop()
            if is_box:
                found.append(_around(text, _Box(start, token.end(), inner, token.start()), found))
    return [box for box in found if text[box.inner_start : box.inner_end].strip()] or found[-1:]


def _around(text: str, box: _Box, found: list[_Box]) -> _Box:
    """``box`` without the boxes in it, which are taken from ``found``; of one alone its content."""
    inside = []
    while found and found[-1].start > box.start:
        inside.append(found.pop())
    if len(inside) != 1:
        return box
    (only,) = inside
    beside = text[box.inner_start : only.start] + text[only.end : box.inner_end]
    return box if beside.strip() else replace(only, start=box.start, end=box.end)
