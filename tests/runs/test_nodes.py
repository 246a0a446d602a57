"""A run over several nodes: one that dies, one that joins and is used in its place."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from cluster_of_nodes import cluster_of_nodes
from launching import end, finish, rows, start, wait_for_step

from opd_ray.output.checkpoint import CheckpointStore

# Every actor takes a node's only CPU.
_SPREAD = (
    "run.steps=100000",
    "trainer.cpus_per_rank=1",
    "rollout.cpus_per_actor=1",
    "teacher.cpus_per_replica=1",
    "teacher.replicas=2",
    "teacher.batch_tokens=128",
)


@pytest.mark.timeout(300)
def test_a_node_with_a_teacher_dies_and_one_that_joins_takes_its_place(tmp_path: Path) -> None:
    output = tmp_path / "run"
    with cluster_of_nodes(1, 1, 1, 1) as nodes:
        run = start(output, *_SPREAD, f"cluster.address={nodes.address}")
        try:
            wait_for_step(run, output, 2)
            teachers = nodes.where("TeacherActor")
            # Weights, signals and checkpoints go from node to node.
            places = [*nodes.where("TrainerActor"), *nodes.where("RolloutActor"), *teachers]
            assert sorted(places) == [0, 1, 2, 3]
            nodes.kill(teachers[0])
            done = len(rows(output))
            wait_for_step(run, output, done + 3)  # with the one that is left
            assert rows(output)[-1]["teacher/replicas"] == 1
            joined = nodes.start(1)
            while rows(output)[-1]["teacher/replicas"] != 2:
                wait_for_step(run, output, len(rows(output)) + 1)
            assert nodes.where("TeacherActor") == [teachers[1], joined]
            wait_for_step(run, output, len(rows(output)) + 3)
            os.killpg(run.pid, signal.SIGINT)
            code, text = finish(run, output, timeout_s=60)
        finally:
            end(run)
    assert code == 130, text
    assert "; starting it again (1 of teacher.max_restarts" in text
    steps = rows(output)
    assert [row["step"] for row in steps] == list(range(1, len(steps) + 1))
    for name in ("teacher-0", "teacher-1"):
        assert any(row[f"teacher/replica/{name}/tokens"] > 0 for row in steps[-3:])
    newest = CheckpointStore(output / "checkpoints", keep=2).newest()
    assert newest is not None
    assert newest[1].step == len(steps)
