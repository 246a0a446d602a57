"""The output folder of a run: its layout, its lock, and whose run it holds."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import socket
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from omegaconf import OmegaConf

from opd_ray.config.load import to_yaml
from opd_ray.config.schema import Config
from opd_ray.errors import OutputFolderError

LOCK_FILE = "run.lock"
# A run that goes on may not differ in these; everything else may change between its parts.
IDENTITY = ("student.path", "data", "run.seed")


class LockedFolder:
    """A folder that is made, and locked inside a ``with`` block.

    The lock dies with its process, so a killed run never blocks the next one. Messages call the
    folder by ``key``, the configuration key or option that named it.
    """

    def __init__(self, path: str | Path, key: str) -> None:
        self.path = Path(path)
        self._named = f"{key} = {str(path)!r}"
        self._lock: int | None = None

    def __enter__(self) -> Self:
        """Make and lock the folder.

        Raises:
            OutputFolderError: it cannot be made, written or locked, or is in use.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise OutputFolderError(
                f"{self._named}: cannot be written ({error.strerror}); "
                "choose a folder that you may write to"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 1000).decode(errors="replace") or "another process"
            os.close(lock)
            raise OutputFolderError(
                f"{self._named}: in use by {holder}; wait for it, stop it, or choose another folder"
            ) from None
        except OSError as error:
            os.close(lock)
            raise OutputFolderError(
                f"{self._named}: its file system cannot lock files ({error.strerror}); choose a "
                "folder on another one"
            ) from error
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        os.ftruncate(lock, 0)
        holder = f"process {os.getpid()} on {socket.gethostname()}, started {started}"
        os.pwrite(lock, holder.encode(), 0)
        self._lock = lock
        return self

    def __exit__(self, *raised: object) -> None:
        assert self._lock is not None
        os.ftruncate(self._lock, 0)
        # Said aloud: closing alone would leave the lock with a process forked in the meantime.
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        os.close(self._lock)
        self._lock = None


class OutputFolder(LockedFolder):
    """Everything one run writes."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, "run.output_dir")
        self.config = self.path / "config.yaml"
        self.versions = self.path / "versions.json"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.plots = self.path / "plots"
        self.export = self.path / "export"
        self.report = self.path / "report.txt"

    def check(self, config: Config) -> None:
        """Refuse a folder that holds a run that this one must not touch.

        Raises:
            OutputFolderError: it holds any other configuration with ``run.resume=never``, or
                another student, data or seed when going on.
        """
        anew = config.run.resume == "never"
        differences = self.differences(config)
        refused = [text for text in differences if anew or text.startswith(IDENTITY)]
        if refused:
            raise OutputFolderError(
                f"{self._named}: holds another run ({'; '.join(refused)}); "
                "choose another run.output_dir, or delete the folder"
            )

    def begin(self, config: Config) -> None:
        """Check, then write the config and the versions of a run that starts or goes on here.

        With ``run.resume=never`` a run of the same configuration is replaced: its files go.
        """
        self.check(config)
        if config.run.resume == "never":
            self._clear()
        self.config.write_text(to_yaml(config), encoding="utf-8")
        self.versions.write_text(json.dumps(versions(), indent=1) + "\n", encoding="utf-8")

    def differences(self, config: Config) -> list[str]:
        """``key: old -> new`` of every key in which the folder's run differs; [] if it holds none.

        The folder itself and how a run is resumed do not count.
        """
        if not self.config.is_file():
            return []
        old = flat(OmegaConf.to_container(OmegaConf.load(self.config)))
        new = flat(OmegaConf.to_container(OmegaConf.create(to_yaml(config))))
        skipped = ("run.output_dir", "run.resume")
        return [
            f"{key}: {old.get(key, '(none)')} -> {new.get(key, '(none)')}"
            for key in sorted(old.keys() | new.keys())
            if key not in skipped and old.get(key) != new.get(key)
        ]

    def _clear(self) -> None:
        for path in (self.tensorboard, self.checkpoints, self.plots, self.export):
            if path.exists():
                shutil.rmtree(path)
        for path in (self.metrics, self.report):
            path.unlink(missing_ok=True)


def versions() -> dict[str, Any]:
    """Python, system and every installed package, by name."""
    found = ((dist.metadata["Name"], dist) for dist in metadata.distributions())
    # An installation that was broken off leaves folders without a name.
    packages = {name: dist.version for name, dist in found if name}
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as ``a.b[0].c`` -> value."""
    if isinstance(tree, dict) and tree:
        parts = ((f"{prefix}.{key}" if prefix else str(key), value) for key, value in tree.items())
    elif isinstance(tree, list) and tree:
        parts = ((f"{prefix}[{number}]", value) for number, value in enumerate(tree))
    else:
        return {prefix: tree}
    return {key: leaf for name, value in parts for key, leaf in flat(value, name).items()}
