"""What a Ray that is started here needs of this machine, found before it is started."""

from __future__ import annotations

import os
import resource
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opd_ray.cluster.nodes import gigabytes, total_memory
from opd_ray.cluster.ray_address import TOKEN_FILE, token_source
from opd_ray.config.schema import ClusterSettings

# What Ray adds to its folder for the longest of its sockets, and how long a socket's path may be
# (Linux), both in bytes.
_SOCKET = "/ray/session_2000-01-01_00-00-00_000000_{pid}/sockets/plasma_store"
_LONGEST_PATH = 107
# Ray itself refuses a larger object store that does not fit /dev/shm.
_SLOW_STORE = 10_000_000_000
# A rollout engine has about 100 open, Ray's own processes 65 and some for every actor.
_LEAST_OPEN_FILES = 256
# Below it Ray takes to files in its temporary folder.
LEAST_SHARED_MEMORY = 1 << 30
_TEMPORARY = ("RAY_TMPDIR", "TMPDIR")


def local_ray_problems(settings: ClusterSettings) -> Iterator[str]:
    """Settings and folders with which no Ray starts here, each with its remedy."""
    variable = next((name for name in _TEMPORARY if name in os.environ), None)
    folder = os.environ[variable] if variable else "/tmp"
    named = f"{variable} = {folder!r}" if variable else f"{folder} (RAY_TMPDIR is not set)"
    longest = len(os.fsencode(os.path.abspath(folder) + _SOCKET.format(pid=os.getpid())))
    if not writable(Path(folder, "ray")):
        yield (
            f"{named}: Ray keeps its sockets and logs there, and it cannot be written to; set "
            "RAY_TMPDIR to a folder that can"
        )
    elif longest > _LONGEST_PATH:
        yield (
            f"{named}: too long by {longest - _LONGEST_PATH} bytes for the paths of Ray's sockets; "
            "set RAY_TMPDIR to a shorter path, e.g. RAY_TMPDIR=/tmp"
        )
    yield from _open_files_problems()
    yield from _store_problems(settings.object_store_bytes)


def _open_files_problems() -> Iterator[str]:
    """Ray raises the limit as far as it may, to the hard one."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most != resource.RLIM_INFINITY and most < _LEAST_OPEN_FILES:
        yield (
            f"ulimit -Hn is {most}: each of Ray's processes needs up to {_LEAST_OPEN_FILES} open "
            "files and sockets, more with many actors; raise it to 65536 (docker: --ulimit "
            "nofile=65536; systemd: LimitNOFILE=65536)"
        )


def local_ray_notes(settings: ClusterSettings) -> Iterator[str]:
    """What makes a Ray that is started here slow."""
    if settings.address is not None or not os.path.isdir("/dev/shm"):
        return
    disk = os.statvfs("/dev/shm")
    free = disk.f_bavail * disk.f_frsize
    if free < LEAST_SHARED_MEMORY:
        yield (
            f"/dev/shm has {gigabytes(free)} free: Ray keeps what actors hand each other in files, "
            "and steps are slower; give it more (docker: --shm-size=4g)"
        )


def _store_problems(nbytes: int | None) -> Iterator[str]:
    if nbytes is None:
        return
    named = f"cluster.object_store_bytes = {nbytes}"
    if nbytes > 0.9 * total_memory():
        yield (
            f"{named}: this machine's memory is {gigabytes(total_memory())}, which the actors need "
            "too; lower it, or set it to null"
        )
        return
    disk = os.statvfs("/dev/shm")
    shared = disk.f_bavail * disk.f_frsize
    allowed = os.environ.get("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE")
    if nbytes > max(shared, _SLOW_STORE) and not allowed:
        yield (
            f"{named}: /dev/shm has {gigabytes(shared)} free; lower it, or give /dev/shm more "
            "(docker: --shm-size)"
        )


def writable(folder: Path) -> bool:
    """Whether ``folder`` can be written to, or made where it is not there."""
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


@contextmanager
def token_for_this_run() -> Iterator[None]:
    """A token in the environment for a Ray of our own, where Ray could not keep one in the home.

    Ray makes one in the home folder before its first start and has no other place for it.
    """
    home = Path(os.environ.get("HOME", "~")).expanduser()
    if token_source() or writable((home / TOKEN_FILE).parent):
        yield
        return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    try:
        yield
    finally:
        del os.environ["RAY_AUTH_TOKEN"]
