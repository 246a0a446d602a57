"""Checkpoints of a run: written beside, renamed into place, the newest whole one found again.

Layout of ``checkpoints/step_00000050/``: ``trainer/`` (DeepSpeed's files of every rank,
``teachers/`` that follow the student, with ``run.lag`` ``rollouts_ahead/`` of the next step),
``config.yaml``, ``run.json`` (a :class:`RunState`) and ``manifest.json`` (every file's size,
written last: a checkpoint without it, or whose files do not match it, is not whole and is passed
over).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from opd_ray.errors import OpdError
from opd_ray.whole_file import write_whole

MANIFEST = "manifest.json"
_NAME = re.compile(r"step_(\d{8})$")
_FORMAT = 1


class CheckpointError(OpdError, ValueError):
    """A checkpoint that is asked for cannot be read or does not belong to this run."""


@dataclass(frozen=True)
class RunState:
    """What the run itself must remember; seeds and learning rate follow from the step."""

    step: int  # optimizer steps done
    seed: int
    total_steps: int  # the schedule's length
    filter_state: dict[str, Any]
    # [steps, prompts of each] of the parts of the run, in order: which prompts were used. Both are
    # None where they were not kept yet.
    batches: list[list[int]] | None = None
    prompts: dict[str, Any] | None = None  # count and fingerprint, see PromptsIdentity
    format: int = _FORMAT


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints folder of one run."""

    folder: Path  # made when the first one is written
    keep: int  # how many of the newest stay
    config_yaml: str = ""  # the run's configuration, written into every checkpoint

    def save(self, state: RunState, write_trainer: Callable[[str], None]) -> Path:
        """Write one checkpoint; ``write_trainer`` fills the folder it is given. Returns its path.

        A crash at any moment leaves the older checkpoints as they were, and no half-written one.
        """
        final = self.folder / f"step_{state.step:08d}"
        draft = self.folder / f"{final.name}.tmp"
        if draft.exists():
            shutil.rmtree(draft)
        (draft / "trainer").mkdir(parents=True)
        write_trainer(str(draft / "trainer"))
        (draft / "config.yaml").write_text(self.config_yaml, encoding="utf-8")
        write_whole(draft / "run.json", json.dumps(asdict(state), indent=1))
        write_whole(draft / MANIFEST, json.dumps(_sizes(draft), indent=1))
        if final.exists():
            shutil.rmtree(final)
        os.replace(draft, final)
        _sync_folder(self.folder)
        for old in self._all()[: -self.keep]:
            shutil.rmtree(old)
        return final

    def newest(self) -> tuple[Path, RunState] | None:
        """The newest whole checkpoint, or None; broken ones are passed over."""
        for folder in reversed(self._all()):
            try:
                return folder, read_state(folder)
            except CheckpointError:
                continue
        return None

    def broken(self, after: int = -1) -> list[str]:
        """Why checkpoints of more steps than ``after`` cannot be read, oldest first."""
        reasons = []
        for folder in self._all(after):
            try:
                read_state(folder)
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
        CheckpointError: names the file that is missing or cut short, or the unknown format.
    """
    manifest = _read_json(folder / MANIFEST)
    found = _sizes(folder)
    for name, size in manifest.items():
        if found.get(name) != size:
            raise CheckpointError(
                f"checkpoint {folder} is not whole: {name} should have {size} bytes, "
                f"has {found.get(name, 'none (missing)')}; use an older checkpoint"
            )
    fields = _read_json(folder / "run.json")
    if fields.get("format") != _FORMAT:
        raise CheckpointError(
            f"checkpoint {folder} has format {fields.get('format')}, this version reads {_FORMAT}"
        )
    return RunState(**fields)


def _sizes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint file {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"checkpoint file {path} does not hold an object")
    return content


def _sync_folder(folder: Path) -> None:
    """Make the rename durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
