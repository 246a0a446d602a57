"""Which actor goes where, with how many CPUs and threads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from planned import SHAPE, machine, make_config

from opd_ray.cluster.bundles import bundles_of
from opd_ray.cluster.nodes import Cluster, Node, from_ray_nodes
from opd_ray.cluster.placement import plan_placement
from opd_ray.config.choices import TeacherTiming
from opd_ray.config.lora import LoraSettings
from opd_ray.config.schema import Config
from opd_ray.errors import PlacementError


def test_two_cores_hold_all_three_stages() -> None:
    plan = plan_placement(make_config(), machine(2))
    assert [actor.name for actor in plan.actors] == ["trainer-0", "rollout-0", "teacher-0"]
    assert [bundle.resources for bundle in bundles_of(plan.actors)] == [{"CPU": 0.5}] * 3
    # Rollout and teacher overlap and split the cores; the trainer works alone and has them all.
    assert [actor.threads for actor in plan.actors] == [2, 1, 1]
    assert plan.actors[0].options == {"num_cpus": 0.5, "num_gpus": 0}


@pytest.mark.parametrize("cpus", [2, 3, 4, 7, 64])
@pytest.mark.parametrize(
    ("ranks", "actors", "replicas"), [(1, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 2)]
)
def test_stages_that_overlap_never_exceed_the_cores(
    cpus: int, ranks: int, actors: int, replicas: int
) -> None:
    config = make_config({"ranks": ranks}, {"actors": actors}, {"replicas": replicas})
    plan = plan_placement(config, machine(cpus))
    overlapping = [actor.threads for actor in plan.actors if actor.role != "trainer"]
    assert sum(overlapping) <= max(cpus, len(overlapping))
    alone = [actor.threads for actor in plan.actors if actor.role == "trainer"]
    assert sum(alone) <= cpus
    assert sum(actor.cpus for actor in plan.actors) <= cpus


def test_what_the_config_says_is_kept() -> None:
    config = make_config({"threads": 3, "cpus_per_rank": 0.25}, {"threads": 5})
    plan = plan_placement(config, machine(2))
    assert [actor.threads for actor in plan.actors] == [3, 5, 1]
    assert plan.actors[0].cpus == 0.25


def test_settled_config_has_numbers_in_place_of_zeros() -> None:
    config = make_config({"threads": 0}, {"threads": 7, "cpus_per_actor": 1})
    settled = plan_placement(config, machine(4)).settle(config)
    teacher = settled.teacher_set.first
    assert (settled.trainer.threads, settled.rollout.threads, teacher.threads) == (4, 7, 2)
    assert (settled.trainer.cpus_per_rank, settled.rollout.cpus_per_actor) == (1, 1)
    assert teacher.cpus_per_replica == 1
    assert (
        replace(settled, trainer=config.trainer, rollout=config.rollout, teacher=config.teacher)
        == config
    )


TWO = {"threads": 2}


@pytest.mark.parametrize(
    ("rollout", "teacher", "cpus", "when"),
    [
        (TWO, TWO, 2, "after_writing"),
        (TWO, TWO, 3, "after_writing"),
        (TWO, TWO, 4, "streaming"),
        ({}, {}, 2, "streaming"),  # a core each
        ({"actors": 2, "threads": 1}, {"threads": 1}, 2, "after_writing"),
        (TWO, TWO | {"when": TeacherTiming.streaming}, 2, "streaming"),
        ({}, {"when": TeacherTiming.after_writing}, 2, "after_writing"),
        (TWO | {"gpus_per_actor": 1}, TWO, 2, "streaming"),
        (TWO, TWO | {"gpus_per_replica": 1}, 2, "streaming"),
        (TWO, TWO | {"kind": "http", "url": "http://a:1/v1"}, 2, "streaming"),
        (TWO, TWO | {"kind": "actor", "actor_name": "judge"}, 2, "streaming"),
    ],
)
def test_a_teacher_waits_where_its_threads_and_the_writers_are_more_than_the_cores(
    rollout: dict[str, Any], teacher: dict[str, Any], cpus: int, when: str
) -> None:
    config = make_config({}, rollout, teacher)
    settled = plan_placement(config, machine(cpus, gpus=1)).settle(config)
    assert settled.teacher_set.first.when == when
    overlap = replace(config, run=replace(config.run, overlap=True))
    if config.teacher.when is None:
        settled = plan_placement(overlap, machine(cpus, gpus=1)).settle(overlap)
        assert settled.teacher_set.first.when == "streaming"


@pytest.mark.parametrize(
    ("cpus", "threads", "when"),
    [(2, [1, 1, 1], "after_writing"), (3, [1, 1, 1], "streaming"), (6, [2, 2, 2], "streaming")],
)
def test_with_lag_trainers_share_the_cores_too(cpus: int, threads: list[int], when: str) -> None:
    config = make_config()
    config = replace(config, run=replace(config.run, lag=1))
    plan = plan_placement(config, machine(cpus))
    assert [actor.threads for actor in plan.actors] == threads
    assert plan.settle(config).teacher_set.first.when == when


@pytest.mark.parametrize(
    ("trainer", "cpus", "when"),
    [
        ({"threads": 2}, 3, "after_writing"),
        ({"threads": 2}, 4, "streaming"),  # with the replica's threads there would be five
        ({"threads": 2, "gpus_per_rank": 1}, 2, "streaming"),
    ],
)
def test_of_a_teacher_whose_answers_trainers_compute_their_threads_count(
    trainer: dict[str, Any], cpus: int, when: str
) -> None:
    config = make_config(trainer, TWO, {"kind": "self", "threads": 1})
    config = replace(config, student=replace(config.student, lora=LoraSettings(rank=8)))
    settled = plan_placement(config, machine(cpus, gpus=1)).settle(config)
    assert settled.teacher_set.first.when == when


def test_a_replica_that_only_asks_crowds_no_node() -> None:
    config = replace(
        make_config({}, TWO, {"threads": 1}),
        teachers={"far": {"kind": "http", "url": "http://host:8000/v1", "threads": 4}},
        routes={"words": "teacher", "code": "far"},
    )
    working = plan_placement(config, machine(4)).settle(config).teacher_set.working
    assert {one.settings.when for one in working.values()} == {"streaming"}


def test_a_teacher_on_a_node_without_writers_does_not_wait() -> None:
    config = make_config(
        {"cpus_per_rank": 1}, TWO | {"cpus_per_actor": 2}, TWO | {"cpus_per_replica": 1}
    )
    plan = plan_placement(config, machine(2, nodes=2))
    assert [actor.node for actor in plan.actors] == ["n0", "n1", "n0"]
    assert plan.settle(config).teacher_set.first.when == "streaming"


def test_each_teacher_is_settled_by_its_own_actors() -> None:
    config = replace(
        make_config(),
        teachers={"coder": {"path": "c", "threads": 3, "cpus_per_replica": 0.5}},
        routes={"words": "teacher", "code": "coder"},
    )
    working = plan_placement(config, machine(6)).settle(config).teacher_set.working
    # The rollout actor and both teachers work at the same time, on six cores.
    found = {
        name: (one.settings.threads, one.settings.cpus_per_replica) for name, one in working.items()
    }
    assert found == {"teacher": (2, 1), "coder": (3, 0.5)}


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (make_config({"ranks": 3}), ["trainer.ranks = 3", "2 CPUs", "use at most 2"]),
        (make_config(rollout={"actors": 4}), ["rollout.actors = 4", "2 CPUs"]),
        (make_config(teacher={"replicas": 3}), ["teacher.replicas = 3", "2 CPUs"]),
        (
            make_config({"cpus_per_rank": 2}, {"cpus_per_actor": 1}),
            ["1 x trainer.cpus_per_rank 2", "1 x rollout.cpus_per_actor 1", "= 3 CPUs", "has 2"],
        ),
        (
            make_config({"gpus_per_rank": 1}),
            ["trainer.gpus_per_rank 1", "= 1 GPUs", "the cluster has 0"],
        ),
    ],
)
def test_what_does_not_fit_names_the_key(config: Config, parts: list[str]) -> None:
    with pytest.raises(PlacementError) as caught:
        plan_placement(config, machine(2))
    for part in parts:
        assert part in str(caught.value)


def test_more_ranks_than_gpus() -> None:
    config = make_config({"ranks": 6, "gpus_per_rank": 1}, {"gpus_per_actor": 1, "actors": 2})
    with pytest.raises(PlacementError, match=r"6 x trainer\.gpus_per_rank 1 .* = 8 GPUs.*has 4"):
        plan_placement(config, machine(32, gpus=4))


def test_an_actor_needs_its_gpus_on_one_node() -> None:
    config = make_config({}, {"gpus_per_actor": 4, "tensor_parallel_size": 4})
    with pytest.raises(PlacementError, match=r"rollout\.gpus_per_actor = 4 .* no node"):
        plan_placement(config, machine(8, gpus=2, nodes=2))


def test_eight_gpus_on_two_nodes() -> None:
    config = make_config(
        {"ranks": 4, "gpus_per_rank": 1},
        {"actors": 1, "gpus_per_actor": 2, "tensor_parallel_size": 2},
        {"replicas": 2, "gpus_per_replica": 1},
    )
    plan = plan_placement(config, machine(16, gpus=4, nodes=2))
    used: dict[str, float] = {}
    for actor in plan.actors:
        used[actor.node] = used.get(actor.node, 0) + actor.gpus
    assert used == {"n0": 4, "n1": 4}
    (rollout,) = (actor for actor in plan.actors if actor.role == "rollout")
    assert rollout == plan.actors[4]
    assert bundles_of([rollout])[0].resources == {"CPU": 1.0, "GPU": 2}


def test_fractions_of_a_gpu_share_one() -> None:
    config = make_config(teacher={"replicas": 2, "gpus_per_replica": 0.5})
    plan = plan_placement(config, machine(8, gpus=1))
    assert sum(actor.gpus for actor in plan.actors) == 1


def test_table_names_every_actor() -> None:
    text = plan_placement(make_config({"ranks": 2}), machine(2), SHAPE, {"t": SHAPE}).render()
    lines = text.splitlines()
    assert lines[0].split()[:2] == ["actor", "node"]
    assert [line.split()[0] for line in lines[1:]] == [
        "trainer-0",
        "trainer-1",
        "rollout-0",
        "teacher-0",
    ]
    assert "unknown" not in text
    assert "unknown" in plan_placement(make_config(), machine(2)).render()


def test_ray_nodes_become_a_cluster() -> None:
    nodes = [
        {
            "NodeManagerAddress": "10.0.0.1",
            "Alive": True,
            "Resources": {"CPU": 4.0, "GPU": 2.0, "memory": 5.0, "object_store_memory": 3.0},
        },
        {"NodeManagerAddress": "10.0.0.2", "Alive": False, "Resources": {"CPU": 4.0}},
    ]
    assert from_ray_nodes(nodes) == Cluster((Node("10.0.0.1", 4.0, 8, 2),))


def test_nodes_at_one_address_are_told_apart() -> None:
    node = {"NodeManagerAddress": "10.0.0.1", "Alive": True, "Resources": {"CPU": 1.0}}
    cluster = from_ray_nodes([node, {**node, "Alive": False}, node, node])
    names = [node.name for node in cluster.nodes]
    assert names == ["10.0.0.1", "10.0.0.1 (2)", "10.0.0.1 (3)"]
    # Each has room for an actor.
    config = make_config({"cpus_per_rank": 1}, {"cpus_per_actor": 1}, {"cpus_per_replica": 1})
    placed = plan_placement(config, cluster).actors
    assert sorted(actor.node for actor in placed) == names
