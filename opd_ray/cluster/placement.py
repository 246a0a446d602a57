"""The placement plan: which actor gets which CPUs, GPUs, threads and memory, on which node.

CPUs are Ray's bookkeeping, threads are what a process really uses. The stages alternate: trainers
wait while rollouts and teachers work, and these two overlap. So rollout actors and teacher replicas
of one node share its cores, and trainer ranks of one node divide all of them again: stages that run
at the same time never have more threads than there are cores, on two cores as on two hundred. With
``run.lag`` trainers work while the next rollouts are written, and share the cores too. Where those
that work at the same time have more threads than there are cores all the same, as the configuration
says so or as each has one at least, a teacher waits for the end of the writing. Where roles take
turns (``cluster.placement``), each has all cores when its turn comes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from opd_ray.cluster.bundles import bundled
from opd_ray.cluster.fit import fit
from opd_ray.cluster.memory import MemoryEstimate, judge_memory, rollout_memory
from opd_ray.cluster.nodes import Cluster, gigabytes
from opd_ray.cluster.placed_actor import KEYS, ROLES, PlacedActor, Role
from opd_ray.cluster.trainer_memory import head_shapes, trainer_memory
from opd_ray.config.choices import PlacementChoice, TeacherTiming
from opd_ray.config.schema import Config
from opd_ray.config.teacher import MAIN
from opd_ray.errors import PlacementError
from opd_ray.models.shape import ModelShape


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
                KEYS[role].cpus: actors[0].cpus,
            }
            if role == "rollout" and config.rollout.gpus_per_actor:
                share = min(actor.gpu_share for actor in actors)
                filled["gpu_memory_utilization"] = config.rollout.gpu_memory_utilization * share
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
        if config.cluster.placement is PlacementChoice.turns and not settings.traits.asks_others:
            return TeacherTiming.after_writing
        # The ranks that compute its answers, or its own replicas.
        asks_trainers = config.asks_trainers(settings)
        computing = ("trainer", MAIN) if asks_trainers else ("teacher", teacher)
        on_gpus = config.trainer.gpus_per_rank if asks_trainers else settings.gpus_per_replica
        crowded = self._crowded_nodes(config, ranks_score=asks_trainers)
        if not (settings.traits.asks_others or on_gpus or config.run.overlap):
            for actor in self.actors:
                if (actor.role, actor.teacher) == computing and actor.node in crowded:
                    return TeacherTiming.after_writing
        return TeacherTiming.streaming

    def _crowded_nodes(self, config: Config, *, ranks_score: bool) -> set[str]:
        """Nodes that write on CPUs and compute there with more threads than cores meanwhile.

        ``ranks_score``: trainers do, as a teacher's answers are theirs.
        """
        roles = _beside_writing(config) | ({"trainer"} if ranks_score else set())
        threads = Counter[str]()
        writers = set()
        for actor in self.actors:
            if actor.role in roles and not actor.gpus and _computes(config, actor):
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
                f"{role}.{KEYS[role].actors} = {count}: more than the {cluster.cpus:g} CPUs there "
                f"are; use at most {int(cluster.cpus)}, or GPUs ({role}.{KEYS[role].gpus})"
            )
    actors = bundled(actors, config.cluster)
    shared, nodes = fit(actors, cluster)
    at_once = _roles_at_once(config)
    together = Counter((nodes[actor.bundle], at_once[actor.role]) for actor in actors)
    placed = []
    for actor in actors:
        node = nodes[actor.bundle]
        sharers = together[node, at_once[actor.role]]
        memory = actor.memory
        if memory and actor.role != "teacher":  # of whom the estimate knows the share
            memory = replace(memory, gpu_share=memory.gpu_share * actor.gpu_share)
        threads = actor.threads or max(1, node.cores // sharers)
        cpus = actor.cpus or shared
        placed.append(replace(actor, node=node.name, cpus=cpus, threads=threads, memory=memory))
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
    number, cpus, gpus = (getattr(settings, key) for key in KEYS[role])
    return [
        PlacedActor(role, index, cpus, gpus, settings.threads, memory, teacher)
        for index in range(number)
    ]


def _computes(config: Config, actor: PlacedActor) -> bool:
    """Whether it does itself what it is there for; a teacher's replica may only ask others."""
    if actor.role != "teacher":
        return True
    settings = config.teacher_set.working[actor.teacher].settings
    return not (settings.traits.asks_others or config.asks_trainers(settings))


def _roles_at_once(config: Config) -> Mapping[Role, frozenset[Role]]:
    """With whom each role works at the same time, itself among them."""
    if config.cluster.placement is PlacementChoice.turns:
        return {role: frozenset({role}) for role in ROLES}
    writing = _beside_writing(config)
    return {role: writing if role in writing else frozenset({role}) for role in ROLES}


def _beside_writing(config: Config) -> frozenset[Role]:
    """Who works while rollouts are written: trainers only with lag."""
    return frozenset(role for role in ROLES if role != "trainer" or config.run.lag > 0)


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
