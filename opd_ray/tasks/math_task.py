"""The math task: answers judged by math-verify in processes of their own, within a time limit."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from opd_ray.tasks.worker_pool import WorkerPool

logger = logging.getLogger(__name__)


class MathTask:
    r"""Correct when the last ``\boxed{...}``, or else the end of the response, equals the answer.

    Equality is math-verify's: forms of a number, sets, intervals, matrices and units are seen
    through. A pair that takes more than ``cpu_seconds`` of processor time counts as wrong and is
    logged.
    """

    name = "math"

    def __init__(self, processes: int | None = None, cpu_seconds: float = 5.0) -> None:
        if cpu_seconds <= 0:
            raise ValueError(f"cpu_seconds = {cpu_seconds}: use a positive number")
        self._processes = processes or min(8, os.cpu_count() or 1)
        self._pool = WorkerPool(
            Path(__file__).with_name("math_worker.py"), [str(cpu_seconds)], self._processes
        )

    def extract(self, response_text: str) -> str | None:
        """The content of the last box, less white space and size variants; None without a box."""
        boxed = last_boxed(response_text)
        if not boxed:
            return None
        boxed = re.sub(r"\\[dt]frac", r"\\frac", boxed)
        boxed = re.sub(r"\\left|\\right", "", boxed)
        return "".join(boxed.split()).strip("$")

    def verify(self, response_text: str, answer: str) -> bool:
        """Whether math-verify takes the response's answer for the gold one.

        Raises:
            RunError: a judging process cannot be started or is killed.
        """
        verdict = self._pool.ask([last_boxed(response_text), response_text, answer])
        if verdict is None:
            logger.warning("judging took too long, counted as wrong: gold answer %r", answer)
        return bool(verdict)

    def verify_many(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """``verify`` for every (response text, gold answer), spread over the processes."""
        with ThreadPoolExecutor(self._processes) as threads:
            return list(threads.map(lambda pair: self.verify(*pair), pairs))

    def close(self) -> None:
        """End the judging processes (otherwise they end with this one)."""
        self._pool.close()


_OPENING = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"\\.|[{}]")  # or a character behind a backslash, brace or not


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete ``\boxed{...}`` or ``\fbox{...}``, or None.

    Braces are balanced and ``\{``, ``\}`` do not count; a box that never closes (a response cut
    off) is passed over for the one before it.
    """
    for opening in reversed(list(_OPENING.finditer(text))):
        depth = 1
        for brace in _BRACE.finditer(text, opening.end()):
            depth += {"{": 1, "}": -1}.get(brace.group(), 0)
            if depth == 0:
                return text[opening.end() : brace.start()].strip()
    return None
