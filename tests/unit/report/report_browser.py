"""A real Chromium without a screen, driven by its own protocol; tests skip where there is none."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


def browser_path() -> str | None:
    """Where a browser is: OPD_RAY_BROWSER, or the first of its names on the PATH."""
    return os.environ.get("OPD_RAY_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)


needs_browser = pytest.mark.skipif(
    browser_path() is None,
    reason="no Chromium here: install one (apt install chromium), or name one by OPD_RAY_BROWSER",
)


class Page:
    """One page of the browser; ``errors`` is all that its console and its script complained of."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: Any) -> None:
        self._loop, self._socket, self._calls = loop, socket, 0
        self.errors: list[str] = []
        self.requests: list[str] = []

    def call(self, method: str, **parameters: Any) -> Any:
        """Ask the browser for something."""
        return self._loop.run_until_complete(asyncio.wait_for(self._call(method, parameters), 60))

    def open(self, path: Path, wait: str = "globalThis.opdRay") -> None:
        """Load a file and wait until it is drawn."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=path.resolve().as_uri())
        end = time.monotonic() + 60
        while not self.run(f"!!({wait})"):
            assert time.monotonic() < end, (wait, self.errors)
            time.sleep(0.1)

    def run(self, code: str) -> Any:
        """The value of an expression in the page; of a promise, what it comes to."""
        found = self.call(
            "Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def resize(self, width: int, height: int, *, phone: bool = False) -> None:
        """Have a screen of this size."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )

    def dark(self, on: bool) -> None:
        """What the system prefers."""
        value = "dark" if on else "light"
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": value}],
        )

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """What is on the screen, or all of the page, as a PNG."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    async def _call(self, method: str, parameters: dict[str, Any]) -> Any:
        self._calls += 1
        number = self._calls
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = json.loads((await self._socket.receive()).data)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._heard(message)

    def _heard(self, message: dict[str, Any]) -> None:
        said = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.errors.append(json.dumps(said["exceptionDetails"])[:2000])
            case "Runtime.consoleAPICalled" if said["type"] in ("error", "warning", "assert"):
                self.errors.append(json.dumps(said["args"])[:2000])
            case "Log.entryAdded" if said["entry"]["level"] in ("error", "warning"):
                self.errors.append(json.dumps(said["entry"])[:2000])
            case "Network.requestWillBeSent":
                self.requests.append(said["request"]["url"][:200])


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A page of a browser that keeps its files in ``folder``."""
    program = browser_path()
    assert program is not None
    process = subprocess.Popen(
        [program, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    loop = asyncio.new_event_loop()
    try:
        port = _port(folder / "DevToolsActivePort", process)
        session, socket = loop.run_until_complete(_connect(port))
        yield Page(loop, socket)
        loop.run_until_complete(session.close())
    finally:
        loop.close()
        process.terminate()
        process.wait(20)


def _port(file: Path, process: subprocess.Popen[bytes]) -> str:
    end = time.monotonic() + 60
    while not file.is_file() or not file.read_text().strip():
        assert process.poll() is None, "the browser has ended"
        assert time.monotonic() < end, "the browser does not come up"
        time.sleep(0.05)
    return file.read_text().split()[0]


async def _connect(port: str) -> tuple[aiohttp.ClientSession, Any]:
    session = aiohttp.ClientSession()
    end = time.monotonic() + 30
    while True:
        async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            pages = [one for one in await answer.json() if one["type"] == "page"]
        if pages:
            break
        assert time.monotonic() < end
        await asyncio.sleep(0.1)
    socket = await session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)
    return session, socket
