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
    Dtype,
    LoraForm,
    LrSchedule,
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
    SHARE,
    SHARE_ABOVE_ZERO,
    ZERO_OR_ONE,
    at_least,
    share_below_one,
)
from opd_ray.config.resolved_environments import resolve_environments
from opd_ray.config.resolved_teachers import TeacherSet, resolve_teachers
from opd_ray.config.teacher import TeacherSettings
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
class RolloutSettings:
    # Rollout actors, each with its own vLLM engine.
    actors: int = field(default=1, metadata=at_least(1) | FREE)
    # How often each actor is started again when its process dies or hangs; the others write on.
    max_restarts: int = field(default=3, metadata=at_least(0) | FREE)
    # Seconds without a sign of life from an actor that has something to do, after which it counts
    # as hanging: it is ended and started again. It gives one after every forward pass, every 10 s
    # at most. null: only cluster.stall_timeout_s holds.
    answer_timeout_s: float | None = field(default=600.0, metadata=ABOVE_ZERO | FREE)
    # Ray CPUs each actor reserves; 0 takes one, or a share where actors outnumber cores.
    cpus_per_actor: float = field(default=0.0, metadata=at_least(0) | FREE)
    # GPUs each actor reserves (as many as tensor_parallel_size); 0 runs vLLM on the CPU.
    gpus_per_actor: int = field(default=0, metadata=at_least(0) | FREE)
    # CPU threads of an actor's matrix products; 0 shares a node's cores with its teachers.
    threads: int = field(default=0, metadata=at_least(0) | FREE)
    # GPUs (or CPU processes) one vLLM engine is split over.
    tensor_parallel_size: int = field(default=1, metadata=at_least(1) | FREE)
    # Prompts of one step.
    prompts_per_step: int = field(default=32, metadata=at_least(1) | TOLD)
    # Responses per prompt.
    samples_per_prompt: int = field(default=4, metadata=at_least(1) | TOLD)
    # Sampling temperature; scores always describe the distribution at temperature 1.
    temperature: float = field(default=1.0, metadata=at_least(0) | TOLD)
    # Nucleus sampling mass; 1 samples from the whole vocabulary.
    top_p: float = field(default=1.0, metadata=SHARE_ABOVE_ZERO | TOLD)
    # Sample from the k likeliest tokens only; 0 from all.
    top_k: int = field(default=0, metadata=at_least(0) | TOLD)
    # Longest response, tokens.
    max_new_tokens: int = field(default=128, metadata=at_least(1) | TOLD)
    # How many of the student's likeliest tokens are recorded per position for the streamed scores.
    record_topk: int = field(default=16, metadata=at_least(1) | TOLD)
    # Responses an engine writes at once.
    max_num_seqs: int = field(default=64, metadata=at_least(1) | FREE)
    # Tokens an engine processes in one forward pass.
    max_num_batched_tokens: int = field(default=2048, metadata=at_least(1) | FREE)
    # Bytes of KV cache of an engine on the CPU; one text of student.context_length must fit.
    kv_cache_bytes: int = field(default=1 << 28, metadata=at_least(1) | FREE)
    # Share of a GPU's memory vLLM may take; beside a teacher (cluster.placement=shared) this share
    # of what the teacher leaves.
    gpu_memory_utilization: float = field(default=0.9, metadata=SHARE_ABOVE_ZERO | FREE)
    # Number format of the student inside vLLM.
    dtype: Dtype = field(default=Dtype.float32, metadata=TOLD)
    # Let vLLM skip CUDA graphs (always so on the CPU).
    enforce_eager: bool = field(default=True, metadata=FREE)


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
class TrainerSettings:
    # Data-parallel trainer processes.
    ranks: int = field(default=1, metadata=at_least(1) | TOLD)
    # Ray CPUs each rank reserves; 0 takes one, or a share where actors outnumber cores.
    cpus_per_rank: float = field(default=0.0, metadata=at_least(0) | FREE)
    # GPUs each rank reserves (0 or 1); 0 trains on the CPU.
    gpus_per_rank: int = field(default=0, metadata=ZERO_OR_ONE | FREE)
    # CPU threads of a rank's matrix products; 0 shares a node's cores with its other ranks.
    threads: int = field(default=0, metadata=at_least(0) | FREE)
    # DeepSpeed ZeRO stage: 0 replicates, 1 shards optimizer state, 2 gradients too, 3 weights too.
    zero_stage: int = field(default=0, metadata=TOLD)
    # Keep optimizer state and master weights in main memory, and step there (ZeRO-Offload; needs a
    # GPU and ZeRO 1-3).
    offload_optimizer: bool = field(default=False, metadata=TOLD)
    # Keep the weights in main memory too, and fetch them layer by layer (needs a GPU and ZeRO 3).
    offload_parameters: bool = field(default=False, metadata=TOLD)
    # Number format of the forward and backward pass; bfloat16 keeps float32 master weights.
    dtype: Dtype = field(default=Dtype.float32, metadata=TOLD)
    # Most tokens the trunk reads in one micro-batch, a prompt once for all its samples in there; a
    # longer rollout goes alone.
    micro_batch_tokens: int = field(default=8192, metadata=at_least(1) | FREE)
    # Recompute activations in the backward pass instead of keeping them.
    gradient_checkpointing: bool = field(default=False, metadata=FREE)
    # With gradient_checkpointing: recompute those of the first so many layers alone, where memory
    # is left for those of the others. null: of all layers.
    recomputed_layers: int | None = field(default=None, metadata=at_least(1) | FREE)
    # Peak learning rate.
    learning_rate: float = field(default=1.0e-6, metadata=at_least(0) | TOLD)
    # Course after the warm-up.
    lr_schedule: LrSchedule = field(default=LrSchedule.cosine, metadata=TOLD)
    # Steps over which the learning rate rises to its peak, by equal amounts.
    warmup_steps: int = field(default=0, metadata=at_least(0) | TOLD)
    # Learning rate at the end, as a share of the peak.
    min_lr_ratio: float = field(default=0.0, metadata=SHARE | TOLD)
    # How often all ranks may be started again in a run, after one died or hung; the run then goes
    # back to its last checkpoint. 0: the run ends.
    max_restarts: int = field(default=3, metadata=at_least(0) | FREE)
    # Seconds that a rank may take for one call (a step, a checkpoint) before it counts as hung and
    # is killed; well above the longest, and below cluster.stall_timeout_s.
    answer_timeout_s: float = field(default=1500.0, metadata=ABOVE_ZERO | FREE)
    # AdamW's weight decay; of all weights, norms and biases too.
    weight_decay: float = field(default=0.1, metadata=at_least(0) | TOLD)
    # AdamW's first decay rate.
    adam_beta1: float = field(default=0.9, metadata=share_below_one() | TOLD)
    # AdamW's second decay rate.
    adam_beta2: float = field(default=0.999, metadata=share_below_one() | TOLD)
    # AdamW's epsilon.
    adam_eps: float = field(default=1.0e-8, metadata=ABOVE_ZERO | TOLD)
    # Gradients are scaled down to this global norm; 0 leaves them.
    max_grad_norm: float = field(default=1.0, metadata=at_least(0) | TOLD)


def effective_zero_stage(trainer: TrainerSettings) -> int:
    """The stage DeepSpeed runs.

    Stage 0 in bfloat16 becomes stage 1: without sharding, DeepSpeed sums the gradients of several
    micro-batches in bfloat16. Results are those of stage 0 with float32 sums; memory is never more.
    """
    if trainer.dtype == Dtype.bfloat16:
        return max(trainer.zero_stage, 1)
    return trainer.zero_stage


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
