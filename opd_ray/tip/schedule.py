"""The share of tokens kept, rho, as a function of the step."""

from __future__ import annotations

from math import cos, pi

SCHEDULES = ("constant", "linear", "cosine")


def rho_at(step: int, kind: str, rho_start: float, rho_end: float, num_steps: int) -> float:
    """rho at ``step``, counted from 0.

    ``constant`` stays at ``rho_start``. ``linear`` and ``cosine`` leave it at step 0, reach
    ``rho_end`` at step ``num_steps`` and stay there.
    """
    if kind == "constant":
        return rho_start
    progress = min(step / num_steps, 1.0)
    if kind == "cosine":
        progress = (1.0 - cos(pi * progress)) / 2.0
    return rho_start + (rho_end - rho_start) * progress
