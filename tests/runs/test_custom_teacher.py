"""The teachers in examples/custom_teacher, as a class and as a running actor: the same training.

So it is with the student's tokens in the loss and with those of both, where each are all there are.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
from launching import SMALL, rows

FOLDER = Path(__file__).parents[2] / "examples" / "custom_teacher"


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Where the example can be imported, with the address of a Ray that the test started."""
    path = os.pathsep.join([str(FOLDER), str(FOLDER.parents[1])])
    with pytest.MonkeyPatch.context() as patch:
        # Ray's own processes, and the workers below them, inherit it.
        patch.setenv("PYTHONPATH", path)
        context = ray.init(
            address="local", num_cpus=4, include_dashboard=False, object_store_memory=1 << 28
        )
    gcs = context.address_info["gcs_address"]
    yield {**os.environ, "PYTHONPATH": path, "RAY_ADDRESS": gcs}
    ray.shutdown()


def python(environment: dict[str, str], *arguments: str) -> str:
    """What a Python process prints; it must end well."""
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def trained(
    environment: dict[str, str], config: str, output: Path, *more: str
) -> list[dict[str, float]]:
    """The rows of two training steps with an example's config, in the test's Ray."""
    arguments = (f"run.output_dir={output}", "run.steps=2", "cluster.address=auto")
    # The demo's vocabulary has 24 tokens.
    arguments += (*more, "rollout.record_topk=24")
    python(
        environment,
        *("-m", "opd_ray", "train", "--config", str(FOLDER / config), *SMALL, *arguments),
    )
    return rows(output)


def test_class_and_actor_train_alike(environment: dict[str, str], tmp_path: Path) -> None:
    assert "actor soft-teacher serves" in python(environment, str(FOLDER / "teacher_actor.py"))
    with ThreadPoolExecutor() as threads:
        as_class, as_actor = threads.map(
            lambda kind, support: trained(
                environment, f"{kind}.yaml", tmp_path / kind, f"loss.support={support}"
            ),
            ("class", "actor"),
            ("student", "union"),
        )
    assert [row["step"] for row in as_class] == [row["step"] for row in as_actor] == [1, 2]
    for one, other in zip(as_class, as_actor, strict=True):
        assert one["train/loss"] > 0
        for name in ("train/loss", "train/kept_tokens", "train/grad_norm", "rollout/tokens"):
            assert one[name] == pytest.approx(other[name], rel=1e-4), name
        assert one["teacher/signal_bytes_per_trained_token"] == 24 * 8
        assert other["teacher/signal_bytes_per_trained_token"] == (16 + 24) * 8


def test_the_examples_keep_the_contract(environment: dict[str, str]) -> None:
    try:
        ray.get_actor("soft-teacher", namespace="opd-ray")
    except ValueError:
        python(environment, str(FOLDER / "teacher_actor.py"))
    check = ("-m", "opd_ray", "check-teacher", "--config")
    with ThreadPoolExecutor() as threads:
        said = threads.map(
            lambda config: python(environment, *check, str(FOLDER / config)),
            ("class.yaml", "actor.yaml"),
        )
        for text in said:
            assert "keeps its contract" in text
            assert "not compared" not in text  # their tokenizers tell what they are
