"""A process of its own for one side of a comparison, which answers word by word."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from typing import Any


class Worker:
    """Runs ``work(pipe, *given)``, which is to end when it receives None."""

    def __init__(self, work: Callable[..., None], *given: Any) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, there = spawn.Pipe()
        self._process = spawn.Process(target=work, args=(there, *given), daemon=True)
        self._process.start()
        there.close()

    def receive(self) -> Any:
        """What it says next."""
        return self._pipe.recv()

    def ask(self, word: Any = True) -> Any:
        """Its answer to a word."""
        self._pipe.send(word)
        return self.receive()

    def close(self) -> None:
        """Wait for its end."""
        with suppress(ConnectionError):  # it has ended already
            self._pipe.send(None)
        self._process.join()
