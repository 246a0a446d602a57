"""Checkpoints of a run: written beside, renamed into place, the newest whole one found again.

Layout of ``checkpoints/step_00000050/``: ``trainer/`` (files of every trainer rank, ``teachers/``
that follow the student, with ``run.lag`` ``rollouts_ahead/`` of the next step), ``config.yaml``,
``run.json`` (a :class:`RunState`) and ``manifest.json`` (size and CRC-32 of every file, written
last). A checkpoint without it, or whose files do not match it, is not whole and is passed over.

When one is looked for, sizes are compared, and the sums of the files of the run itself. Those below
``trainer/``, which are large, are summed by the trainer ranks before they read them; one that they
refuse is passed over from then on. Nothing that is read here is a pickle.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from opd_ray.borders import writing
from opd_ray.checksums import FileSum, files_below, first_difference, sum_of
from opd_ray.errors import OpdError
from opd_ray.whole_file import write_whole

MANIFEST = "manifest.json"
TRAINER = "trainer"
CONFIG = "config.yaml"
_NAME = re.compile(r"step_(\d{8})$")
_DRAFTS = "step_*.tmp"
_FORMAT = 2
_FORMER_FORMAT = 1  # with DeepSpeed's own files, which are pickles


class CheckpointError(OpdError, ValueError):
    """A checkpoint that is asked for cannot be read or does not belong to this run."""


@dataclass(frozen=True)
class RunState:
    """What the run itself must remember; seeds and learning rate follow from the step."""

    step: int  # optimizer steps done
    seed: int
    total_steps: int  # the schedule's length
    filter_state: dict[str, Any]
    # [steps, prompts of each] of the parts of the run, in order: which prompts were used.
    batches: list[list[int]]
    prompts: dict[str, Any]  # count and fingerprint, see PromptsIdentity
    format: int = _FORMAT


@dataclass(frozen=True)
class Draft:
    """A checkpoint that is being written, beside its place."""

    store: CheckpointStore
    folder: Path
    final: Path

    @property
    def trainer(self) -> str:
        """The folder of what trainers and teachers write."""
        return str(self.folder / TRAINER)

    def complete(self, sums: Mapping[str, FileSum]) -> Path:
        """Put it into its place; returns that.

        A crash at any moment leaves the older checkpoints as they were, and no half-written one.

        Args:
            sums: of files below ``trainer``, as far as they are known; others are read for it.

        Raises:
            CheckpointError: one of them is not here as it was written.
            WriteError: it cannot be put on disk.
        """
        with writing(self.final):
            manifest = {name: asdict(one) for name, one in self._on_disk(sums).items()}
            for folder in [path for path in self.folder.rglob("*") if path.is_dir()]:
                _sync_folder(folder)
            write_whole(self.folder / MANIFEST, json.dumps(manifest, indent=1))
            _sync_folder(self.folder)
            if self.final.exists():
                shutil.rmtree(self.final)
            os.replace(self.folder, self.final)
            _sync_folder(self.final.parent)
        self.store.was_written(self.final)
        self.store.forget_old()
        return self.final

    def _on_disk(self, sums: Mapping[str, FileSum]) -> dict[str, FileSum]:
        """The sums of all files; those that are not in ``sums`` are put on disk and read."""
        known = {f"{TRAINER}/{name}": one for name, one in sums.items()}
        found = {
            name: known.get(name) or sum_of(self.folder / name, sync=True)
            for name in files_below(self.folder)
        }
        for name, written in sums.items():
            path = self.folder / TRAINER / name
            size = path.stat().st_size if path.is_file() else "none (missing)"
            if size != written.size:
                raise CheckpointError(
                    f"{path} was written with {written.size} bytes, here it has {size}: "
                    "run.output_dir must be a folder that all machines of the run share"
                )
        return found

    def discard(self) -> None:
        """Leave nothing of it, as far as nobody writes into it any more."""
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints folder of one run."""

    folder: Path  # made when the first one is written
    keep: int  # how many of the newest stay
    config_yaml: str = ""  # the run's configuration, written into every checkpoint
    # Those whose large files are not what was written, and why; found by whoever has read them.
    _damaged: dict[Path, str] = field(default_factory=dict)

    def begin(self, state: RunState) -> Draft:
        """Begin a checkpoint; drafts that were never completed go.

        Raises:
            WriteError: none can be begun.
        """
        final = self.folder / f"step_{state.step:08d}"
        draft = self.folder / f"{final.name}.tmp"
        with writing(draft):
            for left in self.folder.glob(_DRAFTS):
                shutil.rmtree(left)
            (draft / TRAINER).mkdir(parents=True)
        write_whole(draft / CONFIG, self.config_yaml)
        write_whole(draft / "run.json", json.dumps(asdict(state), indent=1))
        return Draft(self, draft, final)

    def save(self, state: RunState, write_trainer: Callable[[str], None]) -> Path:
        """Write one checkpoint, whose trainer folder ``write_trainer`` fills; returns its path."""
        draft = self.begin(state)
        write_trainer(draft.trainer)
        return draft.complete({})

    def forget_old(self) -> None:
        """Remove all but the newest."""
        for old in self._all()[: -self.keep]:
            with writing(old):
                shutil.rmtree(old)

    def pass_over(self, folder: Path, why: str) -> None:
        """Go on from a checkpoint no more: its large files were read, and are damaged."""
        self._damaged[folder] = why

    def was_written(self, folder: Path) -> None:
        """A checkpoint has been written, again where there was one."""
        self._damaged.pop(folder, None)

    def read(self, folder: Path) -> RunState:
        """As :func:`read_state`, of a checkpoint of any run.

        Raises:
            CheckpointError: as there, or it is passed over.
        """
        if folder in self._damaged:
            raise CheckpointError(self._damaged[folder])
        return read_state(folder)

    def newest(self) -> tuple[Path, RunState] | None:
        """The newest whole checkpoint, or None; broken ones are passed over."""
        for folder in reversed(self._all()):
            try:
                return folder, self.read(folder)
            except CheckpointError:
                continue
        return None

    def broken(self, after: int = -1) -> list[str]:
        """Why checkpoints of more steps than ``after`` cannot be read, oldest first."""
        reasons = []
        for folder in self._all(after):
            try:
                self.read(folder)
            except CheckpointError as error:
                reasons.append(str(error))
        return reasons

    def set_aside_after(self, step: int) -> list[Path]:
        """Rename every checkpoint beyond ``step`` to ``step_NNNNNNNN.left``; returns the new paths.

        A run that goes on from ``step`` leaves the history that they belong to: they must neither
        push out its own checkpoints nor be gone on from. One set aside before under the same name
        is replaced.
        """
        moved = []
        for folder in self._all(step):
            aside = folder.with_name(f"{folder.name}.left")
            with writing(aside):
                if aside.exists():
                    shutil.rmtree(aside)
                moved.append(folder.rename(aside))
        return moved

    def _all(self, after: int = -1) -> list[Path]:
        """Those of more steps than ``after``, oldest first."""
        if not self.folder.is_dir():
            return []
        named = ((_NAME.search(path.name), path) for path in self.folder.iterdir())
        return sorted(path for name, path in named if name and int(name[1]) > after)


def read_state(folder: Path) -> RunState:
    """The run's state in a checkpoint, after checking that every file is there in full.

    Raises:
        CheckpointError: names the file that is missing, cut short or changed, or the format.
    """
    state = _read_json(folder / "run.json")
    # First: a manifest of an older format is of another form too.
    if (found := state.get("format")) != _FORMAT:
        advice = "; opd-ray 0.1.0 goes on from it" if found == _FORMER_FORMAT else ""
        raise CheckpointError(
            f"checkpoint {folder} has format {found}, this version reads {_FORMAT}{advice}"
        )
    sums = _read_manifest(folder)
    own = {name: one for name, one in sums.items() if not name.startswith(f"{TRAINER}/")}
    if problem := _wrong_size(folder, sums) or first_difference(folder, own):
        raise CheckpointError(f"checkpoint {folder} is not whole: {problem}; use an older one")
    if state.keys() != {one.name for one in fields(RunState)}:
        raise CheckpointError(f"checkpoint {folder}: run.json has other keys than a run writes")
    return RunState(**state)


def _wrong_size(folder: Path, sums: Mapping[str, FileSum]) -> str | None:
    """The first file that is missing, too many, or of another size."""
    here = set(files_below(folder)) - {MANIFEST}
    for name in sorted(sums.keys() | here):
        if name not in sums:
            return f"{name} is not one of its files"
        size = (folder / name).stat().st_size if name in here else None
        if size != sums[name].size:
            has = "is missing" if size is None else f"has {size}"
            return f"{name} should have {sums[name].size} bytes, {has}"
    return None


def check_trainer(checkpoint: Path) -> None:
    """Read everything below ``trainer`` once, to see whether it is what was written.

    Raises:
        CheckpointError: names the file that is not.
    """
    folder = checkpoint / TRAINER
    if problem := first_difference(folder, sums_of_trainer(folder)):
        raise CheckpointError(f"checkpoint {checkpoint} is not whole: {problem}; use an older one")


def sums_of_trainer(folder: Path) -> dict[str, FileSum]:
    """What the manifest of a checkpoint says of its folder ``trainer``, by name in that.

    Nothing where that folder is in no checkpoint.
    """
    if not (folder.parent / MANIFEST).is_file():
        return {}
    sums = _read_manifest(folder.parent)
    inside = f"{folder.name}/"
    return {n.removeprefix(inside): one for n, one in sums.items() if n.startswith(inside)}


def _read_manifest(folder: Path) -> dict[str, FileSum]:
    manifest = _read_json(folder / MANIFEST)
    sums = {}
    for name, one in manifest.items():
        if not isinstance(one, dict) or one.keys() != {"size", "crc32"}:
            raise CheckpointError(f"checkpoint file {folder / MANIFEST}: no sum of {name}")
        sums[name] = FileSum(**one)
    return sums


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"checkpoint file {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"checkpoint file {path} does not hold an object")
    return content


def _sync_folder(folder: Path) -> None:
    """Make what was written or renamed in it durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
