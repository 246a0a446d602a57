"""Five steps of a run whose trainer ranks may die, and what its end is compared by.

All parts are real but for the actors, which are plain objects.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from stand_in_run import StandInRun
from stand_ins import Response

from opd_ray.config.choices import PlacementChoice, Scoring
from opd_ray.config.schema import ClusterSettings, EvalSettings, RunSettings, TrainerSettings
from opd_ray.coordinator.recovery import Point, Recovery
from opd_ray.coordinator.run import Part, _newest
from opd_ray.errors import ActorLost
from opd_ray.output.checkpoint import CheckpointStore
from opd_ray.output.resume import Start
from opd_ray.tip import TipSettings

RESPONSES = {
    "a0": Response([1, 1], [-1.0] * 2, [0.1, 0.2], [0.2, 0.1]),
    "a1": Response([1, 0, 1], [-1.0] * 3, [0.3, 0.4, 0.5], [0.5, 0.4, 0.3]),
    "b0": Response([1, 1], [-1.0] * 2, [0.6, 0.7], [0.7, 0.6]),
    "b1": Response([1] * 4, [-1.0] * 4, [0.8, 0.9, 1.0, 1.1], [0.4, 0.3, 0.2, 0.1]),
}
# The filter remembers what earlier steps showed.
STREAM = TipSettings(rule="divergence_topk", normalise_over="stream", stream_decay=0.9)
TURNS = ClusterSettings(placement=PlacementChoice.turns)
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stream": {"tip": STREAM},
    "lag": {"run": {"lag": 1}},
    "overlap": {
        "run": {"overlap": True},
        "tip": TipSettings(
            rule="divergence_topk", normalise_over="rollout", share_of="rollout", rho=0.5
        ),
    },
    "exact": {"scoring": Scoring.exact},
    "beside": {"run": {"checkpoint_beside": True}},
    "followed": {"follow": True},
    "turns": {"cluster": TURNS},
    "turns followed": {"cluster": TURNS, "follow": True},
    "turns exact": {"cluster": TURNS, "scoring": Scoring.exact, "run": {"checkpoint_beside": True}},
}
LOSS = ActorLost("trainer-1", "trainer-1", "its process is gone")


def run_of(
    folder: Path | None, order: int = 0, restarts: int = 3, every: int = 2, **others: Any
) -> StandInRun:
    """Five steps, evaluated at every second."""
    return StandInRun(
        RESPONSES,
        order=order,
        checkpoints=None if folder is None else CheckpointStore(folder, keep=9),
        **{
            **others,
            "run": RunSettings(steps=5, checkpoint_every=every, **others.pop("run", {})),
            "eval": EvalSettings(every=2),
            "trainer": TrainerSettings(ranks=2, micro_batch_tokens=8, max_restarts=restarts),
        },
    )


def recovery_of(run: StandInRun, folder: Path, start: Start | None = None) -> Recovery:
    coordinator = run._coordinator
    beginning = coordinator.tip.state_dict()
    store = CheckpointStore(folder, keep=9)

    def newest() -> Point:
        return _newest(Part(run.config, start), store, beginning)

    def evaluated(step: int) -> bool:
        return any(row[0] == step and "eval/accuracy" in row[1] for row in run.rows)

    return Recovery(coordinator, newest, evaluated, store.pass_over)


def go(run: StandInRun, folder: Path, then: Callable[[], Any] = lambda: "done") -> Any:
    return recovery_of(run, folder).run(0, evaluated=False, then=then)


def trained(run: StandInRun) -> list[dict[str, list[int]]]:
    """Kept rows by rollout id, of every step as it was taken last."""
    taken: dict[int, dict[str, list[int]]] = {}
    everyone = [*run.ended, *run.trainers]
    for pair in zip(everyone[::2], everyone[1::2], strict=True):
        for number in range(min(len(rank.steps) for rank in pair)):
            items = [item for rank in pair for item in rank.steps[number].items]
            step = int(items[0].rollout_id.split("/")[0])
            taken[step] = {item.rollout_id: item.rows.tolist() for item in items}
    return [taken[step] for step in sorted(taken)]


TOLD = ("rollout/weights_version", "rollout/tokens", "tip/kept_fraction", "lag/age", "train/loss")


def figures(run: StandInRun) -> list[tuple[int, dict[str, float]]]:
    """What does not depend on the clock, of steps and of evaluations."""
    return [
        (step, {name: row[name] for name in TOLD if name in row} or {"eval": 0.0})
        for step, row in run.rows
        if "train/loss" in row or "eval/accuracy" in row
    ]


def assert_same_end(run: StandInRun, whole: StandInRun) -> None:
    assert figures(run) == figures(whole)
    assert trained(run) == trained(whole)
    assert [engine.version for engine in run.engines] == [5, 5]
    assert [rank.taken for rank in run.trainers] == [5, 5]
    assert run._coordinator.tip.state_dict() == whole._coordinator.tip.state_dict()
    assert [replica.followed for replica in run.replicas] == [
        replica.followed for replica in whole.replicas
    ]
    assert not any(replica.held for replica in run.replicas)


def dying(run: StandInRun, method: str, number: int) -> None:
    """A rank dies in the call of this method that has this number, counted over both ranks."""
    calls = iter(range(1_000_000))

    def before_call(called: str) -> None:
        if called == method and next(calls) == number:
            run.watch.death = LOSS

    run.before_call = before_call
