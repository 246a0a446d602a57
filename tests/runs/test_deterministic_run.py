"""With run.deterministic two runs end with the same bits, whoever of one is killed on its way.

A short form of tests/soak/kill_campaign.py.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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
# What the clock decides in any run.
_BY_THE_CLOCK = (
    "seconds/",
    "memory/",
    "tokens_per_second/",
    "idle_share",
    "teacher/",
    "checkpoint/",
)
_DEATHS = ("train/restarts", "rollout/restarts", "rollout/rewritten")
_TAILS = ("rollout/tail_half_seconds", "rollout/tail_tenth_seconds", "rollout/overlap_gain_seconds")


def killed_past_its_checkpoint(output: Path) -> None:
    """A run whose actors are killed in its second step and its fifth, and then all of it."""
    process = start(output, *_RUN, "run.checkpoint_every=3")
    try:
        wait_for_step(process, output, 1)
        actor_process(process, "RolloutActor").kill()
        actor_process(process, "TeacherActor").kill()
        wait_for_step(process, output, 4)
        actor_process(process, "TrainerActor").kill()
        wait_for_step(process, output, 5)
    finally:
        end(process)


def figures(output: Path) -> list[dict[str, float]]:
    """All figures of all rows that do not measure time or memory."""
    rows = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    kept = [
        {
            name: value
            for name, value in row.items()
            if not name.startswith(_BY_THE_CLOCK) and name not in (*_TAILS, *_DEATHS)
        }
        for row in rows
    ]
    return [row for row in kept if row.keys() != {"step"}]


def test_a_killed_and_resumed_run_ends_with_the_bits_of_an_unbroken_one(
    ray_address: str, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    # Side by side, so that everything takes another time than in the part that is resumed.
    with ThreadPoolExecutor(1) as beside:
        killed = beside.submit(killed_past_its_checkpoint, broken)
        run(whole, *_RUN, f"cluster.address={ray_address}")
        killed.result()
    code, text = finish(start(broken, *_RUN, "run.checkpoint_every=3"), broken)
    assert code == 0, text
    assert "at step 3" in text

    one, other = figures(whole), figures(broken)
    assert [row["step"] for row in one if "train/loss" in row] == [1, 2, 3, 4, 5, 6]
    assert "scores/entropy_mean" in one[1]
    assert one == other
    files = [folder / "export" / "model.safetensors" for folder in (whole, broken)]
    assert files[0].read_bytes() == files[1].read_bytes()
