"""The student as the trainer runs it: one pass of the trunk, the head on the kept rows only."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    BitsAndBytesConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.integrations import HfDeepSpeedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from actors.kernels.packed_attention import PACKED, UnfitModel, check_model, packed_row
from actors.trainer.adapter import add_adapter, of_adapter, plain_name
from opd_ray.batching.packing import Packing, Segment
from opd_ray.borders import writing
from opd_ray.config.choices import BaseFormat
from opd_ray.config.schema import StudentSettings
from opd_ray.errors import ConfigError, InputError
from opd_ray.models.engine_limits import DROPOUT_RATES
from opd_ray.models.folder import ModelFiles, model_folder
from opd_ray.models.weights import load_causal_lm, weights_checked

# (hidden_ND, weight_VD, bias_V or None) -> tensors
HeadFunction = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, ...]]


class DivergenceHead(nn.Linear):
    """A linear head that gives logits, or what a function makes of hidden states and its weight.

    The fused loss needs the weight itself, never the logits of all rows. It is handed over inside
    ``forward``, because ZeRO-3 gathers a sharded weight in hooks around ``nn.Module.__call__``.
    """

    @classmethod
    def over(cls, head: nn.Linear) -> DivergenceHead:
        """A head with the very Parameters of ``head``, so that tying and names stay as they are."""
        new = cls(head.in_features, head.out_features, bias=head.bias is not None, device="meta")
        new.weight = head.weight
        new.bias = head.bias
        return new

    def forward(  # type: ignore[override]
        self, hidden: Tensor, function: HeadFunction | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """Logits ``[..., V]`` of ``hidden`` ``[..., D]``, or ``function(hidden, weight, bias)``."""
        if function is None:
            return super().forward(hidden)
        return function(hidden, self.weight, self.bias)


_SHARD_SIZE = "5GB"  # of one file of weights


class Student(nn.Module):
    """A Hugging Face causal language model whose trunk and head are called apart.

    Attributes:
        model: the causal language model, its output head replaced by a :class:`DivergenceHead`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        head = model.get_output_embeddings()
        if type(head) is not nn.Linear:
            raise ConfigError(
                f"student.path: the output head of {type(model).__name__} is a "
                f"{type(head).__name__}; only a linear head can be trained"
            )
        model.set_output_embeddings(DivergenceHead.over(head))
        self.model = model

    def forward(
        self,
        ids_1T: Tensor,
        positions_1T: Tensor,
        segments: tuple[Segment, ...],
        kept_N: Tensor | None = None,
        function: HeadFunction | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """What the head makes of the kept rows.

        Args:
            ids_1T: packed texts.
            positions_1T: of each token in its text.
            segments: of the row.
            kept_N: indices into the T tokens; None runs the model's own forward pass and gives all
                its logits ``[T, V]``.
            function: see :class:`DivergenceHead`; None gives logits ``[N, V]``.
        """
        row = {
            "input_ids": ids_1T,
            "position_ids": positions_1T,
            "use_cache": False,
            "segments": segments,
        }
        if kept_N is None:
            return self.model(**row).logits[0]
        hidden_1TD = self.model.base_model(**row).last_hidden_state
        # By keyword: ZeRO-3's hooks look into positional arguments and expect tensors there.
        return self.model.get_output_embeddings()(hidden_1TD[0, kept_N], function=function)


def load_student_config(settings: StudentSettings) -> PretrainedConfig:
    """The configuration of the student's checkpoint."""
    return AutoConfig.from_pretrained(
        settings.path, trust_remote_code=settings.trust_remote_code
    ).get_text_config(decoder=True)


def load_student(
    settings: StudentSettings,
    dtype: torch.dtype,
    *,
    gradient_checkpointing: bool,
    recomputed_layers: int | None = None,
    zero3_config: dict[str, Any] | None,
    seed: int = 0,
) -> Student:
    """Load the student's weights, and put an adapter into it where it is to have one.

    Args:
        settings: where they are.
        dtype: number format of the weights.
        gradient_checkpointing: recompute layers in the backward pass.
        recomputed_layers: how many of them, see :func:`recompute_layers`.
        zero3_config: DeepSpeed's configuration when the weights are to be sharded as they load,
            so that no rank ever holds the whole model on its device; None loads them whole.
        seed: of the run, from which an adapter begins.

    Raises:
        ConfigError: dropout is on (the rollouts have none), the head is not linear, or layers are
            to be recomputed that cannot be told apart.
        WeightsError: the files lack weights of the model, or hold others.
    """
    trust, sharded = settings.trust_remote_code, zero3_config is not None
    quantised = settings.lora.on and settings.lora.base is BaseFormat.nf4
    # Of sharded weights transformers does not tell all that was missing.
    with weights_checked(settings.path, trust_remote_code=trust) if sharded else nullcontext():
        # transformers holds a weak reference to this object, and shards while it lives.
        sharding = HfDeepSpeedConfig(zero3_config) if sharded else None
        model = load_causal_lm(
            settings.path,
            dtype=dtype,
            attn_implementation=PACKED,
            trust_remote_code=trust,
            **({"quantization_config": _four_bits(dtype)} if quantised else {}),
        )
        del sharding
    if sharded:
        # There transformers notes conversions from old names, too, that no file had.
        model._weight_conversions = None
    _refuse_dropout(model)
    if settings.lora.on:
        add_adapter(model, settings.lora, seed)
    if gradient_checkpointing:
        recompute_layers(model, recomputed_layers)
    return Student(model)


def recompute_layers(model: PreTrainedModel, first: int | None) -> None:
    """Keep only the input of the ``first`` layers for the backward pass; None: of all.

    The others keep all they need. They are the last ones, whose memory is free again when the first
    layer is recomputed: the peak is lower than with any other choice of as many.

    Raises:
        ConfigError: the model's layers are not transformers' own, which can be told apart.
    """
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if first is None:
        return
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError(
            f"trainer.recomputed_layers = {first}: {type(model).__name__} has no layers that can "
            "be recomputed one by one; set it to null"
        )
    for layer in layers[first:]:
        layer.gradient_checkpointing = False


def _four_bits(dtype: torch.dtype) -> BitsAndBytesConfig:
    """QLoRA's frozen weights, computed with in ``dtype``. Has never run: it needs CUDA."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def student_files(settings: StudentSettings) -> ModelFiles:
    """What the student's folder holds beside its weights.

    Raises:
        InputError: it is gone.
    """
    folder = model_folder(settings.path)
    if folder is None:
        raise InputError(f"student.path = {settings.path!r}: no such folder")
    return ModelFiles.read(folder)


def saved_names(model: PreTrainedModel) -> set[str]:
    """Parameters, a tied one under its first name, and buffers that belong to a checkpoint.

    Those of the model alone, as if it had no adapter.
    """
    kept = model.state_dict().keys()
    buffers = {name for name, _ in model.named_buffers() if name in kept}
    names = buffers | {name for name, _ in model.named_parameters()}
    return {plain_name(name) for name in names if not of_adapter(name)}


def save_student(
    model: PreTrainedModel, files: ModelFiles, state: dict[str, Tensor], folder: str
) -> None:
    """Write a Hugging Face folder: the weights in ``state``, and the files of the student's own.

    What is at ``folder`` is replaced, once the new one is whole.

    Raises:
        WriteError: it cannot be written; what is there stays.
    """
    target = Path(folder)
    draft = target.with_name(f"{target.name}.tmp")
    # transformers refuses to write some generation configs that it reads; ours is copied below.
    model.generation_config = GenerationConfig()
    with writing(target):
        shutil.rmtree(draft, ignore_errors=True)
        try:
            model.save_pretrained(draft, state_dict=state, max_shard_size=_SHARD_SIZE)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)  # a full disk has better use for its room
            raise
    made = json.loads((draft / "config.json").read_text(encoding="utf-8"))
    with writing(target):
        for file in draft.iterdir():
            if not file.name.endswith((".safetensors", ".safetensors.index.json")):
                file.unlink()
    files.saved_as(made).write(draft)
    # safetensors lets nobody else read what it writes, whatever the umask says.
    with writing(target):
        for file in draft.glob("*.safetensors"):
            shutil.copymode(draft / "config.json", file)
        if target.exists():
            shutil.rmtree(target)
        os.replace(draft, target)


def check_student(
    engine: Callable[..., Tensor], device: torch.device, vocab_size: int, dtype: torch.dtype
) -> None:
    """Refuse a student whose logits are not what the trainer computes.

    Args:
        engine: runs :class:`Student` (a collective).
        device: of the engine.
        vocab_size: token ids lie below it.
        dtype: of the weights.

    Raises:
        ConfigError: see :func:`actors.kernels.packed_attention.check_model`.
    """

    def logits_of(packing: Packing) -> tuple[Tensor, Tensor]:
        ids_1T, positions_1T = packed_row(packing, device)
        own_TV = engine(ids_1T, positions_1T, segments=packing.segments)
        all_T = torch.arange(ids_1T.shape[1], device=device)
        return own_TV, engine(ids_1T, positions_1T, segments=packing.segments, kept_N=all_T)

    try:
        check_model(logits_of, vocab_size, dtype)
    except UnfitModel as error:
        raise ConfigError(f"student.path: {error}; choose another student") from error


def _refuse_dropout(model: PreTrainedModel) -> None:
    rates = {name: getattr(model.config, name, None) for name in DROPOUT_RATES}
    rates.update({name: m.p for name, m in model.named_modules() if isinstance(m, nn.Dropout)})
    active = {name: rate for name, rate in rates.items() if rate}
    if active:
        raise ConfigError(
            f"student.path: the student has dropout or jitter ({active}) and vLLM writes the "
            "rollouts without it, so the trainer would see another model: set these rates to 0 in "
            "its config.json"
        )
