"""Code of the user's: what it raises becomes a message with its own file and line."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from opd_ray.borders import first_line
from opd_ray.errors import OpdError, RunError

_FRAME = re.compile(r'^\s*File "(.+)", line (\d+), in (.+)$', re.MULTILINE)
_OURS = tuple(f"{Path(__file__).parents[1] / package}/" for package in ("opd_ray", "actors"))
# Import machinery, code that was made from text (a dataclass's __init__), the compiled part of Ray.
_NO_FILES = ("<frozen", "<string>", "python/ray/")
_LIBRARIES = tuple(
    f"{sysconfig.get_path(name)}/" for name in ("stdlib", "platstdlib", "purelib", "platlib")
)


class UserCodeError(RunError):
    """A rule, teacher, task or data source of the user's raised."""


@contextmanager
def users_code(place: str, error: type[OpdError] = UserCodeError) -> Iterator[None]:
    """A with block that calls code of the user's; what that raises is named by its own place.

    Frames of ours and of libraries stay out of the message; ``--traceback`` shows all.

    Args:
        place: what calls it, as the user knows it: the key with its value.
        error: the class to raise.

    Raises:
        OpdError: of class ``error``; known errors pass as they are.
    """
    try:
        yield
    except OpdError:
        raise
    # Nor may a sys.exit() in there end the run without a word.
    except (Exception, SystemExit) as raised:
        raise error(f"{place}: {first_line(raised)}{place_of(raised)}") from raised


def place_in(text: str) -> str:
    """Of a traceback's text, " (FILE, line N, in FUNCTION)" of the user's innermost frame."""
    return _innermost([(file, int(line), name) for file, line, name in _FRAME.findall(text)])


def guarded(inner: Any, place: str) -> Any:
    """An object of the user's, every public method of which is called inside :func:`users_code`."""
    return _Guarded(inner, place)


class _Guarded:
    def __init__(self, inner: Any, place: str) -> None:
        self._inner = inner
        # As attributes of the instance, so that protocols see which methods there are.
        for name in dir(inner):
            if not name.startswith("_") and callable(method := getattr(inner, name)):
                setattr(self, name, _named(method, place))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _named(method: Callable[..., Any], place: str) -> Callable[..., Any]:
    @wraps(method)
    def call(*arguments: Any, **named: Any) -> Any:
        with users_code(place):
            return method(*arguments, **named)

    return call


def place_of(raised: BaseException) -> str:
    """Of what was raised, " (FILE, line N, in FUNCTION)" of the user's innermost frame."""
    if isinstance(raised, SyntaxError) and raised.filename:
        return f" ({raised.filename}, line {raised.lineno})"
    frames = traceback.extract_tb(raised.__traceback__)
    return _innermost([(frame.filename, frame.lineno or 0, frame.name) for frame in frames])


def _innermost(frames: list[tuple[str, int, str]]) -> str:
    """Of (file, line, function), outermost first."""
    others = [frame for frame in frames if not frame[0].startswith((*_OURS, *_NO_FILES))]
    users = [frame for frame in others if not frame[0].startswith(_LIBRARIES)]
    # A package of the user's may be installed beside the libraries.
    chosen = users[-1:] or others[:1]
    return "".join(f" ({file}, line {line}, in {name})" for file, line, name in chosen)
