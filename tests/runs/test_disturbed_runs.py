"""Runs with several of everything: one as a whole, one that trains early, two with deaths.

The others end like one that nothing disturbs. All have the same actors; what befalls trainer ranks
is in test_lagging_runs.py.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from launching import rows
from safetensors.numpy import load_file
from shared_actors import SharedActors, shared_actors

from opd_ray.cli import main
from opd_ray.coordinator.loop import Coordinator
from opd_ray.pools.rollouts import RolloutPool
from opd_ray.pools.teachers.pool import TeacherPool
from opd_ray.types import Rollout, RolloutRequest, Sampling

_STEPS = 3
# The first test of the file starts six processes with engines, on a machine that may be busy.
pytestmark = pytest.mark.timeout(1200)

_SAME = ("train/loss", "train/grad_norm", "train/kept_tokens", "rollout/tokens")
_SETTINGS = (
    *(f"run.steps={_STEPS}", "run.export_at_end=true", "trainer.learning_rate=2e-4"),
    *("tip.normalise_over=rollout", "tip.rho=0.5"),
    *("trainer.ranks=2", "trainer.zero_stage=3", "trainer.cpus_per_rank=0.3"),
    *("trainer.micro_batch_tokens=64", "trainer.max_grad_norm=0.01"),
    # Responses of all lengths, of which few at a time are written: a tail of many waves.
    *("rollout.actors=2", "rollout.cpus_per_actor=0.3", "rollout.max_num_seqs=2"),
    *("rollout.temperature=1.5", "rollout.answer_timeout_s=15", "rollout.max_restarts=1"),
    *("teacher.replicas=2", "teacher.cpus_per_replica=0.3", "teacher.batch_tokens=128"),
)


@pytest.fixture(scope="module")
def actors(ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedActors]:
    folder = tmp_path_factory.mktemp("actors")
    with shared_actors(folder, ray_address, *_SETTINGS, "run.overlap=true") as shared:
        yield shared


Steps = list[dict[str, Rollout]]


@pytest.fixture(scope="module")
def undisturbed(
    actors: SharedActors, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Steps]:
    """The folder of a plain run, and its rollouts by id, of every step."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        steps = seen_rollouts(patch)
        actors.run(output, "run.overlap=false")
    return output, steps


def seen_rollouts(patch: pytest.MonkeyPatch) -> Steps:
    """The rollouts of every step that is taken from now on."""
    steps: Steps = []
    select = Coordinator._select

    def seen(coordinator: Coordinator, scored: Any, *others: Any) -> Any:
        steps.append({one.rollout.rollout_id: one.rollout for one in scored})
        assert len(steps[-1]) == len(scored)
        return select(coordinator, scored, *others)

    patch.setattr(Coordinator, "_select", seen)
    return steps


def at_call(number: int, function: Callable, event: Callable[[], None]) -> Callable:
    """``function``, with ``event`` before its call of that number."""
    calls = iter(range(1_000_000))

    def called(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            event()
        return function(*args, **kwargs)

    return called


def send(handle: Any, group: str, what: signal.Signals) -> None:
    """A signal to the process of an actor, beside whatever it does in its other groups."""
    call = handle.__ray_call__.options(concurrency_group=group)
    os.kill(ray.get(call.remote(lambda actor: os.getpid())), what)


def send_to_writer(pool: RolloutPool, name: str, what: signal.Signals) -> None:
    send(dict(pool.living())[name], "inbox", what)


def kill_a_teacher(pool: TeacherPool) -> None:
    """One of the replicas that can score."""
    _, handle = pool.living()[0]
    send(handle, "signals", signal.SIGKILL)


def assert_same_student(one: Path, other: Path) -> None:
    first, second = (load_file(run / "export" / "model.safetensors") for run in (one, other))
    assert first.keys() == second.keys()
    for name, weights in first.items():
        np.testing.assert_allclose(second[name], weights, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_run_that_trains_early(
    actors: SharedActors, undisturbed: tuple[Path, Steps], tmp_path: Path
) -> None:
    plain, early = undisturbed[0], tmp_path / "early"
    actors.run(early, "run.overlap=true")
    for one, other in zip(rows(plain), rows(early), strict=True):
        assert "train/waves" not in one
        assert other["train/waves"] > 1
        assert one["train/grad_norm"] > 0.01  # it was clipped
        for name in _SAME:
            assert other[name] == pytest.approx(one[name], rel=1e-4), name
    assert_same_student(plain, early)


def test_several_of_everything(actors: SharedActors, ray_address: str, tmp_path: Path) -> None:
    """And what becomes of the run's checkpoint afterwards."""
    output = tmp_path / "run"
    heldout = (
        "eval.tasks=[{name: heldout, task: chain_sum, problems: 8, samples: 2, "
        "data: {kind: chain_sum, chain_sum: {split: heldout, count: 8}, max_prompt_tokens: 32}}]"
    )
    schedule = ("tip.rho_schedule=linear", "tip.rho=1.0", "tip.rho_end=0.0")
    actors.run(
        output,
        *("run.overlap=false", "scoring=exact", "eval.kl_prompts=8", heldout),
        *(*schedule, "tip.rho_schedule_steps=2"),
    )
    steps = rows(output)
    assert [round(row["tip/kept_fraction"], 1) for row in steps] == [1.0, 0.5, 0.0]
    # The last step keeps nothing on any rank: it is skipped, and nothing hangs.
    assert [row["train/skipped"] for row in steps] == [0.0, 0.0, 1.0]
    # Rollouts are written by the weights of the step before.
    assert [row["rollout/weights_version"] for row in steps] == [0, 1, 2]
    assert all(row["sync/gap_mean"] < 1e-4 for row in steps)
    assert {"memory/trainer-1_bytes", "memory/rollout-1_bytes", "memory/teacher-1_bytes"} <= set(
        steps[0]
    )
    for row in steps:
        tokens, kept = row["rollout/tokens"], row["train/kept_tokens"]
        assert row["teacher/replicas"] == 2
        assert row["teacher/retries"] == 0
        assert row["teacher/tokens_per_second"] > 0
        assert 0 < row["teacher/batch_fill"] <= 1
        assert 0 <= row["teacher/bottleneck_share"] < 1
        assert 0 <= row["teacher/wait_mean_seconds"] <= row["teacher/wait_max_seconds"]
        assert sum(row[f"teacher/replica/teacher-{i}/tokens"] for i in (0, 1)) > tokens
        # Exact scores look at every row once, then the kept ones travel.
        per_row = row["teacher/exact_scoring_bytes"] / tokens
        assert per_row > 0
        assert row["teacher/signal_bytes"] == pytest.approx(per_row * kept)
    evaluations = [
        json.loads(line)
        for line in (output / "metrics.jsonl").read_text().splitlines()
        if "eval/kl" in line
    ]
    assert [row["step"] for row in evaluations] == [0, 3]
    wanted = {f"eval/heldout/{name}" for name in ("accuracy", "mean@2", "pass@2", "maj@2")}
    assert wanted <= set(evaluations[0])

    # The sharded checkpoint, put together without its ranks, is the student that the run exported.
    checkpoint = output / "checkpoints" / "step_00000003"
    exported = tmp_path / "exported"
    assert main(["export", "--checkpoint", str(checkpoint), "--out", str(exported)]) == 0
    ours, runs_own = (
        load_file(folder / "model.safetensors") for folder in (exported, output / "export")
    )
    assert ours.keys() == runs_own.keys()
    for name, tensor in ours.items():
        assert np.array_equal(tensor, runs_own[name]), name

    figures = tmp_path / "figures"
    # The actors of the runs have all but a fifth of a CPU.
    joined = (f"cluster.address={ray_address}", "rollout.cpus_per_actor=0.1")
    command = ["eval", "--config", "demo", heldout, *joined]
    assert main([*command, "--model", str(exported), "--out", str(figures)]) == 0
    found = json.loads((figures / "results.json").read_text())["figures"]
    assert found["eval/heldout/accuracy"] == evaluations[1]["eval/heldout/accuracy"]


def test_killed_teachers(
    actors: SharedActors,
    undisturbed: tuple[Path, Steps],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = actors.session.teachers.pools["teacher"]
    # In the first step with batches out, in the second when all is scored but nothing taken.
    monkeypatch.setattr(pool, "_settle", at_call(1, pool._settle, lambda: kill_a_teacher(pool)))
    monkeypatch.setattr(pool, "take", at_call(1, pool.take, lambda: kill_a_teacher(pool)))
    disturbed = tmp_path / "disturbed"
    actors.run(disturbed, "run.overlap=false")
    before, after = rows(undisturbed[0]), rows(disturbed)
    for one, other in zip(before, after, strict=True):
        assert one["teacher/retries"] == 0
        for name in _SAME:
            assert other[name] == pytest.approx(one[name], rel=1e-4), name
        assert other["teacher/signal_bytes"] == one["teacher/signal_bytes"]
    assert [row["teacher/retries"] > 0 for row in after] == [True, True, False]
    assert sum(row["teacher/restarts"] for row in after) == 2
    assert_same_student(undisturbed[0], disturbed)


def test_rollout_actors_that_die_and_hang_until_none_is_left(
    actors: SharedActors,
    undisturbed: tuple[Path, Steps],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pool = actors.session.scorer.rollouts
    first = next(w for w in pool._writers.all() if w.name == "rollout-0")
    disturbed = tmp_path / "disturbed"
    with monkeypatch.context() as patch:
        kill = at_call(1, pool._arrived, lambda: send_to_writer(pool, "rollout-0", signal.SIGKILL))
        patch.setattr(pool, "_arrived", kill)
        # The second push is that after the first step: no answer comes to that.
        stop = at_call(
            1, pool.call_transport, lambda: send_to_writer(pool, "rollout-1", signal.SIGSTOP)
        )
        patch.setattr(pool, "call_transport", stop)
        steps = seen_rollouts(patch)
        actors.run(disturbed, "run.overlap=false")
    assert first.dead
    told = capsys.readouterr().err
    assert "rollout-0 died (" in told
    assert "starting it again (1 of rollout.max_restarts = 1)" in told
    assert "rollout-1 hangs (it has answered nothing for longer than rollout.answer_timeout_s" in (
        told
    )
    _assert_each_rollout_once(undisturbed[1], steps)
    before, after = rows(undisturbed[0]), rows(disturbed)
    for run in (before, after):
        assert [row["step"] for row in run] == list(range(1, _STEPS + 1))
    assert [row["rollout/rewritten"] for row in before] == [0.0] * _STEPS
    assert [row["rollout/restarts"] for row in before] == [0.0] * _STEPS
    assert after[0]["rollout/rewritten"] > 0
    assert sum(row["rollout/restarts"] for row in after) == 2
    for one, other in zip(before, after, strict=True):
        assert other["train/loss"] == pytest.approx(one["train/loss"], rel=0.2)
    _assert_both_write_with_the_last_weights(pool, undisturbed[1])

    # Neither may start again: the run ends, and says who is missing.
    def kill_both() -> None:
        for name, _ in pool.living():
            send_to_writer(pool, name, signal.SIGKILL)

    monkeypatch.setattr(pool, "_arrived", at_call(1, pool._arrived, kill_both))
    assert actors.exit_code(tmp_path / "ended", "run.overlap=false") == 1
    told = capsys.readouterr().err
    assert "rollout.max_restarts = 1 allows no further start" in told
    assert "run the same command to go on from the last checkpoint" in told


def _assert_each_rollout_once(before: Steps, after: Steps) -> None:
    assert [step.keys() for step in after] == [step.keys() for step in before]
    # Equal seeds give equal texts, unless two tokens are likely within rounding error.
    same = [np.array_equal(before[0][k].response_ids, after[0][k].response_ids) for k in before[0]]
    assert np.mean(same) >= 0.9


def _assert_both_write_with_the_last_weights(pool: RolloutPool, steps: Steps) -> None:
    """Those that were started again have the weights of the last push before they write."""
    pool.watch.wait_until(lambda: len(pool.living()) == 2, "both")
    one = next(iter(steps[0].values()))
    requests = [RolloutRequest(f"r{n}", one.prompt_id, n, one.prompt_ids, n) for n in range(64)]
    found = list(pool.write(requests, Sampling(max_tokens=16)))
    assert sorted(r.rollout_id for r in found) == sorted(r.rollout_id for r in requests)
    assert {rollout.weights_version for rollout in found} == {_STEPS}
    assert all(writer.current for writer in pool._writers.all())
