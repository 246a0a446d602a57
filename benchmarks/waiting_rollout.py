"""A rollout actor that waits as long as its responses would take to be written."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import ray
from pipeline_profiles import Profile
from waiting_actor import VOCAB_SIZE, WAITING_GROUPS, WaitingActor

from opd_ray.types import Rollout, RolloutRequest, Sampling, TopK

_NOTHING = 1e-6  # tokens


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


@ray.remote(concurrency_groups={"engine": 1, "inbox": 1, **WAITING_GROUPS})
class WaitingRollout(WaitingActor):
    """A rollout actor of which every response has the length that its seed draws.

    Its time goes on by the profile alone: what Ray needs to carry a response away does not slow the
    next one down, as in an engine whose speed was measured with all that.
    """

    def __init__(self, profile: Profile, scale: int, gpus: float) -> None:
        super().__init__(profile, scale)
        self._decoder = Decoder(
            lambda running: scale * profile.decode_step_seconds(running, max(1, int(gpus)))
        )
        self._inbox: queue.SimpleQueue[tuple[Sequence[RolloutRequest], bool]] = queue.SimpleQueue()
        self._asked: dict[str, tuple[RolloutRequest, int]] = {}
        self._version = 0
        self._topk_refs: list[ray.ObjectRef] = []

    @ray.method(concurrency_group="engine")
    def ready(self) -> None:
        """It is."""

    @ray.method(concurrency_group="engine", num_returns="streaming")
    def generate(
        self,
        requests: Sequence[RolloutRequest],
        sampling: Sampling,
        record: bool,
        more: bool,
        batch: int,
    ) -> Iterator[list[Rollout]]:
        """As the rollout actor's, when each response ends by the profile; none is given up."""
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
    def add(self, requests: Sequence[RolloutRequest], more: bool, batch: int) -> None:
        """As the rollout actor's."""
        self._inbox.put((requests, more))

    @ray.method(concurrency_group="engine")
    def call_transport(self, method: str, version: int, *chunks: bytes) -> None:
        """Take new weights, for as long as the profile says; after a running stream's end."""
        assert method == "load"
        time.sleep(self._profile.sync_seconds / self._scale)
        self._version = version

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


def response_tokens(profile: Profile, scale: int, seed: int) -> int:
    """Tokens of the response with this seed, each of which stands for ``scale``."""
    return max(1, round(profile.lengths.draw(seed) / scale))
