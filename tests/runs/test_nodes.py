"""A run over several nodes loses those of a teacher, a rollout actor, the trainer, and taken rows.

At first one that joins takes the place of one that died; then another one has joined before.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cluster_of_nodes import Nodes, cluster_of_nodes
from launching import PATIENCE_S, SMALL, end, finish, rows, wait_for_step

from opd_ray.output.checkpoint import CheckpointStore

# A run that, once a file tells it to, stops between the teachers' answer to which rows are taken
# and the trainer's look at them, until that file is gone. The rows lie on both teachers' nodes:
# what is small Ray keeps with whoever asked for it, and of such a step nothing could be lost.
_RUN = """
import sys, time
from itertools import chain
from pathlib import Path
import ray
from opd_ray.cli import main
from opd_ray.pools.teachers.router import TeacherRouter

take, stop = TeacherRouter.take, Path(sys.argv[1])

def take_and_stop(*args, **options):
    refs = take(*args, **options)
    if stop.exists():
        every = [*chain(*refs)]
        ray.wait(every, num_returns=len(every), fetch_local=False)
        places = ray.experimental.get_object_locations(every).values()
        if len({node for place in places for node in place["node_ids"]}) == 2:
            stop.write_text("taken")
            while stop.exists():
                time.sleep(0.05)
    return refs

TeacherRouter.take = take_and_stop
sys.exit(main(sys.argv[2:]))
"""
# Every actor takes a node's only CPU.
_SPREAD = (
    "run.steps=100000",
    "run.checkpoint_every=1",
    "trainer.cpus_per_rank=1",
    "rollout.cpus_per_actor=1",
    "rollout.actors=2",
    "teacher.cpus_per_replica=1",
    "teacher.replicas=2",
    "teacher.batch_tokens=1024",  # batches for both in every step
    "rollout.prompts_per_step=64",
    "tip.rho=1.0",
    "teacher.max_restarts=3",
)


def start(output: Path, stop: Path, address: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _RUN, str(stop), "demo", f"run.output_dir={output}"]
    return subprocess.Popen(
        [*command, *SMALL, *_SPREAD, f"cluster.address={address}"],
        stdout=output.with_suffix(".log").open("w"),
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "RAY_ADDRESS": ""},
    )


def wait_for(run: subprocess.Popen[str], output: Path, name: str, value: float) -> None:
    """Return after the first step of which a figure has at least this value."""
    begin = time.monotonic()
    while not (found := rows(output)) or found[-1][name] < value:
        assert time.monotonic() - begin < PATIENCE_S, output.with_suffix(".log").read_text()
        wait_for_step(run, output, found[-1]["step"] + 1 if found else 1, PATIENCE_S)


def lose(nodes: Nodes, actor_class: str) -> None:
    """Have a node join, and another one die with an actor of this class."""
    nodes.start(1)
    nodes.kill(nodes.where(actor_class)[0])


@pytest.mark.timeout(1200)
def test_nodes_die_one_after_another_and_no_step_is_lost(tmp_path: Path) -> None:
    output, stop = tmp_path / "run", tmp_path / "stop"
    with cluster_of_nodes(1, 1, 1, 1, 1) as nodes:
        run = start(output, stop, nodes.address)
        try:
            wait_for_step(run, output, 2)
            # Weights, signals and checkpoints go from node to node.
            teachers = nodes.where("TeacherActor")
            places = [*nodes.where("TrainerActor"), *nodes.where("RolloutActor"), *teachers]
            assert sorted(places) == [0, 1, 2, 3, 4]
            nodes.kill(teachers[0])
            wait_for_step(run, output, len(rows(output)) + 3)  # with the one that is left
            assert rows(output)[-1]["teacher/replicas"] == 1
            joined = nodes.start(1)
            wait_for(run, output, "teacher/replicas", 2)
            assert nodes.where("TeacherActor") == [teachers[1], joined]

            lose(nodes, "RolloutActor")
            done = rows(output)[-1]["step"]
            wait_for_step(run, output, done + 2)  # with the one that is left
            while len(nodes.where("RolloutActor")) < 2:
                wait_for_step(run, output, len(rows(output)) + 1)

            lose(nodes, "TrainerActor")
            wait_for(run, output, "train/restarts", 1)

            stop.touch()
            while not stop.read_text():
                assert run.poll() is None
                time.sleep(0.05)
            lose(nodes, "TeacherActor")
            stop.unlink()
            wait_for(run, output, "train/restarts", 2)
            wait_for(run, output, "teacher/replicas", 2)
            wait_for_step(run, output, len(rows(output)) + 3)
            os.killpg(run.pid, signal.SIGINT)
            code, text = finish(run, output)
        finally:
            end(run)
    assert code == 130, text
    assert text.count("starting it again (1 of rollout.max_restarts = 3)") == 1
    assert text.count("all ranks are up again") == 2
    assert text.count("starting it again (1 of teacher.max_restarts = 3)") == 2
    steps = rows(output)
    assert [row["step"] for row in steps] == list(range(1, len(steps) + 1))
    for name in ("teacher-0", "teacher-1"):
        assert any(row[f"teacher/replica/{name}/tokens"] > 0 for row in steps[-3:])
    newest = CheckpointStore(output / "checkpoints", keep=2).newest()
    assert newest is not None
    assert newest[1].step == len(steps)
