"""Ranks meet at a store that nobody but those who know its address can reach."""

from __future__ import annotations

import socket
import threading

import psutil
import pytest
from torch.distributed import TCPStore

from actors.trainer.meeting import store


def free_port(host: str) -> int:
    with socket.create_server((host, 0)) as probe:
        return probe.getsockname()[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"])
def test_the_store_listens_at_its_own_address_alone(host: str) -> None:
    port = free_port(host)
    made: list[TCPStore] = []
    other = threading.Thread(target=lambda: made.append(store(1, 2, (host, port))), daemon=True)
    other.start()
    made.append(store(0, 2, (host, port)))
    other.join(30)
    assert len(made) == 2
    made[0].set("a", "b")
    assert made[1].get("a") == b"b"
    listening = [
        one.laddr.ip
        for one in psutil.Process().net_connections("tcp")
        if one.status == psutil.CONN_LISTEN and one.laddr.port == port
    ]
    assert listening == [host]
