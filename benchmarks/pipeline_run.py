"""A real coordinator, filter, launcher and pools on actors that wait; pipeline.py has the table."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import mean, median
from types import SimpleNamespace
from typing import Any

import numpy as np
import pipeline_expected
import ray
from pipeline_expected import Stages
from pipeline_profiles import Profile
from waiting_engines import (
    VOCAB_SIZE,
    Diary,
    WaitingRollout,
    WaitingTeacher,
    WaitingTrainer,
    response_tokens,
)

from opd_ray.cluster.nodes import from_ray_nodes
from opd_ray.cluster.placement import ROLES, PlacedActor, Role, plan_placement
from opd_ray.config.load import load_config
from opd_ray.config.schema import Config, RunSettings
from opd_ray.coordinator.loop import Coordinator
from opd_ray.coordinator.session import Session
from opd_ray.data.prompt_set import PromptsIdentity
from opd_ray.data.prompts import Prompt
from opd_ray.environments.by_source import NO_ENVIRONMENTS
from opd_ray.output.progress import Progress
from opd_ray.output.sinks import Metrics
from opd_ray.pools.launch import ActorLauncher
from opd_ray.seeds import derive_seed
from opd_ray.tip import TipFilter

# What each mode sets; a program that does not know the key cannot run the mode.
_MODES: Mapping[str, tuple[str, ...]] = {
    "synchronous": (),
    "overlap": ("run.overlap=true",),
    "lag": ("run.lag=1",),
}
# Least size of a wave, in rounds of one micro-batch on every rank; the coordinator's is
# opd_ray.coordinator.waves.ROUND_SHARE.
ROUNDS = (1.0, 0.5, 0.25, 0.125)
WARM_UP = 2  # steps


def modes() -> list[str]:
    """The modes that this version has."""
    known = {f"run.{key.name}" for key in fields(RunSettings)}
    return [mode for mode, keys in _MODES.items() if {key.split("=")[0] for key in keys} <= known]


def measured_steps(mode: str, steps: int) -> range:
    """Which steps of a run (from 0) are measured: those beside which the same texts are written.

    With lag a step writes the next one's, so it is one step earlier. The last step is none of them.
    """
    ahead = 1 if mode == "lag" else 0
    return range(WARM_UP - ahead, steps - 1 - ahead)


@dataclass(frozen=True)
class Placement:
    """Where a recipe puts its roles, and how often."""

    recipe: str  # its file in configs
    times: int  # as many of every role, and as many prompts a step, as the recipe has

    def config(self, profile: Profile, scale: int, steps: int, mode: str) -> Config:
        """The recipe's configuration, with the profile's batch and 1 token in place of ``scale``.

        Args:
            profile: that is put in its place.
            scale: tokens that one stands for.
            steps: of the run.
            mode: one of :func:`modes`.
        """
        recipe = load_config(self.recipe)
        rollout, teacher, trainer = recipe.rollout, recipe.teacher, recipe.trainer
        most = profile.lengths.most
        settings = {
            "run.steps": steps,
            "run.checkpoint_every": 0,
            "student.context_length": (profile.prompt_tokens + most) // scale + 2,
            "environment.path": "null",
            "rollout.actors": rollout.actors * self.times,
            "rollout.prompts_per_step": profile.prompts_per_step * self.times,
            "rollout.samples_per_prompt": profile.samples_per_prompt,
            "rollout.max_new_tokens": max(1, round(most / scale)),
            "teacher.replicas": teacher.replicas * self.times,
            "teacher.batch_tokens": max(1, teacher.batch_tokens // scale),
            "trainer.ranks": trainer.ranks * self.times,
            "trainer.micro_batch_tokens": max(1, trainer.micro_batch_tokens // scale),
            # Overlap needs it, and all modes are to choose the same tokens.
            "tip.normalise_over": "rollout",
            "eval.every": 0,
            "eval.tasks": "[]",
            "eval.kl_prompts": 0,
        }
        return load_config(
            self.recipe, [*(f"{key}={value}" for key, value in settings.items()), *_MODES[mode]]
        )


def gpus(config: Config) -> dict[Role, int]:
    """GPUs of each role."""
    return {
        "trainer": config.trainer.ranks * int(config.trainer.gpus_per_rank),
        "rollout": config.rollout.actors * config.rollout.gpus_per_actor,
        "teacher": config.teacher.replicas * int(config.teacher.gpus_per_replica),
    }


@dataclass(frozen=True)
class Prompts:
    """A feed of prompts without texts, as the coordinator asks for it."""

    tokens: int
    environments: Any = NO_ENVIRONMENTS
    identity: Any = field(default_factory=lambda: PromptsIdentity(0, ""))

    def batch(self, step: int, size: int) -> list[Prompt]:
        """The prompts of a step, from 0."""
        found = []
        for number in range(step * size, (step + 1) * size):
            ids = np.random.default_rng(number).integers(
                VOCAB_SIZE, size=self.tokens, dtype=np.int32
            )
            found.append(Prompt(str(number), ids, ids))
        return found

    def taken(self, step: int, size: int) -> list[list[int]]:
        return [[step, size]]


@dataclass(eq=False)
class WaitingLauncher(ActorLauncher):
    """Starts waiting actors at the places of the real ones."""

    profile: Profile = field(kw_only=True)
    scale: int = field(kw_only=True)
    handles: dict[str, Any] = field(default_factory=dict, kw_only=True)  # by name
    of_role: dict[str, Role] = field(default_factory=dict, kw_only=True)  # by name

    def diaries(self) -> dict[Role, list[Diary]]:
        """What the actors did since they were last asked."""
        names = list(self.handles)
        told = self.watch.get_all([(self.handles[name].diary.remote(), name) for name in names])
        found: dict[Role, list[Diary]] = {role: [] for role in ROLES}
        for name, diary in zip(names, told, strict=True):
            found[self.of_role[name]].append(diary)
        return found

    def _rollout(self, placed: PlacedActor, model_path: str | None = None) -> Any:
        return self._waiting(placed, WaitingRollout)

    def _teacher(self, placed: PlacedActor) -> Any:
        return self._waiting(placed, WaitingTeacher)

    def _trainer(self, placed: PlacedActor) -> Any:
        return self._waiting(placed, WaitingTrainer)

    def _waiting(self, placed: PlacedActor, actor_class: object) -> Any:
        here = str(Path(__file__).parent)
        path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
        actor = self._at(placed, actor_class, {"PYTHONPATH": path})
        handle = actor.remote(self.profile, self.scale, placed.gpus)
        self.handles[placed.name], self.of_role[placed.name] = handle, placed.role
        return handle


@dataclass
class Recorder:
    """A sink that remembers when each step ended."""

    ends: list[float] = field(default_factory=list)  # monotonic, by step from 0 (the begin)
    cpu: list[float] = field(default_factory=list)  # seconds of this process until then
    rows: list[dict[str, float]] = field(default_factory=list)

    def write(self, step: int, values: dict[str, float]) -> None:
        if step < len(self.ends):  # an evaluation
            return
        self.ends.append(time.monotonic())
        self.cpu.append(time.process_time())
        self.rows.append(values)

    def close(self) -> None:
        """Has nothing open."""


@dataclass(frozen=True)
class Measured:
    """One mode of one profile on one placement; seconds are the profile's unless said."""

    mode: str
    steps: list[float]  # seconds of the measured steps
    expected: float  # of the median step
    # Overlap: expected of the median step in waves of so many rounds of micro-batches at least.
    in_waves: dict[float, float]
    idle: dict[Role, float]  # share of the measured time in which an actor had no work
    tail_half: float  # from half of a step's responses written to the last one, median
    tail_tenth: float  # from nine tenths
    rollouts: int  # of a step
    driver_cpu: float  # seconds of this machine, of the driver's process a step
    kept_tokens: list[int]  # that were trained on, by step
    stages: dict[str, float]  # seconds of this machine, by the coordinator's stages, mean of a step
    scale: int

    @property
    def step(self) -> float:
        return median(self.steps)

    @property
    def beyond(self) -> float:
        """Seconds of this machine by which the median step is longer than expected."""
        return (self.step - self.expected) / self.scale

    @property
    def trajectories_per_second(self) -> float:
        return self.rollouts * len(self.steps) / sum(self.steps)


@contextmanager
def local_ray(gpus: int) -> Iterator[None]:
    """A Ray whose GPUs are names only."""
    ray.init(
        address="local",
        num_cpus=len(os.sched_getaffinity(0)),
        num_gpus=gpus,
        include_dashboard=False,
        object_store_memory=1 << 29,
        logging_level="ERROR",
        log_to_driver=False,
        # All actors of a run come up at once, more than there are cores to start them in time.
        _system_config={
            "worker_maximum_startup_concurrency": 2 * gpus,
            "worker_register_timeout_seconds": 600,
        },
    )
    try:
        yield
    finally:
        ray.shutdown()


def measure(
    profile: Profile, placement: Placement, scale: int, steps: int, wanted: Sequence[str]
) -> list[Measured]:
    """Run every mode on the same actors, with the same rollouts.

    Raises:
        RuntimeError: modes trained on different numbers of tokens.
    """
    first = placement.config(profile, scale, steps, wanted[0])
    plan = plan_placement(first, from_ray_nodes(ray.nodes()))
    settled = plan.settle(first)
    stages = [stages_of(profile, settled, scale, step) for step in range(steps)]
    with WaitingLauncher(
        settled, plan, vocab_size=VOCAB_SIZE, profile=profile, scale=scale
    ) as launcher:
        launcher.ready()
        tokenizer: Any = SimpleNamespace()
        session = Session(settled, launcher, tokenizer, VOCAB_SIZE)
        found = [
            _run(session, plan.settle(placement.config(profile, scale, steps, mode)), mode, stages)
            for mode in wanted
        ]
    if len({tuple(one.kept_tokens) for one in found}) > 1:
        raise RuntimeError(
            "modes trained on different numbers of tokens: "
            + ", ".join(f"{one.mode} {one.kept_tokens}" for one in found)
        )
    return found


def stages_of(profile: Profile, config: Config, scale: int, step: int) -> Stages:
    """What each stage of a step (from 0) should take, from the lengths that its seeds draw."""
    rollout, teacher = config.rollout, config.teacher
    samples = rollout.samples_per_prompt
    prompts = Prompts(1).batch(step, rollout.prompts_per_step)
    lengths = [
        response_tokens(profile, scale, derive_seed(config.run.seed, step, prompt.key, sample))
        for prompt in prompts
        for sample in range(samples)
    ]
    prompt = prompt_tokens(profile, scale)
    written = pipeline_expected.write(
        lengths,
        rollout.actors,
        rollout.max_num_seqs,
        lambda running: scale * profile.decode_step_seconds(running, rollout.gpus_per_actor),
    )
    on_replica = [
        profile.scoring_seconds(scale * (prompt + length), int(teacher.gpus_per_replica))
        for length in lengths
    ]
    ranks = config.trainer.ranks
    return Stages(
        written=written,
        scored=pipeline_expected.score(written, on_replica, teacher.replicas),
        reading=[
            profile.reading_seconds(scale * (prompt / samples + length), ranks)
            for length in lengths
        ],
        tokens=[scale * (prompt + length) for length in lengths],
        ranks=ranks,
        optimizer=profile.optimizer_seconds,
        sync=profile.sync_seconds,
    )


def prompt_tokens(profile: Profile, scale: int) -> int:
    """Of every prompt, each of which stands for ``scale``."""
    return max(1, round(profile.prompt_tokens / scale))


def _run(session: Session, config: Config, mode: str, stages: Sequence[Stages]) -> Measured:
    launcher: Any = session.launcher
    scale, steps = launcher.scale, config.run.steps
    recorder = Recorder()
    prompts: Any = Prompts(prompt_tokens(launcher.profile, scale))
    checkpoints: Any = SimpleNamespace(save=lambda state, write_trainer: None)
    evaluator: Any = SimpleNamespace(run=lambda: {})
    coordinator = Coordinator(
        config,
        session,
        prompts,
        TipFilter(config.tip, loss_score=config.loss.divergence.value),
        evaluator,
        checkpoints,
        Metrics([recorder]),
        Progress(steps, 0, io.StringIO()),
    )
    launcher.diaries()
    coordinator.run(0)
    diaries = launcher.diaries()
    ends = recorder.ends
    which = measured_steps(mode, steps)
    begin, end = ends[which.start], ends[which.stop]
    tails = [
        _tails(diaries["rollout"], step, scale) for step in measured_steps("synchronous", steps)
    ]
    return Measured(
        mode=mode,
        steps=[scale * (ends[n + 1] - ends[n]) for n in which],
        expected=pipeline_expected.expected(stages, mode, which),
        in_waves=_in_waves(config, [stages[n] for n in which], scale) if mode == "overlap" else {},
        idle={
            role: 1.0 - mean(one.busy_between(begin, end) for one in own) / (end - begin)
            for role, own in diaries.items()
        },
        tail_half=median(half for half, _ in tails),
        tail_tenth=median(tenth for _, tenth in tails),
        rollouts=config.rollout.prompts_per_step * config.rollout.samples_per_prompt,
        driver_cpu=(recorder.cpu[which.stop] - recorder.cpu[which.start]) / len(which),
        kept_tokens=[int(row["train/kept_tokens"]) for row in recorder.rows[1:]],
        stages=_stage_means([recorder.rows[n + 1] for n in which]),
        scale=scale,
    )


def _in_waves(config: Config, stages: Sequence[Stages], scale: int) -> dict[float, float]:
    whole = config.trainer.ranks * config.trainer.micro_batch_tokens * scale
    return {rounds: median(step.in_waves(rounds * whole) for step in stages) for rounds in ROUNDS}


def _stage_means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Seconds of each stage of the coordinator's clock."""
    prefix = "seconds/"
    return {
        name.removeprefix(prefix): mean(row[name] for row in rows)
        for name in rows[0]
        if name.startswith(prefix)
    }


def _tails(diaries: Sequence[Diary], step: int, scale: int) -> tuple[float, float]:
    """From half, and from nine tenths, of a step's responses written to the last one."""
    ends = sorted(
        end
        for diary in diaries
        for rollout_id, end in diary.written.items()
        if rollout_id.startswith(f"{step}/")
    )
    last = ends[-1]
    half, tenth = (ends[-(-len(ends) * tenths // 10) - 1] for tenths in (5, 9))
    return scale * (last - half), scale * (last - tenth)
