"""Actors of a run that are plain objects: rollout engines, teachers, trainer ranks, their watch.

Every reference is its value. Which of several comes first is drawn, so a test that repeats itself
with several orders finds whatever depends on the order in which work arrives.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from fake_replicas import FakeReplica, FakeWatch, Remote, is_ready

from opd_ray.checksums import FileSum, first_difference, sum_of
from opd_ray.errors import ActorDied, ActorFailure, ActorLost, DamagedCheckpoint
from opd_ray.pools.watch import Interrupted
from opd_ray.step_account import StepAccount
from opd_ray.types import (
    Rollout,
    RolloutRequest,
    RolloutScores,
    Sampling,
    TopK,
    TopKLost,
    TrainItem,
)


@dataclass(frozen=True)
class Response:
    """What the actors say of a response of m tokens; all other scores are the same everywhere."""

    mask: list[int]  # [m], 1 = written by the student
    logprob: list[float]  # [m] nats, the engine's
    reverse_kl: list[float]  # [m] nats, streamed by the teacher
    exact_kl: list[float] = field(default_factory=list)  # [m] nats, of the trainers' exact pass


class Script:
    """The responses of a run by prompt and sample ("a0"), the same at every step."""

    def __init__(self, responses: Mapping[str, Response]) -> None:
        self._responses = dict(responses)
        self._names: dict[str, str] = {}

    def write(self, request: RolloutRequest, version: int) -> Rollout:
        """The n-th response of the script (from 1) has the token ids 10 n, 10 n + 1 and so on."""
        name = f"{request.prompt_id}{request.sample}"
        self._names[request.rollout_id] = name
        response = self._responses[name]
        size = len(response.mask)
        first = 10 * (1 + list(self._responses).index(name))
        return Rollout(
            rollout_id=request.rollout_id,
            prompt_id=request.prompt_id,
            sample=request.sample,
            prompt_ids=request.prompt_ids,
            response_ids=np.arange(first, first + size, dtype=np.int32),
            response_mask=np.array(response.mask, np.uint8),
            entropy=np.ones(size, np.float32),
            logprob=np.array(response.logprob, np.float32),
            finish_reason="stop",
            weights_version=version,
            topk=top_k(size, first),
            source=request.source,
        )

    def name(self, rollout_id: str) -> str:
        """Which response a rollout is; of one that another run wrote, its name says so."""
        return self._names.get(rollout_id) or "".join(rollout_id.split("/")[1:])

    def response(self, rollout_id: str) -> Response:
        return self._responses[self.name(rollout_id)]


@dataclass(frozen=True)
class OwnedTopK(TopK):
    """A top-K that dies with the engine that recorded it."""

    owner: Any = None


def top_k(size: int, first: int) -> TopK:
    """Of a response of so many tokens, its ids from ``first`` on: those ids alone."""
    ids = np.arange(first, first + size, dtype=np.int32)[:, None]
    return TopK(ids, np.zeros((size, 1), np.float32))


class StandInWatch(FakeWatch):
    """Waits for nothing: any of what is ready may come, in any order.

    An answer that is an exception is raised, as the death of an actor is; ``death`` ends every
    wait, as the end of a lifeline does.
    """

    def __init__(self, order: Random | None) -> None:
        super().__init__()
        self.stop_requested = False
        self.streams: list[tuple[Stream, Any, Any]] = []
        self.death: ActorLost | None = None
        self.waits = 0
        self.before_wait: Callable[[int], None] = lambda number: None
        self.check: Callable[[], None] = lambda: None  # what holds in every wait
        self._order = order

    def read(self, stream: Stream, call: Any, ended: Any) -> None:
        self.streams.append((stream, call, ended))

    def heed_stop(self, what: str) -> None:
        if self.stop_requested:
            raise Interrupted

    def wait_until(self, done: Any, what: str, *, interruptible: bool = False) -> None:
        self._note_wait()
        while not done():
            if interruptible:
                self.heed_stop(what)
            self.turn(what)
            self._note_wait()

    def turn(self, what: str) -> None:
        ready = self._ready()
        assert ready, f"a real run would wait for {what} for ever"
        self._order.choice(ready)()

    def _ready(self) -> list[Any]:
        """The events that may come next."""
        refs = [partial(self.arrive, ref) for ref, _ in self.pending if is_ready(ref)]
        streams = [partial(self._next, one) for one in self.streams if one[0].has_item]
        soonest = [lambda: self.soonest.popleft()()] if self.soonest else []
        return [*refs, *streams, *soonest]

    def get(self, ref: Any, owner: str) -> Any:
        if isinstance(ref, Exception):
            raise ref
        fake = isinstance(ref, tuple) and isinstance(ref[0], FakeReplica | Engine)
        return super().get(ref, owner) if fake else ref

    def get_all(self, refs: Iterable[tuple[Any, str]], **_: Any) -> list[Any]:
        """As everywhere, events may come while the run waits."""
        self._note_wait()
        found = [self.get(ref, owner) for ref, owner in refs]
        for answer in found:
            if isinstance(answer, Exception):
                raise answer
        for _ in range(self._order.randrange(3) if self._order else 0):
            if self._ready():
                self.turn("values")
        return found

    def _note_wait(self) -> None:
        self.waits += 1
        self.check()
        self.before_wait(self.waits)
        if self.death is not None:
            raise self.death

    def _next(self, one: tuple[Stream, Any, Any]) -> None:
        stream, call, ended = one
        try:
            item = next(stream)
        except StopIteration:
            self.streams.remove(one)
            ended()
        else:
            call(item)


class Stream:
    """What an engine writes of one batch: responses one by one, in any order.

    That of a dead one ends with an error.
    """

    def __init__(self, engine: Engine) -> None:
        self.open: list[RolloutRequest] = []
        self.more = False
        self.engine = engine
        self.given_up = False
        self._error_told = False

    @property
    def has_item(self) -> bool:
        return self.engine.dead or bool(self.open) or not self.more

    def __next__(self) -> Any:
        if self.engine.dead:
            if self._error_told:
                raise StopIteration
            self._error_told = True
            return ActorDied(self.engine.name, "killed")
        if not self.open:
            raise StopIteration
        return [self.engine.write(self.open)]


class Engine:
    """A rollout actor; what it has sent before a batch is given up arrives after that.

    The top-Ks of a dead one are gone.
    """

    def __init__(self, script: Script, order: Random, name: str = "rollout-0") -> None:
        self.name = name
        self.dead = False
        self.never_ran = False  # given to a node that was dead
        self.ready = Remote(lambda: (self, "loaded", 0))
        self.given: list[RolloutRequest] = []
        self.samplings: list[Sampling] = []
        self.weights: list[tuple[int, tuple[Any, ...]]] = []  # (version, chunks)
        self.generate = Remote(self._generate)
        self.add = Remote(self._add)
        self.abort = Remote(self._abort)
        self.call_transport = Remote(self._call_transport)
        self.awake = {"weights", "kv_cache"}
        self.weights_gone = False  # as it slept, until others come
        self.sleep = Remote(self._sleep)
        self.wake = Remote(self._wake)
        self._script = script
        self._order = order
        self._streams: dict[int, Stream] = {}  # by the number of the batch

    @property
    def version(self) -> int:
        return self.weights[-1][0] if self.weights else 0

    def die(self) -> None:
        self.dead = True

    def value(self, ref: Any) -> None:
        """What a reference brings, of loading, a call of its transport or its lifeline."""
        if self.dead:
            raise ActorDied(self.name, "killed", never_ran=self.never_ran)

    def write(self, requests: list[RolloutRequest]) -> Rollout:
        """The response to one of them, which is taken out."""
        request = requests.pop(self._order.randrange(len(requests)))
        rollout = self._script.write(request, self.version)
        if isinstance(rollout.topk, TopK):  # else a reference to one that the test keeps
            owned = OwnedTopK(rollout.topk.ids, rollout.topk.logprobs, self)
            rollout = replace(rollout, topk=owned)
        return rollout

    def _sleep(self) -> Any:
        unfinished = any(one.open and not one.given_up for one in self._streams.values())
        assert not unfinished, f"{self.name} is to sleep while requests are unfinished"
        self.awake.clear()
        self.weights_gone = True
        return self, "asleep", 0

    def _wake(self, part: str) -> Any:
        assert part == "weights" or not self.weights_gone, f"{self.name} has no weights"
        self.awake.add(part)
        return self, "awake", 0

    def _generate(
        self,
        requests: list[RolloutRequest],
        sampling: Sampling,
        record: bool,
        more: bool,
        batch: int,
    ) -> Stream:
        assert len(self.awake) == 2, f"{self.name} is to write asleep"
        self.samplings.append(sampling)
        self._streams[batch] = Stream(self)
        self._add(requests, more, batch)
        return self._streams[batch]

    def _add(self, requests: list[RolloutRequest], more: bool, batch: int) -> None:
        self.given += requests
        self._streams[batch].open += requests
        self._streams[batch].more = more

    def _abort(self, batch: int) -> None:
        stream = self._streams[batch]
        del stream.open[1:]
        stream.more, stream.given_up = False, True

    def _call_transport(self, method: str, version: int, *chunks: Any) -> Any:
        assert method == "load"
        unfinished = any(one.open and not one.given_up for one in self._streams.values())
        assert not unfinished, "new weights came while requests are unfinished"
        assert "weights" in self.awake, f"{self.name} is to take weights in asleep"
        self.weights_gone = False
        self.weights.append((version, chunks))
        return self, "transport", len(self.weights)


class Teacher(FakeReplica):
    """A teacher replica; the signal of kept rows is their numbers."""

    def __init__(self, name: str, script: Script) -> None:
        super().__init__(name)
        self.dropped: list[str] = []
        self.followed: list[tuple[Any, ...]] = []  # chunks of the student's weights
        self.follow = Remote(self._follow)
        self.save = Remote(self._save)
        self.load = Remote(self._load)
        self.begin_anew = Remote(lambda: self.followed.clear())
        self._script = script

    def value(self, ref: Any) -> Any:
        found = super().value(ref)
        if ref[1] != "score":
            return found
        return [one if isinstance(one, TopKLost) else self._scores(one.rollout_id) for one in found]

    def _follow(self, *chunks: Any) -> None:
        assert not self.asleep, f"{self.name} is to follow asleep"
        self.followed.append(chunks)

    def _save(self, path: str) -> None:
        assert not self.asleep, f"{self.name} is to save asleep"
        Path(path).write_text(json.dumps(self.followed))

    def _load(self, path: str) -> None:
        self.followed[:] = [tuple(chunks) for chunks in json.loads(Path(path).read_text())]

    def _scores(self, rollout_id: str) -> RolloutScores:
        reverse_kl = np.array(self._script.response(rollout_id).reverse_kl, np.float32)
        reverse_kl = reverse_kl[self.asked[rollout_id]]
        zero, one = np.zeros_like(reverse_kl), np.ones_like(reverse_kl)
        columns = {"reverse_kl": reverse_kl, "forward_kl": zero, "jsd": zero}
        return RolloutScores(rollout_id, columns | {"teacher_logprob": -one, "teacher_mass": one})

    def _take(self, keep: Mapping[str, np.ndarray], forget: bool) -> tuple[Any, Any]:
        for rollout_id, rows in keep.items():
            assert np.isin(rows, self.asked[rollout_id]).all()
        _, receipt = super()._take(keep, forget)
        return {rollout_id: rows.tolist() for rollout_id, rows in keep.items()}, receipt

    def _forget(self, ids: list[str]) -> None:
        super()._forget(ids)
        self.dropped += ids


@dataclass(frozen=True)
class TrainStep:
    """What one rank was given for one step."""

    items: list[TrainItem]  # those of waves included
    waves: list[list[TrainItem]]
    total_weight: float
    learning_rate: float


class Trainer:
    """A trainer rank that insists on the signals of its own rows.

    Args:
        script: what an exact pass finds.
        gap: how far it and the engines are apart, nats a token.
        before_call: is told the method of every call.
    """

    def __init__(
        self,
        script: Script,
        gap: float = 0.0,
        before_call: Callable[[str], None] = lambda method: None,
    ) -> None:
        self.taken = 0  # steps that have made its weights
        self.steps: list[TrainStep] = []
        self._waves: list[list[TrainItem]] = []
        self.call = Remote(self._call)
        self.weights = Remote(lambda: self._call("weights"))
        self.write_snapshot = Remote(lambda folder: self._call("engine.save", folder))
        self._script = script
        self._gap = gap
        self._before_call = before_call
        self.asleep = False

    def _call(self, method: str, *args: Any) -> Any:
        self._before_call(method)
        if method in ("sleep", "wake"):
            self.asleep = method == "sleep"
            return None
        assert not self.asleep, f"a trainer rank is asked for {method} asleep"
        methods: dict[str, Any] = {
            "accumulate": self._accumulate,
            "train_step": self._train_step,
            "score": self._score,
            "weights": lambda: [f"weights after {self.taken} steps"],
            "engine.room_for_snapshot": lambda: ("machine", 1, 2),
            "engine.snapshot": lambda: None,
            "engine.check_files": _check_files,
            "engine.save": self._save,
            "engine.load": self._load,
            "engine.export": lambda folder: None,
        }
        return methods[method](*args)

    def _accumulate(
        self, micro_batches: list[list[TrainItem]], *found: dict[str, list[int]]
    ) -> None:
        self._waves.append(_items(micro_batches, found))

    def _train_step(
        self,
        micro_batches: list[list[TrainItem]],
        total_weight: float,
        learning_rate: float,
        *found: dict[str, list[int]],
    ) -> StepAccount:
        waves, self._waves = self._waves, []
        items = [*chain(*waves), *_items(micro_batches, found)]
        self.steps.append(TrainStep(items, waves, total_weight, learning_rate))
        self.taken += 1
        kept = sum(len(item.rows) for item in items)
        weight = float(sum(item.weights.sum() for item in items))
        return StepAccount(
            loss_sum=0.5 * weight,
            weight_sum=weight,
            kept_tokens=kept,
            trunk_tokens=sum(len(item.text_ids) for item in items),
            padding_tokens=0,
            grad_norm=1.0,
            learning_rate=learning_rate,
            gap_sum=self._gap * kept,
            gap_max=self._gap,
            skipped=not total_weight,
            seconds=0.0,
        )

    def _save(self, folder: str) -> dict[str, FileSum]:
        file = Path(folder, "weights")
        file.write_text(str(self.taken))
        return {file.name: sum_of(file)}

    def _load(self, folder: str) -> None:
        assert not self.steps, "only an engine that has not stepped yet can load"
        self.taken = int(Path(folder, "weights").read_text())

    def _score(
        self, micro_batches: list[list[TrainItem]], *found: dict[str, list[int]]
    ) -> list[RolloutScores]:
        return [self._exact(item) for item in _items(micro_batches, found)]

    def _exact(self, item: TrainItem) -> RolloutScores:
        exact_kl = np.array(self._script.response(item.rollout_id).exact_kl, np.float32)
        reverse_kl = exact_kl[item.rows]
        zero, one = np.zeros_like(reverse_kl), np.ones_like(reverse_kl)
        columns = {
            "entropy": one,
            "reverse_kl": reverse_kl,
            "forward_kl": zero,
            "jsd": zero,
            "logprob": -one,
            "teacher_logprob": -one,
            "teacher_entropy": one,
            "top1_agree": np.ones(len(one), np.bool_),
        }
        return RolloutScores(item.rollout_id, columns)


def _check_files(folder: str, sums: dict[str, FileSum]) -> ActorFailure | None:
    """What a rank answers that has read files of a checkpoint."""
    if difference := first_difference(Path(folder), sums):
        failure = ActorFailure("trainer-0 (looking a checkpoint over)", difference)
        failure.__cause__ = DamagedCheckpoint(difference)
        return failure
    return None


def _items(
    micro_batches: list[list[TrainItem]], found: Sequence[dict[str, list[int]]]
) -> list[TrainItem]:
    """The items of all micro-batches, after a look whether the signals are those of their rows."""
    items = [item for micro_batch in micro_batches for item in micro_batch]
    signals = {rollout_id: rows for part in found for rollout_id, rows in part.items()}
    assert signals == {item.rollout_id: item.rows.tolist() for item in items}
    return items
