"""With run.deterministic two runs end with the same bits, whatever befalls one on its way.

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
from launching import PATIENCE_S, actor_process, end, start, wait_for_step
from shared_actors import shared_actors

from opd_ray.output.checkpoint import CheckpointStore

_RUN = (
    "run.deterministic=true",
    "run.steps=7",
    "run.export_at_end=true",
    # More than each engine runs at once, so that it matters who is given what, and when.
    "rollout.actors=2",
    "rollout.prompts_per_step=16",
    "rollout.max_num_seqs=4",
    "teacher.replicas=2",
    "trainer.ranks=2",
    "trainer.zero_stage=2",
)


def killed_past_its_checkpoint(output: Path) -> str:
    """A run whose actors are killed as they come up and in two steps, and that is killed then.

    Returns:
        what it printed.
    """
    process = start(output, *_RUN, "run.checkpoint_every=2")
    try:
        for actor in ("TrainerActor", "RolloutActor", "TeacherActor"):
            when_there(process, actor).kill()
        wait_for_step(process, output, 1)
        actor_process(process, "RolloutActor").kill()
        actor_process(process, "TeacherActor").kill()
        wait_for_step(process, output, 4)
        actor_process(process, "TrainerActor").kill()
        wait_for_step(process, output, 5)
        while not (output / "checkpoints" / "step_00000004").exists():
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        end(process)
    return output.with_suffix(".log").read_text()


def when_there(run: subprocess.Popen[str], actor_class: str) -> psutil.Process:
    """The process of an actor, as soon as there is one."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return actor_process(run, actor_class)
        except LookupError:
            assert run.poll() is None, "it ended before there was one"
            assert time.monotonic() < deadline
            time.sleep(0.1)


def flip_a_byte(file: Path) -> None:
    """Its size stays."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)


@pytest.mark.timeout(1200)
def test_a_killed_and_resumed_run_ends_with_the_bits_of_an_unbroken_one(
    ray_address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    # Side by side, so that everything takes another time than in the part that is resumed.
    with ThreadPoolExecutor(1) as beside:
        killed = beside.submit(killed_past_its_checkpoint, broken)
        # Actors that had no part in the run that is resumed, and that have been through another.
        with shared_actors(tmp_path / "shared", ray_address, *_RUN) as actors:
            actors.run(whole)
            first = killed.result()
            newest = CheckpointStore(broken / "checkpoints", keep=2).newest()
            assert newest is not None
            folder, state = newest
            flip_a_byte(folder / "trainer" / "rank_00001_00000.safetensors")
            capsys.readouterr()
            actors.run(broken, "run.checkpoint_every=2")
    text = capsys.readouterr().err
    assert f"at step {state.step - 2}" in text
    assert f"passed over: the trainer's checkpoint in {folder}/trainer is not whole: rank_0" in text
    for name, which in (("trainer", "all ranks"), ("rollout", "it"), ("teacher", "it")):
        said = rf"{name}-\d died while it came up \(.*\); starting {which} again \(1 of {name}"
        assert re.search(said, first), first

    assert steps(whole) == list(range(1, 8))
    assert "scores/entropy_mean" in figures(whole)[1]
    assert differences(whole, broken) == []
