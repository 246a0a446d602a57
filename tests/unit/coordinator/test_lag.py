"""Rollouts written a step ahead: with which weights, on what is trained, and what is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stand_in_run import StandInRun, configuration, ids
from stand_ins import Response

from opd_ray.config.schema import Config, EvalSettings, RolloutSettings, RunSettings
from opd_ray.coordinator import batches
from opd_ray.coordinator.loop import SyncGapError
from opd_ray.output.checkpoint import CheckpointStore
from opd_ray.pools.rollouts import run_sampling
from opd_ray.pools.watch import Interrupted
from opd_ray.tip import TipSettings
from opd_ray.types import RolloutRequest

RESPONSES = {
    "a0": Response([1, 1], [-1.0] * 2, [0.1, 0.2], [0.2, 0.1]),
    "a1": Response([1, 0, 1], [-1.0] * 3, [0.3, 0.4, 0.5], [0.5, 0.4, 0.3]),
    "b0": Response([1, 1], [-1.0] * 2, [0.6, 0.7], [0.7, 0.6]),
    "b1": Response([0] * 4, [-1.0] * 4, [0.8, 0.9, 1.0, 1.1], [0.0] * 4),
}
ORDERS = pytest.mark.parametrize("order", range(6))


def run_of(lag: int, steps: int = 4, order: int = 0, **others: Any) -> StandInRun:
    run = RunSettings(steps=steps, lag=lag, **others.pop("run", {}))
    return StandInRun(RESPONSES, order=order, run=run, **others)


def trained(run: StandInRun) -> list[dict[str, list[int]]]:
    """Kept rows by rollout id, of every step."""
    return [
        {
            item.rollout_id: item.rows.tolist()
            for rank in run.trainers
            for item in rank.steps[step].items
        }
        for step in range(len(run.trainers[0].steps))
    ]


@ORDERS
def test_every_step_trains_on_its_own_rollouts_of_weights_a_step_old(order: int) -> None:
    run, plain = run_of(1, order=order), run_of(0, order=order)
    run.go(0)
    plain.go(0)
    assert trained(run) == trained(plain)
    versions = [row["rollout/weights_version"] for _, row in run.rows if "train/loss" in row]
    assert versions == [0, 0, 1, 2]
    assert run.versions == plain.versions == [[0, 1, 2, 3, 4]] * 2
    asked = [request.rollout_id for engine in run.engines for request in engine.given]
    assert len(asked) == len(set(asked)) == 16  # and none of a fifth step
    assert not any(replica.held for replica in run.replicas)


def test_the_student_is_measured_with_its_new_weights() -> None:
    run = run_of(1, steps=3, eval=EvalSettings(every=1))
    run.go(0)
    assert run.evaluated == [[step, step] for step in range(4)]


@pytest.mark.parametrize(("lag", "rows"), [(0, [1]), (1, [0])])
def test_rescoring_takes_the_exact_scores_where_there_is_lag(lag: int, rows: list[int]) -> None:
    tip = TipSettings(rule="divergence_topk", rho=0.5, rescore=True)
    run = run_of(lag, tip=tip)
    run.step(0)
    assert run.kept_rows()["a0"] == rows


def test_the_gap_of_older_weights_is_no_gap() -> None:
    with pytest.raises(SyncGapError, match="step 1: trainer and vLLM differ by 0.5"):
        run_of(0, gap=0.5).go(0)
    with pytest.raises(SyncGapError, match="step 1"):  # written with the weights that it trains
        run_of(1, gap=0.5).go(0)
    run = run_of(1)
    run.step(0)
    for rank in run.trainers:
        rank._gap = 0.5
    run.step(1)
    assert "sync/gap_mean" in run.rows[0][1]
    assert "sync/gap_mean" not in run.rows[1][1]
    assert [row["lag/age"] for _, row in run.rows] == [0, 1]


@ORDERS
@pytest.mark.parametrize("stop", [False, True])
def test_a_run_that_goes_on_has_the_rollouts_that_were_in_flight(
    tmp_path: Path, order: int, stop: bool
) -> None:
    whole = run_of(1, order=order)
    whole.go(0)
    store = CheckpointStore(tmp_path, keep=9)
    first = run_of(1, order=order, checkpoints=store, run={"checkpoint_every": 0 if stop else 2})
    if stop:
        first.stop_after = 2
        with pytest.raises(Interrupted):
            first.go(0)
    else:
        first.go(0)
    second = run_of(1, order=order + 1)
    assert second.read_ahead(tmp_path / "step_00000002", 2)
    second.go(2)
    assert trained(first)[:2] + trained(second) == trained(whole)
    steps = {request.rollout_id.split("/")[0] for e in second.engines for request in e.given}
    assert steps == {"3"}, "what was written is not written again"
    ours = [row for _, row in second.rows if "train/loss" in row]
    theirs = [row for _, row in whole.rows if "train/loss" in row][2:]
    for one, other in zip(ours, theirs, strict=True):
        for name in ("rollout/weights_version", "rollout/tokens", "tip/kept_fraction", "lag/age"):
            assert one[name] == other[name]
    assert {row["lag/age"] for row in ours} == {1}
    for replica in second.replicas:
        assert not replica.held


def test_a_stop_while_the_student_is_measured_does_not_wait_for_the_answers(tmp_path: Path) -> None:
    run = run_of(1, checkpoints=CheckpointStore(tmp_path, keep=9), eval=EvalSettings(every=2))
    pool = run._coordinator.session.scorer.rollouts

    def measure(show: object) -> dict[str, float]:
        if run.rows and run.rows[-1][0] == 2:
            asked = [
                RolloutRequest(f"kl/{key}/{sample}", key, sample, ids("why"), seed=0)
                for key in "ab"
                for sample in (0, 1)
            ]
            pool.start(asked, run_sampling(run.config.rollout), lambda written: None, record=True)
            raise Interrupted
        return {}

    run._coordinator.evaluator = SimpleNamespace(run=measure)
    with pytest.raises(Interrupted):
        run.go(0)
    assert pool.busy, "its answers were waited for"
    assert run_of(1).read_ahead(tmp_path / "step_00000002", 2)


def test_rollouts_in_flight_of_other_samples_are_written_anew(tmp_path: Path) -> None:
    first = run_of(1, checkpoints=CheckpointStore(tmp_path, keep=9), run={"checkpoint_every": 2})
    first.go(0)
    fewer = RolloutSettings(prompts_per_step=2, samples_per_prompt=1)
    second = run_of(1, rollout=fewer)
    assert not second.read_ahead(tmp_path / "step_00000002", 2)
    second.go(2)
    assert [row["lag/age"] for _, row in second.rows if "train/loss" in row] == [0, 1]


@pytest.mark.parametrize(
    ("changed", "kept"),
    [
        ({"rollout": {"temperature": 0.7}}, False),
        ({"rollout": {"top_p": 0.9}}, False),
        ({"rollout": {"top_k": 20}}, False),
        ({"rollout": {"max_new_tokens": 64}}, False),
        ({"rollout": {"record_topk": 8}}, False),
        ({"student": {"context_length": 300}}, False),
        ({"environment": {"max_calls": 3}}, False),
        ({"environments": {"code": {"max_turns": 2}}}, False),
        ({"rollout": {"max_restarts": 9}}, True),
        ({"trainer": {"learning_rate": 1e-3}}, True),
    ],
)
def test_rollouts_in_flight_that_would_be_written_otherwise_now_are_written_anew(
    tmp_path: Path, changed: dict[str, dict[str, Any]], kept: bool
) -> None:
    """Else a step that comes after the change would know nothing of it."""
    run_of(1, checkpoints=CheckpointStore(tmp_path, keep=9), run={"checkpoint_every": 2}).go(0)
    sections = {
        name: keys if name == "environments" else replace(getattr(configuration(), name), **keys)
        for name, keys in changed.items()
    }
    second = run_of(1, **sections)
    assert second.read_ahead(tmp_path / "step_00000002", 2) is kept
    second.go(2)
    steps = {request.rollout_id.split("/")[0] for e in second.engines for request in e.given}
    assert steps == ({"3"} if kept else {"2", "3"})


def test_rollouts_in_flight_are_written_anew_where_there_is_no_lag_any_more(tmp_path: Path) -> None:
    run_of(1, checkpoints=CheckpointStore(tmp_path, keep=9), run={"checkpoint_every": 2}).go(0)
    second = run_of(0)
    assert not second.read_ahead(tmp_path / "step_00000002", 2)
    second.go(2)
    asked = {request.rollout_id[0] for engine in second.engines for request in engine.given}
    assert asked == {"2", "3"}
    versions = [row["rollout/weights_version"] for _, row in second.rows if "train/loss" in row]
    assert versions == [2, 3]


def test_a_checkpoint_without_lag_or_at_the_end_holds_none(tmp_path: Path) -> None:
    for lag, step in ((0, 2), (1, 4)):
        folder = tmp_path / str(lag)
        store = CheckpointStore(folder, keep=9)
        run_of(lag, checkpoints=store, run={"checkpoint_every": 2}).go(0)
        held = folder / f"step_{step:08d}" / "trainer"
        assert [path.name for path in held.iterdir()] == ["weights"]
        assert run_of(1).read_ahead(held.parent, step)


@pytest.mark.parametrize(
    ("deterministic", "last", "kept", "said"),
    [
        (False, False, True, "does without the rollouts of the next step"),
        (True, False, False, "no checkpoint is written now"),
        (True, True, True, "writes them anew, and ends with other bits"),
    ],
)
def test_a_checkpoint_without_rollouts_ahead_is_none_of_a_deterministic_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    deterministic: bool,
    last: bool,
    kept: bool,
    said: str,
) -> None:
    """Its last one is: steps that were taken are not to be lost."""
    written: list[Path] = []
    monkeypatch.setattr(batches, "write_rollouts", lambda folder, _: bool(written.append(folder)))
    config = Config(run=RunSettings(lag=1, deterministic=deterministic))
    ahead: Any = SimpleNamespace(wait=lambda interruptible: None, rollouts=list)
    nobody: Any = None
    batch = batches.RolloutBatches(config, nobody, nobody, nobody)
    assert batch.save(tmp_path, last=last) is True
    assert written == []
    batch._ahead = ahead
    assert batch.save(tmp_path, last=last) is kept
    assert written == [tmp_path]
    assert said in capsys.readouterr().err
