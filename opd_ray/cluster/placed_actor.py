"""One actor of a plan, and the keys that a role's section has for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from opd_ray.cluster.memory import MemoryEstimate
from opd_ray.config.teacher import MAIN

Role = Literal["trainer", "rollout", "teacher"]
ROLES: tuple[Role, ...] = ("trainer", "rollout", "teacher")


class Keys(NamedTuple):
    """The keys of a role's section: how many actors there are, and what each reserves."""

    actors: str
    cpus: str
    gpus: str


KEYS: Mapping[Role, Keys] = {
    "trainer": Keys("ranks", "cpus_per_rank", "gpus_per_rank"),
    "rollout": Keys("actors", "cpus_per_actor", "gpus_per_actor"),
    "teacher": Keys("replicas", "cpus_per_replica", "gpus_per_replica"),
}


@dataclass(frozen=True)
class PlacedActor:
    """One actor; before the plan is made it has no node, and what is 0 may be filled in."""

    role: Role
    index: int
    cpus: float  # 0: shares the cores that are there
    gpus: float  # that Ray notes down for it: a share where others are on the same one
    threads: int  # 0: shares its node's cores
    memory: MemoryEstimate | None  # None: the model's shape is not known here
    teacher: str = MAIN  # which one, of a teacher
    node: str = ""  # where the plan expects it; Ray may choose another node with the same room
    bundle: int = -1  # those with the same number are on the same node, and the same GPU
    gpu_share: float = 1.0  # of a GPU's memory, while it is at work

    @property
    def name(self) -> str:
        """E.g. "rollout-0", "teacher-0" or, of a teacher named coder, "teacher-coder-0"."""
        kind = self.role if self.teacher == MAIN else f"{self.role}-{self.teacher}"
        return f"{kind}-{self.index}"

    @property
    def options(self) -> dict[str, float]:
        """Keyword arguments for the Ray actor's ``options``."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}
