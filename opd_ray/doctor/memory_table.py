"""What the memory of each kind of process goes to, as a table."""

from __future__ import annotations

from collections.abc import Mapping

from opd_ray.estimate import MemoryEstimate
from opd_ray.memory_fit import gigabytes
from opd_ray.placement import Placement


def memory_table(plan: Placement) -> str:
    """One block a kind of process: bytes by purpose on each of its GPUs and in main memory.

    Empty where no model's shape is known. Processes whose estimates are equal share a block.
    """
    gpu_bytes = {node.name: node.gpu_memory_bytes for node in plan.cluster.nodes}
    blocks: dict[str, list[str]] = {}
    for actor in plan.actors:
        if actor.memory is not None:
            block = _block(actor.memory, gpu_bytes[actor.node])
            blocks.setdefault(block, []).append(actor.name)
    return "\n".join(f"{', '.join(names)}\n{block}" for block, names in blocks.items())


def _block(memory: MemoryEstimate, gpu_bytes: int | None) -> str:
    lines = []
    if memory.device:
        share = f" of {memory.gpu_share:.0%} of a GPU" if memory.gpu_share < 1 else ""
        lines.append(f"  each GPU {gigabytes(memory.device_bytes)}{share}: {_parts(memory.device)}")
    if gpu_bytes and (one_text := memory.device.get("KV cache")):
        room = int(memory.gpu_share * gpu_bytes) - memory.device_bytes + one_text
        texts = max(0, room // one_text)
        lines.append(f"  room in its KV cache for {texts} texts of the greatest length at once")
    lines.append(f"  main memory {gigabytes(memory.host_bytes)}: {_parts(memory.host)}")
    return "\n".join(lines)


def _parts(parts: Mapping[str, int]) -> str:
    """Largest first."""
    ordered = sorted(parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {gigabytes(nbytes)}" for name, nbytes in ordered)
