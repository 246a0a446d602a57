"""Whether the actors of a plan fit into the memory of their nodes, and what to change if not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from opd_ray.cluster.memory import (
    CACHE,
    GPU_PROCESS_BYTES,
    MemoryEstimate,
    judge_memory,
    longest_text,
    sleeps_in_main_memory,
)
from opd_ray.cluster.nodes import Node, gigabytes
from opd_ray.cluster.placed_actor import PlacedActor
from opd_ray.cluster.placement import Placement
from opd_ray.cluster.step_size import ELEMENT_BYTES, held_tokens, step_tokens
from opd_ray.config.choices import Dtype, PlacementChoice, SignalChoice
from opd_ray.config.schema import Config, RolloutSettings
from opd_ray.config.teacher import TeacherSettings, model_path
from opd_ray.models.shape import ModelShape


def memory_problems(config: Config, placement: Placement) -> list[str]:
    """Nodes and GPUs whose estimated use exceeds what they have, with the keys to change.

    Memory that is unknown counts as none.
    """
    nodes = placement.cluster.nodes
    return [problem for node in nodes for problem in _node_problems(config, node, placement.actors)]


def _node_problems(config: Config, node: Node, actors: Sequence[PlacedActor]) -> Iterator[str]:
    known = [(actor, actor.memory) for actor in actors if actor.node == node.name and actor.memory]
    total = sum(memory.host_bytes for _, memory in known)
    if total > node.memory_bytes:
        largest, memory = max(known, key=lambda pair: pair[1].host_bytes)
        yield (
            f"node {node.name}: its actors need about {gigabytes(total)}, it has "
            f"{gigabytes(node.memory_bytes)}; most of it for {largest.name} "
            f"({gigabytes(memory.host_bytes)}){_advice(config, largest, memory.host)}"
        )
    if node.gpu_memory_bytes is None:
        return
    for actor, memory in known:
        beside = _beside(actor, known) if sleeps_in_main_memory(config) else 0
        usable = int(memory.gpu_share * node.gpu_memory_bytes) - beside
        if memory.device_bytes > usable:
            share = f"{memory.gpu_share:.0%} of " if memory.gpu_share < 1 else ""
            less = f" less {gigabytes(beside)} of those it shares the GPU with" if beside else ""
            yield (
                f"{actor.name}: needs about {gigabytes(memory.device_bytes)} a GPU and may take "
                f"{gigabytes(usable)} ({share}{gigabytes(node.gpu_memory_bytes)}{less})"
                f"{_advice(config, actor, memory.device)}"
            )


def _beside(actor: PlacedActor, known: Sequence[tuple[PlacedActor, MemoryEstimate]]) -> int:
    """Bytes that others have on the GPU in its turn: teachers, which wake together, all they need.

    Those that sleep have no more than a process takes.
    """
    found = 0
    for other, memory in known:
        if other is not actor and other.bundle == actor.bundle and memory.device:
            awake = actor.role == other.role == "teacher"
            found += memory.device_bytes if awake else GPU_PROCESS_BYTES
    return found


def capacity_problems(
    config: Config, student: ModelShape | None, teachers: Mapping[str, ModelShape]
) -> Iterator[str]:
    """Sizes in the config that do not hold what the run puts there, on any machine.

    The shapes, of teachers by path, are those that are known.
    """
    rollout = config.rollout
    if student is not None and not rollout.gpus_per_actor:
        yield from _kv_problem("rollout", rollout, student, config.student.context_length)
    for key, settings in config.teacher_set.models.items():
        shape = teachers.get(model_path(settings) or "")
        on_cpu = settings.traits.vllm_engine and not settings.gpus_per_replica
        if shape is not None and on_cpu:
            yield from _kv_problem(key, settings, shape, config.student.context_length)
    for teacher in config.teacher_set.working.values():
        settings = teacher.settings
        memory = judge_memory(config, teacher, teachers)
        held = memory.host["signals"] if memory else 0
        if held > settings.store_bytes:
            key = settings.key
            yield (
                f"{key}.store_bytes = {settings.store_bytes}: the signals {_of_what(config)} may "
                f"take {gigabytes(held)} a replica; set it to {held}, or use more {key}.replicas "
                f"or {_teacher_remedies(settings)['signals']}"
            )


def _of_what(config: Config) -> str:
    """Whose signals a teacher holds at once."""
    if held_tokens(config) == step_tokens(config).response:
        return "of a step"
    return "of a step and what is scored beside it with run.lag"


def _kv_problem(
    key: str, settings: RolloutSettings | TeacherSettings, shape: ModelShape, tokens: int
) -> Iterator[str]:
    """Whether an engine's KV cache on the CPU is too small for one text of ``tokens``."""
    needed = shape.kv_cache_bytes(
        tokens, ELEMENT_BYTES[settings.dtype], settings.tensor_parallel_size
    )
    if needed > settings.kv_cache_bytes:
        yield (
            f"{key}.kv_cache_bytes = {settings.kv_cache_bytes}: one text of student.context_length "
            f"= {tokens} tokens takes {needed} bytes; raise it at least to that, or lower the "
            "context"
        )


def _advice(config: Config, actor: PlacedActor, parts: Mapping[str, int]) -> str:
    """The largest part of a process that some key makes smaller, and the key."""
    if actor.role == "trainer":
        remedies = _trainer_remedies(config)
    elif actor.role == "rollout":
        remedies = _rollout_remedies(config.rollout)
    else:
        remedies = _teacher_remedies(config.teacher_set.working[actor.teacher].settings)
    part = max(parts, key=lambda name: (name in remedies, parts[name]))
    remedy = remedies.get(part, "a node or GPUs with more memory")
    return f", {gigabytes(parts[part])} of that {part}: use {remedy}"


def _trainer_remedies(config: Config) -> dict[str, str]:
    """What to change where a part of a rank is too large; a part that nothing changes is left out.

    What the config has already is not advised; so with the other roles.
    """
    trainer = config.trainer
    sharded = "more trainer.ranks"
    if trainer.zero_stage < 3:
        sharded = f"trainer.zero_stage=3 over {sharded}"
    state = weights = sharded
    if trainer.gpus_per_rank and not trainer.offload_optimizer:
        state += ", or trainer.offload_optimizer=true"
    if trainer.gpus_per_rank and not trainer.offload_parameters:
        weights = f"trainer.offload_parameters=true with trainer.zero_stage=3, or {sharded}"
    if not config.student.lora.on:
        state += ", or student.lora.rank=32"
    activations = "a lower trainer.micro_batch_tokens or rollout.max_new_tokens"
    if not trainer.gradient_checkpointing:
        activations = f"trainer.gradient_checkpointing=true, or {activations}"
    elif trainer.recomputed_layers is not None:
        activations = f"trainer.recomputed_layers=null, or {activations}"
    remedies = {
        "weights": weights,
        "optimizer": state,
        "gradients": state,
        "activations": activations,
        "loss": "a lower loss.chunk_rows",
        "teacher head": "teacher.signal=topk",
    }
    if trainer.dtype is Dtype.float32:
        remedies["gathered weights"] = "trainer.dtype=bfloat16"
    sent = ["sync.backend=ipc"] if _can_share_gpu_memory(config) else []
    if trainer.dtype is Dtype.float32:
        sent.append("trainer.dtype=bfloat16")
    if sent:
        remedies["weights last sent"] = ", or ".join(sent)
    return remedies


def _can_share_gpu_memory(config: Config) -> bool:
    """Whether a rank and an engine are on every GPU that weights go to, so that ipc can be had."""
    on_gpus = config.trainer.gpus_per_rank > 0 and config.rollout.gpus_per_actor > 0
    in_turns = config.cluster.placement is PlacementChoice.turns
    few_engines = config.rollout.actors <= config.trainer.ranks
    return on_gpus and in_turns and few_engines and not config.serves_adapter


def _rollout_remedies(rollout: RolloutSettings) -> dict[str, str]:
    split = "more rollout.gpus_per_actor and rollout.tensor_parallel_size"
    in_float32 = rollout.dtype is Dtype.float32
    return {
        "weights": f"rollout.dtype=bfloat16, or {split}" if in_float32 else split,
        CACHE: split if rollout.gpus_per_actor else "a lower rollout.kv_cache_bytes",
        "sampler": "a lower rollout.max_num_seqs",
        "activations": "a lower rollout.max_num_batched_tokens"
        + ("" if rollout.gpus_per_actor else " and student.context_length"),
    }


def _teacher_remedies(teacher: TeacherSettings) -> dict[str, str]:
    key = teacher.key
    split = f"more {key}.gpus_per_replica and {key}.tensor_parallel_size"
    weights = split if teacher.traits.vllm_engine else f"{key}.kind=vllm with {split}"
    if teacher.dtype is Dtype.float32:
        weights = f"{key}.dtype=bfloat16, or {weights}"
    fewer = "fewer rollout.prompts_per_step"
    exact = teacher.signal is SignalChoice.hidden
    return {
        "weights": weights,
        CACHE: split if teacher.gpus_per_replica else f"a lower {key}.kv_cache_bytes",
        "activations": f"a lower {key}.batch_tokens or rollout.max_new_tokens",
        "logits": f"a lower {key}.batch_tokens",
        "signals": f"{key}.signal=topk, or {fewer}" if exact else fewer,
    }


def memory_table(config: Config, plan: Placement) -> str:
    """One block a kind of process: bytes by purpose on each of its GPUs and in main memory.

    Empty where no model's shape is known. Processes whose estimates are equal share a block.
    """
    longest = longest_text(config)
    gpu_bytes = {node.name: node.gpu_memory_bytes for node in plan.cluster.nodes}
    blocks: dict[str, list[str]] = {}
    for actor in plan.actors:
        if actor.memory is not None:
            block = _block(actor.memory, gpu_bytes[actor.node], longest)
            blocks.setdefault(block, []).append(actor.name)
    return "\n".join(f"{', '.join(names)}\n{block}" for block, names in blocks.items())


def _block(memory: MemoryEstimate, gpu_bytes: int | None, longest: int) -> str:
    lines = []
    if memory.device:
        share = f" of {memory.gpu_share:.0%} of a GPU" if memory.gpu_share < 1 else ""
        lines.append(f"  each GPU {gigabytes(memory.device_bytes)}{share}: {_parts(memory.device)}")
    tokens = memory.cache_tokens(gpu_bytes)
    if tokens is not None:
        texts = tokens // longest
        lines.append(f"  KV cache for {tokens:,} tokens: {texts:,} texts of the greatest length")
    lines.append(f"  main memory {gigabytes(memory.host_bytes)}: {_parts(memory.host)}")
    return "\n".join(lines)


def _parts(parts: Mapping[str, int]) -> str:
    """Largest first."""
    ordered = sorted(parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {gigabytes(nbytes)}" for name, nbytes in ordered)
