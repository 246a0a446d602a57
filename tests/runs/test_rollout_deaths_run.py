"""A rollout actor killed in the middle of a step, one stopped in a push: the run goes on.

Each rollout counts once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from launching import SMALL

from opd_ray.config.load import load_config
from opd_ray.coordinator.loop import Coordinator
from opd_ray.coordinator.session import Session, open_session
from opd_ray.data.prompts import PromptFeed
from opd_ray.evaluation.evaluator import Evaluator
from opd_ray.output.checkpoint import CheckpointStore
from opd_ray.output.progress import Progress
from opd_ray.output.sinks import JsonlSink, Metrics, read_jsonl
from opd_ray.pools.rollouts import RolloutPool
from opd_ray.preflight.models import check_models, own_topk
from opd_ray.tip import TipFilter
from opd_ray.types import Rollout, RolloutRequest, Sampling

_STEPS = 3
_OVERRIDES = (
    *SMALL,
    f"run.steps={_STEPS}",
    "trainer.learning_rate=1e-3",
    "rollout.actors=2",
    "rollout.cpus_per_actor=0.3",
    "rollout.max_num_seqs=4",
    "rollout.answer_timeout_s=15",
)


def trained(
    session: Session, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, Rollout]]:
    """The rollouts of every step, by id, of a run from the start."""
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
    steps: list[dict[str, Rollout]] = []
    select = coordinator._select

    def seen(scored: Any, *others: Any) -> Any:
        steps.append({one.rollout.rollout_id: one.rollout for one in scored})
        assert len(steps[-1]) == len(scored)
        return select(scored, *others)

    monkeypatch.setattr(coordinator, "_select", seen)
    coordinator.run(0)
    metrics.close()
    progress.close()
    return steps


def send(pool: RolloutPool, name: str, what: signal.Signals) -> None:
    """A signal to the process of an actor, beside whatever it writes."""
    handle = dict(pool.living())[name]
    call = handle.__ray_call__.options(concurrency_group="inbox")
    os.kill(ray.get(call.remote(lambda actor: os.getpid())), what)


def at_call(number: int, function: Callable, event: Callable[[], None]) -> Callable:
    """``function``, with ``event`` before its call of that number."""
    calls = iter(range(1_000_000))

    def called(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            event()
        return function(*args, **kwargs)

    return called


def test_rollout_actors_that_die_and_hang_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config("demo", [*_OVERRIDES, f"run.output_dir={tmp_path}"])
    pairing = check_models(config)
    longest = {"teacher": config.student.context_length}
    with open_session(config, pairing, own_topk(config), longest) as session:
        start = tmp_path / "start"
        session.trainers.save(str(start))
        undisturbed = trained(session, tmp_path / "undisturbed", monkeypatch)
        session.trainers.load(str(start))
        pool = session.scorer.rollouts
        first = next(w for w in pool._writers.all() if w.name == "rollout-0")
        written = at_call(1, pool._arrived, lambda: send(pool, "rollout-0", signal.SIGKILL))
        monkeypatch.setattr(pool, "_arrived", written)
        # The second push is that after the first step: no answer comes to that.
        transport = at_call(1, pool.call_transport, lambda: send(pool, "rollout-1", signal.SIGSTOP))
        monkeypatch.setattr(pool, "call_transport", transport)
        disturbed = trained(session, tmp_path / "disturbed", monkeypatch)
        assert first.dead
        # Those that were started again have the weights of the last push before they write.
        pool.watch.wait_until(lambda: len(pool.living()) == 2, "both")
        pool.max_in_flight = 1
        one = next(iter(undisturbed[0].values()))
        requests = [RolloutRequest(f"r{n}", one.prompt_id, n, one.prompt_ids, n) for n in range(64)]
        found = list(pool.write(requests, Sampling(max_tokens=16)))
        assert sorted(r.rollout_id for r in found) == sorted(r.rollout_id for r in requests)
        assert {rollout.weights_version for rollout in found} == {_STEPS}
        assert all(writer.current for writer in pool._writers.all())
    assert [step.keys() for step in disturbed] == [step.keys() for step in undisturbed]
    # Equal seeds give equal texts, unless two tokens are likely within rounding error.
    for before, after in zip(undisturbed[:1], disturbed[:1], strict=True):
        same = [np.array_equal(before[k].response_ids, after[k].response_ids) for k in before]
        assert np.mean(same) >= 0.9
    rows = [
        [row for row in read_jsonl(tmp_path / run / "metrics.jsonl") if "train/loss" in row]
        for run in ("undisturbed", "disturbed")
    ]
    for run in rows:
        assert [row["step"] for row in run] == list(range(1, _STEPS + 1))
    assert [row["rollout/rewritten"] for row in rows[0]] == [0.0] * _STEPS
    assert sum(row["rollout/restarts"] for row in rows[0]) == 0
    assert rows[1][0]["rollout/rewritten"] > 0
    assert sum(row["rollout/restarts"] for row in rows[1]) == 2
    for one_row, other in zip(*rows, strict=True):
        assert other["train/loss"] == pytest.approx(one_row["train/loss"], rel=0.2)
    told = capsys.readouterr().err
    assert "rollout-0 died (" in told
    assert "starting it again (1 of rollout.max_restarts = 3)" in told
    assert "rollout-1 hangs (it has answered nothing for longer than rollout.answer_timeout_s" in (
        told
    )
