"""What a run of the pipeline benchmark stands on: configuration, prompts, Ray and its actors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import ray
from pipeline_profiles import Profile
from waiting_actor import VOCAB_SIZE, Diary
from waiting_rollout import WaitingRollout
from waiting_teacher import WaitingTeacher
from waiting_trainer import WaitingTrainer

from opd_ray.cluster.placement import ROLES, PlacedActor, Role
from opd_ray.config.load import load_config
from opd_ray.config.schema import Config, RunSettings
from opd_ray.data.prompt_set import PromptsIdentity
from opd_ray.data.prompts import Prompt
from opd_ray.environments.by_source import NO_ENVIRONMENTS
from opd_ray.pools.launch import ActorLauncher
from opd_ray.pools.places import Places

# What each mode sets; a program that does not know the key cannot run the mode.
_MODES: Mapping[str, tuple[str, ...]] = {
    "synchronous": (),
    "overlap": ("run.overlap=true",),
    "lag": ("run.lag=1",),
}


def modes() -> list[str]:
    """The modes that this version has."""
    known = {f"run.{key.name}" for key in fields(RunSettings)}
    return [mode for mode, keys in _MODES.items() if {key.split("=")[0] for key in keys} <= known]


@dataclass(frozen=True)
class Placement:
    """Where a recipe puts its roles, and how often."""

    recipe: str  # its file in configs
    times: int  # as many of every role, and as many prompts a step, as the recipe has

    def config(self, profile: Profile, scale: int, steps: int, mode: str) -> Config:
        """The recipe's configuration, with the profile's batch and 1 token in place of ``scale``.

        Args:
            profile: that is put in its place.
            scale: tokens that one stands for.
            steps: of the run.
            mode: one of :func:`modes`.
        """
        recipe = load_config(self.recipe)
        rollout, teacher, trainer = recipe.rollout, recipe.teacher, recipe.trainer
        most = profile.lengths.most
        settings = {
            "run.steps": steps,
            "run.checkpoint_every": 0,
            "student.context_length": (profile.prompt_tokens + most) // scale + 2,
            "environment.path": "null",
            "rollout.actors": rollout.actors * self.times,
            "rollout.prompts_per_step": profile.prompts_per_step * self.times,
            "rollout.samples_per_prompt": profile.samples_per_prompt,
            "rollout.max_new_tokens": max(1, round(most / scale)),
            "teacher.replicas": teacher.replicas * self.times,
            "teacher.batch_tokens": max(1, teacher.batch_tokens // scale),
            "trainer.ranks": trainer.ranks * self.times,
            "trainer.micro_batch_tokens": max(1, trainer.micro_batch_tokens // scale),
            # Overlap needs it, and all modes are to choose the same tokens.
            "tip.normalise_over": "rollout",
            "eval.every": 0,
            "eval.tasks": "[]",
            "eval.kl_prompts": 0,
        }
        return load_config(
            self.recipe, [*(f"{key}={value}" for key, value in settings.items()), *_MODES[mode]]
        )


def gpus(config: Config) -> dict[Role, int]:
    """GPUs of each role."""
    return {
        "trainer": config.trainer.ranks * int(config.trainer.gpus_per_rank),
        "rollout": config.rollout.actors * config.rollout.gpus_per_actor,
        "teacher": config.teacher.replicas * int(config.teacher.gpus_per_replica),
    }


@dataclass(frozen=True)
class Prompts:
    """A feed of prompts without texts, as the coordinator asks for it."""

    tokens: int
    environments: Any = NO_ENVIRONMENTS
    identity: Any = field(default_factory=lambda: PromptsIdentity(0, ""))

    def batch(self, step: int, size: int) -> list[Prompt]:
        """The prompts of a step, from 0."""
        found = []
        for number in range(step * size, (step + 1) * size):
            ids = np.random.default_rng(number).integers(
                VOCAB_SIZE, size=self.tokens, dtype=np.int32
            )
            found.append(Prompt(str(number), ids, ids))
        return found

    def taken(self, step: int, size: int) -> list[list[int]]:
        return [[step, size]]


@dataclass(eq=False)
class WaitingPlaces(Places):
    """Waiting actors at the places of the real ones."""

    profile: Profile = field(kw_only=True)
    scale: int = field(kw_only=True)
    handles: dict[str, Any] = field(default_factory=dict, kw_only=True)  # by name
    of_role: dict[str, Role] = field(default_factory=dict, kw_only=True)  # by name

    def rollout(self, placed: PlacedActor, model_path: str | None = None) -> Any:
        return self._waiting(placed, WaitingRollout)

    def teacher(self, placed: PlacedActor, rank: Any = None) -> Any:
        return self._waiting(placed, WaitingTeacher)

    def trainer(self, placed: PlacedActor) -> Any:
        return self._waiting(placed, WaitingTrainer)

    def _waiting(self, placed: PlacedActor, actor_class: object) -> Any:
        here = str(Path(__file__).parent)
        path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
        actor = self._at(placed, actor_class, {"PYTHONPATH": path}, {})
        handle = actor.remote(self.profile, self.scale, placed.gpus)
        self.handles[placed.name], self.of_role[placed.name] = handle, placed.role
        return handle


@dataclass(eq=False)
class WaitingLauncher(ActorLauncher):
    """Starts waiting actors in place of the real ones."""

    profile: Profile = field(kw_only=True)
    scale: int = field(kw_only=True)

    def _reserve(self, placed: Sequence[PlacedActor]) -> WaitingPlaces:
        self._waiting = WaitingPlaces(
            self.config,
            placed,
            vocab_size=self.vocab_size,
            own_topk=self.own_topk,
            trains=True,
            in_turns=False,
            profile=self.profile,
            scale=self.scale,
        )
        return self._waiting

    def diaries(self) -> dict[Role, list[Diary]]:
        """What the actors did since they were last asked."""
        handles, of_role = self._waiting.handles, self._waiting.of_role
        asked = [(handle.diary.remote(), name) for name, handle in handles.items()]
        found: dict[Role, list[Diary]] = {role: [] for role in ROLES}
        for name, diary in zip(handles, self.watch.get_all(asked), strict=True):
            found[of_role[name]].append(diary)
        return found


@contextmanager
def local_ray(gpus: int) -> Iterator[None]:
    """A Ray whose GPUs are names only."""
    ray.init(
        address="local",
        num_cpus=len(os.sched_getaffinity(0)),
        num_gpus=gpus,
        include_dashboard=False,
        object_store_memory=1 << 29,
        logging_level="ERROR",
        log_to_driver=False,
        # All actors of a run come up at once, more than there are cores to start them in time.
        _system_config={
            "worker_maximum_startup_concurrency": 2 * gpus,
            "worker_register_timeout_seconds": 600,
        },
    )
    try:
        yield
    finally:
        ray.shutdown()
