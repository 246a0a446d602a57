"""With run.deterministic two runs end with the same bits, whoever of one is killed on its way.

A short form of tests/soak/kill_campaign.py.
"""

from __future__ import annotations

import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from compared import differences, figures, steps
from in_process import run
from launching import actor_process, end, finish, start, wait_for_step

_RUN = (
    "run.deterministic=true",
    "run.steps=6",
    "run.export_at_end=true",
    # More than each engine runs at once, so that it matters who is given what, and when.
    "rollout.actors=2",
    "rollout.prompts_per_step=16",
    "rollout.max_num_seqs=4",
    "teacher.replicas=2",
    "trainer.ranks=2",
)


def killed_past_its_checkpoint(output: Path) -> str:
    """A run whose actors are killed as they come up and in two steps, and that is killed then.

    Returns:
        what it printed.
    """
    process = start(output, *_RUN, "run.checkpoint_every=3")
    try:
        for actor in ("TrainerActor", "RolloutActor", "TeacherActor"):
            when_there(process, actor).kill()
        wait_for_step(process, output, 1)
        actor_process(process, "RolloutActor").kill()
        actor_process(process, "TeacherActor").kill()
        wait_for_step(process, output, 4)
        actor_process(process, "TrainerActor").kill()
        wait_for_step(process, output, 5)
    finally:
        end(process)
    return output.with_suffix(".log").read_text()


def when_there(run: subprocess.Popen[str], actor_class: str) -> psutil.Process:
    """The process of an actor, as soon as there is one."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return actor_process(run, actor_class)
        except LookupError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.timeout(600)
def test_a_killed_and_resumed_run_ends_with_the_bits_of_an_unbroken_one(
    ray_address: str, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    # Side by side, so that everything takes another time than in the part that is resumed.
    with ThreadPoolExecutor(1) as beside:
        killed = beside.submit(killed_past_its_checkpoint, broken)
        run(whole, *_RUN, f"cluster.address={ray_address}")
        first = killed.result()
    code, text = finish(start(broken, *_RUN, "run.checkpoint_every=3"), broken)
    assert code == 0, text
    assert "at step 3" in text
    for name, which in (("trainer", "all ranks"), ("rollout", "it"), ("teacher", "it")):
        said = rf"{name}-\d died while it came up \(.*\); starting {which} again \(1 of {name}"
        assert re.search(said, first), first

    assert steps(whole) == [1, 2, 3, 4, 5, 6]
    assert "scores/entropy_mean" in figures(whole)[1]
    assert differences(whole, broken) == []
