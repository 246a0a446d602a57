"""What actors yield one by one, read without waiting for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import ray


class StreamReader:
    """Reads streams as they fill, in a thread of its own: Ray has no callback for their items."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def read(
        self,
        stream: ray.ObjectRefGenerator,
        item: Callable[[ray.ObjectRef, Future[Any]], object],
        ended: Callable[[], object],
    ) -> None:
        """Call ``item`` with every item and its value, and ``ended`` at the end, in that thread."""

        async def follow() -> None:
            async for ref in stream:
                value: Future[Any] = Future()
                try:
                    value.set_result(await ref)
                except Exception as error:  # raised where the value is asked for
                    value.set_exception(error)
                item(ref, value)
            ended()

        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="streams", daemon=True).start()
        asyncio.run_coroutine_threadsafe(follow(), self._loop)

    def close(self) -> None:
        """Leave streams that have not ended, and end the thread."""
        loop, self._loop = self._loop, None
        if loop is None:
            return

        async def leave() -> None:
            followed = asyncio.all_tasks() - {asyncio.current_task()}
            for task in followed:
                task.cancel()
            await asyncio.gather(*followed, return_exceptions=True)
            loop.stop()

        asyncio.run_coroutine_threadsafe(leave(), loop)
