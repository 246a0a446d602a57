r"""Finding the last `\boxed{...}` of a response."""

from __future__ import annotations

import re

_OPENING = re.compile(r"\\(?:boxed|fbox)\s*\{")


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{...}` or `\fbox{...}`, or None.

    Braces are balanced and `\{`, `\}` do not count; a box that never closes (a response cut off) is
    passed over for the one before it.
    """
    for opening in reversed(list(_OPENING.finditer(text))):
        depth = 1
        place = opening.end()
        while place < len(text):
            character = text[place]
            if character == "\\":
                place += 1
            elif character == "{":
                depth += 1
            elif character == "}":
                depth -= 1
                if depth == 0:
                    return text[opening.end() : place].strip()
            place += 1
    return None
