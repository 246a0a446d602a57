"""The placement plan: which actor gets which CPUs, GPUs, threads and memory, on which node.

CPUs are Ray's bookkeeping, threads are what a process really uses. The stages alternate: trainers
wait while rollouts and teachers work, and these two overlap. So rollout actors and teacher replicas
of one node share its cores, and trainer ranks of one node divide all of them again: stages that run
at the same time never have more threads than there are cores, on two cores as on two hundred.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from opd_ray.cluster.memory import (
    MemoryEstimate,
    head_shapes,
    judge_memory,
    rollout_memory,
    trainer_memory,
)
from opd_ray.cluster.nodes import Cluster, Node, gigabytes
from opd_ray.config.resolved_teachers import WorkingTeacher
from opd_ray.config.schema import Config
from opd_ray.config.teacher import MAIN
from opd_ray.errors import PlacementError
from opd_ray.models.shape import ModelShape

Role = Literal["trainer", "rollout", "teacher"]
ROLES: tuple[Role, ...] = ("trainer", "rollout", "teacher")

_COUNT_KEY = {
    "trainer": "trainer.ranks",
    "rollout": "rollout.actors",
    "teacher": "teacher.replicas",
}
_CPUS_KEY: dict[Role, str] = {
    "trainer": "trainer.cpus_per_rank",
    "rollout": "rollout.cpus_per_actor",
    "teacher": "teacher.cpus_per_replica",
}
_GPUS_KEY: dict[Role, str] = {role: key.replace("cpus", "gpus") for role, key in _CPUS_KEY.items()}
_EPSILON = 1e-6


@dataclass(frozen=True)
class Need:
    """What one actor asks for; ``cpus`` 0 shares the cores that are there."""

    role: Role
    index: int
    cpus: float
    gpus: float
    teacher: str = MAIN  # which one, of a teacher


@dataclass(frozen=True)
class PlacedActor:
    """One actor of the plan."""

    role: Role
    index: int
    node: str  # where the plan expects it; Ray may choose another node with the same room
    cpus: float
    gpus: float
    threads: int
    memory: MemoryEstimate | None  # None: the model's shape is not known here
    teacher: str = MAIN  # which one, of a teacher

    @property
    def name(self) -> str:
        """E.g. "rollout-0", "teacher-0" or, of a teacher named coder, "teacher-coder-0"."""
        kind = self.role if self.teacher == MAIN else f"{self.role}-{self.teacher}"
        return f"{kind}-{self.index}"

    @property
    def bundle(self) -> dict[str, float]:
        """Its resources in Ray's names."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}

    @property
    def options(self) -> dict[str, float]:
        """Keyword arguments for the Ray actor's ``options``."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}


@dataclass(frozen=True)
class Placement:
    """All actors: trainers, then rollouts, then teachers."""

    actors: tuple[PlacedActor, ...]
    cluster: Cluster

    def of(self, role: Role) -> list[PlacedActor]:
        """Every actor of a role, in the order of their numbers."""
        return [actor for actor in self.actors if actor.role == role]

    def settle(self, config: Config) -> Config:
        """The config with the CPUs and threads of this plan in place of every 0.

        Where nodes differ, a role's threads are those of its smallest share.
        """
        settled = {}
        for role, cpus_key in _CPUS_KEY.items():
            if role == "teacher":
                continue
            actors = self.of(role)
            if not actors:
                continue
            settled[role] = replace(
                getattr(config, role),
                threads=min(actor.threads for actor in actors),
                **{cpus_key.partition(".")[2]: actors[0].cpus},
            )
        teachers: dict[str, dict[str, float]] = {}
        for actor in self.of("teacher"):
            own = teachers.setdefault(
                actor.teacher, {"threads": actor.threads, "cpus_per_replica": actor.cpus}
            )
            own["threads"] = min(own["threads"], actor.threads)
        run = replace(config, **settled)
        return run.with_teachers(run.teacher_set.placed(teachers)) if teachers else run

    def unknown_gpu_memory(self) -> list[str]:
        """Nodes with actors on GPUs of which nobody knows how much memory they have."""
        used = {actor.node for actor in self.actors if actor.gpus}
        nodes = self.cluster.nodes
        return [n.name for n in nodes if n.name in used and n.gpu_memory_bytes is None]

    def render(self) -> str:
        """The plan as a table."""
        head = ("actor", "node", "CPUs", "GPUs", "threads", "memory", "GPU memory")
        rows = [head, *(_row(actor) for actor in self.actors)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )


def plan_placement(
    config: Config,
    cluster: Cluster,
    student: ModelShape | None = None,
    teachers: Mapping[str, ModelShape] | None = None,
    roles: Sequence[Role] = ROLES,
) -> Placement:
    """Place every actor of a run, or those of the given roles.

    The shapes of student and teachers (by path), where known, give the memory estimates. Raises
    PlacementError that names the key to change when the actors do not fit.
    """
    shapes = teachers or {}
    working = config.teacher_set.working if "teacher" in roles else {}
    needs = [need for need in _needs(config, working) if need.role in roles]
    for role in roles:
        count = sum(need.role == role and not need.gpus for need in needs)
        if count > cluster.cpus:
            raise PlacementError(
                f"{_COUNT_KEY[role]} = {count}: more than the {cluster.cpus:g} CPUs there are; "
                f"use at most {int(cluster.cpus)}, or GPUs ({_GPUS_KEY[role]})"
            )
    shared, nodes = _fit(needs, cluster)
    together = Counter(
        (node, _overlaps(need.role)) for need, node in zip(needs, nodes, strict=True)
    )
    memory: dict[Role, MemoryEstimate] = {}
    if student is not None:
        memory["trainer"] = trainer_memory(config, student, head_shapes(config, shapes))
        memory["rollout"] = rollout_memory(config, student)
    judges = {name: judge_memory(config, teacher, shapes) for name, teacher in working.items()}
    threads: dict[Role, int] = {
        "trainer": config.trainer.threads,
        "rollout": config.rollout.threads,
    }

    def asked_threads(need: Need) -> int:
        if need.role == "teacher":
            return working[need.teacher].settings.threads
        return threads[need.role]

    actors = [
        PlacedActor(
            need.role,
            need.index,
            node.name,
            need.cpus or shared,
            need.gpus,
            asked_threads(need) or max(1, node.cores // together[node, _overlaps(need.role)]),
            judges[need.teacher] if need.role == "teacher" else memory.get(need.role),
            need.teacher,
        )
        for need, node in zip(needs, nodes, strict=True)
    ]
    return Placement(tuple(actors), cluster)


def _needs(config: Config, working: Mapping[str, WorkingTeacher]) -> list[Need]:
    rollout, trainer = config.rollout, config.trainer
    return [
        *(
            Need("trainer", rank, trainer.cpus_per_rank, trainer.gpus_per_rank)
            for rank in range(trainer.ranks)
        ),
        *(
            Need("rollout", index, rollout.cpus_per_actor, rollout.gpus_per_actor)
            for index in range(rollout.actors)
        ),
        *(
            Need("teacher", index, settings.cpus_per_replica, settings.gpus_per_replica, name)
            for name, settings in ((name, one.settings) for name, one in working.items())
            for index in range(settings.replicas)
        ),
    ]


def _overlaps(role: Role) -> bool:
    """Rollouts and teachers work at the same time; trainers only when both are done."""
    return role != "trainer"


def _fit(needs: list[Need], cluster: Cluster) -> tuple[float, list[Node]]:
    """CPUs of an actor that shares (1; 1/2, 1/3... where cores are few), and every actor's node."""
    for sharers in range(1, len(needs) + 1):
        shared = int(100 / sharers) / 100
        nodes = _first_fit(needs, shared, cluster)
        if nodes is not None:
            return shared, nodes
    raise PlacementError(_why_not(needs, cluster))


def _first_fit(needs: list[Need], shared: float, cluster: Cluster) -> list[Node] | None:
    free = {node: [float(node.cpus), float(node.gpus)] for node in cluster.nodes}
    placed: dict[Need, Node] = {}
    for need in sorted(needs, key=lambda need: -need.gpus):
        cpus = need.cpus or shared
        for node, room in free.items():
            if room[0] + _EPSILON >= cpus and room[1] + _EPSILON >= need.gpus:
                room[0] -= cpus
                room[1] -= need.gpus
                placed[need] = node
                break
        else:
            return None
    return [placed[need] for need in needs]


def _why_not(needs: list[Need], cluster: Cluster) -> str:
    for what, keys, there in (
        ("GPUs", _GPUS_KEY, cluster.gpus),
        ("CPUs", _CPUS_KEY, cluster.cpus),
    ):
        asked = [(need.role, need.gpus if what == "GPUs" else need.cpus) for need in needs]
        total = sum(amount for _, amount in asked)
        if total > there + _EPSILON:
            counts = Counter((role, amount) for role, amount in asked if amount)
            sums = " + ".join(
                f"{count} x {keys[role]} {amount:g}" for (role, amount), count in counts.items()
            )
            hint = "" if what == "GPUs" else "; 0 shares the CPUs that are there"
            return (
                f"{sums} = {total:g} {what}, the cluster has {there:g}: "
                f"lower {', '.join(dict.fromkeys(keys[role] for role, _ in counts))} or "
                f"{', '.join(dict.fromkeys(_COUNT_KEY[role] for role, _ in counts))}{hint}"
            )
    largest = max(needs, key=lambda need: (need.gpus, need.cpus))
    rooms = ", ".join(f"{node.name}: {node.cpus:g} CPUs {node.gpus} GPUs" for node in cluster.nodes)
    return (
        f"{_GPUS_KEY[largest.role]} = {largest.gpus:g} with {_CPUS_KEY[largest.role]} = "
        f"{largest.cpus:g} finds no node with that much room beside the other actors ({rooms}): "
        "an actor lies on one node, so lower these or add nodes"
    )


def _row(actor: PlacedActor) -> tuple[str, ...]:
    memory = actor.memory
    return (
        actor.name,
        actor.node,
        f"{actor.cpus:g}",
        f"{actor.gpus:g}",
        str(actor.threads),
        gigabytes(memory.host_bytes) if memory else "unknown",
        gigabytes(memory.device_bytes) if memory and memory.device else "-",
    )
