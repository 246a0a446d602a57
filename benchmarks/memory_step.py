"""The part of a trainer's step whose memory is in question: trunk, head, loss, and backward.

One text under a student of any shape, with random numbers, on a device or on ``meta``, where
tensors have sizes and no contents. The trunk's layers are computed again in the backward pass
(gradient checkpointing), as the recipes have it. A parameter's gradient is let go of as soon as it
is whole: ZeRO takes it into a buffer that it holds anyway.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from counted_tensors import CountedTensors
from head_losses import HeadLoss
from torch import Tensor
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

# Of the model, by the name that transformers knows it by.
ATTENTION = "one_text"


@dataclass(frozen=True)
class Text:
    """A prompt and a response; the share ``rho`` of the response is in the loss."""

    prompt: int  # tokens
    response: int  # tokens

    def rows(self, rho: float) -> int:
        return int(rho * self.response)


@dataclass(frozen=True)
class StepMemory:
    """Bytes above those of weights and inputs."""

    counted: int  # the most that counted tensors took at once
    measured: int | None  # the most that the device gave away; None: it does not tell
    loss: float | None  # a row, nats; None on meta
    seconds: float


class StudentStep:
    """A random student on a device.

    Args:
        described: its config.json.
        teacher_hidden: hidden size of the teacher, whose vocabulary is the student's.
        text: that it is trained on.
        device: also ``meta``.
        layers: of the student; None: as its config says.
        dtype: of weights and hidden states.
    """

    def __init__(
        self,
        described: Mapping[str, Any],
        teacher_hidden: int,
        text: Text,
        device: torch.device,
        *,
        layers: int | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self._text, self._device = text, device
        changes = {} if layers is None else {"num_hidden_layers": layers}
        config = AutoConfig.for_model(**{**described, "layer_types": None, **changes})
        torch.manual_seed(0)
        with device:
            model = AutoModelForCausalLM.from_config(
                config,
                dtype=dtype,
                attn_implementation=ATTENTION,
            )
            self._teacher_VD = torch.empty(config.vocab_size, teacher_hidden, dtype=dtype)
            self._of_teacher_mD = torch.empty(text.response, teacher_hidden, dtype=dtype)
        if device.type != "meta":
            self._teacher_VD.normal_(std=teacher_hidden**-0.5)
            self._of_teacher_mD.normal_()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self._model = model.train()
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(_let_go)
        positions_1T = torch.arange(text.prompt + text.response, device=device)[None]
        self._row = {
            "input_ids": positions_1T % config.vocab_size,
            "position_ids": positions_1T,
            "use_cache": False,
        }

    def run(self, loss: HeadLoss, rho: float) -> tuple[int, float | None]:
        """Forward and backward, counted: most bytes at once, and the loss a row."""
        rows = self._text.rows(rho)
        first = self._text.prompt - 1  # where the first response token is predicted
        kept_N = torch.arange(first, first + rows, device=self._device)
        with CountedTensors() as counted:
            hidden_1TD = self._model.base_model(**self._row).last_hidden_state
            hidden_ND = hidden_1TD[0, kept_N]
            del hidden_1TD
            head_VD = self._model.get_output_embeddings().weight
            value = loss(hidden_ND, head_VD, self._of_teacher_mD[:rows], self._teacher_VD)
            del hidden_ND
            value.backward()
        return counted.peak, None if self._device.type == "meta" else value.item() / rows

    def measure(self, loss: HeadLoss, rho: float, meter: Meter) -> StepMemory:
        """One step under the device's own meter."""
        meter.begin()
        started = time.perf_counter()
        counted, value = self.run(loss, rho)
        measured = meter.end()
        return StepMemory(counted, measured, value, time.perf_counter() - started)


@dataclass(frozen=True)
class Meter:
    """How a device tells of its memory: ``begin``, then ``end`` gives the bytes beyond."""

    begin: Callable[[], None]
    end: Callable[[], int | None]


def meter_of(device: torch.device) -> Meter:
    """Of a GPU, its allocator's; of this process's resident set; of ``meta``, nothing."""
    held = [0]
    if device.type == "meta":
        return Meter(lambda: None, lambda: None)
    if device.type == "cuda":

        def begin() -> None:
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            held[0] = torch.cuda.memory_allocated(device)

        def end() -> int:
            torch.cuda.synchronize(device)
            return torch.cuda.max_memory_allocated(device) - held[0]

        return Meter(begin, end)
    from process_memory import process_memory, settle

    def settle_down() -> None:
        held[0] = settle()

    return Meter(settle_down, lambda: process_memory("VmHWM") - held[0])


def _let_go(parameter: Tensor) -> None:
    parameter.grad = None


class _FlashShaped(torch.autograd.Function):
    """Tensors as FlashAttention-2 makes them, without their contents.

    PyTorch's own attention knows no such kernel on ``meta`` and would count a score for every pair
    of positions.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        log_sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, log_sums)
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _, log_sums = ctx.saved_tensors
        sums = torch.empty_like(query, dtype=torch.float32), torch.empty_like(log_sums)
        # Keys and values that heads share get a gradient a head first.
        heads = torch.empty_like(query), torch.empty_like(query)
        gradients = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        del sums, heads
        return gradients


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal, of one text; see transformers' ``AttentionInterface``."""
    if query.device.type == "meta":
        output = _FlashShaped.apply(query, key, value)
    else:
        output = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    return output.transpose(1, 2), None


AttentionInterface.register(ATTENTION, _attention)
