"""Teacher replicas that are plain objects, and pools of them, for tests of the pool alone."""

from __future__ import annotations

import numpy as np

from opd_ray.errors import ActorDied
from opd_ray.pools.teachers.pool import TeacherPool
from opd_ray.pools.teachers.replicas import Replacement
from opd_ray.types import Rollout, RolloutScores, SignalReceipt


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
        self.held: set[str] = set()
        self.taken: list[tuple[list[str], bool]] = []
        self.receipts: list[SignalReceipt] = []
        self.dead = False
        self.dies_when_taking = False
        self.score = Remote(self._score)
        self.take = Remote(self._take)
        self.forget = Remote(self._forget)

    def die(self) -> None:
        self.dead = True
        self.held.clear()

    def _score(self, requests):
        ids = [request.rollout_id for request in requests]
        self.batches.append(ids)
        self.prompts.update({r.rollout_id: r.prompt_ids for r in requests})
        self.topks.update({r.rollout_id: r.student_topk for r in requests})
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
        self.held.update(ids)
        zero = np.zeros(1, np.float32)
        return [
            RolloutScores(key, {"reverse_kl": zero}, retries=self.retries_a_rollout) for key in ids
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


class FakeKeeper:
    """Restarts replicas at once; they can score when their reference is collected."""

    def __init__(self, replicas: list[FakeReplica]):
        self.current = {replica.name: replica for replica in replicas}
        self.started: list[FakeReplica] = []
        self.buried: list[str] = []
        self.stillborn = 0  # so many of the next ones die while they load

    def lifeline(self, name: str):
        return (self.current[name], "lifeline", 0)

    def wait(self, refs):
        """Deaths are noticed first, then batches in order, then new replicas."""
        order = {"lifeline": 0, "score": 1, "loaded": 2}
        ready = [ref for ref in refs if ref[1] != "lifeline" or ref[0].dead]
        return min(ready, key=lambda ref: order[ref[1]])

    def report_dead(self, name: str, cause: str) -> None:
        assert cause == "killed"
        self.buried.append(name)

    def restart(self, name: str) -> Replacement:
        replica = self.current[name] = FakeReplica(name)
        self.started.append(replica)
        if self.stillborn:
            self.stillborn -= 1
            replica.die()
        return Replacement(replica, self.lifeline(name), (replica, "loaded", 0))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def value_of(ref, name: str):
    """The pool's ``get``."""
    replica = ref[0]
    assert replica.name == name
    return replica.value(ref)


def make_pool(count: int, batch_tokens: int = 100):
    replicas = [FakeReplica(f"teacher {i}") for i in range(count)]
    clock = Clock()
    pool = TeacherPool([(r.name, r) for r in replicas], batch_tokens, value_of, clock)
    return pool, replicas, clock


def make_kept_pool(count: int, batch_tokens: int = 100, max_restarts: int = 1):
    """A pool that survives deaths: pool, its first replicas, their supervisor."""
    replicas = [FakeReplica(f"teacher {i}") for i in range(count)]
    supervisor = FakeKeeper(replicas)
    pool = TeacherPool(
        [(r.name, r) for r in replicas],
        batch_tokens,
        value_of,
        Clock(),
        supervisor=supervisor,
        max_restarts=max_restarts,
        no_more=f"teacher.max_restarts = {max_restarts} allows no further start",
    )
    return pool, replicas, supervisor


def answer_all(pool: TeacherPool, replica: FakeReplica) -> None:
    """Let one replica answer until the pool has nothing more for it."""
    while own := [ref for ref in pool.pending_refs() if ref[0] is replica]:
        pool.collect(own[0])
        pool.pump()


def rollout(name: str, tokens: int = 10, topk="ref") -> Rollout:
    prompt, response = np.zeros(tokens // 2, np.int32), np.zeros(tokens - tokens // 2, np.int32)
    floats = np.zeros(len(response), np.float32)
    return Rollout(
        name, name, 0, prompt, response, floats.astype(np.uint8), floats, floats, "stop", 0, topk
    )
