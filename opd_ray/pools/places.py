"""The places of a run's actors: what they reserve in the cluster, and each process made there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, replace
from typing import Any, cast

from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.process import (
    BATCH_INVARIANT,
    OPENMP_WAITING,
    REPRODUCIBLE,
    teacher_environment,
    trainer_environment,
    vllm_environment,
)
from actors.rollout.actor import RolloutActor
from actors.run_folder import folder_variables
from actors.teacher.actor import TeacherActor
from actors.trainer.actor import TrainerActor
from opd_ray.cluster.bundles import bundles_of
from opd_ray.cluster.placed_actor import PlacedActor
from opd_ray.config.lora import LoraSettings
from opd_ray.config.schema import Config
from opd_ray.config.teacher import paths_of
from opd_ray.errors import RunError


@dataclass(eq=False)
class Places:
    """Reserved once; a process that follows another is made at the same place.

    Raises:
        RunError: the cluster does not free what they reserve in time.
    """

    config: Config  # settled by the placement (CPUs and threads filled in)
    placed: InitVar[Sequence[PlacedActor]]
    _: KW_ONLY
    vocab_size: int  # real tokens that student and teacher share
    own_topk: int  # k of the teacher's own top-k that a rule of the filter needs; 0: none does
    trains: bool  # whether there are trainers
    in_turns: bool  # whether roles take turns, and sleep in between

    def __post_init__(self, placed: Sequence[PlacedActor]) -> None:
        bundles = bundles_of(placed)
        self._bundles = {a.name: index for index, one in enumerate(bundles) for a in one.actors}
        reserved = [bundle.resources for bundle in bundles]
        self._group = placement_group(reserved, strategy="PACK")
        seconds = self.config.cluster.start_timeout_s
        if not self._group.wait(timeout_seconds=seconds):
            self.release()
            # It has them, as the plan found: no bad input.
            raise RunError(
                f"the cluster did not free {reserved} within cluster.start_timeout_s = "
                f"{seconds:.0f} s; is another job using it?"
            )

    def release(self) -> None:
        """Give back what was reserved."""
        remove_placement_group(self._group)

    def rollout(self, placed: PlacedActor, model_path: str | None = None) -> Any:
        """A rollout actor; with ``model_path`` one that writes with another model."""
        config = self.config
        student = config.student
        if model_path is not None or not self.trains:
            # Nobody brings an adapter to a model that only writes answers.
            path = model_path or student.path
            student = replace(student, path=path, lora=LoraSettings())
        actor = self._at(
            placed,
            RolloutActor,
            vllm_environment(config.rollout.threads),
            {"teacher.path" if model_path else "student.path": student.path},
            engine_gpus=config.rollout.gpus_per_actor,
        )
        environments = config.environment_set
        return actor.remote(
            student,
            config.rollout,
            config.sync,
            self.vocab_size,
            environments if environments.any else None,
            config.run.deterministic,
            sleeps=self.in_turns,
        )

    def teacher(self, placed: PlacedActor, rank: Any = None) -> Any:
        """A teacher's replica; ``rank``: whose model computes its answers, if a trainer's does."""
        teacher = self.config.teacher_set.working[placed.teacher]
        settings = teacher.settings
        actor = self._at(
            placed,
            TeacherActor,
            teacher_environment(settings),
            paths_of(settings, *teacher.models),
            engine_gpus=settings.gpus_per_replica if settings.traits.vllm_engine else 0,
        )
        return actor.remote(
            settings,
            self.vocab_size,
            self.own_topk,
            members=teacher.members,
            support=self.config.support,
            deterministic=self.config.run.deterministic,
            trainer=rank,
            sleeps=self.in_turns,
        )

    def trainer(self, placed: PlacedActor) -> Any:
        """A trainer rank."""
        config = self.config
        actor = self._at(
            placed,
            TrainerActor,
            trainer_environment(config.trainer),
            {"student.path": config.student.path},
        )
        return actor.remote(
            config.student,
            config.trainer,
            config.loss,
            config.sync,
            rank=placed.index,
            vocab_size=self.vocab_size,
            lagged=config.run.lag > 0,
            deterministic=config.run.deterministic,
            seed=config.run.seed,
            gpu_share=placed.gpu_share,
        )

    def _at(
        self,
        placed: PlacedActor,
        actor_class: object,
        environment: dict[str, str],
        paths: Mapping[str, str | None],
        *,
        engine_gpus: float = 0,
    ) -> Any:
        """The actor class with its place in the cluster and its process's environment.

        Args:
            placed: the actor.
            actor_class: its class.
            environment: variables of its process.
            paths: what it reads, by key.
            engine_gpus: of its vLLM engine, if it has one.
        """
        if self.config.run.deterministic:
            environment = environment | REPRODUCIBLE | (BATCH_INVARIANT if engine_gpus else {})
        return cast(Any, actor_class).options(
            **placed.options,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                self._group, placement_group_bundle_index=self._bundles[placed.name]
            ),
            # Stages take turns on the same cores: threads without work must not spin for it.
            runtime_env={"env_vars": {**OPENMP_WAITING, **folder_variables(paths), **environment}},
            # An actor that Ray restarts has lost its state, and nobody would know.
            max_restarts=0,
        )
