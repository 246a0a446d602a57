"""Everything in which a teacher breaks the contract of actors.teacher.protocol.Teacher.

The teacher is asked what a run would ask, with random token ids: a mixed batch with a one-token
response and the longest sequence, the same again, each rollout alone, shorter responses, the rows
of two turns alone, none.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from actors.teacher.contract.answers import answers_problems, check_info
from actors.teacher.contract.rows import ask, rows_of
from actors.teacher.protocol import Teacher, TeacherError
from actors.teacher.service import TeacherServer
from actors.teacher.support import signal_of
from opd_ray.config.choices import SignalChoice, Support
from opd_ray.config.teacher import TeacherSettings
from opd_ray.errors import is_known
from opd_ray.models.tokenizer import fingerprint_problems
from opd_ray.preflight.contract.differences import TOLERANCE, answer_differences
from opd_ray.types import (
    HeadPart,
    HiddenSignal,
    ScoreRequest,
    TeacherAnswer,
    TeacherInfo,
    TopK,
    to_tensor,
)

# Response tokens that are read and scored in the probes besides the longest sequence.
_SHORT, _MEDIUM = 3, 12
_HEAD_ROWS = 64  # whose hidden states are multiplied by the output head


def contract_violations(
    teacher: Teacher,
    settings: TeacherSettings,
    vocab_size: int,
    *,
    context_length: int,
    record_topk: int,
    own_topk: int = 0,
    support: Support = Support.teacher,
    tokenizer_hash: str | None = None,
    seed: int = 0,
) -> list[str]:
    """Every violation that probing finds, one sentence each; an empty list for a good teacher.

    Args:
        teacher: of any kind, loaded.
        settings: ``signal``, ``topk`` (0: none is asked), ``accept_mismatch``, and ``dtype``, by
            which answers may differ (answer_difference.TOLERANCE).
        vocab_size: tokens of the student's tokenizer.
        context_length: longest prompt plus response of a run, tokens, at least 16.
        record_topk: K of the student's top-K.
        own_topk: how many of its own likeliest tokens the run's rule needs; 0: none.
        support: whose tokens the run's loss tells apart.
        tokenizer_hash: fingerprint of the student's tokenizer; None: not compared.
        seed: of the token ids that are asked.
    """
    try:
        info: object = teacher.info()
    except Exception as error:
        return [f"info() raised {_last_line(error)}"]
    if not isinstance(info, TeacherInfo):
        return [f"info() returned a {type(info).__name__}; expected a TeacherInfo"]
    sizes = (info.vocab_size, info.context_length)
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        return [f"info(): vocab_size and context_length are {sizes}; expected integers above 0"]
    asked = _requests(
        np.random.default_rng(seed),
        min(vocab_size, info.vocab_size),
        min(context_length, info.context_length),
        record_topk,
    )
    probe = _Probe(teacher, info, settings, support)
    with np.errstate(all="ignore"):  # what is wrong with numbers is said in words
        probe.look_at_info(vocab_size, context_length, tokenizer_hash)
        probe.ask(asked, own_topk)
    return list(dict.fromkeys(probe.found))


@dataclass
class _Probe:
    """Asks one teacher, compares what it says and collects what is wrong with it."""

    teacher: Teacher
    info: TeacherInfo
    settings: TeacherSettings
    support: Support
    found: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._who = f"teacher {self.info.name!r}"
        self._tolerance = TOLERANCE[self.settings.dtype]
        self._by = f"of teacher.dtype = {self.settings.dtype}"  # the tolerance, for messages

    def look_at_info(
        self, vocab_size: int, context_length: int, tokenizer_hash: str | None
    ) -> None:
        """What the teacher says of itself, against what the run asks for."""
        info, settings = self.info, self.settings
        if self.teacher.info() != info:
            self._add("info() differs between two calls")
        if info.vocab_size != vocab_size:
            self._add(
                f"info().vocab_size is {info.vocab_size}; expected the {vocab_size} "
                "tokens of the student's tokenizer"
            )
        if info.context_length < context_length:
            self._add(
                f"info().context_length is {info.context_length}; the run needs "
                f"{context_length} (student.context_length)"
            )
        if tokenizer_hash is not None:
            for text in fingerprint_problems(info, tokenizer_hash, settings.accept_mismatch):
                self._add(text)
        try:
            check_info(info, settings, self.support)
        except TeacherError as error:
            self.found.append(str(error))

    def ask(self, requests: Sequence[ScoreRequest], own_topk: int) -> None:
        """What the teacher answers, against the contract and against its other answers."""
        self._answers("an empty batch", [])
        before = len(self.found)
        batch = self._answers(f"a batch of {len(requests)}", requests)
        well_formed = len(self.found) == before
        if own_topk and any(answer.topk is None for answer in batch.values()):
            self._add(
                "an answer's topk is None; the run's tip.rule needs the teacher's own "
                f"{own_topk} likeliest tokens"
            )
        again = self._answers("the same batch again", requests)
        self._compare(batch, again, "asked twice, it differs")
        for request in requests:
            alone = self._answers(f"rollout {request.rollout_id!r} alone", [request])
            self._compare(batch, alone, "asked alone, it differs from the answer in a batch")
        first = requests[0]
        cut = replace(
            first,
            response_ids=first.response_ids[:-1],
            student_topk=TopK(first.student_topk.ids[:-1], first.student_topk.logprobs[:-1]),
        )
        shorter = self._answers("a response without its last token", [cut], say=well_formed)
        self._compare(
            batch,
            shorter,
            "without the response's last token the rows before it differ (no row may depend on "
            "later tokens)",
        )
        other = first.response_ids.copy()
        other[-1] = (other[-1] + 1) % self.info.vocab_size
        changed = self._answers(
            "a response with another last token",
            [replace(first, response_ids=other)],
            say=well_formed,
        )
        # A server that names few tokens knows more of a row whose own token is another.
        bounded = self.info.meta.get("reads_student_logprobs", False)
        self._compare(
            batch,
            changed,
            "with another last token of the response it differs (a row describes the distribution "
            "before its own token: are the rows shifted by one?)",
            skip=("logprob", "at_student_topk") if bounded else ("logprob",),
        )
        if well_formed:
            self._ask_two_turns(first, batch[first.rollout_id])
        if self.settings.signal is SignalChoice.hidden:
            self._compare_with_head(requests, batch)

    def _ask_two_turns(self, request: ScoreRequest, whole: TeacherAnswer) -> None:
        """The rows of two turns with a tool's answer between them, and before them."""
        m = len(request.response_ids)
        rows = np.r_[1 : m // 3, 2 * m // 3 : m].astype(np.int32)
        topk = request.student_topk
        two = replace(request, rows=rows, student_topk=TopK(topk.ids[rows], topk.logprobs[rows]))
        self._compare(
            {request.rollout_id: rows_of(whole, rows)},
            self._answers(f"{len(rows)} of the {m} rows of a response", [two]),
            "asked about the rows of two turns alone, it differs from the same rows of the whole "
            "answer",
            positions=rows,
        )

    def _add(self, text: str) -> None:
        self.found.append(f"{self._who}: {text}")

    def _answers(
        self, what: str, requests: Sequence[ScoreRequest], *, say: bool = True
    ) -> dict[str, TeacherAnswer]:
        """The answers by rollout, as far as they can be used; ``say`` what is wrong with them."""
        try:
            answers: Any = ask(self.teacher, self.info, requests)
        except Exception as error:
            problems = [f"{self._who}: asked {what}, score() raised {_last_line(error)}"]
            answers = []
        else:
            problems = list(answers_problems(self.info, requests, answers, self.settings))
            if not problems:
                problems = list(self._union_problems(requests, answers))
        if say:
            self.found += problems
        usable = answers if isinstance(answers, list) else []
        return {a.rollout_id: a for a in usable if isinstance(a, TeacherAnswer)}

    def _union_problems(
        self, requests: Sequence[ScoreRequest], answers: Sequence[TeacherAnswer]
    ) -> Iterator[str]:
        """Of answers that keep the contract: what the loss could not make a signal of."""
        for request, answer in zip(requests, answers, strict=True):
            try:
                signal_of(self._who, request, answer, self.support)
            except TeacherError as error:
                yield str(error)

    def _compare(
        self,
        batch: Mapping[str, TeacherAnswer],
        others: Mapping[str, TeacherAnswer],
        what: str,
        skip: Collection[str] = (),
        positions: np.ndarray | None = None,
    ) -> None:
        self.found += answer_differences(
            self._who,
            batch,
            others,
            what,
            tolerance=self._tolerance,
            by=self._by,
            skip=skip,
            positions=positions,
        )

    def _compare_with_head(
        self, requests: Sequence[ScoreRequest], batch: Mapping[str, TeacherAnswer]
    ) -> None:
        """Hidden states times the output head must give the log-probabilities of the answer."""
        try:
            head = TeacherServer(self.teacher, self.settings).output_head()
        except Exception as error:
            self._add(f"output_head(): {_last_line(error)}")
            return
        size = sum(part.weight.shape[1] for part in head)
        for request in requests:
            answer = batch.get(request.rollout_id)
            if answer is None or not isinstance(answer.signal, HiddenSignal):
                continue
            hidden_mD = to_tensor(answer.signal.hidden[:_HEAD_ROWS]).float()
            if hidden_mD.ndim != 2 or hidden_mD.shape[1] != size:
                continue  # said already
            sampled = to_tensor(request.response_ids[:_HEAD_ROWS]).long()
            expected = _projected(hidden_mD, head, sampled).numpy()
            given = answer.logprob[:_HEAD_ROWS]
            if given.shape != expected.shape:
                continue  # said already
            apart = np.abs(given - expected).max()
            if apart > self._tolerance.product:
                self.found.append(
                    f"{self._who}, rollout {request.rollout_id!r}: logprob differs from hidden "
                    f"states times output head by up to {apart:.3g} nats "
                    f"(tolerance {self._tolerance.product:g}, {self._by})"
                )


def _requests(
    rng: np.random.Generator, vocab_size: int, context: int, topk: int
) -> list[ScoreRequest]:
    """Of different lengths, in no order of length; the first has several response tokens."""
    half = context // 2
    medium = min(_MEDIUM, half)
    lengths = {
        "probe-medium": (medium, medium),
        "probe-one-token-response": (_SHORT, 1),
        "probe-longest": (context - half, half),
        "probe-one-token-prompt": (1, medium),
    }
    k = min(topk, vocab_size)
    made = []
    for name, (prompt, response) in lengths.items():
        ids = rng.integers(0, vocab_size, prompt + response, dtype=np.int32)
        rows = [rng.choice(vocab_size, k, replace=False) for _ in range(response)]
        top = np.stack(rows).astype(np.int32)
        sampled = ids[prompt:]
        # Every second row has the sampled token among the student's likeliest, as most have.
        absent = ~(top == sampled[:, None]).any(axis=1)
        absent[1::2] = False
        top[absent, 0] = sampled[absent]
        logprobs = np.full(top.shape, -np.log(vocab_size), np.float32)
        for array in (ids, sampled, top, logprobs):
            array.flags.writeable = False  # as those that Ray brings in a run
        made.append(ScoreRequest(name, ids[:prompt], sampled, TopK(top, logprobs)))
    return made


def _projected(
    hidden_mD: torch.Tensor, head: Sequence[HeadPart], ids_m: torch.Tensor
) -> torch.Tensor:
    """Log-probabilities [m] of one token a row under the head's distribution."""
    terms = []
    parts = hidden_mD.split([part.weight.shape[1] for part in head], dim=1)
    for part_mD, part in zip(parts, head, strict=True):
        logits_mV = part_mD @ to_tensor(part.weight).float().T
        if part.bias is not None:
            logits_mV += to_tensor(part.bias).float()
        logprob_m = logits_mV.log_softmax(dim=-1).gather(1, ids_m[:, None])[:, 0]
        terms.append(logprob_m + math.log(part.share))
    return torch.stack(terms).logsumexp(dim=0)


def _last_line(error: Exception) -> str:
    if is_known(error):
        return str(error)
    return traceback.format_exception_only(error)[-1].strip()
