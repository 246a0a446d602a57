"""What a teacher says of N rows, as tensors: hidden states, logits, a top-k or sampled tokens.

Row i is the distribution that predicted token i. The teacher's hidden size D need not be the
student's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class HiddenTarget:
    """The teacher's last hidden states and its output head: its exact distribution.

    Raises:
        ValueError: shapes or dtypes that do not fit together.
    """

    hidden_ND: Tensor  # [N, D]
    head_VD: Tensor  # [V, D], same dtype
    bias_V: Tensor | None = None  # [V], same dtype

    def __post_init__(self) -> None:
        check_head("teacher", self.hidden_ND, self.head_VD, self.bias_V)

    @property
    def num_rows(self) -> int:
        return self.hidden_ND.shape[0]


@dataclass(frozen=True, eq=False)
class MixtureTarget:
    """Several teachers as one: Q = sum of shares[i] x the distribution of parts[i].

    At a temperature T the mixture itself is tempered: Q^(1/T), normalised.

    Raises:
        ValueError: parts that do not fit together.
    """

    parts: tuple[HiddenTarget, ...]  # of the same N rows and one dtype; hidden sizes may differ
    shares: tuple[float, ...]  # each above 0, together 1

    def __post_init__(self) -> None:
        if not self.parts or len(self.parts) != len(self.shares):
            raise ValueError(f"{len(self.parts)} parts with {len(self.shares)} shares")
        if min(self.shares) <= 0.0 or abs(sum(self.shares) - 1.0) > 1e-6:
            raise ValueError(f"shares must be above 0 and add up to 1, not {self.shares}")
        shapes = {(part.num_rows, len(part.head_VD), part.hidden_ND.dtype) for part in self.parts}
        if len(shapes) > 1:
            raise ValueError(f"parts differ in rows, vocabulary rows or dtype: {sorted(shapes)}")

    @property
    def num_rows(self) -> int:
        return self.parts[0].num_rows


@dataclass(frozen=True, eq=False)
class LogitsTarget:
    """The teacher's logits over the whole vocabulary, [N, V]; up to a constant per row.

    Raises:
        ValueError: they are not a floating-point matrix.
    """

    logits_NV: Tensor

    def __post_init__(self) -> None:
        _check_matrix("logits_NV", self.logits_NV)

    @property
    def num_rows(self) -> int:
        return self.logits_NV.shape[0]


@dataclass(frozen=True, eq=False)
class TopKTarget:
    """What the teacher gives some ids of each row; the mass they leave is one tail bucket.

    Any ids will do, in any order. A row with fewer of them than others holds id -1 at -inf, which
    counts as nothing, never in its first place.

    Raises:
        ValueError: differing shapes, ids that are not int64, or k = 0.
    """

    ids_Nk: Tensor  # [N, k] int64, distinct within a row but for -1
    logprobs_Nk: Tensor  # [N, k] nats, under the teacher's full distribution; -inf is allowed
    temperature: float = 1.0  # that the log-probabilities were taken at

    def __post_init__(self) -> None:
        _check_matrix("logprobs_Nk", self.logprobs_Nk)
        _check_ids("ids_Nk", self.ids_Nk, self.logprobs_Nk)
        if self.ids_Nk.shape[1] == 0:
            raise ValueError("ids_Nk has no columns: a top-k target needs k of at least 1")

    @property
    def num_rows(self) -> int:
        return self.ids_Nk.shape[0]


@dataclass(frozen=True, eq=False)
class SampledTarget:
    """The teacher's log-probability of the one token the student sampled.

    Raises:
        ValueError: differing shapes, or ids that are not int64.
    """

    token_ids_N: Tensor  # [N] int64
    logprobs_N: Tensor  # [N] nats, under the teacher's full distribution
    temperature: float = 1.0  # that the log-probabilities were taken at
    # [N] nats, under the distribution that the tokens were drawn from; None: the student's own.
    drawn_logprobs_N: Tensor | None = None

    def __post_init__(self) -> None:
        if self.logprobs_N.ndim != 1 or not self.logprobs_N.is_floating_point():
            raise ValueError(
                f"logprobs_N must be a floating-point vector [N], not {_describe(self.logprobs_N)}"
            )
        _check_ids("token_ids_N", self.token_ids_N, self.logprobs_N)
        drawn_N = self.drawn_logprobs_N
        if drawn_N is not None and drawn_N.shape != self.logprobs_N.shape:
            raise ValueError(
                f"drawn_logprobs_N must be [{len(self.logprobs_N)}], not {list(drawn_N.shape)}"
            )

    @property
    def num_rows(self) -> int:
        return self.token_ids_N.shape[0]


Target = HiddenTarget | MixtureTarget | LogitsTarget | TopKTarget | SampledTarget


def check_head(owner: str, hidden_ND: Tensor, head_VD: Tensor, bias_V: Tensor | None) -> None:
    """Whether the three make logits [N, V].

    Raises:
        ValueError: they do not; names the ``owner``'s tensor.
    """
    _check_matrix(f"{owner} hidden_ND", hidden_ND)
    _check_matrix(f"{owner} head_VD", head_VD)
    if hidden_ND.shape[1] != head_VD.shape[1]:
        raise ValueError(
            f"{owner} hidden_ND {list(hidden_ND.shape)} and head_VD {list(head_VD.shape)} differ "
            "in hidden size (under ZeRO-3, gather the head before the call)"
        )
    if hidden_ND.dtype != head_VD.dtype:
        raise ValueError(
            f"{owner} hidden_ND is {hidden_ND.dtype} but head_VD is {head_VD.dtype}: cast one"
        )
    if bias_V is None:
        return
    if bias_V.shape != head_VD.shape[:1]:
        raise ValueError(
            f"{owner} bias_V {list(bias_V.shape)} does not fit head_VD {list(head_VD.shape)}"
        )
    if bias_V.dtype != head_VD.dtype:
        raise ValueError(
            f"{owner} bias_V is {bias_V.dtype} but head_VD is {head_VD.dtype}: cast one"
        )


def check_token_ids(name: str, ids: Tensor, vocab: int) -> None:
    """Whether all ids lie in [0, vocab).

    Raises:
        ValueError: one does not; says which is the first, and where it stands.
    """
    outside = (ids < 0) | (ids >= vocab)
    if outside.any():
        where = outside.nonzero()[0].tolist()
        raise ValueError(
            f"{name}{where} is {int(ids[tuple(where)])}, outside the vocabulary of {vocab} tokens"
        )


def _check_matrix(name: str, tensor: Tensor) -> None:
    if tensor.ndim != 2 or not tensor.is_floating_point():
        raise ValueError(f"{name} must be a floating-point matrix, not {_describe(tensor)}")


def _check_ids(name: str, ids: Tensor, logprobs: Tensor) -> None:
    if ids.dtype != torch.int64:
        raise ValueError(f"{name} must be int64, not {ids.dtype}: call .long() on it")
    if ids.shape != logprobs.shape:
        raise ValueError(
            f"{name} {list(ids.shape)} and its log-probabilities {list(logprobs.shape)} differ in "
            "shape"
        )


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def check_call(
    hidden_ND: Tensor,
    head_VD: Tensor,
    bias_V: Tensor | None,
    target: Target,
    *,
    vocab_size: int | None,
    temperature: float,
    sampled_ids_N: Tensor | None,
) -> int:
    """The number of tokens in the vocabulary.

    Raises:
        ValueError: something does not fit; names it.
    """
    check_head("student", hidden_ND, head_VD, bias_V)
    num_rows = hidden_ND.shape[0]
    if target.num_rows != num_rows:
        raise ValueError(
            f"the target has {target.num_rows} rows, hidden_ND {num_rows}: they must be the same "
            "tokens in the same order"
        )
    if not temperature > 0.0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    student_rows = head_VD.shape[0]
    teacher_rows = _teacher_rows(target) or student_rows
    if vocab_size is None and teacher_rows != student_rows:
        raise ValueError(
            f"the student's head has {student_rows} rows, the teacher's {teacher_rows}: pass "
            "vocab_size, the number of rows that are tokens in both"
        )
    most = min(student_rows, teacher_rows)
    vocab = most if vocab_size is None else vocab_size
    if not 1 <= vocab <= most:
        raise ValueError(f"vocab_size must lie between 1 and {most}, not {vocab}")
    if sampled_ids_N is not None:
        if sampled_ids_N.shape != (num_rows,) or sampled_ids_N.dtype != torch.int64:
            raise ValueError(
                f"sampled_ids_N must be int64 [{num_rows}], not {sampled_ids_N.dtype} "
                f"{list(sampled_ids_N.shape)}"
            )
        check_token_ids("sampled_ids_N", sampled_ids_N, vocab)
    return vocab


def _teacher_rows(target: Target) -> int | None:
    """Vocabulary rows of the teacher, padding included; None where the target does not say."""
    if isinstance(target, HiddenTarget):
        return target.head_VD.shape[0]
    if isinstance(target, MixtureTarget):
        return target.parts[0].head_VD.shape[0]
    if isinstance(target, LogitsTarget):
        return target.logits_NV.shape[1]
    return None
