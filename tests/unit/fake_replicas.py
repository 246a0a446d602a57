"""Teacher replicas that are plain objects, and pools of them, for tests of the pool alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from opd_ray.errors import ActorDied
from opd_ray.pools.members import RestartPolicy
from opd_ray.pools.rollouts import RolloutPool
from opd_ray.pools.teachers.pool import TeacherPool
from opd_ray.types import Rollout, RolloutScores, SignalReceipt, TopKLost


class Remote:
    """Stands in for an actor's method: ``.remote`` calls at once."""

    def __init__(self, function):
        self.remote = function


class FakeReplica:
    """Counts what it is asked; holds signals by rollout id as a real replica does.

    References are (replica, method, number). A dead one answers nothing it had not answered before.
    """

    def __init__(self, name: str):
        self.name = name
        self.retries_a_rollout = 0
        self.batches: list[list[str]] = []
        self.prompts: dict[str, np.ndarray] = {}
        self.topks: dict[str, object] = {}
        self.asked: dict[str, np.ndarray] = {}
        self.held: set[str] = set()
        self.taken: list[tuple[list[str], bool]] = []
        self.receipts: list[SignalReceipt] = []
        self.dead = False
        self.dies_when_taking = False
        self.score = Remote(self._score)
        self.take = Remote(self._take)
        self.forget = Remote(self._forget)
        self.forget_all = Remote(lambda: self.held.clear())
        self.ready = Remote(lambda: (self, "loaded", 0))
        self.asleep = False
        self.sleep = Remote(lambda: self._fall_asleep(True))
        self.wake = Remote(lambda: self._fall_asleep(False))

    def _fall_asleep(self, asleep: bool):
        self.asleep = asleep
        return (self, "loaded", 0)

    def die(self) -> None:
        self.dead = True
        self.held.clear()

    def _score(self, requests):
        assert not self.asleep, f"{self.name} is to score asleep"
        ids = [request.rollout_id for request in requests]
        self.batches.append(ids)
        self.prompts.update({r.rollout_id: r.prompt_ids for r in requests})
        self.topks.update({r.rollout_id: r.student_topk for r in requests})
        self.asked.update({r.rollout_id: r.asked for r in requests})
        return (self, "score", len(self.batches) - 1)

    def value(self, ref):
        """What a reference brings; finishes the batch if it is one."""
        _, method, number = ref
        if self.dead:
            raise ActorDied(self.name, "killed")
        if method == "take":
            return self.receipts[number]
        if method == "loaded":
            return None
        ids = self.batches[number]
        lost = [key for key in ids if is_lost(self.topks.get(key))]
        self.held.update(key for key in ids if key not in lost)
        zero = np.zeros(1, np.float32)
        return [
            TopKLost(key)
            if key in lost
            else RolloutScores(key, {"reverse_kl": zero}, retries=self.retries_a_rollout)
            for key in ids
        ]

    def _take(self, keep, forget):
        if self.dies_when_taking:
            self.die()
        assert self.dead or keep.keys() <= self.held
        self.taken.append((sorted(keep), forget))
        if forget:
            self.held -= keep.keys()
        rows = sum(len(index) for index in keep.values())
        self.receipts.append(SignalReceipt(rows, 100 * rows))
        return (self.name, sorted(keep)), (self, "take", len(self.receipts) - 1)

    def _forget(self, ids):
        assert self.dead or self.held.issuperset(ids)
        self.held.difference_update(ids)


class FakeWatch:
    """The event loop of a run with fake replicas; it restarts them at once.

    New ones can score when the event that tells of them has been dealt with. Anything but a fake
    replica's reference is its own value, and ready.

    Args:
        replicas: that are there from the start.
        make: a new replica of this name.
    """

    def __init__(self, replicas: Sequence[Any] = (), make: Callable[[str], Any] = FakeReplica):
        self.current: dict[str, Any] = {}
        self.watch(replicas)
        self._make = make
        self.pending: list[tuple[Any, Callable[[Any], object]]] = []
        self.soonest: deque[Callable[[], object]] = deque()
        self.timers: list[tuple[float, Callable[[], object]]] = []  # (seconds, call)
        self.started: list[Any] = []
        self.buried: list[str] = []
        self.stillborn = 0  # so many of the next ones die while they load

    def watch(self, replicas: Sequence[Any]) -> None:
        self.current |= {replica.name: replica for replica in replicas}

    def hand_over(self, name: str):
        return (self.current[name], "lifeline", 0)

    def when_ready(self, ref, call) -> None:
        self.pending.append((ref, call))

    def soon(self, call) -> None:
        self.soonest.append(call)

    def later(self, seconds: float, call) -> None:
        self.timers.append((seconds, call))

    def let_time_pass(self) -> None:
        """Every timer that runs now is due."""
        due, self.timers = self.timers, []
        for _, call in due:
            call()

    def wait_until(self, done, what: str, *, interruptible: bool = False) -> None:
        while not done():
            self.turn(what)

    def turn(self, what: str) -> None:
        """One event: deaths are noticed first, then rollouts, batches, new replicas, in order."""
        if self.soonest:
            self.soonest.popleft()()
            return
        order = {"lifeline": 0, "rollout": 1, "score": 2, "loaded": 3}
        ready = [ref for ref, _ in self.pending if is_ready(ref)]
        assert ready, f"a real run would wait for {what} for ever"
        self.arrive(min(ready, key=lambda ref: order[ref[1]]))

    def arrive(self, ref) -> None:
        """Deal with what was to be done once this reference is ready."""
        number = next(n for n, (one, _) in enumerate(self.pending) if one is ref or one == ref)
        ref, call = self.pending.pop(number)
        call(ref)

    def get(self, ref, name: str):
        replica = ref[0]
        assert replica.name == name
        return replica.value(ref)

    def remove(self, name: str) -> None:
        self.buried.append(name)

    def add(self, name: str, replica: Any) -> None:
        assert name in self.buried
        assert self.current[name] is replica

    def start(self, name: str) -> Any:
        replica = self.current[name] = self._make(name)
        self.started.append(replica)
        if self.stillborn:
            self.stillborn -= 1
            replica.die()
        return replica


def is_ready(ref) -> bool:
    """Whether a reference is ready: all are, but the lifelines of the living."""
    return not isinstance(ref, tuple) or ref[1] != "lifeline" or ref[0].dead


def is_lost(topk: Any) -> bool:
    """Whether a top-K has an owner, and that is dead."""
    return bool(getattr(getattr(topk, "owner", None), "dead", False))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def pool_of(
    replicas: Sequence[FakeReplica],
    batch_tokens: int = 100,
    max_restarts: int = 0,
    watch: FakeWatch | None = None,
    after_writing: bool = False,
    fixed: bool = False,
    sleeps: bool = False,
    answer_timeout_s: float | None = None,
) -> tuple[TeacherPool, FakeWatch, Clock]:
    watch, clock = watch or FakeWatch(), Clock()
    watch.watch(replicas)
    pool = TeacherPool(
        [(r.name, r) for r in replicas],
        batch_tokens,
        watch,
        recovery("teacher replica", "teacher", watch.start, max_restarts, answer_timeout_s),
        after_writing=after_writing,
        fixed=fixed,
        sleeps=sleeps,
        clock=clock,
    )
    return pool, watch, clock


def recovery(
    what: str,
    key: str,
    start: Callable[[str], Any],
    max_restarts: int = 0,
    answer_timeout_s: float | None = None,
) -> RestartPolicy:
    return RestartPolicy(
        what,
        key,
        start,
        max_restarts,
        no_more=f"{key}.max_restarts = {max_restarts} allows no further start",
        remedy="start anew",
        start_timeout_s=600.0,
        answer_timeout_s=answer_timeout_s,
    )


def writers_of(
    watch: Any,
    engines: Sequence[tuple[str, Any]],
    max_in_flight: int,
    max_restarts: int = 0,
    answer_timeout_s: float | None = None,
    **options: Any,
) -> RolloutPool:
    """A pool of engines, (name, engine) pairs, that their watch starts again."""
    watch.current |= dict(engines)
    policy = recovery("rollout actor", "rollout", watch.start, max_restarts, answer_timeout_s)
    return RolloutPool(watch, engines, max_in_flight, policy, **options)


def make_pool(count: int, batch_tokens: int = 100):
    replicas = [FakeReplica(f"teacher {i}") for i in range(count)]
    pool, _, clock = pool_of(replicas, batch_tokens)
    return pool, replicas, clock


def make_kept_pool(count: int, batch_tokens: int = 100, max_restarts: int = 1):
    """A pool that survives deaths: pool, its first replicas, their watch."""
    replicas = [FakeReplica(f"teacher {i}") for i in range(count)]
    pool, watch, _ = pool_of(replicas, batch_tokens, max_restarts)
    return pool, replicas, watch


def pending(pool: TeacherPool) -> list:
    """References of the batches that are out, and of what may befall the replicas."""
    return [ref for ref, _ in pool._watch.pending]


def sent(pool: TeacherPool) -> list:
    """References of the batches that are out."""
    return [ref for ref in pending(pool) if ref[1] == "score"]


def collect(pool: TeacherPool, ref) -> list[RolloutScores]:
    """Deal with a reference that is ready; the scores that it brought."""
    found: list[RolloutScores] = []
    pool.deliver = found.append
    pool._watch.arrive(ref)
    return found


def answer_all(pool: TeacherPool, replica: FakeReplica) -> None:
    """Let one replica answer until the pool has nothing more for it."""
    while own := [ref for ref in sent(pool) if ref[0] is replica]:
        collect(pool, own[0])
        pool.pump()


def rollout(name: str, tokens: int = 10, topk="ref") -> Rollout:
    prompt, response = np.zeros(tokens // 2, np.int32), np.zeros(tokens - tokens // 2, np.int32)
    floats, mask = np.zeros(len(response), np.float32), np.ones(len(response), np.uint8)
    return Rollout(name, name, 0, prompt, response, mask, floats, floats, "stop", 0, topk)
