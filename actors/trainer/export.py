"""The student out of a trainer's checkpoint, without its engine or its ranks."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from actors.trainer.adapter import (
    adapter_config,
    adapter_weights,
    add_adapter,
    merged_weights,
    of_adapter,
)
from actors.trainer.checkpoint import CheckpointMismatch, TrainerCheckpoint
from actors.trainer.engine import STUDENT_FILES
from actors.trainer.student import (
    load_student_config,
    save_student,
    saved_names,
    student_files,
)
from actors.weights.adapter_folder import save_adapter
from opd_ray.config.choices import Dtype, LoraForm
from opd_ray.config.schema import StudentSettings, TrainerSettings
from opd_ray.models.weights import load_causal_lm


def export_checkpoint(
    folder: Path,
    student: StudentSettings,
    trainer: TrainerSettings,
    out: Path,
    base: Path | None = None,
    form: LoraForm = LoraForm.merged,
) -> None:
    """Write a Hugging Face folder from what :meth:`actors.trainer.engine.Engine.save` wrote.

    A checkpoint of an adapter holds nothing else: a whole model is made of it with the weights of
    the student that the run began with.

    Args:
        folder: of the checkpoint.
        student: of the run that wrote it.
        trainer: likewise.
        out: where to.
        base: the model folder that config and tokenizer are copied from. None: what the checkpoint
            kept of it. With an adapter, its weights are taken too; None: those at ``student.path``.
        form: of a student that was trained as an adapter.

    Raises:
        CheckpointMismatch: there is no trainer's checkpoint in ``folder``, or it is of another
            model than ``base``.
    """
    dtype = torch.bfloat16 if trainer.dtype == Dtype.bfloat16 else torch.float32
    checkpoint = TrainerCheckpoint(folder)
    if student.lora.on:
        _export_adapted(
            checkpoint, replace(student, path=str(base or student.path)), dtype, out, form
        )
        return
    student = replace(student, path=str(base or folder / STUDENT_FILES))
    files = student_files(student)
    weights = checkpoint.weights(dtype)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            load_student_config(student), dtype=dtype, trust_remote_code=student.trust_remote_code
        )
    model.tie_weights()
    _check_shapes(weights, dict(model.named_parameters()), f"{folder} holds the weights", student)
    names = saved_names(model)
    save_student(model, files, {n: t for n, t in weights.items() if n in names}, str(out))


def _export_adapted(
    checkpoint: TrainerCheckpoint,
    student: StudentSettings,
    dtype: torch.dtype,
    out: Path,
    form: LoraForm,
) -> None:
    """The adapter in a checkpoint, alone or added to the weights of ``student``.

    Raises:
        CheckpointMismatch: it is of another model.
        WeightsError: that model is no longer whole.
    """
    on_meta = form is LoraForm.adapter
    if on_meta:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                load_student_config(student),
                dtype=dtype,
                trust_remote_code=student.trust_remote_code,
            )
    else:
        model = load_causal_lm(
            student.path, dtype=dtype, trust_remote_code=student.trust_remote_code
        )
    with torch.device("meta") if on_meta else nullcontext():
        add_adapter(model, student.lora, seed=0)
    weights = checkpoint.weights(dtype)
    adapter = {n: p for n, p in model.named_parameters() if of_adapter(n)}
    _check_shapes(weights, adapter, f"{checkpoint.folder} holds an adapter", student)
    named = {id(parameter): weights[name] for name, parameter in adapter.items()}

    def whole(parameter: nn.Parameter) -> Tensor:
        return named.get(id(parameter), parameter.detach())

    if form is LoraForm.adapter:
        config = adapter_config(model, student.lora, student.path)
        save_adapter(config, dict(adapter_weights(model, whole)), str(out))
        return
    names = saved_names(model)
    state = {name: tensor for name, tensor in merged_weights(model, whole) if name in names}
    save_student(model, student_files(student), state, str(out))


def _check_shapes(
    weights: Mapping[str, Tensor],
    parameters: Mapping[str, nn.Parameter],
    what: str,
    student: StudentSettings,
) -> None:
    """Refuse what a checkpoint holds, ``what`` in words, where it is not what a model has.

    Raises:
        CheckpointMismatch: names the first tensor that differs.
    """
    expected = {name: list(parameter.shape) for name, parameter in parameters.items()}
    found = {name: list(weights[name].shape) for name in expected if name in weights}
    if found == expected:
        return
    differing = next(name for name in expected if found.get(name) != expected[name])
    raise CheckpointMismatch(
        f"{what} of another model than {student.path}: {differing} has shape "
        f"{found.get(differing, 'none (missing)')} there, {expected[differing]} by its "
        "config.json; name the folder of the run's student with --base"
    )
