"""Different teachers in one run: by route, the student itself following, and an ensemble."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from in_process import run
from launching import rows
from shared_actors import shared_actors

from opd_ray.models.pairs.demo import pair_folder
from opd_ray.tasks.chain_sum import ChainSumGenerator


@pytest.fixture
def data(tmp_path: Path) -> tuple[str, ...]:
    """Three files of eight prompts, a step each; in the third the teacher sees the solution."""
    problems = ChainSumGenerator(3, 2, "train", 0).take(24)
    for name, part in zip("abc", (problems[:8], problems[8:16], problems[16:]), strict=True):
        lines = [
            json.dumps(
                {
                    "prompt": p.prompt,
                    "answer": p.answer,
                    "shown": f"{p.worked}\n{p.prompt}" if name == "c" else p.prompt,
                }
            )
            for p in part
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return (
        "data.kind=jsonl",
        f"data.path={tmp_path}/*.jsonl",
        "data.shuffle=false",
        "data.fields.teacher_prompt=shown",
        "data.max_prompt_tokens=32",
        "tip.rule=all",
        "trainer.lr_schedule=constant",
    )


def test_routes_and_a_teacher_that_follows(
    data: tuple[str, ...],
    ray_address: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Step 1 learns from the teacher; at step 2 the student's prompts go to the student itself.

    That teacher has taken in step 1 whole (decay 0), weights and output head: nothing is left to
    learn. A teacher that stayed behind, or a head that did, would give a loss. At step 3 the same
    teacher reads the solution first, and has something to teach.
    """
    routed = (
        "run.steps=3",
        "teachers={own: {kind: self, follow_decay: 0.0}}",
        "routes={a.jsonl: teacher, b.jsonl: own, c.jsonl: own}",
    )
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    checkpoint = whole / "checkpoints" / "step_00000001"
    with shared_actors(tmp_path / "shared", ray_address, *data, *routed) as actors:
        actors.run(whole, "run.checkpoint_every=1", "run.keep_checkpoints=3")
        actors.run(resumed, f"run.resume={checkpoint}")
    first, second, third = rows(whole)
    assert first["train/loss"] > 0.01
    assert abs(second["train/loss"]) < 1e-6
    assert third["train/loss"] > 0.01
    assert first["teacher/own/tokens"] == second["teacher/teacher/tokens"] == 0
    assert second["teacher/own/tokens"] > second["rollout/tokens"]  # with the prompts
    assert {"memory/teacher-0_bytes", "memory/teacher-own-0_bytes"} <= first.keys()

    # Resumed after the first step: with the teacher that followed, not the one of the start.
    assert (checkpoint / "trainer" / "teachers" / "own.safetensors").is_file()
    again, last = rows(resumed)
    assert (again["step"], again["rollout/tokens"]) == (2, second["rollout/tokens"])
    assert abs(again["train/loss"]) < 1e-6
    assert last["train/loss"] == pytest.approx(third["train/loss"], rel=1e-4)

    # The teacher mixed with the student itself, as another folder.
    mixed, other = tmp_path / "mixed", tmp_path / "other"
    shutil.copytree(pair_folder() / "student", other)
    (other / "chat_template.jinja").write_text("{{ messages }}")
    ensemble = (
        "run.steps=1",
        "teacher.kind=ensemble",
        "teacher.path=null",
        "teacher.members={able: 1.0, other: 3.0}",
        f"teachers={{able: {{path: {pair_folder()}/teacher}}, "
        f"other: {{path: {other}, accept_mismatch: [chat_template]}}}}",
    )
    capsys.readouterr()
    run(mixed, *data, *ensemble, f"cluster.address={ray_address}")
    text = capsys.readouterr().err
    (taught,) = rows(mixed)
    assert taught["train/kept_tokens"] == first["train/kept_tokens"]
    # So near the student the divergence grows about with the square of the teacher's share, which
    # is a fourth; with the shares swapped there would be nine times as much to learn.
    assert 0 < taught["train/loss"] < first["train/loss"] / 16
    assert "opd-ray: accepted difference of teachers.other: chat template" in text
