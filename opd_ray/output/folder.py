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

from opd_ray.borders import border, writing
from opd_ray.config.files import read_yaml
from opd_ray.config.load import to_yaml
from opd_ray.config.schema import Config, RunSettings
from opd_ray.data.prompt_set import PromptsIdentity
from opd_ray.errors import OutputFolderError, RunError, WriteError
from opd_ray.output.history import History
from opd_ray.output.resume import Change, Start, changes, check_changes
from opd_ray.whole_file import write_whole

LOCK_FILE = "run.lock"
# Whoever asks for its holder has the lock for less than that.
_A_LOOK_SECONDS = 0.1


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
            WriteError: its disk is full.
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
            _lock(lock)
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
        holder = f"process {os.getpid()} on {socket.gethostname()}, started {started}"
        try:
            with writing(self.path / LOCK_FILE):
                os.ftruncate(lock, 0)
                os.pwrite(lock, holder.encode(), 0)
        except WriteError:
            os.close(lock)
            raise
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
        self.report_page = self.path / "report.html"
        self.close_ups = self.path / "close_ups.jsonl"
        self.history = History(self.path / "history.jsonl")
        # Ids of the run at trackers of experiments.
        self.trackers = [self.path / f"{name}.json" for name in ("wandb", "mlflow", "trackio")]
        self.status = self.path / "status.json"

    @property
    def holds_run(self) -> bool:
        """Whether a run in here has measured or kept anything."""
        kept = self.checkpoints.is_dir() and any(self.checkpoints.iterdir())
        return kept or (self.metrics.is_file() and self.metrics.stat().st_size > 0)

    def accept(
        self, config: Config, start: Start | None, prompts: PromptsIdentity | None = None
    ) -> list[Change]:
        """What has changed since the run in here was last at work, if it may go on; writes nothing.

        Args:
            config: the run's.
            start: where it goes on; None: from its beginning.
            prompts: those that it would train on; None if they were not read.

        Raises:
            OutputFolderError: it holds any other configuration with ``run.resume=never``, or one
                that this run cannot go on from.
        """
        before = start.config_file if start else self.config
        if not before.is_file() or not (start or self.holds_run):
            return []
        found = changes(before, config)
        if config.run.resume == "never":
            if differences := [str(change) for change in _that_count(found)]:
                raise OutputFolderError(
                    f"{self._named}: holds another run ({'; '.join(differences)}); "
                    "choose another run.output_dir, or delete the folder"
                )
            return []
        if self.holds_run and self.config.is_file():
            own = found if before == self.config else changes(self.config, config)
            check_changes(own, self.history.prompts, prompts, f"{self._named}:")
        if start:
            check_changes(found, start.prompts, prompts, str(start.checkpoint))
        return found

    def begin(self, config: Config) -> None:
        """Write config and versions of a run that starts or goes on here."""
        write_whole(self.config, to_yaml(config))
        write_whole(self.versions, json.dumps(versions(), indent=1) + "\n")

    def differences(self, config: Config) -> list[str]:
        """``key: old -> new`` of every key in which the folder's run differs; [] if it holds none.

        The folder itself and how a run is resumed do not count.
        """
        if not self.config.is_file():
            return []
        return [str(change) for change in _that_count(changes(self.config, config))]

    def clear(self) -> None:
        """Delete what a run in here has written, for one that starts over."""
        for path in (self.tensorboard, self.checkpoints, self.plots, self.export):
            with writing(path):
                if path.exists():
                    shutil.rmtree(path)
        for path in (
            self.metrics,
            self.report,
            self.report_page,
            self.close_ups,
            self.history.path,
            *self.trackers,
            self.status,
        ):
            with writing(path):
                path.unlink(missing_ok=True)


def _lock(file: int) -> None:
    """Lock an open file for this process alone.

    Raises:
        BlockingIOError: another one has it, for longer than :func:`lock_holder` takes to look.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(_A_LOOK_SECONDS)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock_holder(path: Path) -> str:
    """Who holds the lock of a run's folder, whose file this is; "" where nobody does.

    Raises:
        RunError: it cannot be read.
    """
    if not path.is_file():
        return ""
    with border(str(path), "see to its permissions", RunError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read(1000).decode(errors="replace") or "another process"
        fcntl.flock(file, fcntl.LOCK_UN)
    return ""


def kept_date(run: RunSettings) -> str | None:
    """The ``run.date`` of the run that goes on here; None: none goes on, or it has none."""
    if run.resume == "never":
        return None
    checkpoint = Path(run.resume) / "config.yaml"
    path = checkpoint if checkpoint.is_file() else OutputFolder(run.output_dir).config
    return read_yaml(path).get("run", {}).get("date") if path.is_file() else None


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


def _that_count(found: list[Change]) -> list[Change]:
    # A run that begins anew has the day on which it does.
    uncounted = ("run.output_dir", "run.resume", "run.date")
    return [change for change in found if change.key not in uncounted]
