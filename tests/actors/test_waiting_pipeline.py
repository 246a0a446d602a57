"""The pipeline benchmark for a few seconds: real coordinator, pools and actors that wait."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from pipeline import Case, rows
from pipeline_placement import Placement, local_ray, modes
from pipeline_profiles import PROFILES, Lengths
from pipeline_run import measure

# A step of about 16 s: 8 s of writing, 2 s of it after the second response, 6 of training, 1 of
# sync; here a tenth.
TINY = replace(
    PROFILES["tip_b200"],
    name="tiny",
    lengths=Lengths(median=400, sigma=0.3, most=1_000),
    prompt_tokens=40,
    prompts_per_step=2,
    samples_per_prompt=2,
    decode_gpus=2,
    decode_seconds=0.01,
    crowding=0.2,
    teacher_tokens_per_second=1_000.0,
    trainer_tokens_per_second=140.0,
    optimizer_seconds=0.5,
    sync_seconds=1.0,
)
STEPS, SCALE = 5, 10


def test_every_mode_takes_about_what_its_profile_says() -> None:
    case = Case(TINY, Placement("tip_llama33_70b_to_8b", 1))
    with local_ray(gpus=8):
        begin = time.monotonic()
        found = measure(TINY, case.placement, SCALE, STEPS, modes())
        took = time.monotonic() - begin
    assert found[0].mode == "synchronous"
    for one in found:
        assert len(one.kept_tokens) == STEPS
        assert all(0 < kept < 4 * 100 for kept in one.kept_tokens)
        assert one.kept_tokens == found[0].kept_tokens
        assert len(one.steps) == STEPS - 3
        assert sum(one.steps) / SCALE < took
        # A busy machine takes longer, never less.
        assert 0.9 < one.step / one.expected < 10, one
        assert all(0.0 <= share < 1.0 for share in one.idle.values())
        # Nine tenths of four responses are all of them.
        assert one.tail_tenth == 0.0 < one.tail_half
        assert one.rollouts == 4
        assert one.trajectories_per_second == pytest.approx(4 / one.step, rel=0.5)
    lines = rows(case, found, SCALE)
    assert len(lines) == len(found)
    assert lines[0].startswith("| tiny | 2 + 4 + 2 | synchronous |")
