"""New weights reach every engine, and teachers that follow only when a step has made them."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from fake_replicas import Clock, value_of
from stand_ins import Engine, Script, StandInWatch, Teacher

from opd_ray.config.choices import SyncBackend
from opd_ray.config.schema import Config, RolloutSettings, SyncSettings
from opd_ray.config.teacher import TeacherSettings
from opd_ray.pools.rollouts import RolloutPool
from opd_ray.pools.teachers.pool import TeacherPool
from opd_ray.pools.weights import TeacherWeights, WeightSync, weight_sync


class Bench:
    """A transport between stand-ins; one of two teachers follows the student."""

    def __init__(self, backend: SyncBackend, decay: float | None = 0.9) -> None:
        script, draw = Script({}), Random(0)
        watch: Any = StandInWatch(draw)
        self.engines = [Engine(script, draw) for _ in range(3)]
        self.own, self.other = ([Teacher(f"{n}-{i}", script) for i in range(2)] for n in "ab")
        self.met: list[tuple[Any, int]] = []
        self.sent: list[int] = []
        rollouts = RolloutPool(watch, [(f"rollout-{n}", e) for n, e in enumerate(self.engines)], 1)
        trainers: Any = SimpleNamespace(
            weights=lambda: ["first chunk", "second chunk"],
            open_nccl=lambda handles, split: self.met.append((handles, split)),
            send_weights=self.sent.append,
        )
        teachers = {
            name: (
                TeacherSettings(kind="self", follow_decay=follow_decay),
                TeacherPool([(r.name, r) for r in replicas], 10, value_of, Clock()),
            )
            for name, replicas, follow_decay in (("a", self.own, decay), ("b", self.other, None))
        }
        teacher_weights = TeacherWeights(watch, teachers, trainers)
        config = Config(
            sync=SyncSettings(backend=backend), rollout=RolloutSettings(tensor_parallel_size=2)
        )
        self.sync: WeightSync = weight_sync(config, trainers, rollouts, teacher_weights)


CHUNKS = ("first chunk", "second chunk")


def test_every_engine_is_given_all_chunks_under_the_version() -> None:
    bench = Bench(SyncBackend.ray)
    bench.sync.push(3)
    assert [engine.weights for engine in bench.engines] == [[(3, CHUNKS)]] * 3
    assert (bench.met, bench.sent) == ([], [])


def test_by_nccl_the_trainers_send_to_the_engines_they_met() -> None:
    bench = Bench(SyncBackend.nccl)
    assert bench.met == [(bench.engines, 2)]
    bench.sync.push(3)
    assert bench.sent == [3]
    assert [engine.weights for engine in bench.engines] == [[], [], []]


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
