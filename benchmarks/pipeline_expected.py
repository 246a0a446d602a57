"""What a step should take by a profile: the stages worked out one token and one text at a time.

Shares no code with the waiting engines, the pools or the coordinator, and knows no cost of theirs.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import median


@dataclass(frozen=True)
class Stages:
    """Seconds of one step's stages, had each of them the machine for itself."""

    written: list[float]  # of each response in the order of the requests, from the step's begin
    scored: list[float]  # likewise
    reading: list[float]  # of each text: forward and backward pass, shared out over all ranks
    tokens: list[float]  # of each text
    ranks: int
    optimizer: float
    sync: float

    @property
    def training(self) -> float:
        return sum(self.reading) + self.optimizer

    @property
    def synchronous(self) -> float:
        """One after the other."""
        return max(self.scored) + self.training + self.sync

    @property
    def overlapped(self) -> float:
        """Each response is read as soon as it is scored and the trainers are free."""
        end = 0.0
        for scored, reading in sorted(zip(self.scored, self.reading, strict=True)):
            end = max(end, scored) + reading
        return end + self.optimizer + self.sync

    def in_waves(self, least: float) -> float:
        """Trainers that are free take all texts that are scored, if they are ``least`` tokens.

        Each text is read by one rank, and all ranks must have done before the next wave. What is
        left when everything is scored is the last wave.
        """
        order = sorted(range(len(self.scored)), key=self.scored.__getitem__)
        free = 0.0
        wave: list[int] = []
        for place, index in enumerate(order):
            wave.append(index)
            begin = max(free, self.scored[index])
            last = place == len(order) - 1
            # While the trainers are busy the wave grows.
            grows = not last and self.scored[order[place + 1]] <= begin
            if last or (not grows and sum(self.tokens[i] for i in wave) >= least):
                free = begin + _shared_out([self.ranks * self.reading[i] for i in wave], self.ranks)
                wave = []
        return free + self.optimizer + self.sync

    def lagged(self, following: Stages) -> float:
        """The following step is written and scored while this one is trained on."""
        return max(max(following.scored), self.training) + self.sync

    def tail(self, share: float) -> float:
        """From the moment when this share of the responses is written to the last one."""
        ends = sorted(self.written)
        return ends[-1] - ends[ceil(round(share * len(ends), 6)) - 1]


def write(
    lengths: Sequence[int], engines: int, room: int, step_seconds: Callable[[int], float]
) -> list[float]:
    """When each response is written, seconds from the begin.

    Every engine begins with an even share of the requests, as many as it has room for; the rest go
    one by one to whichever engine ends a response first.

    Args:
        lengths: decode steps of each response.
        engines: how many there are.
        room: responses an engine writes at once.
        step_seconds: of one decode step, by the number of sequences that run.
    """
    share = -(-len(lengths) // engines)
    waiting = list(range(len(lengths)))[::-1]
    running = [
        {waiting.pop(): 0 for _ in range(min(share, room, len(waiting)))} for _ in range(engines)
    ]
    ends = [0.0] * len(lengths)
    clock = [(step_seconds(len(own)), number) for number, own in enumerate(running) if own]
    heapq.heapify(clock)
    while clock:
        now, number = heapq.heappop(clock)
        own = running[number]
        for index in list(own):
            own[index] += 1
            if own[index] == lengths[index]:
                ends[index] = now
                del own[index]
                if waiting:
                    own[waiting.pop()] = 0
        if own:
            heapq.heappush(clock, (now + step_seconds(len(own)), number))
    return ends


def score(written: Sequence[float], seconds: Sequence[float], replicas: int) -> list[float]:
    """When each response is scored: first come, first served, one at a time on a replica.

    Args:
        written: when each response is there.
        seconds: how long a replica takes for it.
        replicas: how many there are.
    """
    free = [0.0] * replicas
    scored = [0.0] * len(written)
    for index in sorted(range(len(written)), key=written.__getitem__):
        begin = max(heapq.heappop(free), written[index])
        scored[index] = begin + seconds[index]
        heapq.heappush(free, scored[index])
    return scored


def _shared_out(seconds: Sequence[float], ranks: int) -> float:
    """When the last rank has done, if the longest go first, each to the rank with least to do."""
    loads = [0.0] * ranks
    for one in sorted(seconds, reverse=True):
        heapq.heapreplace(loads, loads[0] + one)
    return max(loads)


def expected(steps: Sequence[Stages], mode: str, which: Sequence[int]) -> float:
    """The median of some steps (from 0) of a run in this mode."""
    if mode == "lag":
        return median(steps[number].lagged(steps[number + 1]) for number in which)
    chosen = [steps[number] for number in which]
    return median(step.overlapped if mode == "overlap" else step.synchronous for step in chosen)
