"""The student out of a trainer's checkpoint, without its engine or its ranks."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from actors.trainer.engine import CHECKPOINT_TAG, plain_name, read_layout
from actors.trainer.student import load_student_config, save_student
from opd_ray.config.choices import Dtype
from opd_ray.config.schema import StudentSettings, TrainerSettings

# Student holds the causal language model under this name.
_PREFIX = "model."


def export_checkpoint(
    folder: Path, student: StudentSettings, trainer: TrainerSettings, out: Path
) -> None:
    """Write a Hugging Face folder from what :meth:`actors.trainer.engine.Engine.save` wrote.

    Raises:
        CheckpointMismatch: there is no trainer's checkpoint in ``folder``.
    """
    dtype = torch.bfloat16 if trainer.dtype == Dtype.bfloat16 else torch.float32
    weights = {name: tensor.to(dtype) for name, tensor in read_weights(folder).items()}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            load_student_config(student), dtype=dtype, trust_remote_code=student.trust_remote_code
        )
    names = {name for name, _ in model.named_parameters()}
    save_student(model, student, {n: t for n, t in weights.items() if n in names}, str(out))


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every weight of the student by the model's own names.

    From ZeRO-3 these are the float32 master weights, else what the trainer computes with.

    Raises:
        CheckpointMismatch: there is no trainer's checkpoint in ``folder``.
    """
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    if read_layout(folder)["zero_stage"] == 3:
        with plain_name(folder) as name:
            state = get_fp32_state_dict_from_zero_checkpoint(name, tag=CHECKPOINT_TAG)
    else:
        # Below stage 3 rank 0 holds the module whole. DeepSpeed's own way to master weights cannot
        # read what its optimizer for bfloat16 (stage 1) writes.
        file = folder / CHECKPOINT_TAG / "mp_rank_00_model_states.pt"
        state = torch.load(file, map_location="cpu", weights_only=False)["module"]
    return {name.removeprefix(_PREFIX): tensor for name, tensor in state.items()}
