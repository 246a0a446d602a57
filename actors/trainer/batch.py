"""Rollouts and the teacher's signals as the tensors of one micro-batch.

Where a kept row is predicted comes from :mod:`opd_ray.batching.alignment`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from actors.kernels.packed_attention import packed_row
from opd_ray.batching.alignment import predicting_positions
from opd_ray.batching.packing import Segment, Width, exact_width, pack
from opd_ray.divergence import (
    HiddenTarget,
    LogitsTarget,
    MixtureTarget,
    SampledTarget,
    Target,
    TopKTarget,
)
from opd_ray.errors import RunError
from opd_ray.types import (
    NO_TOKEN,
    HiddenSignal,
    SampledSignal,
    Signal,
    TopKSignal,
    TrainItem,
    to_tensor,
)


class BatchError(RunError):
    """Rollouts and signals that do not fit together; names the rollout and the row."""


class TeacherHead(NamedTuple):
    """What turns a teacher's hidden states into its distribution, or into its share of one."""

    weight_VD: Tensor
    bias_V: Tensor | None
    share: float = 1.0


# By the teacher's name; an ensemble has one a member, for the columns of hidden states in turn.
TeacherHeads = Mapping[str, Sequence[TeacherHead]]


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass: texts packed into a row of T tokens, N kept rows."""

    rollout_ids: tuple[str, ...]
    rows_per_rollout: tuple[int, ...]
    ids_1T: Tensor
    positions_1T: Tensor
    segments: tuple[Segment, ...]
    padding_tokens: int
    kept_N: Tensor  # where in the row each kept row of the responses is predicted
    sampled_ids_N: Tensor
    weights_N: Tensor
    rollout_logprob_N: Tensor
    targets: tuple[Target, ...]  # of the N rows in turn: one, or one a teacher with hidden states

    @property
    def is_empty(self) -> bool:
        """A stand-in that keeps this rank in step with the others."""
        return not self.rollout_ids


def check_items(
    items: Sequence[TrainItem],
    signals: Mapping[str, Signal],
    *,
    vocab_size: int,
    heads: TeacherHeads,
) -> None:
    """Check everything that would silently misalign a forward pass, or crash one of the ranks.

    Args:
        items: rollouts, those without kept rows included.
        signals: by rollout id; row i belongs to kept row i of the rollout.
        vocab_size: token ids lie below it; rows of the embedding beyond are padding.
        heads: of the teachers, for hidden states.

    Raises:
        BatchError: a signal is missing or has another number of rows, signals of several kinds, a
            row outside its response, a token id outside the vocabulary, an empty prompt, hidden
            states without or not fitting the teacher's head.
    """
    kinds: dict[object, str] = {}
    for item in items:
        _check_text(item, vocab_size)
        if len(item.rows) == 0:
            continue
        signal = signals.get(item.rollout_id)
        if signal is None:
            raise BatchError(f"rollout {item.rollout_id} came without the teacher's signal")
        _check_signal(item, signal, vocab_size, heads)
        kinds.setdefault(_kind(signal), item.rollout_id)
    if len(kinds) > 1:
        named = ", ".join(f"{kind} (rollout {rollout})" for kind, rollout in kinds.items())
        raise BatchError(f"one step takes signals of one kind and width, not {named}")


def build_micro_batch(
    items: Sequence[TrainItem],
    signals: Mapping[str, Signal],
    *,
    vocab_size: int,
    heads: TeacherHeads,
    device: torch.device,
    width: Width = exact_width,
) -> MicroBatch:
    """The tensors of one micro-batch, from items that passed :func:`check_items`.

    Rollouts whose signals need the same head come one after the other. Items without kept rows are
    left out. If none is left, the batch is one token whose row has weight 0: it takes part in every
    collective and adds a gradient of exactly 0.
    """
    items = [item for item in items if len(item.rows)]
    if not items:
        return _stand_in(vocab_size, device)
    items.sort(key=lambda item: _head_of(signals[item.rollout_id]))
    packing = pack([item.text_ids for item in items], width)
    ids_1T, positions_1T = packed_row(packing, device)
    kept = [
        places[predicting_positions(len(item.prompt_ids), item.rows)]
        for item, places in zip(items, packing.places, strict=True)
    ]
    sampled = [item.response_ids[item.rows] for item in items]

    def tensor(values: Sequence[np.ndarray], dtype: torch.dtype) -> Tensor:
        return torch.tensor(np.concatenate(values), dtype=dtype, device=device)

    return MicroBatch(
        rollout_ids=tuple(item.rollout_id for item in items),
        rows_per_rollout=tuple(len(item.rows) for item in items),
        ids_1T=ids_1T,
        positions_1T=positions_1T,
        segments=packing.segments,
        padding_tokens=packing.padding,
        kept_N=tensor(kept, torch.int64),
        sampled_ids_N=tensor(sampled, torch.int64),
        weights_N=tensor([item.weights for item in items], torch.float32),
        rollout_logprob_N=tensor([item.rollout_logprob for item in items], torch.float32),
        targets=tuple(
            _stack(list(group), signals, heads, device)
            for _, group in groupby(items, lambda item: _head_of(signals[item.rollout_id]))
        ),
    )


def _stack(
    items: Sequence[TrainItem],
    signals: Mapping[str, Signal],
    heads: TeacherHeads,
    device: torch.device,
) -> Target:
    """Signals of one kind, and of one head, as the target of all their rows."""
    of_items = [signals[item.rollout_id] for item in items]

    def column(name: str) -> Tensor:
        return to_tensor(np.concatenate([getattr(signal, name) for signal in of_items])).to(device)

    match of_items[0]:
        case TopKSignal():
            return TopKTarget(column("ids").long(), column("logprobs"))
        case HiddenSignal(teacher=teacher):
            return _of_hidden(column("hidden"), heads[teacher])
        case SampledSignal():
            sampled = np.concatenate([item.response_ids[item.rows] for item in items])
            ids_N = torch.as_tensor(sampled, device=device).long()
            return SampledTarget(ids_N, column("logprobs"))


def _stand_in(vocab_size: int, device: torch.device) -> MicroBatch:
    zero_N = torch.zeros(1, dtype=torch.int64, device=device)
    return MicroBatch(
        rollout_ids=(),
        rows_per_rollout=(),
        ids_1T=zero_N[None],
        positions_1T=zero_N[None],
        segments=(Segment(0, 1),),
        padding_tokens=1,
        kept_N=zero_N,
        sampled_ids_N=zero_N,
        weights_N=zero_N.float(),
        rollout_logprob_N=zero_N.float(),
        targets=(LogitsTarget(torch.zeros(1, vocab_size, device=device)),),
    )


def _of_hidden(hidden_ND: Tensor, heads: Sequence[TeacherHead]) -> Target:
    """Each head's columns of the hidden states under that head."""
    sizes = [head.weight_VD.shape[1] for head in heads]
    parts = tuple(
        HiddenTarget(part_ND.contiguous(), head.weight_VD, head.bias_V)
        for part_ND, head in zip(hidden_ND.split(sizes, dim=1), heads, strict=True)
    )
    if len(parts) == 1:
        return parts[0]
    return MixtureTarget(parts, tuple(head.share for head in heads))


def _head_of(signal: Signal) -> str:
    """The teacher whose head a signal needs; "" where it needs none."""
    return signal.teacher if isinstance(signal, HiddenSignal) else ""


def _kind(signal: Signal) -> object:
    """What must be the same for all signals of a step."""
    if isinstance(signal, TopKSignal):
        return f"top-{signal.ids.shape[1]}"
    return type(signal).__name__


def _check_text(item: TrainItem, vocab_size: int) -> None:
    name = f"rollout {item.rollout_id}"
    if len(item.prompt_ids) == 0:
        raise BatchError(f"{name} has an empty prompt: nothing predicts its first response token")
    for part, ids in (("prompt", item.prompt_ids), ("response", item.response_ids)):
        wrong = np.flatnonzero((ids < 0) | (ids >= vocab_size))
        if len(wrong):
            raise BatchError(
                f"{name}: {part} token {wrong[0]} has id {ids[wrong[0]]}, outside the vocabulary "
                f"of {vocab_size}"
            )
    rows = item.rows
    if len(rows) and not (rows.min() >= 0 and rows.max() < len(item.response_ids)):
        raise BatchError(
            f"{name}: rows {rows.min()} to {rows.max()} were kept of a response of "
            f"{len(item.response_ids)} tokens"
        )
    if not len(rows) == len(item.weights) == len(item.rollout_logprob):
        raise BatchError(
            f"{name}: {len(rows)} rows with {len(item.weights)} weights and "
            f"{len(item.rollout_logprob)} log-probabilities"
        )


def _check_signal(item: TrainItem, signal: Signal, vocab_size: int, heads: TeacherHeads) -> None:
    name = f"rollout {item.rollout_id}"
    match signal:
        case TopKSignal(ids=ids, logprobs=logprobs):
            found = len(ids)
            empty = (ids == NO_TOKEN) & np.isneginf(logprobs)
            empty[:, :1] = False
            wrong = np.argwhere(~empty & ((ids < 0) | (ids >= vocab_size)))
            if len(wrong):
                row, column = wrong[0]
                raise BatchError(
                    f"{name}, row {item.rows[row]}: the top-k signal has id {ids[row, column]}, "
                    f"outside the vocabulary of {vocab_size}"
                )
        case HiddenSignal(hidden=hidden, teacher=teacher):
            found = len(hidden)
            if teacher not in heads:
                raise BatchError(
                    f"{name} came with hidden states of {teacher!r}, but no head of that teacher "
                    "was set"
                )
            size = sum(head.weight_VD.shape[1] for head in heads[teacher])
            if hidden.shape[1] != size:
                raise BatchError(
                    f"{name}: hidden states of size {hidden.shape[1]} do not fit the head of "
                    f"{teacher!r}, of size {size}"
                )
        case SampledSignal(logprobs=logprobs):
            found = len(logprobs)
    if found != len(item.rows):
        raise BatchError(f"{name}: {len(item.rows)} kept rows, but a signal of {found} rows")
