"""Which placements of a pair fit a machine, and the keys that make each of them.

Everything is estimated, by the functions that doctor's plan of a run is made with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from functools import reduce
from typing import Any

from opd_ray.cluster.memory import longest_text
from opd_ray.cluster.memory_fit import memory_problems
from opd_ray.cluster.nodes import Cluster
from opd_ray.cluster.placement import Placement, plan_placement
from opd_ray.config.choices import BaseFormat, LoraForm, PlacementChoice
from opd_ray.config.schema import Config
from opd_ray.errors import PlacementError
from opd_ray.models.shape import ModelShape

# Share of a GPU that is left to allocators and NCCL, where vLLM does not keep count itself.
SPARE = 0.08
# Rank of the adapter where the student is not trained whole.
RANK = 32
# Shares of a GPU that a teacher may have beside a rollout actor.
SHARES = (0.3, 0.5, 0.7)
# Share that vLLM may take of GPUs where a teacher is alone and large.
LARGE_UTILIZATION = 0.95
# GPUs that one engine is split over.
SPLITS = (1, 2, 4, 8)

Values = dict[str, Any]  # by dotted key


class Trained(IntEnum):
    """What of a student is, the most wanted first."""

    whole = 0
    adapter = 1
    adapter_on_four_bits = 2


@dataclass(frozen=True)
class Option:
    """One placement that fits.

    Attributes:
        overrides: for the command line: the keys to set, where they are not set so already.
        config: with these values.
        plan: of it.
        changed: the same with other values, where it fits.
    """

    overrides: tuple[str, ...]
    config: Config
    plan: Placement
    changed: Callable[[Values], Option | None]

    @property
    def placement(self) -> PlacementChoice:
        return self.config.cluster.placement

    @property
    def trained(self) -> Trained:
        """What of the student is."""
        lora = self.config.student.lora
        if not lora.on:
            return Trained.whole
        four_bits = lora.base is BaseFormat.nf4
        return Trained.adapter_on_four_bits if four_bits else Trained.adapter

    @property
    def whole(self) -> bool:
        """Whether all of the student is trained, not an adapter."""
        return self.trained is Trained.whole

    def cache_tokens(self, role: str) -> int:
        """Tokens that the KV caches of all engines of a role hold."""
        gpu_bytes = {node.name: node.gpu_memory_bytes for node in self.plan.cluster.nodes}
        found = (
            actor.memory.cache_tokens(gpu_bytes[actor.node])
            for actor in self.plan.actors
            if actor.role == role and actor.memory
        )
        return sum(tokens or 0 for tokens in found)

    @property
    def offloaded(self) -> int:
        """How much of a trainer is in main memory: nothing, optimizer or weights (1), or both."""
        return self.config.trainer.offload_optimizer + self.config.trainer.offload_parameters

    def recomputed(self, layers: int) -> int:
        """How many of the student's layers the trainers compute twice."""
        trainer = self.config.trainer
        if not trainer.gradient_checkpointing:
            return 0
        return min(trainer.recomputed_layers or layers, layers)

    @property
    def rank(self) -> tuple[int, int]:
        """The best has the lowest: least offloaded, then most tokens written at once."""
        return self.offloaded, -self.cache_tokens("rollout")

    def recomputing_least(self, layers: int) -> Option:
        """The same with as few of the student's ``layers`` recomputed as it fits with."""
        found, low, high = self, 0, self.recomputed(layers)
        while low < high:  # it fits with ``high`` of them, and not with fewer than ``low``
            middle = (low + high) // 2
            values = {
                "trainer.gradient_checkpointing": middle > 0,
                "trainer.recomputed_layers": middle or None,
            }
            if fewer := self.changed(values):
                found, high = fewer, middle
            else:
                low = middle + 1
        return found


def options(
    config: Config, cluster: Cluster, student: ModelShape, teachers: Mapping[str, ModelShape]
) -> Iterator[Option]:
    """For every layout of the roles on the GPUs and each :class:`Trained` the first that fits.

    All of them recompute all layers: see :meth:`Option.recomputing_least`.

    Args:
        config: of the run; its keys of placement and memory are replaced.
        cluster: one node.
        student: its shape.
        teachers: theirs, by path.
    """
    for layout in _layouts(cluster.gpus):
        for savings in (_of_whole_student, _of_adapter, _of_adapter_on_four_bits):
            found = _first_that_fits(config, cluster, student, teachers, layout, savings(layout))
            if found:
                yield found


def best(found: Iterable[Option]) -> list[Option]:
    """The best with each placement, of whole students and then of adapters; the best first.

    Four bits are left out where an adapter over whole weights fits without offloading.
    """
    kept: dict[tuple[Trained, PlacementChoice], Option] = {}
    for option in found:
        key = (option.trained, option.placement)
        if key not in kept or option.rank < kept[key].rank:
            kept[key] = option
    for (trained, placement), option in [*kept.items()]:
        if trained is Trained.adapter and not option.offloaded:
            kept.pop((Trained.adapter_on_four_bits, placement), None)
    return sorted(kept.values(), key=lambda option: (option.trained, *option.rank))


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy with other values at dotted keys."""
    for key, value in values.items():
        config = _replaced(config, key.split("."), value)
    return config


def _first_that_fits(
    config: Config,
    cluster: Cluster,
    student: ModelShape,
    teachers: Mapping[str, ModelShape],
    layout: Values,
    savings: Iterable[Values],
) -> Option | None:
    own, longest = config.trainer.micro_batch_tokens, longest_text(config)
    shorter = [{"trainer.micro_batch_tokens": longest}] if longest < own else []

    def fitting(values: Values) -> Option | None:
        changed = with_values(config, values)
        plan = plan_placement(changed, cluster, student, teachers)
        if memory_problems(changed, plan) or not _has_spare(plan):
            return None
        told = (f"{k}={_written(v)}" for k, v in values.items() if _at(config, k) != v)
        return Option(tuple(told), changed, plan, lambda other: fitting(values | other))

    for saving in savings:
        for tokens in ({}, *shorter):
            values = layout | saving | tokens
            try:
                found = fitting(values)
            except PlacementError:
                return None  # too few CPUs, whatever is saved
            if found:
                return found
    return None


def _has_spare(plan: Placement) -> bool:
    """Whether something of every GPU is left, where vLLM does not see to that."""
    (node,) = plan.cluster.nodes
    usable = (1 - SPARE) * (node.gpu_memory_bytes or 0)
    found = [actor.memory for actor in plan.actors if actor.memory and actor.memory.device]
    return all(m.device_bytes <= usable * m.gpu_share for m in found if not m.cache_token_bytes)


def _layouts(gpus: int) -> Iterator[Values]:
    """Who gets which GPUs; a teacher no more than hold it, the others the rest, half and half."""
    yield _placed(PlacementChoice.turns, gpus, (gpus, 1), (gpus, 1), 1)
    for hosts in range(gpus // 2, 0, -1):
        for share in SHARES:
            yield _placed(PlacementChoice.shared, gpus - hosts, (hosts, 1), (hosts, 1), share)
    for teacher in (split for split in SPLITS if split < gpus - 1):
        rest = gpus - teacher
        for split in SPLITS:
            for actors in range(rest // 2 // split, 0, -1):
                trainers = rest - actors * split
                engines = (actors, split), (1, teacher)
                found = _placed(PlacementChoice.separate, trainers, *engines, teacher)
                yield found
                yield found | {"teacher.gpu_memory_utilization": LARGE_UTILIZATION}


def _placed(
    placement: PlacementChoice,
    ranks: int,
    rollout: tuple[int, int],
    teacher: tuple[int, int],
    teacher_gpus: float,
) -> Values:
    """The keys of a layout; of engines their number, and the GPUs that each is split over."""
    return {
        "cluster.placement": placement,
        "trainer.ranks": ranks,
        "trainer.gpus_per_rank": 1,
        "rollout.actors": rollout[0],
        "rollout.gpus_per_actor": rollout[1],
        "rollout.tensor_parallel_size": rollout[1],
        "teacher.replicas": teacher[0],
        "teacher.gpus_per_replica": teacher_gpus,
        "teacher.tensor_parallel_size": teacher[1],
    }


def _of_whole_student(layout: Values) -> Iterator[Values]:
    """Ways to hold weights and optimizer, the fastest first."""
    several = layout["trainer.ranks"] > 1
    for stage in (2, 3) if several else (1,):
        yield _held(stage)
    for stage in (2, 3) if several else (1,):
        yield _held(stage, optimizer=True)
    yield _held(3, optimizer=True, parameters=True)


def _of_adapter(layout: Values) -> Iterator[Values]:
    """The same where only an adapter is trained, whose optimizer is small.

    An engine that sleeps gets all weights again in turns, so none of them wait in main memory.
    """
    several = layout["trainer.ranks"] > 1
    in_turns = layout["cluster.placement"] is PlacementChoice.turns
    form = LoraForm.merged if in_turns else LoraForm.adapter
    adapter = {"student.lora.rank": RANK, "sync.lora": form}
    for stage in (2, 3) if several else (1,):
        yield _held(stage) | adapter
    yield _held(3, parameters=True) | adapter


def _of_adapter_on_four_bits(layout: Values) -> Iterator[Values]:
    """The same with frozen weights in four bits in the trainers, which are sent and kept alone."""
    yield _held(2 if layout["trainer.ranks"] > 1 else 1) | {
        "student.lora.rank": RANK,
        "student.lora.base": BaseFormat.nf4,
        "student.lora.export": LoraForm.adapter,
        "sync.lora": LoraForm.adapter,
    }


def _held(stage: int, *, optimizer: bool = False, parameters: bool = False) -> Values:
    return {
        "trainer.zero_stage": stage,
        "trainer.gradient_checkpointing": True,
        "trainer.recomputed_layers": None,
        "trainer.offload_optimizer": optimizer,
        "trainer.offload_parameters": parameters,
        "student.lora.rank": 0,
        "student.lora.base": BaseFormat.full,
    }


def _replaced(section: Any, parts: Sequence[str], value: Any) -> Any:
    name, *rest = parts
    inner = _replaced(getattr(section, name), rest, value) if rest else value
    return replace(section, **{name: inner})


def _at(config: Config, key: str) -> Any:
    return reduce(getattr, key.split("."), config)


def _written(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value.value if isinstance(value, Enum) else value)
