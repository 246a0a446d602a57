"""Where libraries read what a user gave: their errors become a message with place and remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from yaml import MarkedYAMLError, YAMLError

from opd_ray.errors import InputError, OpdError


@contextmanager
def border(place: str, remedy: str, error: type[OpdError] = InputError) -> Iterator[None]:
    """A with block in which a library reads what a user gave; whatever it raises is bad input.

    Only the call into the library belongs into the block: a fault of our own in there would be
    taken for the user's.

    Args:
        place: the file, row or key that is read, as the user knows it.
        remedy: what the user can do, as an imperative.
        error: the class to raise.

    Raises:
        OpdError: of class ``error``, from what the library raised; known errors pass as they are,
            or without what the library has put around them.
    """
    try:
        yield
    except OpdError:
        raise
    except Exception as raised:
        if ours := _known_inside(raised):
            raise error(f"{place}: {getattr(raised, 'full_key', '')}: {ours}") from raised
        raise error(f"{place}: {first_line(raised)}; {remedy}") from raised


def _known_inside(raised: BaseException) -> OpdError | None:
    """Our own error that OmegaConf met when it looked up a reference; it says what it is itself."""
    inner: BaseException | None = raised if hasattr(raised, "full_key") else None
    while inner is not None and not isinstance(inner, OpdError):
        inner = inner.__cause__ or inner.__context__
    return inner


def first_line(raised: BaseException) -> str:
    """The first line of an error that says something; its class where it says nothing itself.

    Of YAML the line and column and what is wrong there, of OmegaConf the key in front.
    """
    if isinstance(raised, MarkedYAMLError) and raised.problem_mark and raised.problem:
        mark, context = raised.problem_mark, raised.context or "while"
        said = raised.problem if context.startswith("while") else f"{context}, {raised.problem}"
        return f"not valid YAML: line {mark.line + 1}, column {mark.column + 1}: {said}"
    if isinstance(raised, YAMLError):
        return f"not valid YAML: {' '.join(str(raised).split())}"
    if key := getattr(raised, "full_key", None):
        return f"{key}: {' '.join(str(raised).splitlines()[:1])}"
    lines = [line.strip() for line in str(raised).splitlines() if line.strip()]
    name = type(raised).__name__
    return f"{name}: {lines[0].rstrip('.;: ')}" if lines else name
