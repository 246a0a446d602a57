"""A Ray in processes of its own, for tests to join as a command does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Ends with its standard input, so whatever becomes of the tests.
_HEAD = """
import sys
import ray
context = ray.init(
    address="local",
    num_cpus=int(sys.argv[1]),
    include_dashboard=False,
    object_store_memory=1 << 28,
    log_to_driver=False,
    _system_config={"prestart_worker_first_driver": False},
)
print("address", context.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


# Ray gives its own start up after 30 s, which a busy machine takes.
_TRIES = 3


@contextmanager
def started_ray(num_cpus: int, **variables: str) -> Iterator[str]:
    """The address of a Ray whose processes have further environment variables."""
    for _ in range(_TRIES):
        head = subprocess.Popen(
            [sys.executable, "-c", _HEAD, str(num_cpus)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **variables},
            start_new_session=True,  # a Ctrl-C is for the tests, which end it
        )
        assert head.stdin is not None
        assert head.stdout is not None
        try:
            line = head.stdout.readline()
            while line and not line.startswith("address "):
                line = head.stdout.readline()
            if line:
                yield line.split()[1]
                return
        finally:
            head.stdin.close()
            head.wait(180)
    raise AssertionError(f"Ray did not start, {_TRIES} times")
