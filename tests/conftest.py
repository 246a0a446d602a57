"""What every test may rely on."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator

import pytest
from started_ray import started_ray

# A shell that runs the tests in the background lets them and their children ignore Ctrl-C, and
# nohup a terminal that closes; some tests send these to commands that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


# What all the imports make stays: Python need not look through it again and again meanwhile ...
gc.disable()


def pytest_collection_finish() -> None:
    """... nor in every test."""
    gc.freeze()
    gc.enable()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """A Ray with two CPUs that tests join one after another, each with actors of its own.

    A start of Ray takes 6 s of a CPU. Its processes have the environment variables of the tests'
    beginning: a test that adds some starts its own.
    """
    with started_ray(2) as address:
        yield address


@pytest.fixture(scope="module")
def joined_ray(ray_address: str) -> Iterator[None]:
    """These tests are in that Ray; their actors end with the last of them."""
    import ray

    from opd_ray.cluster.session import use_token

    use_token()
    ray.init(address=ray_address, log_to_driver=False)
    yield
    ray.shutdown()
