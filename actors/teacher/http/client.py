"""JSON over HTTP with a bounded number of requests under way, time-outs and retries."""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiohttp

from actors.teacher.protocol import TeacherError
from opd_ray.config.teacher import TeacherSettings

# Answers that another try may change: the server is overloaded, restarting, or lost its engine.
RETRIED = frozenset((408, 425, 429, 500, 502, 503, 504))
# Seconds: the first pause and the longest, before jitter; the longest that a server may ask for.
_FIRST_PAUSE, _LONGEST_PAUSE, _LONGEST_ASKED = 0.5, 30.0, 600.0
_SHOWN = 300  # characters of a server's error text


@dataclass(frozen=True)
class Reply:
    """A server's answer that no retry would change."""

    status: int
    body: Any  # parsed JSON; the text where it is none
    retries: int  # tries before this one

    @property
    def ok(self) -> bool:
        return self.status == 200

    @property
    def complaint(self) -> str:
        """Status and what the server says about it."""
        error = self.body.get("error", self.body) if isinstance(self.body, dict) else self.body
        said = error.get("message", error) if isinstance(error, dict) else error
        return f"HTTP {self.status}: {str(said).strip()[:_SHOWN]}"


class HttpClient:
    """One server. Inside ``async with``, up to ``teacher.concurrency`` requests run at once.

    Lost connections, time-outs and the statuses in RETRIED are tried again, after pauses that
    double and are drawn at random (so that clients do not come back together), or as long as the
    server's Retry-After says. The key appears in no message: what a server says is searched for it.

    Args:
        settings: ``url``, ``api_key_env``, ``concurrency``, ``timeout_s``, ``max_retries``.
        most_retries: fewer than the settings allow.

    Raises:
        TeacherError: the environment variable for the key is not set.
    """

    def __init__(self, settings: TeacherSettings, most_retries: int | None = None) -> None:
        self._settings = settings
        self.said = f"{settings.key}.url = {settings.url!r}"  # the server, for messages
        self._retries = settings.max_retries
        if most_retries is not None:
            self._retries = min(self._retries, most_retries)
        self._url = str(settings.url).rstrip("/")
        self._key = _key(settings)
        self._random = random.Random()

    async def __aenter__(self) -> HttpClient:
        settings = self._settings
        self._places = asyncio.Semaphore(settings.concurrency)
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=aiohttp.ClientTimeout(total=settings.timeout_s),
            connector=aiohttp.TCPConnector(limit=settings.concurrency),
            trust_env=True,
        )
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self._session.close()

    async def ask(self, path: str, body: dict[str, Any] | None = None) -> Reply:
        """The reply to a GET, or to a POST of ``body`` as JSON.

        Args:
            path: below the base URL; what begins with http is taken as it is.
            body: what is posted.

        Raises:
            TeacherError: no reply after all retries.
        """
        method = "GET" if body is None else "POST"
        url = path if path.startswith("http") else self._url + path
        tries = self._retries + 1
        for number in range(tries):
            pause = 0.0
            try:
                async with (
                    self._places,
                    self._session.request(method, url, json=body) as response,
                ):
                    text = await response.read()
                    reply = Reply(response.status, self._parsed(text), number)
                    if reply.status not in RETRIED:
                        return reply
                    trouble = reply.complaint
                    pause = asked_pause(response.headers)
            except TimeoutError:
                settings = self._settings
                trouble = f"no answer within {settings.key}.timeout_s = {settings.timeout_s:g} s"
            except aiohttp.ClientError as error:
                trouble = self._clean(f"{type(error).__name__}: {error}")
            if pause > _LONGEST_ASKED:
                raise TeacherError(f"{self.said}: {trouble}; it asks to wait {pause:.0f} s")
            if number + 1 < tries:
                longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**number)
                # Not below half: an overloaded server gets the pause that the doubling is for.
                await asyncio.sleep(pause + longest * self._random.uniform(0.5, 1.0))
        limit = ""
        if self._retries == self._settings.max_retries:
            limit = f", {self._settings.key}.max_retries = {self._retries}"
        raise TeacherError(f"{self.said}: {trouble} (tried {tries} times{limit})")

    def _parsed(self, content: bytes) -> Any:
        text = self._clean(content.decode("utf-8", errors="replace"))
        try:
            return json.loads(text)
        except (ValueError, RecursionError):  # no JSON, or nested without end
            return text

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _key(settings: TeacherSettings) -> str | None:
    variable = settings.api_key_env
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise TeacherError(
            f"{settings.key}.api_key_env = {variable!r}: that environment variable is not set in "
            "this process; set it before the run, and before Ray is started on every node"
        )
    return key


def asked_pause(headers: Mapping[str, str]) -> float:
    """Seconds that a Retry-After header (a number or a date) asks for; 0 where it says neither.

    A date counts from the server's own: its clock may go otherwise than ours, and ours may jump.
    """
    asked = headers.get("Retry-After", "")
    with suppress(ValueError):
        return max(0.0, float(asked))
    with suppress(ValueError):
        now = _moment(headers["Date"]) if "Date" in headers else datetime.now(UTC)
        return max(0.0, (_moment(asked) - now).total_seconds())
    return 0.0


def _moment(date: str) -> datetime:
    """A date of a header; one that names no zone is in UTC."""
    found = email.utils.parsedate_to_datetime(date)
    return found if found.tzinfo else found.replace(tzinfo=UTC)
