"""Ray for the time of a run: started here, or joined where it runs already."""

from __future__ import annotations

import logging
import socket
from typing import Any

import ray

from opd_ray.cluster.nodes import Cluster, from_ray_nodes
from opd_ray.config.schema import ClusterSettings
from opd_ray.errors import PlacementError
from opd_ray.signals import unheard_below

# Seconds to wait for an answer at the cluster's address: Ray itself would try for minutes.
_CONNECT_SECONDS = 5.0


class RaySession:
    """Use as a context manager; leaving it disconnects, and ends a Ray that was started here.

    Raises:
        PlacementError: no Ray answers at ``cluster.address``.
    """

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = settings

    def __enter__(self) -> RaySession:
        address = self._settings.address
        if address is not None:
            _check_answer(address)
            try:
                self._init(address=address)
            except ConnectionError as error:
                raise _unreachable(address, error) from error
            return self
        try:
            self._start()
        except Exception as error:
            # Ray gives its own processes 30 s and raises a plain Exception: too little on a
            # machine that is busy for a moment.
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            self._start()
        return self

    def _start(self) -> None:
        self._init(
            # An address in the environment would turn this into joining.
            address="local",
            num_cpus=self._settings.num_cpus,
            object_store_memory=self._settings.object_store_bytes,
            include_dashboard=False,
        )

    def _init(self, **options: Any) -> None:
        shown = self._settings.show_actor_logs
        with unheard_below():  # actors have to live until their checkpoint is written
            ray.init(logging_level=logging.ERROR, log_to_driver=shown, **options)

    def cluster(self) -> Cluster:
        """What the nodes offer."""
        return from_ray_nodes(ray.nodes())

    def __exit__(self, *raised: object) -> None:
        ray.shutdown()


def _check_answer(address: str) -> None:
    """Refuse a HOST:PORT (or ray://HOST:PORT) at which nothing listens."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon:
        return  # "auto"
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str, error: Exception) -> PlacementError:
    return PlacementError(
        f"cluster.address = {address!r}: no Ray answers there ({error}); start one with "
        "`ray start --head`, or leave the key out to start one for this run"
    )
