"""Actors of a run that answer at once, for the benchmark of the driver: plain objects, and Ray's.

What plain objects answer is made outside the driver's account, and lies in memory as it does behind
Ray: all arrays of an answer in one piece, which stays as long as one of them is held.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import ray

from actors.lifeline import LIFELINE_GROUP, Lifeline
from opd_ray.step_account import StepAccount
from opd_ray.types import (
    Rollout,
    RolloutRequest,
    RolloutScores,
    Sampling,
    ScoreRequest,
    SignalReceipt,
    TopK,
    TrainItem,
)

# A teacher's columns, each with its distribution: shape and scale of a gamma variable, greatest.
COLUMNS = {
    "reverse_kl": (0.2, 1.0, np.inf),
    "forward_kl": (0.2, 1.5, np.inf),
    "jsd": (0.2, 0.1, 0.69),
    "teacher_mass": (5.0, 0.1, 1.0),
    "teacher_logprob": (0.3, -1.0, 0.0),
}
_POOL_TOKENS = 1 << 20


class Account:
    """CPU seconds of this process by the part that was at work; parts lie within one another."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._parts = ["rest"]
        self._since = time.process_time()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is done in the block counts for ``name``, and not for the part around it."""
        self._switch()
        self._parts.append(name)
        try:
            yield
        finally:
            self._switch()
            self._parts.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time counts for ``name``."""

        def call(*args: Any, **options: Any) -> Any:
            with self.part(name):
                return function(*args, **options)

        return call

    def clear(self) -> dict[str, float]:
        """The account so far; it begins anew."""
        self._switch()
        found, self.seconds = self.seconds, {}
        return found

    def _switch(self) -> None:
        now = time.process_time()
        part = self._parts[-1]
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now


class Texts:
    """Responses of so many tokens and their scores, drawn once and cut out at many places."""

    def __init__(self, tokens: int, vocab_size: int) -> None:
        rng = np.random.default_rng(0)
        self.tokens = tokens
        size = _POOL_TOKENS + tokens

        def draw(shape: float, scale: float, greatest: float) -> np.ndarray:
            values = scale * rng.standard_gamma(shape, size, np.float32)
            return np.minimum(values, np.float32(greatest))

        self._ids = rng.integers(vocab_size, size=size, dtype=np.int32)
        self._entropy = draw(0.3, 1.0, np.log(vocab_size))
        self._logprob = -draw(0.3, 1.0, np.inf)
        self._columns = {name: draw(*how) for name, how in COLUMNS.items()}

    def rollout(self, request: RolloutRequest, topk: Any) -> Rollout:
        """A response to ``request``."""
        at = self._place(request.seed)
        mask = np.ones(self.tokens, np.uint8)
        found = [self._ids[at], self._entropy[at], self._logprob[at], mask, request.prompt_ids]
        ids, entropy, logprob, mask, prompt = in_one_piece(found)
        return Rollout(
            request.rollout_id,
            request.prompt_id,
            request.sample,
            prompt,
            ids,
            mask,
            entropy,
            logprob,
            "stop",
            0,
            topk,
            figures={"prompt_tokens": float(len(prompt)), "cached_tokens": 0.0},
            source=request.source,
        )

    def scores(self, requests: Sequence[ScoreRequest]) -> list[RolloutScores]:
        """What a teacher says of these responses, in one piece."""
        places = [self._place(int(request.response_ids[0])) for request in requests]
        arrays = iter(
            in_one_piece([column[at] for at in places for column in self._columns.values()])
        )
        return [
            RolloutScores(request.rollout_id, {name: next(arrays) for name in self._columns})
            for request in requests
        ]

    def _place(self, number: int) -> slice:
        start = number * 7919 % _POOL_TOKENS
        return slice(start, start + self.tokens)


def in_one_piece(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Read-only copies that share one buffer, as Ray gives them."""
    buffer = b"".join([array.tobytes() for array in arrays])
    found, offset = [], 0
    for array in arrays:
        found.append(np.frombuffer(buffer, array.dtype, len(array), offset))
        offset += array.nbytes
    return found


class Remote:
    """Stands in for an actor's method: ``.remote`` calls at once."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.remote = function


class Loop:
    """An event loop in which everything is ready at once, first come, first served."""

    stop_requested = False

    def __init__(self, account: Account) -> None:
        self._account = account
        self._events: deque[Callable[[], object]] = deque()
        self.dealt_with = 0

    def hand_over(self, name: str) -> Endless:
        """A lifeline that is never ready."""
        return Endless()

    def when_ready(self, ref: Any, call: Any) -> None:
        """As the watch's."""
        if not isinstance(ref, Endless):
            self._events.append(partial(call, ref))

    def read(self, stream: Engine, call: Any, ended: Any) -> None:
        """As the watch's."""
        self._events.append(partial(self._next, stream, call, ended))

    def later(self, seconds: float, call: Any) -> None:
        """No time passes here."""

    def soon(self, call: Any) -> None:
        """As the watch's."""
        self._events.append(call)

    def heed_stop(self, what: str) -> None:
        """Nobody asks for a stop."""

    def wait_until(self, done: Any, what: str, *, interruptible: bool = False) -> None:
        """As the watch's."""
        while not done():
            self.dealt_with += 1
            self._events.popleft()()

    def get(self, ref: Any, name: str) -> Any:
        """A reference is its value, or a call that gives it."""
        return ref.value() if isinstance(ref, Answer) else ref

    def get_all(self, refs: Iterable[tuple[Any, str]], **_: Any) -> list[Any]:
        """As the watch's."""
        return [self.get(ref, name) for ref, name in refs]

    def _next(self, stream: Engine, call: Any, ended: Any) -> None:
        with self._account.part("stand-ins"):
            item = stream.item()
        if not item:
            ended()
            return
        call(item)
        self.read(stream, call, ended)


class Endless:
    """The lifeline of an actor that lives for ever."""


class Answer:
    """A reference to what a call will give."""

    def __init__(self, value: Callable[[], Any]) -> None:
        self.value = value


class Engine:
    """A rollout actor whose stream always has its next rollout ready, ``together`` an item."""

    def __init__(self, texts: Texts, together: int = 1) -> None:
        self._texts = texts
        self._together = together
        self._open: deque[RolloutRequest] = deque()
        self.generate = Remote(self._generate)
        self.add = Remote(lambda requests, *_: self._open.extend(requests))

    def item(self) -> list[Rollout]:
        """The next rollouts, none at the end."""
        count = min(self._together, len(self._open))
        requests = [self._open.popleft() for _ in range(count)]
        return [self._texts.rollout(request, object()) for request in requests]

    def _generate(self, requests: Sequence[RolloutRequest], *_: object) -> Engine:
        self._open.extend(requests)
        return self


class Teacher:
    """A teacher replica; a signal has ``row_bytes`` a row."""

    row_bytes = 512

    def __init__(self, texts: Texts, account: Account) -> None:
        score = account.timed("stand-ins", texts.scores)
        self.score = Remote(lambda requests: Answer(partial(score, requests)))
        self.take = Remote(self._take)
        self.forget = Remote(lambda rollout_ids: None)

    def _take(self, keep: Mapping[str, np.ndarray], forget: bool) -> tuple[str, SignalReceipt]:
        rows = sum(map(len, keep.values()))
        return "signals", SignalReceipt(rows, self.row_bytes * rows)


class Trainer:
    """A trainer rank."""

    def __init__(self, account: Account) -> None:
        call = account.timed("stand-ins", lambda _, *arguments: trained(arguments[0], arguments[2]))
        self.call = Remote(call)


def trained(micro_batches: Sequence[Sequence[TrainItem]], learning_rate: float) -> StepAccount:
    """The account of a step that takes no time."""
    kept = sum(len(item.rows) for micro_batch in micro_batches for item in micro_batch)
    return StepAccount(
        loss_sum=float(kept),
        weight_sum=float(kept),
        kept_tokens=kept,
        trunk_tokens=kept,
        padding_tokens=0,
        grad_norm=1.0,
        learning_rate=learning_rate,
        gap_sum=0.0,
        gap_max=0.0,
        skipped=not kept,
        seconds=0.0,
    )


@ray.remote(num_cpus=0, concurrency_groups={"engine": 1, "inbox": 1, **LIFELINE_GROUP})
class RayEngine(Lifeline):
    """A rollout actor in a process of its own, whose engine takes no time; a rollout an item.

    With ``topk`` 0 its rollouts have no reference to a top-K.
    """

    def __init__(self, tokens: int, vocab_size: int, topk: int) -> None:
        self._texts = Texts(tokens, vocab_size)
        self._topk = TopK(np.zeros((tokens, topk), np.int32), np.zeros((tokens, topk), np.float32))
        self._inbox: queue.SimpleQueue[tuple[Sequence[RolloutRequest], bool]]
        self._inbox = queue.SimpleQueue()
        self._topk_refs: list[ray.ObjectRef] = []

    @ray.method(concurrency_group="engine")
    def ready(self) -> None:
        """Returns once the actor is up."""

    @ray.method(concurrency_group="engine", num_returns="streaming")
    def generate(
        self,
        requests: Sequence[RolloutRequest],
        sampling: Sampling,
        record: bool,
        more: bool,
        batch: int,
    ) -> Iterator[list[Rollout]]:
        """As the rollout actor's."""
        self._topk_refs.clear()
        waiting = deque(requests)
        while waiting or more:
            if not waiting:
                requests, more = self._inbox.get()
                waiting.extend(requests)
                continue
            topk: Any = "none"
            if self._topk.ids.size:
                topk = ray.put(self._topk)
                self._topk_refs.append(topk)
            yield [self._texts.rollout(waiting.popleft(), topk)]

    @ray.method(concurrency_group="inbox")
    def add(self, requests: Sequence[RolloutRequest], more: bool, batch: int) -> None:
        """As the rollout actor's."""
        self._inbox.put((requests, more))


@ray.remote(num_cpus=0, concurrency_groups={**LIFELINE_GROUP, "signals": 1})
class RayTeacher(Lifeline):
    """A teacher replica in a process of its own that knows its answers."""

    def __init__(self, tokens: int, vocab_size: int) -> None:
        self._texts = Texts(tokens, vocab_size)

    def ready(self) -> None:
        """Returns once the actor is up."""

    def score(self, requests: Sequence[ScoreRequest]) -> list[RolloutScores]:
        """As the teacher's."""
        return self._texts.scores(requests)

    @ray.method(concurrency_group="signals", num_returns=2)
    def take(
        self, keep: Mapping[str, np.ndarray], forget: bool = True
    ) -> tuple[str, SignalReceipt]:
        """As the teacher's, without the rows."""
        return "signals", SignalReceipt(sum(map(len, keep.values())), 0)

    @ray.method(concurrency_group="signals")
    def forget(self, rollout_ids: Sequence[str]) -> None:
        """As the teacher's."""


@ray.remote(num_cpus=0, concurrency_groups=LIFELINE_GROUP)
class RayTrainer(Lifeline):
    """A trainer rank in a process of its own."""

    def ready(self) -> None:
        """Returns once the actor is up."""

    def call(self, method: str, *arguments: Any) -> StepAccount:
        """As the trainer's ``train_step``."""
        return trained(arguments[0], arguments[2])
