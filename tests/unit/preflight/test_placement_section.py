"""What excludes what where roles are on the same GPUs."""

from __future__ import annotations

from typing import Any

import pytest
from planned import make_config

from opd_ray.config.choices import (
    Beside,
    CacheMode,
    PlacementChoice,
    SyncBackend,
    TeacherTiming,
)
from opd_ray.config.lora import LoraSettings
from opd_ray.config.schema import Config
from opd_ray.preflight.config import config_problems
from opd_ray.preflight.placement import placement_problems


class Awake:
    """A teacher that keeps its memory."""

    def info(self) -> None: ...

    def score(self, requests: Any) -> None: ...

    def close(self) -> None: ...


class Sleeper(Awake):
    """One that gives it back."""

    def sleep(self) -> None: ...

    def wake(self) -> None: ...


def config_of(placement: str, **values: Any) -> Config:
    config = make_config()
    config.cluster.placement = PlacementChoice(placement)
    for key, value in values.items():
        section, name = key.split("__")
        setattr(getattr(config, section), name, value)
    return config


GPUS = {"rollout__gpus_per_actor": 1, "trainer__gpus_per_rank": 1, "teacher__gpus_per_replica": 1}
OWN = {"teacher__kind": "class", "teacher__class_path": f"{__name__}:Awake"}
SLEEPS = OWN | {"teacher__class_path": f"{__name__}:Sleeper"}
ASKS = {"teacher__kind": "http", "teacher__url": "http://a:1/v1", "teacher__gpus_per_replica": 0}
SHARE = GPUS | {"teacher__gpus_per_replica": 0.3}


@pytest.mark.parametrize(
    ("placement", "values"),
    [
        ("separate", {}),
        ("separate", GPUS),
        ("turns", {}),
        ("turns", GPUS),
        ("turns", GPUS | {"sync__backend": SyncBackend.ipc}),
        ("turns", GPUS | {"sync__backend": SyncBackend.ipc, "trainer__ranks": 2}),
        ("turns", GPUS | {"teacher__when": TeacherTiming.after_writing}),
        ("turns", GPUS | ASKS),
        ("turns", GPUS | ASKS | {"teacher__when": TeacherTiming.streaming}),
        ("turns", GPUS | OWN | {"teacher__gpus_per_replica": 0}),
        ("turns", GPUS | SLEEPS),
        ("turns", GPUS | {"teacher__cache": CacheMode.replay, "teacher__gpus_per_replica": 0}),
        ("turns", {"rollout__tensor_parallel_size": 2}),
        ("shared", {}),
        ("shared", SHARE),
        ("shared", SHARE | {"sync__backend": SyncBackend.nccl}),
        ("shared", SHARE | {"teacher__kind": "vllm"}),
        ("shared", SHARE | {"run__lag": 1}),
        (
            "shared",
            SHARE | {"rollout__gpus_per_actor": 2, "cluster__teacher_beside": Beside.trainer},
        ),
        ("shared", SHARE | {"rollout__actors": 2, "teacher__replicas": 6}),
    ],
)
def test_what_goes_together(placement: str, values: dict[str, Any]) -> None:
    assert placement_problems(config_of(placement, **values)) == []


@pytest.mark.parametrize(
    ("placement", "values", "parts"),
    [
        ("turns", {"run__overlap": True}, ["run.overlap = true", "use run.overlap=false"]),
        ("turns", {"run__lag": 1}, ["run.lag = 1", "use run.lag=0"]),
        (
            "turns",
            GPUS | {"sync__backend": SyncBackend.nccl},
            ["sync.backend = nccl", "two processes on one GPU", "use sync.backend=ipc, or ray"],
        ),
        (
            "turns",
            GPUS | {"rollout__gpus_per_actor": 2},
            ["rollout.gpus_per_actor = 2", "trainer.gpus_per_rank = 1", "all of these to 1"],
        ),
        (
            "turns",
            GPUS | {"teacher__gpus_per_replica": 0},
            ["teacher.gpus_per_replica = 0", "all of these to 1, or all to 0"],
        ),
        ("turns", GPUS | {"teacher__gpus_per_replica": 0.5}, ["gpus_per_replica = 0.5"]),
        (
            "turns",
            {"teacher__when": TeacherTiming.streaming},
            ["teacher.when = streaming", "use teacher.when=null"],
        ),
        (
            "turns",
            GPUS | OWN,
            ["teacher.kind = class", ":Awake", "sleep() and wake()", "gpus_per_replica=0"],
        ),
        ("shared", ASKS, ["only ask others", "cluster.placement=separate"]),
        (
            "shared",
            SHARE | {"rollout__gpus_per_actor": 2},
            ["rollout.gpus_per_actor = 2", "use rollout.gpus_per_actor=1"],
        ),
        (
            "shared",
            {"teacher__gpus_per_replica": 0.3},
            ["rollout.gpus_per_actor = 0", "another cluster.teacher_beside"],
        ),
        (
            "shared",
            {"teacher__kind": "self", "student__lora": LoraSettings(rank=8)},
            ["teacher.kind = self and student.lora", "nothing to share"],
        ),
        ("shared", GPUS, ["teacher.gpus_per_replica = 1", "above 0 and below 1"]),
        (
            "shared",
            SHARE | {"teacher__gpus_per_replica": 0},
            ["teacher.gpus_per_replica = 0", "such as 0.3"],
        ),
        (
            "shared",
            SHARE | {"teacher__replicas": 4, "cluster__teacher_beside": Beside.trainer},
            ["4 x 0.3 = 1.2 of a GPU", "leaves the trainer nothing"],
        ),
        (
            "separate",
            GPUS | {"sync__backend": SyncBackend.ipc},
            ["sync.backend = ipc", "cluster.placement = separate", "use cluster.placement=turns"],
        ),
        (
            "turns",
            {"sync__backend": SyncBackend.ipc},
            ["sync.backend = ipc", "rollout.gpus_per_actor = 0"],
        ),
        (
            "turns",
            GPUS | {"sync__backend": SyncBackend.ipc, "rollout__actors": 2},
            ["rollout.actors = 2", "trainer.ranks = 1", "at least as many trainer.ranks"],
        ),
    ],
)
def test_what_does_not(placement: str, values: dict[str, Any], parts: list[str]) -> None:
    config = config_of(placement, **values)
    (problem,) = placement_problems(config)
    for part in parts:
        assert part in problem
    assert problem in config_problems(config)


def test_a_vllm_teacher_has_a_share_of_a_gpu_beside_others_alone() -> None:
    vllm = {"teacher__kind": "vllm", "teacher__gpus_per_replica": 0.3}
    problem = "teacher.gpus_per_replica = 0.3 with teacher.tensor_parallel_size = 1"
    found = {p: str(config_problems(config_of(p, **GPUS | vllm))) for p in ("separate", "shared")}
    assert problem in found["separate"]
    assert problem not in found["shared"]
