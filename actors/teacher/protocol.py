"""What a teacher is: anything that says of given responses how likely every token was."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from opd_ray.config.choices import SignalChoice
from opd_ray.errors import RunError
from opd_ray.types import HeadPart, ScoreRequest, TeacherAnswer, TeacherInfo

if TYPE_CHECKING:
    from torch import Tensor


class TeacherError(RunError):
    """A teacher that cannot serve a run, or an answer that breaks the contract of Teacher."""


class Teacher(Protocol):
    """A teacher of any kind.

    One process calls it, one call at a time. Requests have been checked before: prompts are not
    empty, ids are below ``info().vocab_size``, no sequence exceeds ``info().context_length``.
    Answers are checked after (:mod:`actors.teacher.contract.answers`); whatever breaks the contract
    ends the run with an error that names teacher, rollout and position.
    """

    def info(self) -> TeacherInfo:
        """Name, vocabulary, context length and signals; cheap, and the same at every call."""
        ...

    def score(self, requests: Sequence[ScoreRequest]) -> list[TeacherAnswer]:
        """One answer a request, in the order of the requests; no requests, no answers.

        A request asks about n of the m tokens of its response: those at ``request.asked``, which
        the student wrote itself. The others, of tools or an environment, are to be read and no
        more. Row i belongs to response token t = ``asked[i]`` and describes the teacher's
        distribution *before* that token was seen: given the prompt and response tokens 0..t-1, at
        temperature 1, over all ``info().vocab_size`` tokens. Each answer holds

        - ``rollout_id``: the request's;
        - ``logprob`` [n] float32: log-probability of response token t, nats;
        - ``at_student_topk`` [n, K] float32: log-probabilities of ``student_topk.ids[i]``, in their
          order;
        - ``signal``, all n rows, of the kind the run asks for: a ``TopKSignal`` of exactly k
          distinct ids a row in descending order of probability ([n, k] int32 and float32), a
          ``HiddenSignal`` ([n, D] float32, or uint16 with the bits of bfloat16: what the output
          head multiplies), or a ``SampledSignal`` (``logprob`` again). With ``loss.support:
          student`` the loss takes ``at_student_topk`` in place of a ``TopKSignal``, and what stands
          here is not looked at: None will do;
        - ``entropy`` [n] float32, nats, or None if it cannot be known;
        - ``topk``: a ``TopK`` of the teacher's own likeliest tokens where a rule needs it, or None.

        A teacher need not know of this: unless its ``info()`` says ``answers_rows``, it is asked
        about whole responses only (n = m, ``rows`` None), and rows that nobody asked for are cut
        from its answers.

        Log-probabilities are finite and at most 0; as probabilities, a row's sum to at most 1.
        The same request gives the same answer, whatever it is batched with, up to float rounding.
        """
        ...

    def close(self) -> None:
        """Let go of memory, processes and connections; nothing is called after it."""
        ...


@runtime_checkable
class HeadTeacher(Protocol):
    """A teacher that can serve the ``hidden`` signal too."""

    def output_head(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Its output layer: weight [V, D] and bias [V] or None, as ``to_array`` gives them.

        ``softmax(hidden @ weight.T + bias)`` over V = ``info().vocab_size`` is its distribution.
        """
        ...


@dataclass(frozen=True)
class Wanted:
    """What a run asks of a teacher that several share."""

    signal: SignalChoice
    topk: int  # of the topk signal; 0: none of its own, see actors.teacher.support
    own_topk: int = 0  # how many of its own likeliest tokens a rule wants to see


@runtime_checkable
class AdaptableTeacher(Protocol):
    """A teacher that can serve runs which ask for different things."""

    def adapted(self, wanted: Wanted) -> Teacher:
        """The same loaded model, answering as ``wanted``.

        Raises:
            TeacherError: it cannot.
        """
        ...


@runtime_checkable
class SleepingTeacher(Protocol):
    """A teacher that can give its memory back while others are at work on the same GPU."""

    def sleep(self) -> None:
        """Give it back; until :meth:`wake` nothing else is called."""
        ...

    def wake(self) -> None:
        """Take it again, and be as before."""
        ...


@runtime_checkable
class MixtureTeacher(Protocol):
    """A teacher whose distribution of hidden states is a mixture of several heads'."""

    def head_parts(self) -> tuple[HeadPart, ...]:
        """Every head ([V, D_i], bias [V] or None) with its share of the mixture.

        Head i multiplies the next D_i columns of a hidden state.
        """
        ...


@runtime_checkable
class AskingTeacher(Protocol):
    """A teacher whose answers a trainer rank computes."""

    def ask(self, trainer: Any) -> None:
        """Ask this rank from now on, by Ray's handle."""
        ...


@runtime_checkable
class FollowingTeacher(Protocol):
    """A teacher whose weights move towards the student's after every optimizer step."""

    def follow(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take in the student's new weights: every tensor, whole, by its Hugging Face name."""
        ...

    def save(self, path: str) -> None:
        """Write the weights as they are now to one file."""
        ...

    def load(self, path: str) -> None:
        """Go on from what :meth:`save` wrote."""
        ...

    def begin_anew(self) -> None:
        """Have the weights again that it was made with."""
        ...
