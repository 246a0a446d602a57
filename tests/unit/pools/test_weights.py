"""New weights reach every engine, and teachers that follow only when a step has made them."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from fake_replicas import Remote, pool_of
from stand_ins import Script, StandInWatch, Teacher

from actors.weights.nccl import Nccl, NcclSender
from actors.weights.object_store import ObjectStore
from actors.weights.registry import TRANSPORTS
from opd_ray.config.choices import SyncBackend
from opd_ray.config.schema import Config, RolloutSettings, SyncSettings, TrainerSettings
from opd_ray.config.teacher import TeacherSettings
from opd_ray.errors import ActorDied
from opd_ray.pools.rollouts import RolloutPool
from opd_ray.pools.trainers import TrainerGroup
from opd_ray.pools.weights import TeacherWeights, WeightSync

CHUNKS = ("first chunk", "second chunk")


class Watch(StandInWatch):
    """An answer that is an exception is raised, as the death of an actor is."""

    def get_all(self, refs: Iterable[tuple[Any, str]]) -> list[Any]:
        answers = super().get_all(refs)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers


class Bench:
    """Two trainer ranks and three engines that write down all calls, under the real pools.

    One of two teachers follows the student, unless ``decay`` is None.
    """

    def __init__(self, backend: SyncBackend, decay: float | None = 0.9) -> None:
        script = Script({})
        watch: Any = Watch(Random(0))
        self.calls: list[tuple[Any, ...]] = []  # (actor, method, arguments ...)
        self.dead: set[str] = set()
        self.engines = [self._actor(f"rollout-{number}") for number in range(3)]
        rollouts = RolloutPool(watch, self.engines, 1)
        ranks = [self._actor(f"trainer-{number}") for number in range(2)]
        trainers = TrainerGroup(watch, ranks, TrainerSettings())
        self.own, self.other = ([Teacher(f"{n}-{i}", script) for i in range(2)] for n in "ab")
        teachers = {
            name: (
                TeacherSettings(kind="self", follow_decay=follow_decay),
                pool_of(replicas)[0],
            )
            for name, replicas, follow_decay in (("a", self.own, decay), ("b", self.other, None))
        }
        config = Config(
            sync=SyncSettings(backend=backend), rollout=RolloutSettings(tensor_parallel_size=2)
        )
        self.sync = WeightSync(
            config, trainers, rollouts, TeacherWeights(watch, teachers, trainers)
        )

    def _actor(self, name: str) -> tuple[str, SimpleNamespace]:
        def weights() -> list[str]:
            self.calls.append((name, "weights"))
            return list(CHUNKS) if name == "trainer-0" else []

        def call_transport(method: str, *args: Any) -> Exception | None:
            self.calls.append((name, method, *args))
            return ActorDied(name, "killed") if name in self.dead else None

        return name, SimpleNamespace(weights=Remote(weights), call_transport=Remote(call_transport))


GATHERED = [("trainer-0", "weights"), ("trainer-1", "weights")]


def test_through_the_object_store_all_weights_are_gathered_and_then_loaded_by_all() -> None:
    bench = Bench(SyncBackend.ray)
    assert bench.calls == []
    bench.sync.push(3)
    loaded = [(f"rollout-{number}", "load", 3, *CHUNKS) for number in range(3)]
    assert bench.calls == GATHERED + loaded


def test_by_nccl_the_ranks_meet_the_engines_first_and_send_at_every_push() -> None:
    bench = Bench(SyncBackend.nccl)
    handles = [handle for _, handle in bench.engines]
    met = [("trainer-0", "open", handles, 2), ("trainer-1", "open", handles, 2)]
    assert bench.calls == met
    bench.sync.push(3)
    bench.sync.push(4)
    sent = [(f"trainer-{rank}", "send", version) for version in (3, 4) for rank in range(2)]
    assert bench.calls == met + sent


def test_teachers_that_follow_share_the_engines_chunks_or_have_them_gathered() -> None:
    store, nccl = Bench(SyncBackend.ray), Bench(SyncBackend.nccl)
    for bench in (store, nccl):
        bench.calls.clear()
        bench.sync.push(1, stepped=True)
    assert store.calls[:2] == GATHERED
    assert GATHERED[0] not in store.calls[2:]
    assert nccl.calls == [("trainer-0", "send", 1), ("trainer-1", "send", 1), *GATHERED]


@pytest.mark.parametrize("backend", list(SyncBackend))
def test_teachers_follow_only_weights_that_a_step_has_made(backend: SyncBackend) -> None:
    bench = Bench(backend)
    bench.sync.push(0)
    assert [teacher.followed for teacher in bench.own] == [[], []]
    bench.sync.push(1, stepped=True)
    assert [teacher.followed for teacher in bench.own] == [[CHUNKS], [CHUNKS]]
    assert [teacher.followed for teacher in bench.other] == [[], []]


@pytest.mark.parametrize("backend", list(SyncBackend))
def test_where_no_teacher_follows_none_is_asked(backend: SyncBackend) -> None:
    bench = Bench(backend, decay=None)
    bench.sync.push(1, stepped=True)
    assert [teacher.followed for teacher in (*bench.own, *bench.other)] == [[]] * 4


@pytest.mark.parametrize(
    ("backend", "name"), [(SyncBackend.ray, "rollout-2"), (SyncBackend.nccl, "trainer-1")]
)
def test_a_push_that_one_actor_misses_fails(backend: SyncBackend, name: str) -> None:
    bench = Bench(backend)
    bench.dead.add(name)
    with pytest.raises(ActorDied, match=name):
        bench.sync.push(1, stepped=True)
    assert [teacher.followed for teacher in bench.own] == [[], []]


class UpdatedEngine:
    """Writes down vLLM's calls of an update; busy, it takes none."""

    def __init__(self, busy: bool = False) -> None:
        self.busy = busy
        self.calls: list[Any] = []

    def init_weight_transfer(self, init_info: dict[str, Any]) -> None:
        self.calls.append(init_info)

    def start_weight_update(self) -> None:
        if self.busy:
            raise RuntimeError("requests are unfinished")
        self.calls.append("start")

    def receive_weights(self, update_info: dict[str, Any]) -> None:
        self.calls.append(update_info)

    def finish_weight_update(self, version: int) -> None:
        self.calls.append(("finish", version))


def test_an_engine_receives_every_chunk_between_the_start_and_the_end_of_an_update() -> None:
    engine = UpdatedEngine()
    ObjectStore.engine_end(engine).load(5, *CHUNKS)
    expected = ["start", {"chunk": "first chunk"}, {"chunk": "second chunk"}, ("finish", 5)]
    assert engine.calls == expected


def test_a_busy_engine_receives_no_chunk() -> None:
    engine = UpdatedEngine(busy=True)
    with pytest.raises(RuntimeError, match="unfinished"):
        ObjectStore.engine_end(engine).load(5, *CHUNKS)
    assert engine.calls == []


def test_every_backend_has_a_transport_and_a_receiver_in_vllm() -> None:
    assert set(TRANSPORTS) == set(SyncBackend)
    receivers = {name: transport.vllm_backend for name, transport in TRANSPORTS.items()}
    assert receivers == {SyncBackend.ray: "opd_ray", SyncBackend.nccl: "nccl"}


def test_by_nccl_the_trainers_end_sends_and_vllms_own_calls_receive() -> None:
    engine = UpdatedEngine()
    assert isinstance(Nccl.trainer_end(lambda: iter(()), 1), NcclSender)
    assert Nccl.engine_end(engine) is engine
