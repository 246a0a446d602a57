"""Room on nodes for bundles of actors, and what to change where there is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from opd_ray.cluster.bundles import Bundle, bundles_of
from opd_ray.cluster.nodes import Cluster, Node
from opd_ray.cluster.placed_actor import KEYS, PlacedActor
from opd_ray.errors import PlacementError

_EPSILON = 1e-6


def fit(actors: Sequence[PlacedActor], cluster: Cluster) -> tuple[float, dict[int, Node]]:
    """CPUs of an actor that shares (1; 1/2, 1/3... where cores are few), and every bundle's node.

    Raises:
        PlacementError: there is no room; names the key to change.
    """
    bundles = bundles_of(actors)
    for sharers in range(1, len(actors) + 1):
        shared = int(100 / sharers) / 100
        nodes = _first_fit(bundles, shared, cluster)
        if nodes is not None:
            return shared, nodes
    raise PlacementError(_why_not(actors, cluster))


def _first_fit(
    bundles: Sequence[Bundle], shared: float, cluster: Cluster
) -> dict[int, Node] | None:
    """A node for every bundle, or None if there is no room with so many CPUs of a sharer."""
    free = {node: [float(node.cpus), float(node.gpus)] for node in cluster.nodes}
    nodes: dict[int, Node] = {}
    for bundle in sorted(bundles, key=lambda bundle: -bundle.gpus):
        cpus = bundle.cpus(shared)
        for node, room in free.items():
            if room[0] + _EPSILON >= cpus and room[1] + _EPSILON >= bundle.gpus:
                room[0] -= cpus
                room[1] -= bundle.gpus
                nodes[bundle.actors[0].bundle] = node
                break
        else:
            return None
    return nodes


def _why_not(actors: Sequence[PlacedActor], cluster: Cluster) -> str:
    for what, name, there, hint in (
        ("gpus", "GPUs", cluster.gpus, "; opd-ray doctor --budget tells what fits"),
        ("cpus", "CPUs", cluster.cpus, "; 0 shares the CPUs that are there"),
    ):
        asked = [(actor.role, getattr(actor, what)) for actor in actors]
        total = sum(amount for _, amount in asked)
        if total > there + _EPSILON:
            counts = Counter((role, amount) for role, amount in asked if amount)
            keys = {role: f"{role}.{getattr(KEYS[role], what)}" for role, _ in counts}
            sums = " + ".join(
                f"{count} x {keys[role]} {amount:g}" for (role, amount), count in counts.items()
            )
            lower = ", ".join(keys.values())
            fewer = ", ".join(f"{role}.{KEYS[role].actors}" for role in keys)
            return (
                f"{sums} = {total:g} {name}, the cluster has {there:g}: lower {lower} "
                f"or {fewer}{hint}"
            )
    largest = max(actors, key=lambda actor: (actor.gpus, actor.cpus))
    role, own = largest.role, KEYS[largest.role]
    rooms = ", ".join(f"{node.name}: {node.cpus:g} CPUs {node.gpus} GPUs" for node in cluster.nodes)
    return (
        f"{role}.{own.gpus} = {largest.gpus:g} with {role}.{own.cpus} = {largest.cpus:g} finds "
        f"no node with that much room beside the other actors ({rooms}): "
        "an actor lies on one node, so lower these or add nodes"
    )
