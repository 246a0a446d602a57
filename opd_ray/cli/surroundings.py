"""What a command meets around it: arguments, terminals, and files with the names of packages."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from opd_ray.errors import ConfigError
from opd_ray.signals import lead_nowhere

# Exit code of a command whose output nobody reads any more, as a shell gives it for SIGPIPE.
# Packages beside opd_ray in its distribution, with names that others use too.
_OWN = ("actors", "configs")
# Packages that are imported after the command line has been read.
_NEEDED = ("datasets", "deepspeed", "numpy", "ray", "tokenizers", "torch", "transformers", "vllm")


def print_in_any_encoding() -> None:
    """Spell what a terminal's or a log's encoding lacks as ``\\xfc`` instead of failing at it."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # else a stand-in
            stream.reconfigure(errors="backslashreplace")


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse arguments that Python could not read as text.

    Raises:
        ConfigError: names the first and the encoding that it was read in.
    """
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            encoding = sys.getfilesystemencoding()
            spelled = argument.encode(errors="backslashreplace").decode()
            raise ConfigError(
                f"argument {spelled!r} cannot be read as {encoding}: set PYTHONUTF8=1 or a UTF-8 "
                "locale (LC_ALL=C.UTF-8), and write files' names in UTF-8"
            ) from None


def find_own_modules() -> None:
    """Have modules of the user's found in the current folder, behind all others.

    Python does so for ``python -m``, not for an installed command; Ray does in a run's actors.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def check_packages() -> None:
    """Refuse a file or folder of the user's that is imported in place of a package.

    Here or by the actors: in Ray's processes the current folder comes first.

    Raises:
        ConfigError: names it and the package.
    """
    if problems := list(_hidden_packages(Path(__file__).resolve().parents[2])):
        raise ConfigError("\n".join(problems))


def _hidden_packages(home: Path) -> Iterator[str]:
    """What hides a package; ``home`` is the folder that opd_ray lies in."""
    remedy = "rename it, take its folder off PYTHONPATH, or run from another folder"
    places = [os.getcwd(), *sys.path]
    for name in _OWN:
        spec = PathFinder.find_spec(name, places)
        found = None if spec is None or spec.origin is None else Path(spec.origin).resolve().parent
        if found is not None and found != home / name:
            yield f"{found}: is imported in place of opd-ray's own package {name!r}: {remedy}"
    for name in _NEEDED:
        spec = PathFinder.find_spec(name, places)
        if spec is not None and spec.submodule_search_locations is None:
            yield f"{spec.origin}: is imported in place of the package {name!r}: {remedy}"


def reader_left() -> bool:
    """Whether nobody reads standard output or error any more; further words there are lost."""
    left = False
    for number in (1, 2):
        pipe = select.poll()
        pipe.register(number, 0)
        if any(event & select.POLLERR for _, event in pipe.poll(0)):
            left = True
            lead_nowhere(number)
    return left
