"""``opd-ray export``: a checkpoint as a plain Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from opd_ray.config.load import load_config
from opd_ray.errors import OutputFolderError
from opd_ray.output.checkpoint import read_state


def export(checkpoint: Path, out: Path) -> int:
    """Write weights, configuration and tokenizer of a checkpoint's student to ``out``.

    Raises:
        CheckpointError: the checkpoint is broken.
        OutputFolderError: ``out`` holds something already.
    """
    state = read_state(checkpoint)
    if out.exists() and any(out.iterdir()):
        raise OutputFolderError(f"--out = {str(out)!r}: not empty; choose a new folder")
    config = load_config(str(checkpoint / "config.yaml"))
    from actors.trainer.consolidate import export_checkpoint

    export_checkpoint(checkpoint / "trainer", config.student, config.trainer, out)
    print(f"exported the student of step {state.step} to {out}")
    return 0
