"""The placement plan: which actor gets which CPUs, GPUs, threads and memory, on which node.

CPUs are Ray's bookkeeping, threads are what a process really uses. The stages alternate: trainers
wait while rollouts and teachers work, and these two overlap. So rollout actors and teacher replicas
of one node share its cores, and trainer ranks of one node divide all of them again: stages that run
at the same time never have more threads than there are cores, on two cores as on two hundred. With
``run.lag`` trainers work while the next rollouts are written, and share the cores too. Where those
that work at the same time have more threads than there are cores all the same, as the configuration
says so or as each has one at least, a teacher waits for the end of the writing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from opd_ray.cluster.memory import (
    MemoryEstimate,
    head_shapes,
    judge_memory,
    rollout_memory,
    trainer_memory,
)
from opd_ray.cluster.nodes import Cluster, Node, gigabytes
from opd_ray.config.choices import TeacherTiming
from opd_ray.config.schema import Config
from opd_ray.config.teacher import MAIN
from opd_ray.errors import PlacementError
from opd_ray.models.shape import ModelShape

Role = Literal["trainer", "rollout", "teacher"]
ROLES: tuple[Role, ...] = ("trainer", "rollout", "teacher")


class _Keys(NamedTuple):
    """The keys of a role's section: how many actors there are, and what each reserves."""

    actors: str
    cpus: str
    gpus: str


_KEYS: Mapping[Role, _Keys] = {
    "trainer": _Keys("ranks", "cpus_per_rank", "gpus_per_rank"),
    "rollout": _Keys("actors", "cpus_per_actor", "gpus_per_actor"),
    "teacher": _Keys("replicas", "cpus_per_replica", "gpus_per_replica"),
}
_EPSILON = 1e-6


@dataclass(frozen=True)
class PlacedActor:
    """One actor; before the plan is made it has no node, and what is 0 may be filled in."""

    role: Role
    index: int
    cpus: float  # 0: shares the cores that are there
    gpus: float
    threads: int  # 0: shares its node's cores
    memory: MemoryEstimate | None  # None: the model's shape is not known here
    teacher: str = MAIN  # which one, of a teacher
    node: str = ""  # where the plan expects it; Ray may choose another node with the same room

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

    def settle(self, config: Config) -> Config:
        """The config with the CPUs and threads of this plan in place of every 0.

        Where nodes differ, a role's threads are those of its smallest share. A teacher whose
        ``when`` is null gets what it stands for.
        """
        groups: dict[tuple[Role, str], list[PlacedActor]] = {}
        for actor in self.actors:
            groups.setdefault((actor.role, actor.teacher), []).append(actor)
        sections: dict[str, Any] = {}
        teachers: dict[str, dict[str, Any]] = {}
        for (role, teacher), actors in groups.items():
            filled: dict[str, Any] = {
                "threads": min(actor.threads for actor in actors),
                _KEYS[role].cpus: actors[0].cpus,
            }
            if role == "teacher":
                teachers[teacher] = filled | {"when": self._when(config, teacher)}
            else:
                sections[role] = replace(getattr(config, role), **filled)
        run = replace(config, **sections)
        return run.with_teachers(run.teacher_set.placed(teachers)) if teachers else run

    def _when(self, config: Config, teacher: str) -> TeacherTiming:
        """When a teacher is to score."""
        settings = config.teacher_set.working[teacher].settings
        if settings.when is not None:
            return settings.when
        traits = settings.traits
        computes = not (traits.asks_server or traits.asks_cluster or settings.gpus_per_replica)
        crowded = self._crowded_nodes(config)
        if computes and not config.run.overlap:
            for actor in self.actors:
                if (actor.role, actor.teacher) == ("teacher", teacher) and actor.node in crowded:
                    return TeacherTiming.after_writing
        return TeacherTiming.streaming

    def _crowded_nodes(self, config: Config) -> set[str]:
        """Nodes that write on CPUs and compute there with more threads than cores meanwhile."""
        threads = Counter[str]()
        writers = set()
        for actor in self.actors:
            if _overlaps(actor.role, config) and not actor.gpus:
                threads[actor.node] += actor.threads
                if actor.role == "rollout":
                    writers.add(actor.node)
        return {
            n.name for n in self.cluster.nodes if n.name in writers and threads[n.name] > n.cores
        }

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

    The shapes of student and teachers (by path), where known, give the memory estimates.

    Raises:
        PlacementError: the actors do not fit; names the key to change.
    """
    actors = _unplaced(config, student, teachers or {}, roles)
    for role in roles:
        count = sum(actor.role == role and not actor.gpus for actor in actors)
        if count > cluster.cpus:
            raise PlacementError(
                f"{role}.{_KEYS[role].actors} = {count}: more than the {cluster.cpus:g} CPUs there "
                f"are; use at most {int(cluster.cpus)}, or GPUs ({role}.{_KEYS[role].gpus})"
            )
    shared, nodes = _fit(actors, cluster)
    together = Counter((nodes[actor.name], _overlaps(actor.role, config)) for actor in actors)
    placed = []
    for actor in actors:
        node = nodes[actor.name]
        sharers = together[node, _overlaps(actor.role, config)]
        threads = actor.threads or max(1, node.cores // sharers)
        cpus = actor.cpus or shared
        placed.append(replace(actor, node=node.name, cpus=cpus, threads=threads))
    return Placement(tuple(placed), cluster)


def _unplaced(
    config: Config,
    student: ModelShape | None,
    shapes: Mapping[str, ModelShape],
    roles: Sequence[Role],
) -> list[PlacedActor]:
    """The actors that the config asks for."""
    actors: list[PlacedActor] = []
    if "trainer" in roles:
        heads = head_shapes(config, shapes)
        memory = trainer_memory(config, student, heads) if student else None
        actors += _of_section("trainer", config.trainer, memory)
    if "rollout" in roles:
        memory = rollout_memory(config, student) if student else None
        actors += _of_section("rollout", config.rollout, memory)
    if "teacher" in roles:
        for name, teacher in config.teacher_set.working.items():
            memory = judge_memory(config, teacher, shapes)
            actors += _of_section("teacher", teacher.settings, memory, name)
    return actors


def _of_section(
    role: Role, settings: Any, memory: MemoryEstimate | None, teacher: str = MAIN
) -> list[PlacedActor]:
    number, cpus, gpus = (getattr(settings, key) for key in _KEYS[role])
    return [
        PlacedActor(role, index, cpus, gpus, settings.threads, memory, teacher)
        for index in range(number)
    ]


def _overlaps(role: Role, config: Config) -> bool:
    """Whether it works while rollouts are written: of trainers only with lag."""
    return role != "trainer" or config.run.lag > 0


def _fit(actors: Sequence[PlacedActor], cluster: Cluster) -> tuple[float, dict[str, Node]]:
    """CPUs of an actor that shares (1; 1/2, 1/3... where cores are few), and every actor's node."""
    for sharers in range(1, len(actors) + 1):
        shared = int(100 / sharers) / 100
        nodes = _first_fit(actors, shared, cluster)
        if nodes is not None:
            return shared, nodes
    raise PlacementError(_why_not(actors, cluster))


def _first_fit(
    actors: Sequence[PlacedActor], shared: float, cluster: Cluster
) -> dict[str, Node] | None:
    """A node for every actor by name, or None if there is no room with so many CPUs of a sharer."""
    free = {node: [float(node.cpus), float(node.gpus)] for node in cluster.nodes}
    nodes: dict[str, Node] = {}
    for actor in sorted(actors, key=lambda actor: -actor.gpus):
        cpus = actor.cpus or shared
        for node, room in free.items():
            if room[0] + _EPSILON >= cpus and room[1] + _EPSILON >= actor.gpus:
                room[0] -= cpus
                room[1] -= actor.gpus
                nodes[actor.name] = node
                break
        else:
            return None
    return nodes


def _why_not(actors: Sequence[PlacedActor], cluster: Cluster) -> str:
    for what, name, there, hint in (
        ("gpus", "GPUs", cluster.gpus, ""),
        ("cpus", "CPUs", cluster.cpus, "; 0 shares the CPUs that are there"),
    ):
        asked = [(actor.role, getattr(actor, what)) for actor in actors]
        total = sum(amount for _, amount in asked)
        if total > there + _EPSILON:
            counts = Counter((role, amount) for role, amount in asked if amount)
            keys = {role: f"{role}.{getattr(_KEYS[role], what)}" for role, _ in counts}
            sums = " + ".join(
                f"{count} x {keys[role]} {amount:g}" for (role, amount), count in counts.items()
            )
            lower = ", ".join(keys.values())
            fewer = ", ".join(f"{role}.{_KEYS[role].actors}" for role in keys)
            return (
                f"{sums} = {total:g} {name}, the cluster has {there:g}: lower {lower} "
                f"or {fewer}{hint}"
            )
    largest = max(actors, key=lambda actor: (actor.gpus, actor.cpus))
    role, own = largest.role, _KEYS[largest.role]
    rooms = ", ".join(f"{node.name}: {node.cpus:g} CPUs {node.gpus} GPUs" for node in cluster.nodes)
    return (
        f"{role}.{own.gpus} = {largest.gpus:g} with {role}.{own.cpus} = {largest.cpus:g} finds "
        f"no node with that much room beside the other actors ({rooms}): "
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
