"""Teachers killed in the middle of training steps: the trained student is the undisturbed one's."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import ray
from launching import SMALL
from safetensors.numpy import load_file

from opd_ray.config.load import load_config
from opd_ray.coordinator.loop import Coordinator
from opd_ray.coordinator.session import Session, open_session
from opd_ray.data.prompts import PromptFeed
from opd_ray.evaluation.evaluator import Evaluator
from opd_ray.output.checkpoint import CheckpointStore
from opd_ray.output.progress import Progress
from opd_ray.output.sinks import JsonlSink, Metrics, read_jsonl
from opd_ray.pools.teachers.pool import TeacherPool
from opd_ray.preflight.models import check_models, own_topk
from opd_ray.tip import TipFilter

_OVERRIDES = (
    *SMALL,
    "run.steps=2",
    "trainer.learning_rate=1e-3",
    "teacher.replicas=2",
    "teacher.cpus_per_replica=0.3",
    "teacher.batch_tokens=128",
)


def trained(session: Session, folder: Path) -> dict[str, np.ndarray]:
    """The student's weights after two steps from the start, written with the steps' rows."""
    config, tokenizer = session.config, session.tokenizer
    folder.mkdir()
    metrics = Metrics([JsonlSink(folder / "metrics.jsonl", resume_step=-1)])
    progress = Progress(config.run.steps, 0)
    pools = session.scorer, session.teachers, session.trainers
    coordinator = Coordinator(
        config,
        session,
        PromptFeed.load(config, tokenizer),
        TipFilter(config.tip, loss_score=config.loss.divergence.value),
        Evaluator(config, [], tokenizer, *pools),
        CheckpointStore(folder / "checkpoints", keep=1),
        metrics,
        progress,
    )
    coordinator.run(0)
    metrics.close()
    progress.close()
    session.trainers.export(str(folder / "export"))
    return load_file(folder / "export" / "model.safetensors")


def kill_one(pool: TeacherPool) -> None:
    """SIGKILL to the process of a replica that can score."""
    _, handle = pool.living()[0]
    # Beside a batch that is being scored, not after it.
    call = handle.__ray_call__.options(concurrency_group="signals")
    os.kill(ray.get(call.remote(lambda actor: os.getpid())), signal.SIGKILL)


def at_call(number: int, function: Callable, event: Callable[[], None]) -> Callable:
    """``function``, with ``event`` before its call of that number."""
    calls = iter(range(1_000_000))

    def called(*args, **kwargs):
        if next(calls) == number:
            event()
        return function(*args, **kwargs)

    return called


def test_killed_teachers_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("demo", [*_OVERRIDES, f"run.output_dir={tmp_path}"])
    pairing = check_models(config)
    longest = {"teacher": config.student.context_length}
    with open_session(config, pairing, own_topk(config), longest) as session:
        start = tmp_path / "start"
        session.trainers.save(str(start))
        undisturbed = trained(session, tmp_path / "undisturbed")
        session.trainers.load(str(start))
        pool = session.teachers.pools["teacher"]
        # In the first step with batches out, in the second when all is scored but nothing taken.
        monkeypatch.setattr(pool, "_settle", at_call(1, pool._settle, lambda: kill_one(pool)))
        monkeypatch.setattr(pool, "take", at_call(1, pool.take, lambda: kill_one(pool)))
        disturbed = trained(session, tmp_path / "disturbed")
    assert disturbed.keys() == undisturbed.keys()
    for name, weights in undisturbed.items():
        np.testing.assert_allclose(disturbed[name], weights, atol=2e-5, err_msg=name)
    before, after = (
        [row for row in read_jsonl(tmp_path / run / "metrics.jsonl") if "train/loss" in row]
        for run in ("undisturbed", "disturbed")
    )
    for one, other in zip(before, after, strict=True):
        assert one["teacher/retries"] == 0
        assert other["teacher/retries"] > 0
        for name in ("train/loss", "train/grad_norm", "train/kept_tokens", "rollout/tokens"):
            assert other[name] == pytest.approx(one[name], rel=1e-4), name
        assert other["teacher/signal_bytes"] == one["teacher/signal_bytes"]
    assert sum(row["teacher/restarts"] for row in after) == 2
