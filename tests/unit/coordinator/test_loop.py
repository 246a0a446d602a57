"""A whole run with real parts over actors that are plain objects: evaluations and checkpoints."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from stand_in_run import StandInRun
from stand_ins import Response

from opd_ray.config.schema import EvalSettings, RunSettings
from opd_ray.output.checkpoint import CheckpointStore, read_state
from opd_ray.output.progress import Progress
from opd_ray.pools.watch import Interrupted
from opd_ray.tip import TipSettings

# Four responses of 2 + 3 + 2 + 4 = 11 tokens, of which the student wrote 10.
RESPONSES = {
    "a0": Response(mask=[1, 1], logprob=[-1.0] * 2, reverse_kl=[0.1, 0.2]),
    "a1": Response(mask=[1, 0, 1], logprob=[-1.0] * 3, reverse_kl=[0.3, 0.4, 0.5]),
    "b0": Response(mask=[1, 1], logprob=[-1.0] * 2, reverse_kl=[0.6, 0.7]),
    "b1": Response(mask=[1] * 4, logprob=[-1.0] * 4, reverse_kl=[0.8, 0.9, 1.0, 1.1]),
}
# The filter remembers what earlier steps showed.
STREAM = TipSettings(rule="divergence_topk", normalise_over="stream", stream_decay=0.9)


def test_weights_are_put_into_the_engines_before_the_first_step_and_after_each() -> None:
    run = StandInRun(RESPONSES, follow=True, run=RunSettings(steps=3))
    run.go(1)
    assert run.versions == [[1, 2, 3], [1, 2, 3]]
    versions = [values.get("rollout/weights_version") for _, values in run.rows]
    assert versions == [1, 2, None]  # two steps and the evaluation at the end
    # The weights it begins with come from no step, so teachers that follow have them already.
    new = [("weights after 1 steps",), ("weights after 2 steps",)]
    assert [replica.followed for replica in run.replicas] == [new] * 3


@pytest.mark.parametrize(
    ("every", "at"), [(0, [0, 3]), (2, [0, 2, 3]), (3, [0, 3]), (1, [0, 1, 2, 3])]
)
def test_the_student_is_measured_at_both_ends_and_as_often_as_asked(
    every: int, at: list[int]
) -> None:
    run = StandInRun(RESPONSES, run=RunSettings(steps=3), eval=EvalSettings(every=every))
    run.go(0)
    measured = [(step, values) for step, values in run.rows if "eval/accuracy" in values]
    assert measured == [(step, {"eval/accuracy": n / 4}) for n, step in enumerate(at, start=1)]
    assert run.evaluated == [[step, step] for step in at]  # by the engines' new weights
    last = f"evaluation at step 3:  accuracy {len(at) / 4:.4f}"
    assert last in run.printed.getvalue().splitlines()


def test_stages_rollouts_and_time_are_told_while_a_run_waits() -> None:
    run = StandInRun(RESPONSES, run=RunSettings(steps=1))
    stages: list[str] = []
    listener = SimpleNamespace(stage=stages.append, still_at_work=lambda: None)
    run._coordinator.progress = Progress(1, 0, run.printed, listeners=[listener])
    run.go(0)
    step = ["rollout_and_teacher", "filter", "train", "rollout_and_teacher", "sync"]
    assert stages == ["evaluation", *step, "evaluation", "checkpoint"]
    progress = run._coordinator.progress
    assert run.watch.pulse == progress.tick
    assert progress.counts() == (4, 4, 4)


def test_a_checkpoint_holds_what_the_run_must_remember(tmp_path: Path) -> None:
    run = StandInRun(
        RESPONSES,
        checkpoints=CheckpointStore(tmp_path, keep=2),
        run=RunSettings(steps=3, seed=5, checkpoint_every=2),
        tip=STREAM,
    )
    run.go(0)
    folders = [tmp_path / "step_00000002", tmp_path / "step_00000003"]
    assert sorted(tmp_path.iterdir()) == folders
    # Ten tokens a step: the last step's stand apart, older ones count nine tenths a step later.
    for folder, step, earlier in zip(folders, (2, 3), (10.0, 19.0), strict=True):
        state = read_state(folder)
        assert (state.step, state.seed, state.total_steps) == (step, 5, 3)
        assert state.filter_state["step"] == step - 1
        for name in ("entropy", "reverse_kl"):
            counts = [
                sum(state.filter_state[part][name]["counts"]) for part in ("earlier", "current")
            ]
            assert counts == [pytest.approx(earlier), 10.0]
        assert (folder / "trainer" / "weights").is_file()


def test_a_run_saves_at_its_end_only_if_no_more_is_asked() -> None:
    run = StandInRun(RESPONSES, run=RunSettings(steps=3, checkpoint_every=0))
    run.go(0)
    assert [state.step for state in run.saved] == [3]


@pytest.mark.parametrize("checkpoint_every", [0, 2])
def test_a_stop_within_a_step_leaves_one_checkpoint_of_the_last_whole_one(
    checkpoint_every: int,
) -> None:
    settings = RunSettings(steps=5, checkpoint_every=checkpoint_every)
    run = StandInRun(RESPONSES, run=settings, tip=STREAM)
    run.stop_after = 2
    with pytest.raises(Interrupted):
        run.go(0)
    assert [(state.step, state.filter_state["step"]) for state in run.saved] == [(2, 1)]
    assert run.versions == [[0, 1, 2], [0, 1, 2]]
