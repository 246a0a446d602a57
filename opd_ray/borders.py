"""Where libraries read what a user gave, or write: their errors become place and remedy."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from yaml import MarkedYAMLError, YAMLError

from opd_ray.errors import InputError, OpdError, WriteError

_AGAIN = "then give the same command again: what was written before is whole"
_WRITE_REMEDIES = {
    errno.ENOSPC: f"make room there, {_AGAIN}",
    errno.EDQUOT: f"make room there or raise the quota, {_AGAIN}",
    errno.EROFS: "name a folder that can be written to",
    errno.EACCES: "name a folder that this user may write to",
    errno.EPERM: "name a folder that this user may write to",
    errno.EEXIST: "a file stands where a folder must be: name another folder",
    errno.ENOTDIR: "a file stands where a folder must be: name another folder",
    errno.EISDIR: "a folder stands where a file must be: name another file",
    errno.EFBIG: "raise the limit on a file's size (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "raise the system's limit on open files (sysctl fs.file-max)",
}
# How libraries that are not Python say which error the system gave them.
_SPELLED_ERRNO = re.compile(r"(?:os error|errno) (\d+)", re.IGNORECASE)


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


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A with block in which ``path`` is written; whatever a library raises names it and a remedy.

    As with :func:`border`, only what writes belongs into the block.

    Raises:
        WriteError: from what the system or the library raised; known errors pass as they are.
    """
    try:
        yield
    except OpdError:
        raise
    except Exception as raised:
        number = _errno(raised)
        said = f"{os.strerror(number)}{_room(path, number)}" if number else first_line(raised)
        remedy = _WRITE_REMEDIES.get(number, f"see to its disk, {_AGAIN}")
        raise WriteError(f"{path}: cannot be written: {said}; {remedy}") from raised


def _errno(raised: BaseException) -> int:
    """The number of the system's error; 0 where none is told."""
    if isinstance(raised, OSError) and raised.errno:
        return raised.errno
    found = _SPELLED_ERRNO.search(str(raised))
    return int(found[1]) if found else 0


def _room(path: Path, number: int) -> str:
    """What is left on a full disk, in words."""
    if number != errno.ENOSPC:
        return ""
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    disk = os.statvfs(existing)
    if disk.f_files and not disk.f_favail:
        return " (no inodes are left for further files)"
    return f" ({disk.f_bavail * disk.f_frsize >> 20} MiB free)"


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
