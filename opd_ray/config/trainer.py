"""The keys of the section ``trainer``."""

from __future__ import annotations

from dataclasses import dataclass, field

from opd_ray.config.choices import Dtype, LrSchedule
from opd_ray.config.ranges import ABOVE_ZERO, SHARE, ZERO_OR_ONE, at_least, share_below_one
from opd_ray.on_resume import FREE, TOLD


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
