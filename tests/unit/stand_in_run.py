"""A run whose parts are real and whose actors are plain objects, for tests of its coordinator."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
from fake_replicas import pool_of, writers_of
from stand_ins import Engine, Response, Script, StandInWatch, Teacher, Trainer

from opd_ray.config.choices import PlacementChoice
from opd_ray.config.load import to_yaml
from opd_ray.config.schema import Config, RolloutSettings, RunSettings, TrainerSettings
from opd_ray.config.teacher import TeacherSettings
from opd_ray.coordinator.loop import Checkpoints, Coordinator
from opd_ray.coordinator.session import Session
from opd_ray.data.prompt_set import PromptsIdentity
from opd_ray.data.prompts import PromptFeed
from opd_ray.data.rows import PromptRow
from opd_ray.output.checkpoint import CheckpointStore
from opd_ray.output.progress import Progress
from opd_ray.output.sinks import Metrics
from opd_ray.pools.rollouts import RolloutPool
from opd_ray.pools.scorer import RolloutScorer
from opd_ray.pools.teachers.router import TeacherRouter
from opd_ray.pools.trainers import TrainerGroup
from opd_ray.pools.turns import work_order
from opd_ray.pools.weights import TeacherWeights, WeightSync
from opd_ray.tip import TipFilter, TipSettings
from opd_ray.types import TrainItem

VOCAB_SIZE = 10
# The teacher reads "think" in place of "why"; two prompts of two sources, each with its teacher.
PROMPTS = (
    PromptRow("a", "why", None, None, "sums", teacher_text="think"),
    PromptRow("b", "so", None, None, "code"),
)
TEACHER_OF = {"sums": "first", "code": "second"}

# Responses of one to twelve tokens, of which a small share keeps none of the shortest.
TWELVE = {
    f"{key}{sample}": Response(
        mask=[1] * size,
        logprob=[-0.1] * size,
        reverse_kl=[0.1 * ((7 * place) % 11) for place in range(size)],
        exact_kl=[0.1 * ((5 * place) % 11) for place in range(size)],
    )
    for size, (key, sample) in enumerate(
        ((key, sample) for key in "ab" for sample in range(6)), start=1
    )
}


_OF_SESSION = (
    "save",
    "begin_save",
    "have_room_to_copy",
    "export",
    "load",
    "restart_trainers",
    "begin_anew",
)


class StandInRun:
    """A coordinator with two engines, three teacher replicas and two trainer ranks.

    Args:
        responses: by prompt and sample ("a0").
        order: seed of the order in which work arrives.
        gap: how far trainers and engines are apart, nats a token.
        follow: let the teachers follow the student.
        checkpoints: where they go; None keeps their states in ``saved``.
        batch_tokens: of a teacher's batch.
        sections: of the configuration, where they differ from :func:`configuration`.
    """

    def __init__(
        self,
        responses: Mapping[str, Response],
        *,
        order: int = 0,
        gap: float = 0.0,
        follow: bool = False,
        checkpoints: Checkpoints | None = None,
        batch_tokens: int = 10,
        **sections: Any,
    ) -> None:
        draw = Random(order)
        self.config = configuration(**sections)
        self.script = Script(responses)
        self.watch: Any = StandInWatch(draw)
        self.watch._make = partial(self._started_again, draw)
        self.engines = [Engine(self.script, draw, f"rollout-{number}") for number in range(2)]
        self._gap = gap
        self.before_call: Callable[[str], None] = lambda method: None  # of any rank
        self.ended: list[Trainer] = []  # those whose places others have taken
        self.trainers = self._new_trainers()
        replicas = {"first": ("first-0", "first-1"), "second": ("second-0",)}
        self.teachers = {
            teacher: [Teacher(name, self.script) for name in names]
            for teacher, names in replicas.items()
        }
        self.rows: list[tuple[int, dict[str, float]]] = []  # (step, values), as written
        self.printed = io.StringIO()
        self.evaluated: list[list[int]] = []  # the engines' versions at every evaluation
        self.saved: list[Any] = []
        self.stop_after: int | None = None  # the step after which Ctrl-C comes
        self._follow, self._batch_tokens = follow, batch_tokens
        if isinstance(checkpoints, CheckpointStore):
            checkpoints = replace(checkpoints, config_yaml=to_yaml(self.config))
        self._coordinator = self._put_together(checkpoints)

    def _put_together(self, checkpoints: Checkpoints | None) -> Coordinator:
        config, watch = self.config, self.watch
        trainers = TrainerGroup(watch, self._ranks(), config.trainer)
        engines = [(one.name, one) for one in self.engines]
        fixed = config.run.deterministic
        turns = config.cluster.placement is PlacementChoice.turns
        rollouts = writers_of(
            watch,
            engines,
            config.rollout.max_num_seqs,
            config.rollout.max_restarts,
            fixed_shares=fixed,
        )
        pools = {
            teacher: pool_of(replicas, self._batch_tokens, watch=watch, fixed=fixed, sleeps=turns)[
                0
            ]
            for teacher, replicas in self.teachers.items()
        }
        teachers = TeacherRouter(pools, TEACHER_OF)
        if turns:
            self._all_asleep(rollouts, trainers)
        order = work_order(config.cluster, rollouts, teachers, trainers)
        settings = TeacherSettings(kind="self", follow_decay=0.9 if self._follow else None)
        teacher_weights = TeacherWeights(
            watch, {n: (settings, pool) for n, pool in pools.items()}, trainers, order
        )
        rows: Any = SimpleNamespace(
            batch=_batch, earlier=(), identity=PromptsIdentity(len(PROMPTS), "00ff")
        )
        tokenizer: Any = _Letters()
        session: Any = SimpleNamespace(
            config=config,
            sync=WeightSync(config, trainers, rollouts, teacher_weights, order),
            order=order,
            teachers=teachers,
            trainers=trainers,
            _teacher_weights=teacher_weights,
            scorer=RolloutScorer(watch, rollouts, teachers, order, fixed_waves=fixed),
            launcher=SimpleNamespace(
                watch=watch,
                peak_memory=lambda: {"trainer-0": 7},
                ask_new_trainers=lambda: None,
                trainer_names=[name for name, _ in self._ranks()],
                end_trainers=self._end_trainers,
                restart_trainers=self._restart_trainers,
            ),
            vocab_size=VOCAB_SIZE,
        )
        for method in _OF_SESSION:
            setattr(session, method, partial(getattr(Session, method), session))
        return Coordinator(
            config,
            session,
            PromptFeed(rows, config.data, tokenizer),
            TipFilter(config.tip),
            SimpleNamespace(run=self._evaluate),
            checkpoints or SimpleNamespace(begin=self.saved.append),
            Metrics([SimpleNamespace(write=self._write, back_to=self._back_to)]),  # type: ignore[list-item]
            Progress(config.run.steps, 0, self.printed, every=1),
        )

    def _all_asleep(self, rollouts: RolloutPool, trainers: TrainerGroup) -> None:
        """As a launcher leaves them; from now on no two roles may be awake."""
        for engine in self.engines:
            engine.sleep.remote()
        for one in (*self.replicas, *self.trainers):
            one.asleep = True
        rollouts.lie_asleep()
        trainers.lie_asleep()
        self.watch.check = self._check_turns

    def _check_turns(self) -> None:
        living = [one for one in self.watch.current.values() if not one.dead]
        awake = {"rollout" for one in living if isinstance(one, Engine) and one.awake}
        awake |= {"teacher" for one in living if isinstance(one, Teacher) and not one.asleep}
        awake |= {"trainer" for one in self.trainers if not one.asleep}
        assert len(awake) <= 1, awake

    def _started_again(self, draw: Random, name: str) -> Engine | Teacher:
        """In place of an actor that died."""
        if name.startswith("rollout"):
            return Engine(self.script, draw, name)
        return Teacher(name, self.script)

    def step(self, step: int) -> None:
        self._coordinator.step(step)

    def go(self, done: int) -> None:
        """All steps from ``done`` to the last."""
        self._coordinator.run(done)

    def read_ahead(self, checkpoint: Path, done: int) -> bool:
        """Take the rollouts that a checkpoint holds of the step that comes next."""
        return self._coordinator.batches.load(checkpoint / "trainer", done)

    def trained(self) -> dict[str, TrainItem]:
        """What the trainers were given for the last step, by the response's name."""
        items = [item for trainer in self.trainers for item in trainer.steps[-1].items]
        named = {self.script.name(item.rollout_id): item for item in items}
        assert len(named) == len(items), "a rollout was given twice"
        return named

    def kept_rows(self) -> dict[str, list[int]]:
        """The rows of the last step by the response's name."""
        return {name: item.rows.tolist() for name, item in self.trained().items()}

    @property
    def replicas(self) -> list[Teacher]:
        return [replica for replicas in self.teachers.values() for replica in replicas]

    @property
    def versions(self) -> list[list[int]]:
        """The versions of the weights that each engine was given."""
        return [[version for version, _ in engine.weights] for engine in self.engines]

    def _new_trainers(self) -> list[Trainer]:
        ranks = range(self.config.trainer.ranks)
        return [Trainer(self.script, self._gap, lambda m: self.before_call(m)) for _ in ranks]

    def _ranks(self) -> list[tuple[str, Any]]:
        return [(f"trainer-{number}", one) for number, one in enumerate(self.trainers)]

    def _end_trainers(self) -> None:
        self.watch.death = None
        self.ended += self.trainers
        self.trainers = []

    def _restart_trainers(self) -> list[tuple[str, Any]]:
        self.watch.death = None
        self.trainers = self._new_trainers()
        self.watch.heed_stop("the new ranks")
        self.watch.wait_until(lambda: True, "the new ranks")
        return self._ranks()

    def _back_to(self, step: int) -> None:
        self.rows = [row for row in self.rows if row[0] <= step]

    def _write(self, step: int, values: dict[str, float]) -> None:
        self.rows.append((step, values))
        self.watch.stop_requested = step == self.stop_after

    def _evaluate(self, show: object) -> dict[str, float]:
        self._coordinator.session.order.to("rollout")
        self.evaluated.append([engine.version for engine in self.engines])
        return {"eval/accuracy": len(self.evaluated) / 4}


def configuration(**sections: Any) -> Config:
    """Two prompts, two samples of each, half of the tokens by their divergence."""
    default: dict[str, Any] = {
        "run": RunSettings(steps=8),
        "rollout": RolloutSettings(prompts_per_step=2, samples_per_prompt=2, max_num_seqs=1),
        "tip": TipSettings(rule="divergence_topk", rho=0.5),
        "trainer": TrainerSettings(ranks=2, micro_batch_tokens=8),
    }
    return Config(**{**default, **sections})


def _batch(step: int, size: int) -> Sequence[PromptRow]:
    """The prompts in turn."""
    return [PROMPTS[number % len(PROMPTS)] for number in range(step * size, (step + 1) * size)]


class _Letters:
    """A tokenizer: the ids of a text are its bytes."""

    chat_template = bos_token_id = eos_token_id = None

    def __call__(self, texts: Sequence[str], add_special_tokens: bool) -> dict[str, Any]:
        return {"input_ids": [list(text.encode()) for text in texts]}


def ids(text: str) -> np.ndarray:
    """[P] int32, a text's ids."""
    return np.array(list(text.encode()), np.int32)
