"""The math task: answers judged by math-verify in processes of their own, within a time limit."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from opd_ray.tasks.boxes import boxed_parts, final_part, last_boxed
from opd_ray.tasks.gold import no_short_answer, short_gold
from opd_ray.tasks.worker_pool import WorkerPool

logger = logging.getLogger(__name__)


class MathTask:
    r"""Correct when the last ``\boxed{...}``, or else the end of the response, equals the answer.

    Equality is math-verify's: forms of a number, sets, intervals, matrices and units are seen
    through. Boxes side by side are also one answer in parts. Behind thinking that has ended, only
    what follows counts; of a gold answer that is a whole solution, what :func:`short_gold` finds.
    A pair that takes more than ``cpu_seconds`` of processor time counts as wrong and is logged.
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
        boxed = last_boxed(final_part(response_text))
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
        said, gold = final_part(response_text), short_gold(answer)
        parts = boxed_parts(said)
        if parts and parts[-1] and parts[-1] in (answer.strip(), gold):
            return True
        if self._judge(parts[-1] if parts else None, said, gold):
            return True
        return len(parts) > 1 and self._judge(", ".join(parts), said, gold)

    def _judge(self, boxed: str | None, said: str, gold: str) -> bool:
        verdict = self._pool.ask([boxed, said, gold])
        if verdict is None:
            logger.warning("judging took too long, counted as wrong: gold answer %r", gold)
        return bool(verdict)

    def gold_answer(self, answer: str) -> str:
        """The part of a gold answer that counts."""
        return short_gold(answer)

    def gold_problem(self, answer: str) -> str | None:
        """Why hardly any response can give this answer; None for a usual one."""
        return no_short_answer(short_gold(answer))

    def verify_many(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """``verify`` for every (response text, gold answer), spread over the processes."""
        with ThreadPoolExecutor(self._processes) as threads:
            return list(threads.map(lambda pair: self.verify(*pair), pairs))

    def close(self) -> None:
        """End the judging processes (otherwise they end with this one)."""
        self._pool.close()
