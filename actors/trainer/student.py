"""The student as the trainer runs it: one pass of the trunk, the head on the kept rows only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.integrations import HfDeepSpeedConfig

from actors.trainer.head import DivergenceHead, HeadFunction
from opd_ray.config.schema import StudentSettings
from opd_ray.errors import ConfigError

_DROPOUT_RATES = ("attention_dropout", "hidden_dropout", "resid_pdrop", "attn_pdrop", "embd_pdrop")


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
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor,
        position_ids_BL: Tensor,
        kept_N: Tensor | None = None,
        function: HeadFunction | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """What the head makes of the kept rows.

        Args:
            input_ids_BL: padded on the right.
            attention_mask_BL: 1 for text, 0 for padding.
            position_ids_BL: position of each token in its text.
            kept_N: indices into the B * L flattened positions; None runs the model's own forward
                pass and gives all its logits ``[B * L, V]``.
            function: see :class:`DivergenceHead`; None gives logits ``[N, V]``.
        """
        trunk_input = {
            "input_ids": input_ids_BL,
            "attention_mask": attention_mask_BL,
            "position_ids": position_ids_BL,
            "use_cache": False,
        }
        if kept_N is None:
            return self.model(**trunk_input).logits.flatten(0, 1)
        hidden_BLD = self.model.base_model(**trunk_input).last_hidden_state
        hidden_ND = hidden_BLD.flatten(0, 1)[kept_N]
        # By keyword: ZeRO-3's hooks look into positional arguments and expect tensors there.
        return self.model.get_output_embeddings()(hidden_ND, function=function)


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
    zero3_config: dict[str, Any] | None,
) -> Student:
    """Load the student's weights.

    Args:
        settings: where they are.
        dtype: number format of the weights.
        gradient_checkpointing: recompute each layer in the backward pass.
        zero3_config: DeepSpeed's configuration when the weights are to be sharded as they load,
            so that no rank ever holds the whole model on its device; None loads them whole.

    Raises:
        ConfigError: dropout is on (the rollouts have none), or the head is not linear.
    """
    # transformers holds a weak reference to this object, and shards while it lives.
    sharding = HfDeepSpeedConfig(zero3_config) if zero3_config is not None else None
    model = AutoModelForCausalLM.from_pretrained(
        settings.path,
        dtype=dtype,
        attn_implementation="sdpa",
        trust_remote_code=settings.trust_remote_code,
    )
    del sharding
    _refuse_dropout(model)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return Student(model)


def save_student(
    model: PreTrainedModel, settings: StudentSettings, state: dict[str, Tensor], folder: str
) -> None:
    """Write a Hugging Face folder: the weights in ``state``, the configs, the tokenizer."""
    model.save_pretrained(folder, state_dict=state)
    AutoTokenizer.from_pretrained(
        settings.path, trust_remote_code=settings.trust_remote_code
    ).save_pretrained(folder)


def check_logits(engine: Callable[..., Tensor], device: torch.device, *, tolerance: float) -> None:
    """Refuse a student that does more to its logits than project the last hidden state.

    Args:
        engine: runs :class:`Student` (a collective).
        device: of the engine.
        tolerance: largest difference, relative to the largest logit.

    Raises:
        ConfigError: the model's own logits differ from those the trainer computes.
    """
    ids_BL = torch.arange(4, device=device)[None]
    mask_BL = torch.ones_like(ids_BL)
    with torch.no_grad():
        own_NV = engine(ids_BL, mask_BL, ids_BL)
        ours_NV = engine(ids_BL, mask_BL, ids_BL, ids_BL[0])
    error = float((own_NV - ours_NV).abs().max() / own_NV.abs().max())
    if not error <= tolerance:
        raise ConfigError(
            "student.path: the student's logits are not its output head's projection of the last "
            f"hidden state (they differ by {error:.2g} of the largest): the model scales or caps "
            "them, which the fused loss does not do; choose another student"
        )


def _refuse_dropout(model: PreTrainedModel) -> None:
    rates = {name: getattr(model.config, name, None) for name in _DROPOUT_RATES}
    rates.update({name: m.p for name, m in model.named_modules() if isinstance(m, nn.Dropout)})
    active = {name: rate for name, rate in rates.items() if rate}
    if active:
        raise ConfigError(
            f"student.path: the student has dropout ({active}) and vLLM writes the rollouts "
            "without it, so the trainer would see another model: set these rates to 0 in its "
            "config.json"
        )
