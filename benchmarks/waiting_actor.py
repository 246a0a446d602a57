"""Ray actors of a run that wait instead of computing, on a clock that runs faster than a profile's.

They speak the interfaces of RolloutActor, TeacherActor and TrainerActor. One second here stands
for ``scale`` seconds of the profile and one token for as many tokens, so work that the rest of the
program does a token keeps its proportion to the waiting. No torch is imported.
"""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass, field

import numpy as np
import ray
from pipeline_profiles import Profile

from actors.lifeline import LIFELINE_GROUP, Lifeline
from actors.process import peak_memory_bytes

VOCAB_SIZE = 50_000
# Every waiting actor declares these groups, so that no work delays what it tells.
WAITING_GROUPS = {**LIFELINE_GROUP, "telling": 1}


@dataclass
class Diary:
    """When an actor had work, on the machine's monotonic clock, and what it ended when."""

    busy: list[tuple[float, float]] = field(default_factory=list)  # seconds, begin and end
    written: dict[str, float] = field(default_factory=dict)  # by rollout: when it ended

    def busy_between(self, begin: float, end: float) -> float:
        """Seconds of work in this time."""
        return sum(max(0.0, min(stop, end) - max(start, begin)) for start, stop in self.busy)


class WaitingActor(Lifeline):
    """Base of the waiting actors: they write down when they had work."""

    def __init__(self, profile: Profile, scale: int) -> None:
        self._profile, self._scale = profile, scale
        self._diary = Diary()

    @ray.method(concurrency_group="telling")
    def peak_memory(self) -> int:
        """Bytes."""
        return peak_memory_bytes()

    @ray.method(concurrency_group="telling")
    def diary(self) -> Diary:
        """What it did since it was last asked."""
        told, self._diary = self._diary, Diary()
        return told


def drawn_columns(rollout_id: str, tokens: int) -> dict[str, np.ndarray]:
    """Scores of a rollout's tokens, drawn from its name."""
    draw = np.random.default_rng(zlib.crc32(rollout_id.encode()))
    names = ("reverse_kl", "forward_kl", "jsd")
    # In nats; a Jensen-Shannon divergence is at most log 2.
    columns = {name: draw.random(tokens, np.float32) / 2 for name in names}
    return {**columns, "teacher_logprob": -draw.random(tokens, np.float32)}


def wait(seconds: float, begin: float) -> None:
    """Until so many seconds after ``begin``, on the machine's monotonic clock."""
    time.sleep(max(0.0, begin + seconds - time.monotonic()))
