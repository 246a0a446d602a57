"""Teachers asked about some rows of a response: what they answer, what is kept, what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import log

import numpy as np
import pytest

from actors.teacher.contract.answers import answers_problems, check_request
from actors.teacher.contract.rows import ask, rows_of, whole_request
from actors.teacher.protocol import TeacherError
from actors.teacher.service import SignalStore, TeacherServer
from opd_ray.config.choices import SignalChoice, Support
from opd_ray.config.teacher import TeacherSettings
from opd_ray.types import (
    HiddenSignal,
    SampledSignal,
    ScoreRequest,
    TeacherAnswer,
    TeacherInfo,
    TopK,
    TopKSignal,
)

V = 4
HALF, SIXTH = log(1 / 2), log(1 / 6)


class NextNumber:
    """Gives half of the probability to the number after the last one, modulo 4."""

    def __init__(self, *, answers_rows: bool) -> None:
        self._answers_rows = answers_rows
        self.asked: list[ScoreRequest] = []

    def info(self) -> TeacherInfo:
        return TeacherInfo("next", V, 16, ("topk",), answers_rows=self._answers_rows)

    def score(self, requests: Sequence[ScoreRequest]) -> list[TeacherAnswer]:
        self.asked += requests
        return [self._answer(request) for request in requests]

    def close(self) -> None: ...

    def _answer(self, request: ScoreRequest) -> TeacherAnswer:
        text = np.concatenate((request.prompt_ids, request.response_ids))
        before_m = text[len(request.prompt_ids) - 1 : -1]
        logprobs_mV = np.where(np.arange(V) == (before_m[:, None] + 1) % V, HALF, SIXTH)
        logprobs_mV = logprobs_mV.astype(np.float32)
        sampled_m1 = request.response_ids[:, None]
        if self._answers_rows:
            logprobs_mV, sampled_m1 = logprobs_mV[request.asked], sampled_m1[request.asked]
        top_m1 = logprobs_mV.argmax(axis=1)[:, None].astype(np.int32)
        return TeacherAnswer(
            rollout_id=request.rollout_id,
            logprob=np.take_along_axis(logprobs_mV, sampled_m1, 1)[:, 0],
            at_student_topk=np.take_along_axis(logprobs_mV, request.student_topk.ids, 1),
            signal=TopKSignal(top_m1, np.take_along_axis(logprobs_mV, top_m1, 1)),
            entropy=np.full(len(logprobs_mV), 1.24, np.float32),
            topk=TopK(top_m1, np.take_along_axis(logprobs_mV, top_m1, 1)),
        )


def request(rows: list[int] | None = None) -> ScoreRequest:
    """Prompt 3, response 0 2 3 3 0 2: the next number at positions 0, 2 and 4."""
    # Of row t the student names t and its successor, modulo 4.
    asked = np.arange(6) if rows is None else np.array(rows)
    ids = np.stack((asked % V, (asked + 1) % V), axis=1).astype(np.int32)
    return ScoreRequest(
        rollout_id="r",
        prompt_ids=np.array([3], np.int32),
        response_ids=np.array([0, 2, 3, 3, 0, 2], np.int32),
        student_topk=TopK(ids, np.full(ids.shape, log(1 / 4), np.float32)),
        rows=None if rows is None else np.array(rows, np.int32),
    )


SETTINGS = TeacherSettings(path="none", topk=1)


@pytest.mark.parametrize("answers_rows", [True, False])
def test_a_server_gives_the_scores_and_signals_of_the_asked_rows(answers_rows: bool) -> None:
    server = TeacherServer(NextNumber(answers_rows=answers_rows), SETTINGS)
    [scores] = server.score([request([1, 2, 5])])
    np.testing.assert_allclose(scores.columns["teacher_logprob"], [SIXTH, HALF, SIXTH], rtol=1e-6)
    # Rows 1 and 2 (after 0 and 2) name tokens 1, 2 and 2, 3; row 5 (after 0) names 1, 2.
    np.testing.assert_allclose(scores.columns["teacher_mass"], [2 / 3] * 3, rtol=1e-6)
    assert {len(values) for values in scores.columns.values()} == {3}
    assert server.signals.nbytes == 3 * 8
    taken = server.signals.take({"r": np.array([2, 5])})
    assert taken["r"].ids.tolist() == [[3], [1]]


def test_a_teacher_that_answers_rows_is_told_which() -> None:
    knows, whole = NextNumber(answers_rows=True), NextNumber(answers_rows=False)
    for teacher in (knows, whole):
        TeacherServer(teacher, SETTINGS).score(
            [request([1, 5]), replace(request(), rollout_id="s")]
        )
    assert knows.asked[0].rows.tolist() == [1, 5]
    assert [one.rows for one in whole.asked] == [None, None]
    assert [one.student_topk.ids.shape for one in whole.asked] == [(6, 2), (6, 2)]


def test_a_whole_request_has_every_asked_row_in_its_place() -> None:
    some = request([1, 2, 5])
    whole = whole_request(some)
    assert whole.student_topk.ids.tolist() == [[1, 2], [1, 2], [2, 3], [2, 3], [2, 3], [1, 2]]
    assert whole.student_topk.logprobs.shape == (6, 2)
    assert whole.rows is None
    assert whole_request(request()).student_topk.ids.tolist() == request().student_topk.ids.tolist()


def test_what_is_wrong_in_a_row_that_nobody_asked_for_is_not_looked_at() -> None:
    class WrongBetween(NextNumber):
        def score(self, requests: Sequence[ScoreRequest]) -> list[TeacherAnswer]:
            [answer] = super().score(requests)
            answer.logprob[3] = np.nan
            return [answer]

    teacher = WrongBetween(answers_rows=False)
    TeacherServer(teacher, SETTINGS).score([request([1, 2, 5])])
    with pytest.raises(TeacherError, match="rollout 'r', position 3: logprob is nan"):
        TeacherServer(teacher, SETTINGS).score([request([2, 3])])


@pytest.mark.parametrize("part", ["logprob", "at_student_topk", "entropy", "signal", "topk"])
def test_an_answer_about_another_number_of_tokens_is_named(part: str) -> None:
    class Short(NextNumber):
        def score(self, requests: Sequence[ScoreRequest]) -> list[TeacherAnswer]:
            [answer] = super().score(requests)
            short = getattr(rows_of(answer, np.arange(5)), part)
            return [replace(answer, **{part: short})]

    teacher = Short(answers_rows=False)
    with pytest.raises(
        TeacherError, match=rf"'next', rollout 'r': {part}.* has shape \[5.*each of the 6 response"
    ):
        TeacherServer(teacher, SETTINGS).score([request([1, 2])])


@pytest.mark.parametrize(
    "answers", [None, [], [None], [TeacherAnswer("other", *[np.zeros(6, np.float32)] * 3)]]
)
def test_what_is_no_answer_is_left_to_the_contract(answers: object) -> None:
    class Wrong(NextNumber):
        def score(self, requests: Sequence[ScoreRequest]) -> list[TeacherAnswer]:
            return answers  # type: ignore[return-value]

    teacher = Wrong(answers_rows=False)
    assert ask(teacher, teacher.info(), [request([1])]) == answers
    with pytest.raises(TeacherError, match="teacher 'next'"):
        TeacherServer(teacher, SETTINGS).score([request([1])])


def test_a_teacher_that_says_it_answers_rows_and_does_not_is_refused() -> None:
    teacher = NextNumber(answers_rows=True)
    [answer] = NextNumber(answers_rows=False).score([whole_request(request([1, 5]))])
    found = list(answers_problems(teacher.info(), [request([1, 5])], [answer], SETTINGS))
    assert r"logprob has shape [6]; expected [2]" in found[0]


@pytest.mark.parametrize(
    ("change", "position"),
    [
        (lambda a: replace(a, logprob=np.array([-1, np.nan, -1], np.float32)), 4),
        (lambda a: replace(a, entropy=np.array([0, 0, -1], np.float32)), 5),
        (lambda a: replace(a, at_student_topk=np.array([[0, 0], [-3, -3], [-3, -3]], "f4")), 1),
        (lambda a: replace(a, signal=replace(a.signal, ids=np.array([[0], [1], [9]], "i4"))), 5),
    ],
)
def test_a_wrong_row_is_named_by_its_response_position(change, position: int) -> None:
    teacher = NextNumber(answers_rows=True)
    asked = request([1, 4, 5])
    [answer] = teacher.score([asked])
    found = list(answers_problems(teacher.info(), [asked], [change(answer)], SETTINGS))
    assert found[0].startswith(f"teacher 'next', rollout 'r', position {position}: ")


def test_the_sampled_token_is_that_of_its_position() -> None:
    """Row 1 of the rows 1 and 4 belongs to token 0, which the student names beside 1."""
    teacher = NextNumber(answers_rows=True)
    asked = request([1, 4])
    [answer] = teacher.score([asked])
    assert not list(answers_problems(teacher.info(), [asked], [answer], SETTINGS))
    other = replace(answer, at_student_topk=np.array([[SIXTH, SIXTH], [-2.5, HALF]], np.float32))
    [found] = list(answers_problems(teacher.info(), [asked], [other], SETTINGS))[:1]
    assert "position 4: at_student_topk is -2.5; expected the sampled token's logprob" in found


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "rows is empty"),
        ([1, 6], r"rows names position 6; expected ascending positions of a response of 6 tokens"),
        ([-1, 2], "rows names position -1"),
        ([2, 2], "rows names position 2"),
        ([4, 1], "rows names position 1"),
    ],
)
def test_rows_that_are_none_of_the_response_are_refused(rows: list[int], message: str) -> None:
    with pytest.raises(TeacherError, match=f"teacher 'next', rollout 'r': {message}"):
        check_request(NextNumber(answers_rows=True).info(), request(rows))


def test_a_students_top_k_of_other_rows_is_refused() -> None:
    info = NextNumber(answers_rows=True).info()
    with pytest.raises(
        TeacherError, match=r"student_topk.logprobs has shape \[6, 2\]; expected \[2"
    ):
        check_request(info, replace(request([1, 5]), student_topk=request().student_topk))
    asked = request([1, 5])
    asked.student_topk.logprobs[1, 0] = np.inf
    with pytest.raises(TeacherError, match="position 5: student_topk.logprobs is inf"):
        check_request(info, asked)


def test_the_union_of_both_sides_tokens_is_made_of_the_asked_rows() -> None:
    server = TeacherServer(NextNumber(answers_rows=True), SETTINGS, Support.union)
    server.score([request([1, 2, 5])])
    taken = server.signals.take({"r": np.array([1, 5])})["r"]
    # Its own token 1 is among the student's 1 and 2 both times.
    assert taken.ids.tolist() == [[1, -1, 2], [1, -1, 2]]

    class SaysTwoThings(NextNumber):
        def score(self, requests: Sequence[ScoreRequest]) -> list[TeacherAnswer]:
            [answer] = super().score(requests)
            apart = answer.at_student_topk.copy()
            apart[2, 0] = -3.0
            return [replace(answer, at_student_topk=apart)]

    server = TeacherServer(SaysTwoThings(answers_rows=True), SETTINGS, Support.union)
    with pytest.raises(TeacherError, match="position 5: at_student_topk is -3.0"):
        server.score([request([1, 2, 5])])


def test_signals_are_taken_by_response_position() -> None:
    store = SignalStore(1000)
    store.put("a", SampledSignal(np.array([-1, -4, -7], np.float32)), np.array([1, 4, 7], np.int32))
    store.put("b", HiddenSignal(np.arange(8, dtype=np.float32).reshape(4, 2)))
    looked = store.take({"a": np.array([1, 4, 7]), "b": np.array([3])}, forget=False)
    assert looked["a"].logprobs.tolist() == [-1, -4, -7]
    assert looked["b"].hidden.tolist() == [[6, 7]]
    for position in (0, 2, 8):
        with pytest.raises(
            TeacherError, match=f"rollout 'a', position {position}: .*the student did not write"
        ):
            store.take({"a": np.array([4, position, 7]), "b": np.array([3])})
    assert store.take({"a": np.array([7])})["a"].logprobs.tolist() == [-7]
    assert store.nbytes == 32


def test_a_store_holds_its_own_positions() -> None:
    """Those that came with a request are a view of Ray's object store, or changed by the caller."""
    store, asked = SignalStore(1000), np.array([1, 4], np.int32)
    store.put("a", SampledSignal(np.array([-1, -4], np.float32)), asked)
    asked[:] = 0
    assert store.take({"a": np.array([4])})["a"].logprobs.tolist() == [-4]


def test_a_signal_of_hidden_states_is_cut_too() -> None:
    class Hidden(NextNumber):
        def info(self) -> TeacherInfo:
            return replace(super().info(), signals=("hidden",), hidden_size=2)

        def score(self, requests: Sequence[ScoreRequest]) -> list[TeacherAnswer]:
            hidden = np.arange(12, dtype=np.float32).reshape(6, 2)
            return [replace(one, signal=HiddenSignal(hidden)) for one in super().score(requests)]

    chosen = TeacherSettings(path="none", signal=SignalChoice.hidden)
    server = TeacherServer(Hidden(answers_rows=False), chosen)
    server.score([request([1, 5])])
    assert server.signals.take({"r": np.array([5])})["r"].hidden.tolist() == [[10, 11]]
