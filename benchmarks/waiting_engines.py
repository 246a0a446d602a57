"""Ray actors of a run that wait instead of computing, on a clock that runs faster than a profile's.

They speak the interfaces of RolloutActor, TeacherActor and TrainerActor. One second here stands
for ``scale`` seconds of the profile and one token for as many tokens, so work that the rest of the
program does a token keeps its proportion to the waiting. No torch is imported.
"""

from __future__ import annotations

import queue
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import ray
from pipeline_profiles import Profile

from actors.process import LIFELINE_GROUP, Lifeline, peak_memory_bytes
from opd_ray.types import (
    Rollout,
    RolloutRequest,
    RolloutScores,
    SampledSignal,
    Sampling,
    ScoreRequest,
    SignalReceipt,
    StepAccount,
    TeacherInfo,
    TopK,
    TrainItem,
)

VOCAB_SIZE = 50_000
_NOTHING = 1e-6  # tokens


@dataclass
class Diary:
    """When an actor had work, on the machine's monotonic clock, and what it ended when."""

    busy: list[tuple[float, float]] = field(default_factory=list)  # seconds, begin and end
    written: dict[str, float] = field(default_factory=dict)  # by rollout: when it ended

    def busy_between(self, begin: float, end: float) -> float:
        """Seconds of work in this time."""
        return sum(max(0.0, min(stop, end) - max(start, begin)) for start, stop in self.busy)


class Decoder:
    """Continuous batching: all running sequences get a token a step, and their number sets its
    time.

    Args:
        step_seconds: of one decode step by the number of sequences that run.
    """

    def __init__(self, step_seconds: Callable[[int], float]) -> None:
        self._step_seconds = step_seconds
        self._left: dict[str, float] = {}  # tokens to be written, by rollout

    def __len__(self) -> int:
        return len(self._left)

    def add(self, rollout_id: str, tokens: int) -> None:
        self._left[rollout_id] = float(tokens)

    def until_next(self) -> float:
        """Seconds until the next sequence ends, if none is added before."""
        return min(self._left.values()) * self._step_seconds(len(self._left))

    def advance(self, seconds: float) -> list[str]:
        """Write for so long, at most :meth:`until_next`; the sequences that end."""
        written = seconds / self._step_seconds(len(self._left)) if self._left else 0.0
        self._left = {name: left - written for name, left in self._left.items()}
        ended = [name for name, left in self._left.items() if left <= _NOTHING]
        for name in ended:
            del self._left[name]
        return ended


@ray.remote(concurrency_groups={"engine": 1, "inbox": 1, **LIFELINE_GROUP})
class WaitingRollout(Lifeline):
    """A rollout actor of which every response has the length that its seed draws.

    Its time goes on by the profile alone: what Ray needs to carry a response away does not slow the
    next one down, as in an engine whose speed was measured with all that.
    """

    def __init__(self, profile: Profile, scale: int, gpus: float) -> None:
        self._profile, self._scale = profile, scale
        self._decoder = Decoder(
            lambda running: scale * profile.decode_step_seconds(running, max(1, int(gpus)))
        )
        self._inbox: queue.SimpleQueue[tuple[Sequence[RolloutRequest], bool]] = queue.SimpleQueue()
        self._asked: dict[str, tuple[RolloutRequest, int]] = {}
        self._version = 0
        self._topk_refs: list[ray.ObjectRef] = []
        self._diary = Diary()

    @ray.method(concurrency_group="engine")
    def ready(self) -> None:
        """It is."""

    @ray.method(concurrency_group="engine", num_returns="streaming")
    def generate(
        self, requests: Sequence[RolloutRequest], sampling: Sampling, record: bool, more: bool
    ) -> Iterator[list[Rollout]]:
        """As the rollout actor's, when each response ends by the profile."""
        self._topk_refs.clear()
        self._take(requests, sampling)
        begin = now = time.monotonic()
        while True:
            while more and not (len(self._decoder) and self._inbox.empty()):
                if not len(self._decoder):
                    self._diary.busy.append((begin, now))
                    requests, more = self._inbox.get()
                    begin = now = time.monotonic()
                else:
                    requests, more = self._inbox.get()
                self._take(requests, sampling)
            if not len(self._decoder):
                break
            end = now + self._decoder.until_next() / self._scale
            arrived = self._sleep(end, listen=more)
            until = end if arrived is None else min(end, max(now, time.monotonic()))
            ended = self._decoder.advance((until - now) * self._scale)
            now = until
            if arrived is not None:
                requests, more = arrived
                self._take(requests, sampling)
            if ended:
                self._diary.written |= dict.fromkeys(ended, now)
                yield [self._rollout(*self._asked.pop(name), sampling) for name in ended]
        self._diary.busy.append((begin, now))

    @ray.method(concurrency_group="inbox")
    def add(self, requests: Sequence[RolloutRequest], more: bool) -> None:
        """As the rollout actor's."""
        self._inbox.put((requests, more))

    @ray.method(concurrency_group="engine")
    def call_transport(self, method: str, version: int, *chunks: bytes) -> None:
        """Take new weights, for as long as the profile says; after a running stream's end."""
        assert method == "load"
        time.sleep(self._profile.sync_seconds / self._scale)
        self._version = version

    @ray.method(concurrency_group="inbox")
    def peak_memory(self) -> int:
        """Bytes."""
        return peak_memory_bytes()

    @ray.method(concurrency_group="inbox")
    def diary(self) -> Diary:
        """What it did since it was last asked."""
        told, self._diary = self._diary, Diary()
        return told

    def _sleep(self, end: float, listen: bool) -> tuple[Sequence[RolloutRequest], bool] | None:
        """Until ``end``, or until further requests come; returns these."""
        left = max(0.0, end - time.monotonic())
        if not listen:
            time.sleep(left)
            return None
        try:
            return self._inbox.get(timeout=left)
        except queue.Empty:
            return None

    def _take(self, requests: Sequence[RolloutRequest], sampling: Sampling) -> None:
        for request in requests:
            tokens = response_tokens(self._profile, self._scale, request.seed)
            self._asked[request.rollout_id] = request, min(tokens, sampling.max_tokens)
            self._decoder.add(request.rollout_id, self._asked[request.rollout_id][1])

    def _rollout(self, request: RolloutRequest, tokens: int, sampling: Sampling) -> Rollout:
        draw = np.random.default_rng(request.seed)
        topk = TopK(np.zeros((tokens, 1), np.int32), np.zeros((tokens, 1), np.float32))
        self._topk_refs.append(ray.put(topk))
        return Rollout(
            rollout_id=request.rollout_id,
            prompt_id=request.prompt_id,
            sample=request.sample,
            prompt_ids=request.prompt_ids,
            response_ids=draw.integers(VOCAB_SIZE, size=tokens, dtype=np.int32),
            response_mask=np.ones(tokens, np.uint8),
            entropy=draw.random(tokens, np.float32),
            logprob=-draw.random(tokens, np.float32),
            finish_reason="length" if tokens == sampling.max_tokens else "stop",
            weights_version=self._version,
            topk=self._topk_refs[-1],
            source=request.source,
        )


@ray.remote(concurrency_groups={**LIFELINE_GROUP, "signals": 1})
class WaitingTeacher(Lifeline):
    """A teacher replica that draws its scores from the rollout's name, the same in every run."""

    def __init__(self, profile: Profile, scale: int, gpus: float) -> None:
        self._profile, self._scale, self._gpus = profile, scale, max(1, int(gpus))
        self._signals: dict[str, SampledSignal] = {}
        self._diary = Diary()

    def ready(self) -> TeacherInfo:
        """What it is."""
        return TeacherInfo("waiting", VOCAB_SIZE, 1 << 20, ("topk",))

    def score(self, requests: Sequence[ScoreRequest]) -> list[RolloutScores]:
        """Scores of each request, after the profile's time for all of them."""
        begin = time.monotonic()
        texts = sum(len(r.prompt_ids) + len(r.response_ids) for r in requests)
        wait(self._profile.scoring_seconds(texts * self._scale, self._gpus) / self._scale, begin)
        found = [self._scores(request) for request in requests]
        self._diary.busy.append((begin, time.monotonic()))
        return found

    @ray.method(concurrency_group="signals", num_returns=2)
    def take(
        self, keep: Mapping[str, np.ndarray], forget: bool = True
    ) -> tuple[dict[str, SampledSignal], SignalReceipt]:
        """As the teacher actor's, a number a row."""
        signals = {name: self._signals[name].rows(rows) for name, rows in keep.items()}
        if forget:
            self.forget(list(keep))
        rows = sum(len(rows) for rows in keep.values())
        return signals, SignalReceipt(rows, sum(signal.nbytes for signal in signals.values()))

    @ray.method(concurrency_group="signals")
    def forget(self, rollout_ids: Sequence[str]) -> None:
        """Free signals that nobody will ask for."""
        for name in rollout_ids:
            del self._signals[name]

    @ray.method(concurrency_group="signals")
    def peak_memory(self) -> int:
        """Bytes."""
        return peak_memory_bytes()

    @ray.method(concurrency_group="signals")
    def diary(self) -> Diary:
        """What it did since it was last asked."""
        told, self._diary = self._diary, Diary()
        return told

    def _scores(self, request: ScoreRequest) -> RolloutScores:
        columns = drawn_columns(request.rollout_id, len(request.asked))
        self._signals[request.rollout_id] = SampledSignal(columns["teacher_logprob"])
        return RolloutScores(request.rollout_id, columns)


@ray.remote(concurrency_groups={**LIFELINE_GROUP, "rank": 1})
class WaitingTrainer(Lifeline):
    """A trainer rank: every call takes what its own texts take it, a step the optimizer's time."""

    def __init__(self, profile: Profile, scale: int, gpus: float) -> None:
        self._profile, self._scale = profile, scale
        self._waves: list[StepAccount] = []  # since the last step
        self._diary = Diary()

    def address(self) -> tuple[str, int]:
        """Of a meeting that nobody holds."""
        return "localhost", 0

    @ray.method(concurrency_group="rank")
    def setup(self, master_address: str, master_port: int) -> None:
        """It is."""

    @ray.method(concurrency_group="rank")
    def call(self, method: str, *args: Any) -> Any:
        """One of the trainer's methods below."""
        calls = {
            "accumulate": self._accumulate,
            "train_step": self._train_step,
            "score": self._score,
        }
        return calls[method](*args)

    @ray.method(concurrency_group="rank")
    def weights(self) -> list[ray.ObjectRef]:
        """A reference to weights that weigh nothing: their way is the engines' to wait for."""
        return [ray.put(b"")]

    @ray.method(concurrency_group="rank")
    def call_transport(self, method: str, *args: Any) -> None:
        """Has no end of its own."""

    def peak_memory(self) -> int:
        """Bytes."""
        return peak_memory_bytes()

    def diary(self) -> Diary:
        """What it did since it was last asked."""
        told, self._diary = self._diary, Diary()
        return told

    def _accumulate(
        self, micro_batches: list[list[TrainItem]], *found: Mapping[str, SampledSignal]
    ) -> None:
        self._waves.append(self._read(micro_batches, found, 0.0))

    def _train_step(
        self,
        micro_batches: list[list[TrainItem]],
        total_weight: float,
        learning_rate: float,
        *found: Mapping[str, SampledSignal],
    ) -> StepAccount:
        last = self._read(micro_batches, found, self._profile.optimizer_seconds)
        parts, self._waves = [*self._waves, last], []
        account = reduce(add, parts)
        assert account.weight_sum <= total_weight * (1 + 1e-6)
        return replace(
            account,
            learning_rate=learning_rate,
            grad_norm=1.0,
            seconds=sum(part.seconds for part in parts),
        )

    def _score(
        self, micro_batches: list[list[TrainItem]], *found: Mapping[str, SampledSignal]
    ) -> list[RolloutScores]:
        """Forward passes alone: a third of reading with the backward pass."""
        begin = time.monotonic()
        tokens = sum(trunk_tokens(items) for items in micro_batches) * self._scale
        wait(self._profile.reading_seconds(tokens, 1) / 3 / self._scale, begin)
        self._diary.busy.append((begin, time.monotonic()))
        return [
            RolloutScores(item.rollout_id, drawn_columns(item.rollout_id, len(item.rows)))
            for items in micro_batches
            for item in items
        ]

    def _read(
        self,
        micro_batches: list[list[TrainItem]],
        found: Iterable[Mapping[str, SampledSignal]],
        further_seconds: float,
    ) -> StepAccount:
        begin = time.monotonic()
        items = [item for micro_batch in micro_batches for item in micro_batch]
        signals = {name: len(signal.logprobs) for part in found for name, signal in part.items()}
        assert signals == {item.rollout_id: len(item.rows) for item in items}
        tokens = sum(trunk_tokens(micro_batch) for micro_batch in micro_batches)
        seconds = self._profile.reading_seconds(tokens * self._scale, 1) + further_seconds
        wait(seconds / self._scale, begin)
        self._diary.busy.append((begin, time.monotonic()))
        weight = float(sum(item.weights.sum() for item in items))
        return StepAccount(
            loss_sum=weight,
            weight_sum=weight,
            kept_tokens=sum(len(item.rows) for item in items),
            trunk_tokens=tokens,
            padding_tokens=0,
            grad_norm=0.0,
            learning_rate=0.0,
            gap_sum=0.0,
            gap_max=0.0,
            skipped=False,
            seconds=time.monotonic() - begin,
        )


def response_tokens(profile: Profile, scale: int, seed: int) -> int:
    """Tokens of the response with this seed, each of which stands for ``scale``."""
    return max(1, round(profile.lengths.draw(seed) / scale))


def trunk_tokens(items: Sequence[TrainItem]) -> int:
    """What one row of these texts holds: a prompt once for all its responses."""
    prompts = {item.prompt_ids.tobytes(): len(item.prompt_ids) for item in items}
    responses = sum(len(item.text_ids) - len(item.prompt_ids) for item in items)
    return sum(prompts.values()) + responses


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
