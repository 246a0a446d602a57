"""Runs of the real coordinator on actors that wait, and what is measured of them."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean, median
from types import SimpleNamespace
from typing import Any

import pipeline_expected
import ray
from pipeline_expected import Stages
from pipeline_placement import Placement, Prompts, WaitingLauncher
from pipeline_profiles import Profile
from waiting_actor import VOCAB_SIZE, Diary
from waiting_rollout import response_tokens

from opd_ray.cluster.nodes import from_ray_nodes
from opd_ray.cluster.placement import Role, plan_placement
from opd_ray.config.schema import Config
from opd_ray.coordinator.loop import Coordinator
from opd_ray.coordinator.session import Session
from opd_ray.output.progress import Progress
from opd_ray.output.sinks import Metrics
from opd_ray.seeds import derive_seed
from opd_ray.tip import TipFilter

# Least size of a wave, in rounds of one micro-batch on every rank; the coordinator's is
# opd_ray.coordinator.waves.ROUND_SHARE.
ROUNDS = (1.0, 0.5, 0.25, 0.125)
WARM_UP = 2  # steps


def measured_steps(mode: str, steps: int) -> range:
    """Which steps of a run (from 0) are measured: those beside which the same texts are written.

    With lag a step writes the next one's, so it is one step earlier. The last step is none of them.
    """
    ahead = 1 if mode == "lag" else 0
    return range(WARM_UP - ahead, steps - 1 - ahead)


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
    checkpoints: Any = SimpleNamespace(begin=lambda state: None)
    evaluator: Any = SimpleNamespace(run=lambda show: {})
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
