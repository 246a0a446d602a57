"""Ray for the time of a run: started here, joined where it runs already, or the caller's own."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import ray
from ray._private import ray_constants

from opd_ray.borders import first_line
from opd_ray.cluster.local_ray import local_ray_problems, token_for_this_run
from opd_ray.cluster.nodes import Cluster, from_ray_nodes
from opd_ray.cluster.ray_address import check_answer, named_address, not_joined, token_source
from opd_ray.cluster.ray_guard import RayGuard, end_program, gcs_seconds
from opd_ray.config.schema import ClusterSettings
from opd_ray.errors import PlacementError, RunError
from opd_ray.signals import unheard_below

LOOPBACK = "127.0.0.1"
_AUTH_MODE = "RAY_AUTH_MODE"
# How often, about once a second, Ray asks an address that is there but does not take us.
_TRIES = "RAY_gcs_server_port_wait_time_s"
# What Ray raises of values that it was given, in arguments or variables of the environment.
_BAD_VALUES = (ValueError, TypeError, ImportError)
_AGAIN = "give the same command again"


class RaySession:
    """Use as a context manager; leaving it disconnects, and ends a Ray that was started here.

    A Ray to which this process is connected already is used, and left as it is.

    Args:
        settings: the section cluster.
        ends_program: whether a Ray that dies in between ends the program. If not, it is told to
            whoever asks for it (:meth:`when_dead`).

    Raises:
        PlacementError: nobody listens at ``cluster.address``, or a Ray refuses this user or this
            version of Ray; or Ray does not take a value that it is to start with here; or this
            process is connected to another Ray.
        RunError: whatever else keeps Ray from coming up or from taking us: the same command may do.
    """

    def __init__(self, settings: ClusterSettings, *, ends_program: bool = True) -> None:
        self._settings = settings
        self._ends_program = ends_program
        self._told: list[Callable[[Exception], object]] = []
        self._undo = ExitStack()

    def __enter__(self) -> RaySession:
        with ExitStack() as undo:
            started_here = False
            if ray.is_initialized():
                _check_connected(self._settings.address)
            elif self._settings.address is None:
                started_here = True
                undo.enter_context(token_for_this_run())
                undo.callback(ray.shutdown)
                self._start()
            else:
                undo.callback(ray.shutdown)
                self._join(named_address(self._settings.address))
            undo.enter_context(_guard(self._died, started_here=started_here))
            self._undo = undo.pop_all()
        return self

    def when_dead(self, tell: Callable[[Exception], object]) -> None:
        """Have ``tell(error)`` come, in another thread, if Ray dies and the program goes on."""
        self._told.append(tell)

    def _died(self, sentence: str) -> None:
        if self._ends_program:
            end_program(sentence)
        for tell in self._told:
            tell(RunError(sentence))

    def _join(self, address: str) -> None:
        check_answer(address)
        use_token()
        try:
            with _one_try():
                self._init(address=address)
        # Whatever Ray raises, it has not taken us.
        except Exception as error:
            raise not_joined(address, error) from error

    def _start(self) -> None:
        if problems := list(local_ray_problems(self._settings)):
            raise PlacementError("\n".join(problems))
        try:
            with _loopback():
                up = self._came_up() or self._came_up()
        except _BAD_VALUES as error:
            raise PlacementError(
                f"Ray cannot be started here: {first_line(error)}; this is Ray's own answer to its "
                "start: see the keys of the section cluster and the environment's RAY_ variables"
            ) from error
        # Whatever Ray raises, it has not come up.
        except Exception as error:
            raise RunError(
                f"Ray did not come up here: {first_line(error)}; one of its processes was killed, "
                f"or its disk or memory is full; {_AGAIN}"
            ) from error
        if not up:
            raise RunError(
                "Ray did not come up here within its own 30 s, and again: this machine is too "
                f"busy, or one of Ray's processes was killed; {_AGAIN}"
            )

    def _came_up(self) -> bool:
        """Start Ray; False where it gave up waiting for its own processes.

        It gives them 30 s and raises a plain Exception: too little on a machine that is busy for a
        moment.
        """
        try:
            self._init_here()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            return False
        return True

    def _init_here(self) -> None:
        self._init(
            # An address in the environment would turn this into joining.
            address="local",
            _node_ip_address=LOOPBACK,
            num_cpus=self._settings.num_cpus,
            object_store_memory=self._settings.object_store_bytes,
            include_dashboard=False,
            # Else Ray starts a process for every CPU, in which no actor of ours runs: they want
            # environment variables of their own.
            _system_config={"prestart_worker_first_driver": False},
        )

    def _init(self, **options: Any) -> None:
        shown = self._settings.show_actor_logs
        # Actors have to live until their checkpoint is written.
        with unheard_below(), _own_sigterm():
            ray.init(logging_level=logging.ERROR, log_to_driver=shown, **options)

    def cluster(self) -> Cluster:
        """What the nodes offer."""
        return from_ray_nodes(ray.nodes())

    def __exit__(self, *raised: object) -> None:
        self._undo.close()


def _check_connected(address: str | None) -> None:
    """Refuse a Ray to which this process is connected, if another one is asked for.

    Raises:
        PlacementError: it is, or it is reached through Ray's client.
    """
    if ray.util.client.ray.is_connected():
        raise PlacementError(
            "this process is connected through Ray's client (ray://), which does not carry the "
            "rollouts that a run streams; connect by ray.init(address='HOST:PORT') on one of the "
            "cluster's machines, or submit the run as a job: launch/submit.sh"
        )
    connected = ray.get_runtime_context().gcs_address
    if address not in (None, "auto", connected):
        raise PlacementError(
            f"cluster.address = {address!r}, but this process is connected to the Ray at "
            f"{connected}, which is used; leave the key out, or call ray.shutdown() first"
        )


def _guard(died: Callable[[str], object], *, started_here: bool) -> RayGuard:
    """Of the Ray that this process is connected to."""
    node = ray._private.worker.global_worker.node
    seconds = gcs_seconds(started_here)
    return RayGuard(node.gcs_address, node.raylet_socket_name, seconds, died)


def use_token() -> None:
    """Show this user's token to a Ray that is joined; one that asks for none takes us all the same.

    Ray does so by itself where it looks for the cluster ("auto"), not where an address is given.
    """
    if _AUTH_MODE in os.environ or token_source() is None:
        return
    os.environ[_AUTH_MODE] = "token"
    ray._raylet.Config.initialize("")  # Ray has read the variable when it was imported


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep what SIGTERM does: Ray's start replaces it, where it may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None:  # else somebody has set it from C
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _loopback() -> Iterator[None]:
    """A Ray that is started inside listens at the loopback address alone.

    On Linux it takes another address for that one, as machines of a cluster must reach each other;
    not on systems on which it has no clusters.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _one_try() -> Iterator[None]:
    """Let Ray ask once: it would ask a cluster that refuses us for 20 s, a stranger for minutes."""
    if _TRIES in os.environ:
        yield
        return
    os.environ[_TRIES] = "1"
    try:
        yield
    finally:
        del os.environ[_TRIES]
