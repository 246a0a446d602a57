"""A Ray cluster of several nodes on this machine, in processes of its own, for runs to join.

The head node has no CPUs: a run's own process is there, and actors are on the others.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

# Ends with its standard input, so whatever becomes of the tests. It answers each line with one.
_HOST = """
import os, signal, sys
from ray.cluster_utils import Cluster

OBJECT_STORE_BYTES = 100_000_000
cluster = Cluster(
    initialize_head=True,
    head_node_args={
        "num_cpus": 0,
        "object_store_memory": OBJECT_STORE_BYTES,
        # A node is dead when it has not answered for 2 s; Ray's own limits are five times as long.
        "_system_config": {
            "health_check_period_ms": 400,
            "health_check_failure_threshold": 5,
            # Processes in which no actor of ours runs.
            "prestart_worker_first_driver": False,
        },
    },
)
nodes = []

def start(cpus):
    ip = f"127.0.0.{len(nodes) + 2}"
    node = cluster.add_node(
        num_cpus=int(cpus), object_store_memory=OBJECT_STORE_BYTES, node_ip_address=ip
    )
    nodes.append(node)
    return len(nodes) - 1

def kill(number):
    processes = nodes[int(number)].all_processes["raylet"]
    os.kill(processes[0].process.pid, signal.SIGKILL)
    return "killed"

def where(actor_class):
    ids = [node.node_id for node in nodes]
    found = [
        ids.index(actor["Address"]["NodeID"])
        for actor in cluster.global_state.actor_table(None, None, "ALIVE").values()
        if actor["ActorClassName"] == actor_class
    ]
    return " ".join(map(str, sorted(found)))

print("answer", cluster.address, flush=True)
for line in sys.stdin:
    command, argument = line.split()
    print("answer", {"start": start, "kill": kill, "where": where}[command](argument), flush=True)
cluster.shutdown()
"""
_TRIES = 3  # Ray gives its own start up where a busy machine lets it wait


class Nodes:
    """The nodes beside the head, by number in the order of their start."""

    def __init__(self, host: subprocess.Popen[str]) -> None:
        self._host = host
        self.address = self._answer()

    def start(self, cpus: int) -> int:
        """Another node; its number."""
        return int(self._ask(f"start {cpus}"))

    def kill(self, number: int) -> None:
        """SIGKILL to a node's raylet, with which all on it dies."""
        self._ask(f"kill {number}")

    def where(self, actor_class: str) -> list[int]:
        """The nodes of all living actors of a class."""
        return [int(number) for number in self._ask(f"where {actor_class}").split()]

    def _ask(self, line: str) -> str:
        assert self._host.stdin is not None
        self._host.stdin.write(f"{line}\n")
        self._host.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._host.stdout is not None
        for line in self._host.stdout:
            if line.startswith("answer "):
                return line.removeprefix("answer ").strip()
        raise EOFError("the cluster's process has ended")


@contextmanager
def cluster_of_nodes(*cpus: int) -> Iterator[Nodes]:
    """A cluster of nodes with so many CPUs each; runs in processes of their own may join it.

    Nobody has a token for it: who has one for another cluster must not show it here, as Ray's
    processes would not show it back.
    """
    with mock.patch.dict(os.environ, RAY_AUTH_MODE="disabled"):
        yield from _cluster(*cpus)


def _cluster(*cpus: int) -> Iterator[Nodes]:
    for attempt in range(_TRIES):
        host = subprocess.Popen(
            [sys.executable, "-c", _HOST],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C is for the tests, which end it
        )
        assert host.stdin is not None
        try:
            try:
                nodes = Nodes(host)
                for each in cpus:
                    nodes.start(each)
            except (EOFError, BrokenPipeError):
                if attempt == _TRIES - 1:
                    raise
                continue
            yield nodes
            return
        finally:
            host.stdin.close()
            host.wait(180)
