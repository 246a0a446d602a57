"""The student out of a trainer's checkpoint, without its engine or its ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from actors.trainer.checkpoint import CheckpointMismatch, TrainerCheckpoint
from actors.trainer.engine import STUDENT_FILES
from actors.trainer.student import (
    load_student_config,
    save_student,
    saved_names,
    student_files,
)
from opd_ray.config.choices import Dtype
from opd_ray.config.schema import StudentSettings, TrainerSettings


def export_checkpoint(
    folder: Path,
    student: StudentSettings,
    trainer: TrainerSettings,
    out: Path,
    base: Path | None = None,
) -> None:
    """Write a Hugging Face folder from what :meth:`actors.trainer.engine.Engine.save` wrote.

    Args:
        folder: of the checkpoint.
        student: of the run that wrote it.
        trainer: likewise.
        out: where to.
        base: the model folder that config and tokenizer are copied from. None: what the checkpoint
            kept of it.

    Raises:
        CheckpointMismatch: there is no trainer's checkpoint in ``folder``, or it is of another
            model than ``base``.
    """
    dtype = torch.bfloat16 if trainer.dtype == Dtype.bfloat16 else torch.float32
    checkpoint = TrainerCheckpoint(folder)
    student = replace(student, path=str(base or folder / STUDENT_FILES))
    files = student_files(student)
    weights = checkpoint.weights(dtype)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            load_student_config(student), dtype=dtype, trust_remote_code=student.trust_remote_code
        )
    model.tie_weights()
    expected = {name: list(tensor.shape) for name, tensor in model.named_parameters()}
    found = {name: list(weights[name].shape) for name in expected if name in weights}
    if found != expected:
        differing = next(name for name in expected if found.get(name) != expected[name])
        raise CheckpointMismatch(
            f"{folder} holds the weights of another model than {student.path}: {differing} has "
            f"shape {found.get(differing, 'none (missing)')} there, {expected[differing]} by its "
            "config.json; name the folder of the run's student with --base"
        )
    names = saved_names(model)
    save_student(model, files, {n: t for n, t in weights.items() if n in names}, str(out))
