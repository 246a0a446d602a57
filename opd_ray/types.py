"""The nouns that travel between the actors.

Letters of axes and the alignment of rows: docs/architecture.md.
Everything here is numpy, so that the coordinator needs no torch. Numpy has no bfloat16: its bits
travel as uint16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

if TYPE_CHECKING:
    import torch


SignalKind = Literal["topk", "hidden", "sampled"]


class Divergence(StrEnum):
    """Between the student's distribution P and the teacher's Q."""

    reverse_kl = "reverse_kl"  # KL(P||Q)
    forward_kl = "forward_kl"  # KL(Q||P)
    jsd = "jsd"  # Jensen-Shannon


@dataclass(frozen=True)
class Sampling:
    """How the student samples. Greedy decoding is temperature 0."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 128


@dataclass(frozen=True)
class EpisodeStart:
    """What a rollout of several turns begins with."""

    row: Mapping[str, Any]  # the prompt's columns; "prompt": its chat messages as they are shown
    options: Mapping[str, Any]  # variables of the chat template beside messages and tools


@dataclass(frozen=True)
class RolloutRequest:
    """One response wanted from the student."""

    rollout_id: str
    prompt_id: str
    sample: int
    prompt_ids: np.ndarray  # [P] int32
    seed: int
    source: str = ""  # of the prompt: what routes and environments name
    episode: EpisodeStart | None = None  # None: no environment, the response is one turn


@dataclass(frozen=True)
class TopK:
    """The K most likely tokens of each row's distribution, the likeliest first."""

    ids: np.ndarray  # [m, K] int32
    logprobs: np.ndarray  # [m, K] float32, nats


# Why a rollout ended: the student or its environment ended it, or the limit that it came to.
ENDINGS = ("stop", "length", "context", "turns", "tool_limit")


class RolloutFigure(StrEnum):
    """Figures of a rollout that the engine counts: of its calls, and of the tokens that it read."""

    calls = "calls"  # of tools, as the student wrote them
    parse_error = "parse_error"  # of these, those that could not be read
    unknown = "unknown"  # those of tools that there are not
    failed = "failed"  # those in which the tool raised
    timeout = "timeout"  # those that were given up
    cut = "cut"  # those with a result that was shortened
    tool_seconds = "tool_seconds"
    prompt_tokens = "prompt_tokens"  # before each turn, over all turns
    cached_tokens = "cached_tokens"  # of these, those that the engine still had in its cache


@dataclass(frozen=True)
class Rollout:
    """One finished response with what the sampler knew of every token.

    A response may be several turns of the student with what others said between them. The student
    wrote n of its m tokens: those of ``response_mask`` 1. No other is scored or trained on.
    """

    rollout_id: str
    prompt_id: str
    sample: int
    prompt_ids: np.ndarray  # [P] int32
    response_ids: np.ndarray  # [m] int32
    response_mask: np.ndarray  # [m] uint8; 1 = written by the student
    entropy: np.ndarray  # [m] float32, nats, over the full vocabulary; 0 where the mask is 0
    logprob: np.ndarray  # [m] float32, nats, of the sampled token at temperature 1; 0 likewise
    finish_reason: str  # one of ENDINGS
    weights_version: int
    # A TopK of the n rows, or the Ray object reference to one: the coordinator passes it on unread.
    topk: Any = None
    # [m] int16, number of the student's turn, from 0; between turns that of the turn before. None:
    # all of it is one turn.
    turns: np.ndarray | None = None
    # By name: those of RolloutFigure, and what its environment says of it (named_figures).
    figures: Mapping[str, float] = field(default_factory=dict)
    # The conversation as chat messages; None where scores are recorded, or there is no environment.
    messages: tuple[Mapping[str, Any], ...] | None = None
    source: str = ""  # of the prompt

    @property
    def rows(self) -> np.ndarray:
        """[n] int32, ascending: the positions that the student wrote."""
        return np.flatnonzero(self.response_mask).astype(np.int32)

    @property
    def written_tokens(self) -> int:
        """n: how many tokens the student wrote."""
        return int(np.count_nonzero(self.response_mask))

    @property
    def text_tokens(self) -> int:
        """P + m: tokens of the whole text."""
        return len(self.prompt_ids) + len(self.response_ids)

    def dropped(self) -> Rollout:
        """The same, as if the student had written none of it."""
        nothing = np.zeros(len(self.response_ids), dtype=np.float32)
        mask = np.zeros_like(self.response_mask)
        return replace(self, response_mask=mask, entropy=nothing, logprob=nothing, topk=None)


_OF_ENVIRONMENT = "environment/"


def named_figures(said: Mapping[str, float]) -> dict[str, float]:
    """What an environment says of a rollout, as :attr:`Rollout.figures` names it."""
    return {_OF_ENVIRONMENT + name: value for name, value in said.items()}


def environment_figures(figures: Mapping[str, float]) -> dict[str, float]:
    """Of :attr:`Rollout.figures`, what its environment says, by its own names."""
    return {
        name.removeprefix(_OF_ENVIRONMENT): value
        for name, value in figures.items()
        if name.startswith(_OF_ENVIRONMENT)
    }


@dataclass(frozen=True)
class Likeliest:
    """The likeliest tokens of n rows, of both; the teacher's are those that it was heard of."""

    student: TopK  # [n, k]
    teacher: TopK  # [n, k], among the student's top-K and its own top-k; NO_TOKEN where fewer


@dataclass(frozen=True)
class TeacherInfo:
    """What a teacher says about itself; pairing checks and plans are made from this alone."""

    name: str
    vocab_size: int  # ids of its distribution lie below it
    context_length: int
    signals: tuple[SignalKind, ...]
    hidden_size: int | None = None  # needed for the hidden signal only
    max_topk: int | None = None  # None: up to the vocabulary
    tokenizer_hash: str | None = None  # see opd_ray.preflight.pairing; None: unknown
    # Whether it reads ScoreRequest.rows and answers those rows alone. False: it is asked about
    # whole responses, and what it says of other rows is cut away.
    answers_rows: bool = False
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoreRequest:
    """One rollout to be scored. The prompt may differ from the student's own."""

    rollout_id: str
    prompt_ids: np.ndarray  # [P] int32, the teacher's prompt
    response_ids: np.ndarray  # [m] int32
    student_topk: TopK  # of the n rows that are asked about
    # [n] int32, ascending: the response positions that are asked about, those that the student
    # wrote itself. None: all m.
    rows: np.ndarray | None = None
    # How many of the likeliest tokens of each row go back beside the scores; for a person to see.
    likeliest: int = 0

    @property
    def asked(self) -> np.ndarray:
        """[n] int32: ``rows``, or all of them."""
        return np.arange(len(self.response_ids), dtype=np.int32) if self.rows is None else self.rows


class _RowsOfTeacher:
    """What a teacher says of n rows: every field but a name is an array of a row each."""

    def rows(self, index: np.ndarray) -> Self:
        """The rows at ``index`` (copied, so that the rest can be freed)."""
        arrays = {name: array[index] for name, array in self._arrays().items()}
        return type(self)(**(vars(self) | arrays))

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self._arrays().values())

    def _arrays(self) -> dict[str, np.ndarray]:
        return {name: value for name, value in vars(self).items() if not isinstance(value, str)}


# In a TopKSignal: the id of a place that holds no token.
NO_TOKEN = -1


@dataclass(frozen=True)
class TopKSignal(_RowsOfTeacher):
    """What the teacher gives some tokens; the mass they leave is one tail bucket.

    They are distinct within a row, in any order: the teacher's k likeliest, the student's K, or
    both. A row that has fewer than others holds ``NO_TOKEN`` at -inf, never in its first place.
    """

    ids: np.ndarray  # [n, k] int32
    logprobs: np.ndarray  # [n, k] float32, nats


@dataclass(frozen=True)
class HiddenSignal(_RowsOfTeacher):
    """The teacher's last hidden states; with its output head they give its exact distribution."""

    hidden: np.ndarray  # [n, D] float32, or uint16 holding bfloat16 bits
    # Whose output head makes distributions of them: a teacher's name in the run. The run sets it.
    teacher: str = "teacher"


@dataclass(frozen=True)
class HeadPart:
    """An output head that makes a distribution of the next D columns of hidden states.

    A teacher's head is one part or, for an ensemble, one a member: its distribution is the sum of
    ``share`` x softmax(hidden @ weight.T + bias) over the parts.
    """

    weight: np.ndarray  # [V, D], as to_array gives it
    bias: np.ndarray | None = None  # [V], as to_array gives it
    share: float = 1.0  # the shares of a head add up to 1


@dataclass(frozen=True)
class SampledSignal(_RowsOfTeacher):
    """The teacher's log-probability of the sampled token alone."""

    logprobs: np.ndarray  # [n] float32, nats


Signal = TopKSignal | HiddenSignal | SampledSignal


@dataclass(frozen=True)
class SignalReceipt:
    """That kept rows left a teacher, and how much they are."""

    rows: int
    nbytes: int


@dataclass(frozen=True)
class TeacherAnswer:
    """What a teacher returns for the n rows of one rollout that it is asked about."""

    rollout_id: str
    logprob: np.ndarray  # [n] float32, nats, of the sampled token
    at_student_topk: np.ndarray  # [n, K] float32, nats, of the student's top-K ids
    signal: Signal | None  # all n rows; None: nothing of its own is asked, see Support.student
    entropy: np.ndarray | None = None  # [n] float32, nats; None: the teacher cannot know it
    topk: TopK | None = None  # its own top-k, where a rule needs it
    retries: int = 0  # requests that had to be sent again to get it


@dataclass(frozen=True)
class RolloutScores:
    """Small per-token scores of one rollout: all that the coordinator reads of a teacher.

    A column is named as in :data:`opd_ray.tip.scores.SCORES`, which has its unit and range, and
    holds a float32 number for each of the n tokens that the student wrote; what the teacher cannot
    give is not there, and of a rollout in which it wrote none there is no column. The exact pass in
    the trainer says as much of the same rows, and beside it the student's ``logprob`` of the
    sampled token (nats) and ``top1_agree`` (bool).
    """

    rollout_id: str
    columns: dict[str, np.ndarray]  # [n]
    retries: int = 0  # requests that the teacher had to send again, see TeacherAnswer
    likeliest: Likeliest | None = None  # where the request asked for it


@dataclass(frozen=True)
class TopKLost:
    """In place of scores: the student's top-K is gone, as the process that recorded it is."""

    rollout_id: str


@dataclass(frozen=True)
class TrainItem:
    """One rollout's share of a step: the whole text for the trunk, kept rows for the loss."""

    rollout_id: str
    prompt_ids: np.ndarray  # [P] int32
    response_ids: np.ndarray  # [m] int32
    rows: np.ndarray  # [n] int32, kept response positions, ascending
    weights: np.ndarray  # [n] float32, > 0
    rollout_logprob: np.ndarray  # [n] float32, what vLLM said of the sampled tokens at those rows

    @property
    def text_ids(self) -> np.ndarray:
        """What the trunk has to read: the text up to where its last kept row is predicted."""
        needed = len(self.prompt_ids) + (int(self.rows[-1]) if len(self.rows) else 0)
        return np.concatenate([self.prompt_ids, self.response_ids])[:needed]


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's values as a numpy array; bfloat16 becomes its bits as uint16, same shape."""
    import torch

    tensor = tensor.detach().contiguous().cpu()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.uint16).numpy()
    return tensor.numpy()


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """The tensor that :func:`to_array` took apart; a read-only array is copied, others shared."""
    import torch

    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor
