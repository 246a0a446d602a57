"""Ray for the time of a run: started here, or joined where it runs already."""

from __future__ import annotations

import logging
from types import TracebackType

import ray

from opd_ray.cluster import Cluster, from_ray_nodes
from opd_ray.config.schema import ClusterSettings
from opd_ray.errors import PlacementError


class RaySession:
    """Use as a context manager; leaving it disconnects, and ends a Ray that was started here.

    Raises:
        PlacementError: no Ray answers at ``cluster.address``.
    """

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = settings

    def __enter__(self) -> RaySession:
        settings = self._settings
        local = settings.address is None
        try:
            ray.init(
                address=settings.address,
                # Counts of an existing cluster are its own.
                num_cpus=settings.num_cpus if local else None,
                object_store_memory=settings.object_store_bytes if local else None,
                include_dashboard=False if local else None,
                logging_level=logging.WARNING,
                log_to_driver=True,
            )
        except ConnectionError as error:
            raise PlacementError(
                f"cluster.address = {settings.address!r}: no Ray answers there ({error}); start "
                "one with `ray start --head`, or leave the key out to start one for this run"
            ) from error
        return self

    def cluster(self) -> Cluster:
        """What the nodes offer."""
        return from_ray_nodes(ray.nodes())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        ray.shutdown()
