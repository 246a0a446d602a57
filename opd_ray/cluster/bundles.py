"""Who is on the same GPU: actors in bundles, which Ray reserves as wholes.

Ray's shares of a GPU are bookkeeping: they bring actors to the same GPU, and limit nothing. What of
its memory each may take follows from :attr:`PlacedActor.gpu_share`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from opd_ray.cluster.placed_actor import PlacedActor
from opd_ray.config.choices import PlacementChoice
from opd_ray.config.schema import ClusterSettings

# Ray counts in ten thousandths of a GPU.
_UNITS = 10_000


@dataclass(frozen=True)
class Bundle:
    """Actors that are on one node, and on one GPU where they have any of it."""

    actors: tuple[PlacedActor, ...]

    @property
    def gpus(self) -> float:
        """Of all of them together."""
        return round(sum(actor.gpus for actor in self.actors), 4)

    def cpus(self, shared: float) -> float:
        """Of all of them together, where one that shares the cores has so many."""
        return sum(actor.cpus or shared for actor in self.actors)

    @property
    def resources(self) -> dict[str, float]:
        """In Ray's names, once all CPUs are filled in."""
        return {"CPU": self.cpus(0.0), **({"GPU": self.gpus} if self.gpus else {})}


def bundled(actors: Sequence[PlacedActor], cluster: ClusterSettings) -> list[PlacedActor]:
    """The actors with their bundles, in the same order.

    ``separate``: each has one of its own. ``turns``: the first of every role together, then the
    second, and so on; each has the whole GPU while it is at work. ``shared``: replica i of a
    teacher is with actor i of its host, and begins again at the first where there are more.
    """
    groups: dict[object, list[int]] = defaultdict(list)
    hosts = sum(actor.role == cluster.teacher_beside.value for actor in actors)
    for number, actor in enumerate(actors):
        place: object = number
        if cluster.placement is PlacementChoice.turns:
            place = actor.index
        elif cluster.placement is PlacementChoice.shared and hosts:
            if actor.role == "teacher":
                place = actor.index % hosts
            elif actor.role == cluster.teacher_beside.value:
                place = actor.index
            else:
                place = actor.name
        groups[place].append(number)
    found = list(actors)
    for bundle, numbers in enumerate(groups.values()):
        together = [actors[number] for number in numbers]
        if cluster.placement is PlacementChoice.turns:
            together = _in_turns(together)
        elif cluster.placement is PlacementChoice.shared:
            together = _side_by_side(together)
        for number, actor in zip(numbers, together, strict=True):
            found[number] = replace(actor, bundle=bundle)
    return found


def bundles_of(actors: Sequence[PlacedActor]) -> list[Bundle]:
    """The bundles that these make, in the order of their first actors."""
    groups: dict[int, list[PlacedActor]] = {}
    for actor in actors:
        groups.setdefault(actor.bundle, []).append(actor)
    return [Bundle(tuple(group)) for group in groups.values()]


def _in_turns(actors: Sequence[PlacedActor]) -> list[PlacedActor]:
    """Each has an equal part of Ray's GPU, and all of its memory when its turn comes."""
    on_gpu = sum(actor.gpus > 0 for actor in actors)
    if on_gpu < 2:
        return list(actors)
    part = _UNITS // on_gpu / _UNITS
    return [replace(actor, gpus=part) if actor.gpus else actor for actor in actors]


def _side_by_side(actors: Sequence[PlacedActor]) -> list[PlacedActor]:
    """The host has what its teachers leave of its GPU."""
    taken = sum(actor.gpus for actor in actors if actor.role == "teacher")
    found = []
    for actor in actors:
        gpus = actor.gpus
        if actor.role != "teacher" and gpus:
            gpus = round(gpus - taken, 4)
        share = gpus if 0 < gpus < 1 else 1.0
        found.append(replace(actor, gpus=gpus, gpu_share=share))
    return found
