"""What a teacher behind a URL and a cache of answers cannot have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from opd_ray.config.choices import CacheMode
from opd_ray.config.teacher import TeacherSettings


def url_problems(teacher: TeacherSettings) -> Iterator[str]:
    """Of the keys of kind http."""
    if teacher.kind != "http":
        return
    if not teacher.url:
        yield "teacher.url = null: kind http needs the base URL of a server, http://HOST:8000/v1"
    else:
        yield from _address_problems(teacher.url)
    if teacher.api_key_env and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", teacher.api_key_env):
        # The value is not shown: it may be the key itself.
        yield (
            "teacher.api_key_env: this is no name of an environment variable; put the key into "
            "one, and the variable's name here"
        )
    if teacher.gpus_per_replica:
        yield (
            f"teacher.gpus_per_replica = {teacher.gpus_per_replica:g} with teacher.kind = 'http': "
            "a replica only asks the server; set it to 0"
        )


def _address_problems(url: str) -> Iterator[str]:
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query:
        # The value is not shown: it may hold a key.
        yield (
            "teacher.url: it carries a user, a password or a query; put the key into an "
            "environment variable, and its name into teacher.api_key_env"
        )
    elif parts.scheme not in ("http", "https") or not parts.hostname:
        yield f"teacher.url = {url!r}: write it as http://HOST:8000/v1 or https://HOST/v1"


def cache_problems(teacher: TeacherSettings) -> Iterator[str]:
    """Of the keys ``cache`` and ``cache_dir``."""
    if teacher.cache is CacheMode.off:
        if teacher.cache_dir:
            yield (
                f"teacher.cache_dir = {teacher.cache_dir!r} with teacher.cache = off: set "
                "teacher.cache to record, replay or replay_or_ask, or leave the folder out"
            )
    elif not teacher.cache_dir:
        yield f"teacher.cache_dir = null with teacher.cache = {teacher.cache}: it needs a folder"
    elif teacher.cache is CacheMode.replay and not Path(teacher.cache_dir).is_dir():
        yield (
            f"teacher.cache_dir = {teacher.cache_dir!r}: no such folder, so there is nothing to "
            "replay; record first with teacher.cache=record"
        )
