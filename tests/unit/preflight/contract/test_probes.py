"""The contract check: silent about a good teacher, naming all that is wrong with a broken one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.teacher.contract.rows import rows_of, whole_request
from opd_ray.config.choices import Dtype, SignalChoice
from opd_ray.config.teacher import TeacherSettings
from opd_ray.preflight.contract.probes import contract_violations
from opd_ray.types import (
    HiddenSignal,
    SampledSignal,
    ScoreRequest,
    TeacherAnswer,
    TeacherInfo,
    TopK,
    TopKSignal,
)

V, K, TOP, D, CONTEXT = 20, 5, 4, 6, 40


class Good:
    """Hidden states are sums of token vectors seen so far, so rows depend on what came before."""

    signal = "topk"

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.vectors_VD = rng.normal(0, 0.3, (V, D)).astype(np.float32)
        self.head_VD = rng.normal(0, 1, (V, D)).astype(np.float32)

    def info(self) -> TeacherInfo:
        return TeacherInfo("mine", V, CONTEXT, ("topk", "hidden", "sampled"), hidden_size=D)

    def score(self, requests: Sequence[ScoreRequest]) -> Any:
        return [self.answer(request) for request in requests]

    def output_head(self) -> tuple[np.ndarray, None]:
        return self.head_VD, None

    def close(self) -> None: ...

    def hidden(self, request: ScoreRequest) -> np.ndarray:
        text = np.concatenate((request.prompt_ids, request.response_ids))
        states = np.cumsum(self.vectors_VD[text], axis=0)
        return states[len(request.prompt_ids) - 1 : -1]

    def answer(self, request: ScoreRequest) -> TeacherAnswer:
        hidden_mD = self.hidden(request)
        logits = hidden_mD @ self.head_VD.T
        logprobs = (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)
        logprob = np.take_along_axis(logprobs, request.response_ids[:, None], 1)[:, 0]
        top = np.argsort(-logprobs, axis=1)[:, :TOP].astype(np.int32)
        signal = {
            "topk": TopKSignal(top, np.take_along_axis(logprobs, top, 1)),
            "hidden": HiddenSignal(hidden_mD),
            "sampled": SampledSignal(logprob),
        }[self.signal]
        return TeacherAnswer(
            rollout_id=request.rollout_id,
            logprob=logprob,
            at_student_topk=np.take_along_axis(logprobs, request.student_topk.ids, 1),
            signal=signal,
            entropy=-(np.exp(logprobs) * logprobs).sum(1),
        )


def violations(
    teacher: Any,
    signal: str = "topk",
    accept_mismatch: Sequence[str] = (),
    dtype: Dtype = Dtype.float32,
    **changes: Any,
) -> list[str]:
    teacher.signal = signal
    settings = TeacherSettings(
        signal=SignalChoice(signal),
        topk=TOP,
        accept_mismatch=list(accept_mismatch),
        dtype=dtype,
    )
    wanted = {"vocab_size": V, "context_length": CONTEXT, "record_topk": K, **changes}
    return contract_violations(teacher, settings, **wanted)


@pytest.mark.parametrize("signal", ["topk", "hidden", "sampled"])
def test_a_good_teacher_breaks_nothing(signal: str) -> None:
    assert violations(Good(), signal) == []


class KnowsRows(Good):
    """Answers the asked rows, or others."""

    def __init__(self, shift: int = 0, cut: bool = True) -> None:
        super().__init__()
        self._shift, self._cut = shift, cut

    def info(self) -> TeacherInfo:
        return replace(super().info(), answers_rows=True)

    def answer(self, request: ScoreRequest) -> TeacherAnswer:
        if request.rows is None or not self._cut:
            return super().answer(whole_request(request))
        rows = request.rows - self._shift
        moved = replace(request, rows=rows, student_topk=request.student_topk)
        return rows_of(super().answer(whole_request(moved)), rows)


@pytest.mark.parametrize("signal", ["topk", "hidden", "sampled"])
def test_a_good_teacher_of_rows_breaks_nothing(signal: str) -> None:
    assert violations(KnowsRows(), signal) == []


def test_a_teacher_of_rows_is_asked_about_those_of_two_turns() -> None:
    asked = []

    class Listens(KnowsRows):
        def score(self, requests: Sequence[ScoreRequest]) -> Any:
            asked.extend(r for r in requests if r.rows is not None)
            return super().score(requests)

    violations(Listens())
    [two] = asked
    assert two.rows.tolist() == [1, 2, 3, 8, 9, 10, 11]  # of 12
    assert len(two.student_topk.ids) == 7


def test_a_teacher_that_answers_other_rows_than_asked_is_named() -> None:
    found = violations(KnowsRows(shift=1))
    wanted = "rollout 'probe-medium', position 1: logprob: asked about the rows of two turns alone"
    assert any(wanted in text for text in found)
    [first, *_] = violations(KnowsRows(cut=False))
    assert "rollout 'probe-medium': logprob has shape [12]; expected [7]" in first


class Broken(Good):
    """Everything at once, as far as one thing does not hide another."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def info(self) -> TeacherInfo:
        self.calls += 1
        info = replace(super().info(), context_length=CONTEXT - 1, vocab_size=V - 1)
        return replace(info, meta={"calls": self.calls})

    def score(self, requests: Sequence[ScoreRequest]) -> Any:
        self.calls += 1
        if not requests:
            raise IndexError("list index out of range")
        answers = super().score(requests)
        if len(requests) > 1:
            answers[0], answers[1] = answers[1], answers[0]
            answers.append(replace(answers[0], rollout_id="stranger"))
        return answers

    def answer(self, request: ScoreRequest) -> TeacherAnswer:
        good = super().answer(request)
        if request.rollout_id == "probe-one-token-response":
            return replace(good, logprob=good.logprob[0], signal=SampledSignal(good.logprob))
        logprob = good.logprob - np.float32(self.calls * 0.01)  # not twice the same
        logprob[0], logprob[-1] = 0.5, np.nan
        at_student = np.full(good.at_student_topk.shape, -0.1, np.float64)
        ids = good.signal.ids.astype(np.int64)
        ids[1, 0] = V
        ids[2, 1] = ids[2, 0]
        entropy = good.entropy + 9
        return replace(
            good,
            logprob=logprob,
            at_student_topk=at_student,
            signal=TopKSignal(ids, good.signal.logprobs[:, ::-1]),
            entropy=entropy,
            topk=(ids, ids),
        )


@pytest.mark.parametrize(
    "part",
    [
        "info() differs between two calls",
        "info().vocab_size is 19; expected the 20 tokens",
        "info().context_length is 39; the run needs 40",
        "asked an empty batch, score() raised IndexError: list index out of range",
        "returned 5 answers; expected a list of 4",
        "answer 0 is for rollout 'probe-one-token-response' (answers are out of order)",
        "answer 4 is for rollout 'stranger' (never asked for); expected no more",
        "'probe-one-token-response': logprob is a float32; expected a numpy array",
        "'probe-one-token-response': signal is a SampledSignal; the run asks for a TopKSignal",
        "'probe-medium', position 0: logprob is 0.5; expected log-probabilities of at most 0",
        "'probe-longest', position 18: logprob is nan; expected finite",
        "'probe-longest': at_student_topk has dtype float64; expected float32",
        "'probe-medium', position 0: mass of at_student_topk is 4.52",
        "at_student_topk is -0.1; expected the sampled token's logprob at the same position",
        "'probe-one-token-prompt': signal.ids has dtype int64; expected int32",
        "position 1: signal.ids is 20; expected ids from 0 to 18",
        "position 2: signal.ids is",
        "expected distinct ids",
        "signal.logprobs is",
        "expected descending order",
        "expected 0 to ln(vocabulary)",
        "topk is a tuple; expected a TopK or None",
        "it differs, by up to 0.01 (tolerance 0.001, of teacher.dtype = float32)",
    ],
)
def test_every_violation_is_named(part: str) -> None:
    found = violations(Broken())
    assert any(part in text for text in found), "\n".join(found)


def test_another_tokenizer_is_named_unless_what_differs_is_accepted() -> None:
    other = altered("info", lambda info: replace(info, tokenizer_hash="theirs"))
    [one] = violations(other, tokenizer_hash="ours")
    assert one.startswith("teacher 'mine': its tokenizer's fingerprint is theirs, the student's is")
    assert violations(other, tokenizer_hash="theirs") == []
    assert violations(Good(), tokenizer_hash="ours") == []  # it does not say: noted elsewhere
    assert violations(other, tokenizer_hash="ours", accept_mismatch=["merges"]) == []
    # These leave the fingerprint alone, so they explain nothing.
    assert violations(other, tokenizer_hash="ours", accept_mismatch=["chat_template", "probes"])


def altered(method: str, change: Any) -> Good:
    teacher = Good()
    whole = getattr(teacher, method)
    setattr(teacher, method, lambda *given: change(whole(*given), *given))
    return teacher


# A language model is sharper than this teacher, whose rows bfloat16 could confuse.
@pytest.mark.parametrize(("dtype", "sharpness"), [(Dtype.float32, 1.0), (Dtype.bfloat16, 5.0)])
def test_rows_shifted_by_one_are_named_though_every_array_is_well_formed(
    dtype: Dtype, sharpness: float
) -> None:
    """Row t of this teacher has seen token t already."""

    def seen(_: np.ndarray, request: ScoreRequest) -> np.ndarray:
        text = np.concatenate((request.prompt_ids, request.response_ids))
        states = np.cumsum(Good().vectors_VD[text], axis=0)[len(request.prompt_ids) :]
        return sharpness * states

    found = violations(altered("hidden", seen), dtype=dtype)
    assert found
    assert all("are the rows shifted by one?" in text for text in found), found


@pytest.mark.parametrize(
    ("most", "typical", "dtype", "named"),
    [
        (0.6, 0.05, Dtype.bfloat16, None),
        (0.6, 0.05, Dtype.float32, "by up to 0.6 (tolerance 0.001,"),
        (2.1, 0.05, Dtype.bfloat16, "position 0: entropy: asked alone, it differs from"),
        (0.9, 0.05, Dtype.bfloat16, "by up to 0.9 on a row's average (tolerance 0.7,"),
        (0.6, 0.3, Dtype.bfloat16, "by 0.325 on average (tolerance 0.2,"),
    ],
)
def test_rounding_is_known_by_its_worst_row_and_its_mean(
    most: float, typical: float, dtype: Dtype, named: str | None
) -> None:
    def rounded(answers: list[TeacherAnswer], requests: Sequence[ScoreRequest]) -> Any:
        def off(answer: TeacherAnswer) -> TeacherAnswer:
            error = np.full(len(answer.entropy), typical, np.float32)
            error[0] = most
            return replace(answer, entropy=answer.entropy / 2 + error)

        return [
            off(answer) if len(requests) > 1 else replace(answer, entropy=answer.entropy / 2)
            for answer in answers
        ]

    found = violations(altered("score", rounded), dtype=dtype)
    assert bool(found) is bool(named)
    assert all(": entropy" in text for text in found), found
    assert named is None or any(named in text for text in found), found


def test_answers_that_depend_on_their_batch_are_named() -> None:
    def padded(answers: list[TeacherAnswer], requests: Sequence[ScoreRequest]) -> Any:
        # A model that reads padding as text: shorter rollouts of a batch come out different.
        longest = max((len(r.response_ids) for r in requests), default=0)
        return [
            replace(a, entropy=a.entropy + np.float32(0.1))
            if len(r.response_ids) < longest and len(r.response_ids) > 1
            else a
            for r, a in zip(requests, answers, strict=True)
        ]

    found = violations(altered("score", padded))
    assert any("'probe-medium', position 0: entropy: asked alone" in text for text in found), found
    assert all("entropy" in text for text in found)


def test_a_teacher_that_swaps_the_contents_of_two_answers_is_named() -> None:
    def swapped(answers: list[TeacherAnswer], requests: Sequence[ScoreRequest]) -> Any:
        if len(answers) < 4:
            return answers
        one, other = answers[0], answers[3]  # of the same length
        answers[0] = replace(other, rollout_id=one.rollout_id)
        answers[3] = replace(one, rollout_id=other.rollout_id)
        return answers

    found = violations(altered("score", swapped))
    for name in ("probe-medium", "probe-one-token-prompt"):
        assert any(f"{name!r}" in text and "asked alone" in text for text in found), found


def test_an_output_head_of_another_model_is_named() -> None:
    found = violations(altered("output_head", lambda head: (head[0] + 0.5, None)), "hidden")
    assert found == []  # the same shift of every logit changes nothing
    found = violations(altered("output_head", lambda head: (head[0] * 2, None)), "hidden")
    assert all("logprob differs from hidden states times output head" in text for text in found)
    assert len(found) == 4
    [one] = violations(altered("output_head", lambda head: (head[0][1:], None)), "hidden")
    assert "output_head() has shape (19, 6)" in one


def test_a_teacher_without_an_output_head_is_named_where_hidden_states_need_it() -> None:
    good = Good()
    good.signal = "hidden"
    headless = SimpleNamespace(info=good.info, score=good.score)
    [one] = violations(headless, "hidden")
    assert one.endswith("has no output_head(): set teacher.signal to topk")


def test_what_a_rule_needs_is_named() -> None:
    [one] = violations(Good(), own_topk=3)
    assert "topk is None; the run's tip.rule needs the teacher's own 3 likeliest" in one
    own = altered(
        "answer", lambda a, _: replace(a, topk=TopK(a.signal.ids[:, :3], a.signal.logprobs[:, :3]))
    )
    assert violations(own, own_topk=3) == []


def test_an_info_that_cannot_be_used_ends_the_check() -> None:
    def crash() -> None:
        raise RuntimeError("no route to host")

    assert violations(SimpleNamespace(info=crash)) == [
        "info() raised RuntimeError: no route to host"
    ]
    [one] = violations(SimpleNamespace(info=dict))
    assert one == "info() returned a dict; expected a TeacherInfo"
    [one] = violations(altered("info", lambda info: replace(info, vocab_size=None)))
    assert "expected integers above 0" in one
