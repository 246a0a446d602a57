"""Every key of a run's configuration: name, type, default and one line on what it does.

Plain dataclasses for OmegaConf structured configs; no torch, no engine is imported here.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from opd_ray.config.choices import (
    Beside,
    CacheMode,
    LoraForm,
    PlacementChoice,
    Scoring,
    SignalChoice,
    Support,
    SyncBackend,
)
from opd_ray.config.data import DataSettings
from opd_ray.config.environment import EnvironmentSet, EnvironmentSettings
from opd_ray.config.lora import LoraSettings
from opd_ray.config.marks import PATH, read_as
from opd_ray.config.ranges import (
    ABOVE_ZERO,
    SHARE_ABOVE_ZERO,
    ZERO_OR_ONE,
    at_least,
)
from opd_ray.config.resolved_environments import resolve_environments
from opd_ray.config.resolved_teachers import TeacherSet, resolve_teachers
from opd_ray.config.rollout import RolloutSettings as RolloutSettings
from opd_ray.config.teacher import TeacherSettings
from opd_ray.config.trainer import TrainerSettings as TrainerSettings
from opd_ray.on_resume import FIXED, FREE, TOLD
from opd_ray.tip.settings import TipSettings
from opd_ray.types import Divergence


@dataclass
class RunSettings:
    # Folder of everything this run writes: config, versions, metrics, plots, checkpoints.
    output_dir: str = field(default="outputs/run", metadata=PATH | FREE)
    # Seed from which every random draw of the run is derived.
    seed: int = field(default=0, metadata=FIXED)
    # Day that chat templates which read the clock are told, YYYY-MM-DD; null: that on which the run
    # began, also when it goes on later.
    date: str | None = field(default=None, metadata=TOLD)
    # Optimizer steps in total.
    steps: int = field(default=100, metadata=at_least(0) | TOLD)
    # "auto" continues from the newest readable checkpoint in output_dir, "never" starts anew, or a
    # checkpoint folder.
    resume: str = field(default="auto", metadata=PATH | FREE)
    # A checkpoint every so many steps (0: only at the end and when it is stopped).
    checkpoint_every: int = field(default=50, metadata=at_least(0) | FREE)
    # Copy what a checkpoint holds and write it beside the next step; false: the run waits until it
    # is written; null: beside where the copies take at most half of the memory that is free.
    checkpoint_beside: bool | None = field(default=None, metadata=FREE)
    # How many of the newest checkpoints stay on disk.
    keep_checkpoints: int = field(default=2, metadata=at_least(1) | FREE)
    # Train on rollouts that are scored while the last ones of the step are being written. The step
    # is the same; tip.normalise_over and tip.share_of must not be batch.
    overlap: bool = field(default=False, metadata=FREE)
    # Steps by which the weights that write the rollouts may be behind those that are trained: 0, or
    # 1 to write the next step's rollouts while this one is trained on.
    lag: int = field(default=0, metadata=ZERO_OR_ONE | TOLD)
    # The same weights, bit by bit, from the same configuration on the same hardware, also after
    # deaths and when the run goes on later: no batch of any engine depends on the clock. Slower.
    deterministic: bool = field(default=False, metadata=TOLD)
    # Export the final student as a Hugging Face folder when the run ends.
    export_at_end: bool = field(default=True, metadata=FREE)
    # Weights & Biases project that gets the figures too; null: none.
    wandb_project: str | None = field(default=None, metadata=TOLD)
    # MLflow experiment that gets the figures too, at MLFLOW_TRACKING_URI; null: none.
    mlflow_experiment: str | None = field(default=None, metadata=TOLD)
    # Trackio project that gets the figures too; null: none.
    trackio_project: str | None = field(default=None, metadata=TOLD)

    @property
    def day(self) -> datetime.date | None:
        """``date``, which is to be one."""
        return None if self.date is None else datetime.date.fromisoformat(self.date)


@dataclass
class ClusterSettings:
    # Ray address: null starts a local Ray, "auto" joins the one on this machine or at RAY_ADDRESS,
    # HOST:PORT joins that of a head node.
    address: str | None = field(default=None, metadata=FREE)
    # CPUs that a locally started Ray offers to actors; null counts the machine's.
    num_cpus: int | None = field(default=None, metadata=at_least(1) | FREE)
    # Object store of a locally started Ray, bytes (Ray wants 75 MiB or more); null lets Ray choose.
    object_store_bytes: int | None = field(default=None, metadata=at_least(75 << 20) | FREE)
    # "separate" gives every actor GPUs of its own. "shared" puts teachers beside rollout actors or
    # trainer ranks, each with a share of one GPU. "turns" puts all roles on the same GPUs, one
    # after another: who is not at work gives its memory back. See docs/placement.md.
    placement: PlacementChoice = field(default=PlacementChoice.separate, metadata=FREE)
    # With shared: whose GPUs the teachers share. Theirs is teacher.gpus_per_replica (above 0, below
    # 1) of it, the other's what is left.
    teacher_beside: Beside = field(default=Beside.rollout, metadata=FREE)
    # Print what the actors print; their logs are in Ray's session folder anyway.
    show_actor_logs: bool = field(default=False, metadata=FREE)
    # Seconds an actor may take to come up (imports, loading, compiling), after which it counts as
    # hanging: it is ended and started again, as often as its max_restarts says.
    start_timeout_s: float = field(default=600.0, metadata=ABOVE_ZERO | FREE)
    # Seconds without any progress in a step before the run gives up, naming what it waits for.
    stall_timeout_s: float = field(default=1800.0, metadata=ABOVE_ZERO | FREE)


@dataclass
class StudentSettings:
    # Hugging Face folder (or hub name) of the student's weights and tokenizer.
    path: str = field(default="???", metadata=PATH | FIXED)
    # Longest prompt plus response, tokens.
    context_length: int = field(default=4096, metadata=at_least(1) | TOLD)
    # Run model code that comes with the checkpoint.
    trust_remote_code: bool = field(default=False, metadata=FREE)
    # Train an adapter of a few ranks and leave the weights as they are; off by default.
    lora: LoraSettings = field(default_factory=LoraSettings)


@dataclass
class LossSettings:
    # Divergence that is minimised; the paper's is the reverse KL.
    divergence: Divergence = field(default=Divergence.reverse_kl, metadata=TOLD)
    # Weight of the teacher in the mixture of the JSD.
    beta: float = field(default=0.5, metadata=TOLD)
    # With the topk signal, the tokens of a row that the loss tells apart: the teacher's likeliest
    # (teacher.topk), the student's own (rollout.record_topk) or the union of both; all others are
    # one bucket. null takes the union; with a teacher of kind http or actor, which may know no more
    # than bounds of the student's tokens, the teacher's.
    support: Support | None = field(default=None, metadata=TOLD)
    # Temperature of both distributions inside the loss.
    temperature: float = field(default=1.0, metadata=ABOVE_ZERO | TOLD)
    # Kept rows projected to the vocabulary at once; null chooses so that the chunks stay small.
    chunk_rows: int | None = field(default=None, metadata=at_least(1) | FREE)


@dataclass
class SyncSettings:
    # Transport of new weights: the Ray object store (CPU, GPU, any node), vLLM's NCCL (from GPU to
    # GPU) or vLLM's CUDA IPC (within each GPU: cluster.placement=turns).
    backend: SyncBackend = field(default=SyncBackend.ray, metadata=FREE)
    # Bytes of weights that travel in one piece.
    chunk_bytes: int = field(default=1 << 28, metadata=at_least(1) | FREE)
    # Mean |log-prob difference| between trainer and vLLM, nats, above which the run stops.
    max_gap: float = field(default=0.05, metadata=ABOVE_ZERO | TOLD)
    # With student.lora, what the engines get: the "adapter" alone, which vLLM adds to its own copy
    # of the weights, or "merged" whole weights.
    lora: LoraForm = field(default=LoraForm.adapter, metadata=FREE)


@dataclass
class EvalTask:
    # Name under which its figures appear.
    name: str = "heldout"
    # Where its problems come from.
    data: DataSettings = field(default_factory=DataSettings)
    # Verifier: a task's name or "package.module:object".
    task: str = "chain_sum"
    # Problems asked; the first so many of the data, null for all.
    problems: int | None = field(default=256, metadata=at_least(1))
    # Ask every problem once greedily.
    greedy: bool = True
    # Sampled responses per problem, for mean@n, pass@k and maj@n; 0 for none.
    samples: int = field(default=0, metadata=at_least(0))
    # Sampling temperature of those responses.
    temperature: float = 1.0
    # Nucleus mass of those responses.
    top_p: float = field(default=1.0, metadata=SHARE_ABOVE_ZERO)
    # Longest response, tokens; null uses the rollout's.
    max_new_tokens: int | None = field(default=None, metadata=at_least(1))


@dataclass
class EvalSettings:
    # Evaluate every so many steps (0: only before the first step and at the end).
    every: int = field(default=50, metadata=at_least(0) | FREE)
    # What is evaluated.
    tasks: list[EvalTask] = field(default_factory=list, metadata=TOLD)
    # Held-out prompts, of the tasks above, for KL(teacher||student) and top-1 agreement on
    # responses sampled as the run's are; 0 for none.
    kl_prompts: int = field(default=64, metadata=at_least(0) | TOLD)
    # Evaluate the teacher's accuracy once too (kinds hf and vllm; a vLLM engine writes for both).
    teacher_accuracy: bool = field(default=False, metadata=FREE)


@dataclass
class ReportSettings:
    # Steps that report.html shows from close by (tokens, and who worked when), spread evenly from
    # the first to the last; 0 keeps none.
    close_ups: int = field(default=12, metadata=at_least(0) | FREE)
    # Rollouts of such a step whose tokens are kept.
    rollouts: int = field(default=4, metadata=at_least(0) | FREE)
    # Tokens of such a rollout that are kept; of a longer one the rest is left out.
    tokens: int = field(default=4096, metadata=at_least(1) | FREE)
    # Held-out problems of each task whose answers are kept at every evaluation.
    problems: int = field(default=8, metadata=at_least(0) | FREE)


@dataclass
class StudyArm:
    # Name of the arm in folders, tables and plots.
    name: str = "???"
    # Keys of the section tip in which this arm differs from the configuration's own.
    tip: dict[str, Any] = field(default_factory=dict, metadata=read_as(TipSettings))
    # run.overlap of this arm; null: the configuration's own.
    overlap: bool | None = None
    # run.lag of this arm; null: the configuration's own.
    lag: int | None = field(default=None, metadata=ZERO_OR_ONE)


@dataclass
class StudySettings:
    # Seeds of opd-ray study: every arm runs once with each.
    seeds: list[int] = field(default_factory=list, metadata=FREE)
    # What opd-ray study compares.
    arms: list[StudyArm] = field(default_factory=list, metadata=FREE)
    # Name of the arm that all others are compared with; null: the one whose rule is all.
    baseline: str | None = field(default=None, metadata=FREE)


@dataclass
class Config:
    """A whole run."""

    run: RunSettings = field(default_factory=RunSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    data: DataSettings = field(default_factory=DataSettings)
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    environment: EnvironmentSettings = field(default_factory=EnvironmentSettings)
    # Environments of some sources of prompts, by source: the keys of the section environment in
    # which each differs from it.
    environments: dict[str, dict[str, Any]] = field(
        default_factory=dict, metadata=read_as(dict[str, EnvironmentSettings]) | TOLD
    )
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    # Further teachers by name: the keys of the section teacher in which each differs from it.
    teachers: dict[str, dict[str, Any]] = field(
        default_factory=dict, metadata=read_as(dict[str, TeacherSettings]) | TOLD
    )
    # The teacher of each source of prompts: a name in teachers, or "teacher"; empty: it gets all.
    routes: dict[str, str] = field(default_factory=dict, metadata=TOLD)
    # Scores of the filter: by-products of rollout and teacher, or an exact pass in the trainer.
    scoring: Scoring = field(default=Scoring.streamed, metadata=TOLD)
    tip: TipSettings = field(default_factory=TipSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    sync: SyncSettings = field(default_factory=SyncSettings)
    eval: EvalSettings = field(default_factory=EvalSettings)
    report: ReportSettings = field(default_factory=ReportSettings)
    # What opd-ray study runs; other commands do not read it.
    study: StudySettings = field(default_factory=StudySettings)

    @property
    def named_tasks(self) -> dict[str, EvalTask]:
        """The tasks of the evaluation, each by the key that it stands under."""
        return {f"eval.tasks[{number}]": task for number, task in enumerate(self.eval.tasks)}

    @property
    def serves_adapter(self) -> bool:
        """Whether the rollout engines hold the student as an adapter over their own weights."""
        return self.student.lora.on and self.sync.lora is LoraForm.adapter

    def asks_trainers(self, teacher: TeacherSettings) -> bool:
        """Whether a teacher is the student with its adapter off, in the trainers' own memory.

        Answers that were recorded are asked of nobody.
        """
        if teacher.follow_decay is not None or teacher.cache is CacheMode.replay:
            return False
        return self.student.lora.on and teacher.traits.students_files

    @property
    def scores_exactly(self) -> bool:
        """Whether the filter's scores are those of the exact pass in the trainers."""
        return self.scoring is Scoring.exact or bool(self.run.lag and self.tip.rescore)

    @property
    def data_sections(self) -> dict[str, DataSettings]:
        """All that prompts are read from, by key: for training, then for evaluation."""
        held_out = {f"{key}.data": task.data for key, task in self.named_tasks.items()}
        return {"data": self.data, **held_out}

    @cached_property
    def environment_set(self) -> EnvironmentSet:
        """Every environment in full, of ``environment`` and ``environments`` together."""
        return resolve_environments(self.environment, self.environments)

    def environment_of(self, source: str) -> EnvironmentSettings:
        """What prompts of a source act in; its path is null where their responses are one turn."""
        return self.environment_set.of(source)[1]

    @cached_property
    def teacher_set(self) -> TeacherSet:
        """The teachers in full, which ``teacher``, ``teachers`` and ``routes`` describe together.

        Resolved when first asked for, and once: a copy with other keys is made by ``replace``.
        """
        student = self.student
        files = {"path": student.path, "trust_remote_code": student.trust_remote_code}
        return resolve_teachers(self.teacher, self.teachers, self.routes, files)

    @property
    def support(self) -> Support:
        """``loss.support``, and what its null stands for; teacher with every signal but topk."""
        if self.teacher_set.first.signal is not SignalChoice.topk:
            return Support.teacher
        if self.loss.support is not None:
            return self.loss.support
        bounded = any(model.traits.may_bound for model in self.teacher_set.models.values())
        return Support.teacher if bounded else Support.union

    @property
    def support_width(self) -> int:
        """Places for tokens in a row of the topk signal."""
        topk, students = self.teacher_set.first.topk, self.rollout.record_topk
        widths = {Support.teacher: topk, Support.student: students, Support.union: topk + students}
        return widths[self.support]

    def with_teachers(self, teachers: TeacherSet) -> Config:
        """This run with these teachers in place of those that its sections describe."""
        other = replace(self)
        other.teacher_set = teachers
        return other
