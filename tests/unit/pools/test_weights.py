"""New weights reach every engine, and teachers that follow only when a step has made them."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from fake_replicas import Remote, pool_of, writers_of
from stand_ins import Script, StandInWatch, Teacher

from actors.weights.ipc import CudaIpc, IpcSender
from actors.weights.nccl import Nccl, NcclSender
from actors.weights.object_store import ObjectStore
from actors.weights.registry import TRANSPORTS
from opd_ray.config.choices import SyncBackend
from opd_ray.config.schema import (
    Config,
    RolloutSettings,
    RunSettings,
    SyncSettings,
    TrainerSettings,
)
from opd_ray.config.teacher import TeacherSettings
from opd_ray.errors import ActorDied
from opd_ray.pools.trainers import TrainerGroup
from opd_ray.pools.turns import AllAtOnce
from opd_ray.pools.weights import TeacherWeights, WeightSync

CHUNKS = ("first chunk", "second chunk")


class Bench:
    """Two trainer ranks and three engines that write down all calls, under the real pools.

    One of two teachers follows the student, unless ``decay`` is None.
    """

    def __init__(self, backend: SyncBackend, decay: float | None = 0.9, lag: int = 0) -> None:
        script = Script({})
        watch: Any = StandInWatch(Random(0))
        self.watch = watch
        self.calls: list[tuple[Any, ...]] = []  # (actor, method, arguments ...)
        self.dead: set[str] = set()
        self.engines = [self._actor(f"rollout-{number}") for number in range(3)]
        self.rollouts = rollouts = writers_of(watch, self.engines, 1)
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
            run=RunSettings(lag=lag),
            sync=SyncSettings(backend=backend),
            rollout=RolloutSettings(tensor_parallel_size=2),
        )
        order = AllAtOnce(watch)
        followers = TeacherWeights(watch, teachers, trainers, order)
        self.sync = WeightSync(config, trainers, rollouts, followers, order)

    def _actor(self, name: str) -> tuple[str, SimpleNamespace]:
        def weights() -> list[str]:
            self.calls.append((name, "weights"))
            return list(CHUNKS) if name == "trainer-0" else []

        def call_transport(method: str, *args: Any) -> Exception | None:
            self.calls.append((name, method, *args))
            return ActorDied(name, "killed") if name in self.dead else None

        return name, SimpleNamespace(
            dead=False, weights=Remote(weights), call_transport=Remote(call_transport)
        )


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


def test_by_ipc_the_ranks_show_the_engines_that_there_are_at_every_push() -> None:
    bench = Bench(SyncBackend.ipc)
    handles = [handle for _, handle in bench.engines]
    assert bench.calls == []
    bench.sync.push(3)
    assert bench.calls == [(f"trainer-{rank}", "send", 3, handles) for rank in range(2)]


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


def test_a_push_that_one_rank_misses_fails() -> None:
    bench = Bench(SyncBackend.nccl)
    bench.dead.add("trainer-1")
    with pytest.raises(ActorDied, match="trainer-1"):
        bench.sync.push(1, stepped=True)
    assert [teacher.followed for teacher in bench.own] == [[], []]


def test_an_engine_that_dies_in_a_push_keeps_the_weights_from_nobody_else() -> None:
    bench = Bench(SyncBackend.ray)
    bench.dead.add("rollout-1")
    bench.sync.push(1, stepped=True)
    assert [call[0] for call in bench.calls[2:]] == ["rollout-0", "rollout-1", "rollout-2"]
    assert [name for name, _ in bench.rollouts.living()] == ["rollout-0", "rollout-2"]
    assert [teacher.followed for teacher in bench.own] == [[CHUNKS], [CHUNKS]]


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
    assert receivers == {
        SyncBackend.ray: "opd_ray",
        SyncBackend.nccl: "nccl",
        SyncBackend.ipc: "ipc",
    }


def test_by_nccl_the_trainers_end_sends_and_vllms_own_calls_receive() -> None:
    engine = UpdatedEngine()
    assert isinstance(Nccl.trainer_end(lambda: iter(()), 1, 64), NcclSender)
    assert Nccl.engine_end(engine) is engine


def test_by_ipc_the_trainers_end_sends_and_vllms_own_calls_receive() -> None:
    engine = UpdatedEngine()
    assert isinstance(CudaIpc.trainer_end(lambda: iter(()), 1, 64), IpcSender)
    assert CudaIpc.engine_end(engine) is engine


class Joining:
    """A push, then an actor that came up after it, which asks for the weights."""

    def __init__(self, backend: SyncBackend = SyncBackend.ray, lag: int = 0) -> None:
        self.bench = Bench(backend, decay=None, lag=lag)
        watch = self.bench.watch  # events come when a test says so, not while others wait
        watch.get_all = lambda refs, **_: [watch.get(ref, owner) for ref, owner in refs]
        self.bench.sync.push(3)
        self.bench.calls.clear()
        name, self.handle = self.bench._actor("rollout-9")
        self.told: list[bool] = []
        self.sent = 0
        catch_up = self.bench.rollouts._writers.catch_up
        assert catch_up is not None
        self.possible = catch_up(name, self.handle, self._sent, self.told.append)

    def _sent(self) -> None:
        self.sent += 1

    def turn(self) -> None:
        self.bench.watch.turn("weights")


JOINED = ("rollout-9", "load", 3, *CHUNKS)


def test_an_actor_that_came_up_late_gets_what_the_trainers_still_hold() -> None:
    joining = Joining()
    assert joining.possible
    assert joining.bench.calls == GATHERED
    assert joining.sent == 0
    joining.turn()
    assert joining.bench.calls == [*GATHERED, JOINED]
    assert joining.sent == 1
    assert joining.told == []
    joining.turn()
    assert joining.told == [True]


def test_with_lag_it_gets_the_chunks_of_the_last_push() -> None:
    joining = Joining(lag=1)
    assert joining.bench.calls == [JOINED]
    joining.turn()
    assert joining.told == [True]


def test_without_lag_no_weights_stay_in_the_object_store() -> None:
    assert Joining().bench.sync._kept is None
    assert Joining(lag=1).bench.sync._kept == list(CHUNKS)


def test_weights_that_are_older_than_a_push_are_not_brought() -> None:
    joining = Joining()
    joining.bench.sync.push(4)
    joining.bench.calls.clear()
    joining.turn()
    assert joining.bench.calls == []
    assert joining.told == [False]


def test_weights_that_arrive_after_a_push_are_not_those_of_the_others() -> None:
    joining = Joining(lag=1)
    joining.bench.sync.push(4)
    joining.turn()
    assert joining.told == [False]


def test_an_actor_that_dies_meanwhile_is_the_pools_concern() -> None:
    joining = Joining()
    joining.bench.dead.add("rollout-9")
    joining.turn()
    joining.turn()
    assert joining.told == []


def test_by_nccl_nobody_joins_between_two_pushes_and_a_new_group_is_made_then() -> None:
    joining = Joining(SyncBackend.nccl)
    assert not joining.possible
    bench = joining.bench
    handles = [handle for _, handle in bench.engines]
    bench.sync.push(4)
    assert [call[1] for call in bench.calls] == ["send", "send"]
    bench.calls.clear()
    bench.rollouts._lose(next(bench.rollouts._writers.all()), ActorDied("rollout-0", "killed"))
    bench.sync.push(5)
    met = [(f"trainer-{rank}", "open", handles[1:], 2) for rank in range(2)]
    assert bench.calls == [*met, ("trainer-0", "send", 5), ("trainer-1", "send", 5)]


def test_what_trainers_that_were_replaced_had_on_the_way_is_not_brought() -> None:
    joining = Joining()
    joining.bench.sync.meet()
    joining.turn()
    assert joining.told == [False]
    assert joining.sent == 0
    with_lag = Joining(lag=1)  # its chunks are on the way at once
    assert with_lag.sent == 1
    with_lag.bench.sync.meet()
    with_lag.turn()
    assert with_lag.told == [False]
