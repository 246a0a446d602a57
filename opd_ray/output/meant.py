"""Which folder of a run is meant where a checkpoint, or a model, is asked for.

A run's folder, its ``checkpoints``, one checkpoint and its ``export`` lie within each other, and a
command that wants one of them is easily given another.
"""

from __future__ import annotations

from pathlib import Path

from opd_ray.errors import ConfigError
from opd_ray.output.checkpoint import MANIFEST, CheckpointError, CheckpointStore
from opd_ray.output.folder import OutputFolder


def meant_checkpoint(path: Path) -> Path:
    """The checkpoint at ``path``, or the newest whole one of the run there.

    ``path`` may be the checkpoint, its ``trainer``, the run's ``checkpoints``, or the run's folder.

    Raises:
        CheckpointError: there is none.
    """
    if (path / MANIFEST).is_file():
        return path
    if path.name == "trainer" and (path.parent / MANIFEST).is_file():
        return path.parent
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; give a run's folder, or a checkpoint's")
    for folder in (path / "checkpoints", path):
        newest = CheckpointStore(folder, keep=1).newest()
        if newest is not None:
            return newest[0]
    if any(path.glob("step_*")):
        reason = "no checkpoint in it is whole"
    elif exported := _export_of(path):
        reason = f"no checkpoint in it; its exported student is {exported}"
    else:
        reason = "neither a checkpoint nor the folder of a run that has one"
    raise CheckpointError(f"{path}: {reason}; give CHECKPOINTS/step_NNNNNNNN, or a run's folder")


def meant_model(path: str) -> str:
    """The model folder at ``path``, or the exported student of the run there.

    Raises:
        ConfigError: ``path`` is a run without an exported student, or a checkpoint.
    """
    folder = Path(path)
    if (folder / "config.json").is_file():
        return path
    if exported := _export_of(folder):
        return str(exported)
    if advice := model_advice(path):
        raise ConfigError(f"--model {path}: {advice}")
    return path


def model_advice(path: str) -> str | None:
    """Where the model is, if ``path`` is a run's folder or one in it; None: it is none of them."""
    folder = Path(path)
    if not folder.is_dir() or (folder / "config.json").is_file():
        return None
    if exported := _export_of(folder):
        return f"the folder of a run; its exported student is {exported}"
    try:
        checkpoint = meant_checkpoint(folder)
    except CheckpointError:
        if not OutputFolder(folder).config.is_file():
            return None
        return "the folder of a run without exported student and checkpoint; let it go on"
    what = "a checkpoint" if checkpoint == folder else "the folder of a run"
    return (
        f"{what}, no model folder; export it first: opd-ray export --checkpoint {checkpoint} "
        "--out FOLDER"
    )


def _export_of(run: Path) -> Path | None:
    export = OutputFolder(run).export
    return export if (export / "config.json").is_file() else None
