"""Who is on the same GPU, with which share of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from planned import GB, SHAPE, machine, make_config

from opd_ray.cluster.bundles import bundles_of
from opd_ray.cluster.placement import Placement, plan_placement
from opd_ray.config.choices import Beside, PlacementChoice, TeacherTiming
from opd_ray.config.schema import ClusterSettings, Config
from opd_ray.errors import PlacementError

ON_GPU: dict[str, dict[str, Any]] = {
    "trainer": {"gpus_per_rank": 1},
    "rollout": {"gpus_per_actor": 1},
    "teacher": {"gpus_per_replica": 1},
}


def config_of(placement: str, beside: str = "rollout", **sections: dict[str, Any]) -> Config:
    merged = {name: ON_GPU[name] | sections.get(name, {}) for name in ON_GPU}
    cluster = ClusterSettings(placement=PlacementChoice(placement), teacher_beside=Beside(beside))
    return replace(make_config(**merged), cluster=cluster)


def together(plan: Placement) -> list[set[str]]:
    return [{actor.name for actor in bundle.actors} for bundle in bundles_of(plan.actors)]


def test_apart_everybody_has_a_gpu() -> None:
    plan = plan_placement(config_of("separate"), machine(8, gpus=3))
    assert together(plan) == [{"trainer-0"}, {"rollout-0"}, {"teacher-0"}]
    assert [actor.gpus for actor in plan.actors] == [1, 1, 1]
    assert [actor.gpu_share for actor in plan.actors] == [1.0] * 3


def test_in_turns_one_gpu_is_enough_and_each_may_take_all_of_it() -> None:
    plan = plan_placement(config_of("turns"), machine(8, gpus=1))
    assert together(plan) == [{"trainer-0", "rollout-0", "teacher-0"}]
    (bundle,) = bundles_of(plan.actors)
    assert [actor.gpus for actor in bundle.actors] == [0.3333] * 3
    assert bundle.resources == {"CPU": 3.0, "GPU": 0.9999}
    assert [actor.gpu_share for actor in plan.actors] == [1.0] * 3


def test_in_turns_the_actors_of_a_number_are_together_and_what_is_left_has_a_gpu_alone() -> None:
    config = config_of("turns", trainer={"ranks": 3}, rollout={"actors": 2})
    plan = plan_placement(config, machine(16, gpus=3))
    assert together(plan) == [
        {"trainer-0", "rollout-0", "teacher-0"},
        {"trainer-1", "rollout-1"},
        {"trainer-2"},
    ]
    assert [bundle.gpus for bundle in bundles_of(plan.actors)] == [0.9999, 1.0, 1.0]
    # No bundle but the whole one of another fits beside it.
    with pytest.raises(PlacementError, match="GPUs"):
        plan_placement(config, machine(16, gpus=2))


def test_in_turns_each_role_has_all_cores_and_teachers_wait() -> None:
    config = replace(
        make_config(rollout={"actors": 2}),
        cluster=ClusterSettings(placement=PlacementChoice.turns),
    )
    plan = plan_placement(config, machine(8))
    threads = {actor.name: actor.threads for actor in plan.actors}
    assert threads == {"trainer-0": 8, "rollout-0": 4, "rollout-1": 4, "teacher-0": 8}
    assert plan.settle(config).teacher_set.first.when is TeacherTiming.after_writing
    asks = replace(config, teacher=replace(config.teacher, kind="http", url="http://a:1/v1"))
    settled = plan_placement(asks, machine(8)).settle(asks)
    assert settled.teacher_set.first.when is TeacherTiming.streaming


@pytest.mark.parametrize(("beside", "host"), [("rollout", "rollout-0"), ("trainer", "trainer-0")])
def test_a_teacher_shares_the_gpu_of_its_host(beside: str, host: str) -> None:
    config = config_of("shared", beside, teacher={"gpus_per_replica": 0.3})
    plan = plan_placement(config, machine(8, gpus=2))
    assert {host, "teacher-0"} in together(plan)
    assert [bundle.gpus for bundle in bundles_of(plan.actors)] == [1.0, 1.0]
    shares = {actor.name: (actor.gpus, actor.gpu_share) for actor in plan.actors}
    assert (shares[host], shares["teacher-0"]) == ((0.7, 0.7), (0.3, 0.3))
    (alone,) = {*shares} - {host, "teacher-0"}
    assert shares[alone] == (1, 1.0)
    # vLLM may take its share of what the teacher leaves.
    utilization = plan.settle(config).rollout.gpu_memory_utilization
    assert utilization == pytest.approx(0.9 * (0.7 if beside == "rollout" else 1.0))


def test_replicas_are_dealt_out_over_the_hosts() -> None:
    config = config_of(
        "shared", rollout={"actors": 2}, teacher={"gpus_per_replica": 0.25, "replicas": 3}
    )
    plan = plan_placement(config, machine(16, gpus=3))
    assert together(plan) == [
        {"trainer-0"},
        {"rollout-0", "teacher-0", "teacher-2"},
        {"rollout-1", "teacher-1"},
    ]
    shares = {actor.name: actor.gpu_share for actor in plan.actors if actor.role == "rollout"}
    assert shares == {"rollout-0": 0.5, "rollout-1": 0.75}
    # One section says it for all engines: what the fullest GPU leaves.
    assert plan.settle(config).rollout.gpu_memory_utilization == pytest.approx(0.9 * 0.5)


def test_the_estimate_knows_the_shares() -> None:
    config = config_of("shared", teacher={"gpus_per_replica": 0.3, "kind": "vllm"})
    cluster = machine(8, gpus=2, gpu_memory_bytes=80 * GB)
    plan = plan_placement(config, cluster, SHAPE, {"t": SHAPE})
    shares = {actor.name: actor.memory.gpu_share for actor in plan.actors if actor.memory}
    assert shares == {
        "trainer-0": 1.0,
        "rollout-0": pytest.approx(0.9 * 0.7),
        "teacher-0": pytest.approx(0.8 * 0.3),
    }


def test_an_evaluation_has_its_engines_alone() -> None:
    for placement in ("turns", "shared"):
        plan = plan_placement(config_of(placement), machine(8, gpus=1), roles=("rollout",))
        assert [(actor.gpus, actor.gpu_share) for actor in plan.actors] == [(1, 1.0)]
