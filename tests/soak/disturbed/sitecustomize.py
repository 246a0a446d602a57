"""On the path of a process, this makes its disk slow, or its clock jump.

``OPD_RAY_SLOW_SECONDS``: so much longer takes each call that waits for a disk, as on a network file
system under load. ``OPD_RAY_JUMPING_CLOCK``: Python's wall clock is an hour ahead, a day behind and
right in turn, seconds at a time; what is not Python has the system's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

_SLOW_SECONDS = float(os.environ.get("OPD_RAY_SLOW_SECONDS", "0"))
_OFFSETS = (0, 3600, -86400)
_SECONDS_EACH = 4.0


def _slowed(function: Callable[..., Any]) -> Callable[..., Any]:
    def slowed(*args: Any, **options: Any) -> Any:
        time.sleep(_SLOW_SECONDS)
        return function(*args, **options)

    return slowed


def _offset() -> int:
    """Seconds; the same in all processes of a machine."""
    return _OFFSETS[int(time.monotonic() / _SECONDS_EACH) % len(_OFFSETS)]


if _SLOW_SECONDS:
    for _name in ("fsync", "replace", "rename"):
        setattr(os, _name, _slowed(getattr(os, _name)))
if os.environ.get("OPD_RAY_JUMPING_CLOCK"):
    _time, _time_ns = time.time, time.time_ns
    time.time = lambda: _time() + _offset()
    time.time_ns = lambda: _time_ns() + _offset() * 1_000_000_000
