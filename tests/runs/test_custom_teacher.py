"""The teachers in examples/custom_teacher, as a class and as a running actor: the same training.

So it is with the student's tokens in the loss and with those of both, where each are all there are.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import SMALL, rows
from started_ray import started_ray

from opd_ray.cli import main

FOLDER = Path(__file__).parents[2] / "examples" / "custom_teacher"


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A Ray named by RAY_ADDRESS, with the actor; the example can be imported there and here."""
    path = os.pathsep.join([str(FOLDER), str(FOLDER.parents[1])])
    with (
        pytest.MonkeyPatch.context() as patch,
        started_ray(4, PYTHONPATH=path) as address,
    ):
        patch.setenv("PYTHONPATH", path)
        patch.syspath_prepend(FOLDER)
        patch.setenv("RAY_ADDRESS", address)
        assert "actor soft-teacher serves" in python(str(FOLDER / "teacher_actor.py"))
        yield


def python(*arguments: str) -> str:
    """What a Python process prints; it must end well."""
    # Ray's own token, in the home folder. This process has imported Ray, which reads the variable
    # then: here the commands see to it.
    environment = {**os.environ, "RAY_AUTH_MODE": "token"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def command(config: str, output: Path, support: str) -> list[str]:
    """Two training steps with an example's config, in the test's Ray."""
    arguments = (f"run.output_dir={output}", "run.steps=2", "cluster.address=auto")
    # The demo's vocabulary has 24 tokens.
    arguments += (f"loss.support={support}", "rollout.record_topk=24")
    return ["train", "--config", str(FOLDER / config), *SMALL, *arguments]


def test_class_and_actor_train_alike(tmp_path: Path) -> None:
    by_class, by_actor = tmp_path / "class", tmp_path / "actor"
    # In this process, which saves the imports.
    assert main(command("class.yaml", by_class, "student")) == 0
    assert main(command("actor.yaml", by_actor, "union")) == 0
    as_class, as_actor = rows(by_class), rows(by_actor)
    assert [row["step"] for row in as_class] == [row["step"] for row in as_actor] == [1, 2]
    for one, other in zip(as_class, as_actor, strict=True):
        assert one["train/loss"] > 0
        for name in ("train/loss", "train/kept_tokens", "train/grad_norm", "rollout/tokens"):
            assert one[name] == pytest.approx(other[name], rel=1e-4), name
        assert one["teacher/signal_bytes_per_trained_token"] == 24 * 8
        assert other["teacher/signal_bytes_per_trained_token"] == (16 + 24) * 8


@pytest.mark.parametrize("config", ["class.yaml", "actor.yaml"])
def test_the_examples_keep_the_contract(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-teacher", "--config", str(FOLDER / config)]) == 0
    assert "keeps its contract" in capsys.readouterr().out
