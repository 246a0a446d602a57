"""The keys of the section ``rollout``."""

from __future__ import annotations

from dataclasses import dataclass, field

from opd_ray.config.choices import Dtype
from opd_ray.config.ranges import ABOVE_ZERO, SHARE_ABOVE_ZERO, at_least
from opd_ray.on_resume import FREE, TOLD


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
