"""A fake server, and teachers that ask it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fake_server import FakeServer, V, running
from http_teachers import Make, settings

import actors.teacher.http.client as http_client
from actors.teacher.http.teacher import HttpTeacher


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(http_client, "_LONGEST_PAUSE", 0.02)


@pytest.fixture
def fake(short_pauses: None) -> Iterator[FakeServer]:
    with running() as server:
        yield server


@pytest.fixture
def teacher(fake: FakeServer) -> Iterator[Make]:
    """Makes teachers of the fake server, whose account then begins anew; closes them at the end."""
    made: list[HttpTeacher] = []

    def make(vocab_size: int = V, **changes: Any) -> HttpTeacher:
        made.append(HttpTeacher(settings(fake, **changes), vocab_size=vocab_size))
        fake.bodies.clear()
        fake.most_at_once = 0
        return made[-1]

    yield make
    for one in made:
        one.close()
