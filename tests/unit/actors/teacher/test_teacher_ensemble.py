"""Ensembles of real models: one twice is itself, two are their mixture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from actors.teacher.contract.answers import check_answers
from actors.teacher.kinds.ensemble import Ensemble
from actors.teacher.kinds.hf import HfTeacher
from actors.teacher.protocol import TeacherError
from actors.teacher.registry import make_teacher
from actors.teacher.service import TeacherServer
from opd_ray.config.choices import SignalChoice
from opd_ray.config.resolved_teachers import Member, NamedTeacher
from opd_ray.config.teacher import TeacherSettings
from opd_ray.models.pairs.demo import pair_folder
from opd_ray.preflight.contract.probes import contract_violations
from opd_ray.types import (
    HiddenSignal,
    ScoreRequest,
    TeacherAnswer,
    TeacherInfo,
    TopK,
    TopKSignal,
    to_tensor,
)

VOCAB, K = 24, 6


def settings(signal: SignalChoice, name: str = "teacher", **more) -> TeacherSettings:
    path = str(pair_folder() / name)
    return TeacherSettings(path=path, signal=signal, topk=K, batch_tokens=256, **more)


def member(name: str, weight: float, signal: SignalChoice) -> Member:
    return Member(name, weight, settings(signal, name))


def make(signal: SignalChoice, own_topk: int = 0, **weights: float) -> Ensemble:
    made = make_teacher(
        TeacherSettings(kind="ensemble", signal=signal, topk=K),
        vocab_size=VOCAB,
        own_topk=own_topk,
        members=[member(name, weight, signal) for name, weight in weights.items()],
    )
    assert isinstance(made, Ensemble)
    return made


def requests(count: int = 4, seed: int = 0) -> list[ScoreRequest]:
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        m = int(rng.integers(1, 9))
        ids_mK = np.stack([rng.choice(VOCAB, 5, replace=False) for _ in range(m)])
        found.append(
            ScoreRequest(
                f"r{number}",
                rng.integers(3, VOCAB, 4).astype(np.int32),
                rng.integers(3, VOCAB, m).astype(np.int32),
                TopK(ids_mK.astype(np.int32), np.full((m, 5), -2.0, np.float32)),
            )
        )
    return found


def whole(name: str, request: ScoreRequest) -> np.ndarray:
    """[m, VOCAB] probabilities: a top-k of the whole vocabulary, put in order."""
    chosen = TeacherSettings(path=str(pair_folder() / name), topk=VOCAB, batch_tokens=256)
    (answer,) = HfTeacher(chosen, vocab_size=VOCAB).score([request])
    assert isinstance(answer.signal, TopKSignal)
    found = np.zeros(answer.signal.ids.shape)
    np.put_along_axis(
        found, answer.signal.ids.astype(np.int64), np.exp(answer.signal.logprobs), axis=1
    )
    return found


@pytest.mark.parametrize("signal", list(SignalChoice))
def test_one_teacher_twice_is_that_teacher(signal: SignalChoice) -> None:
    chosen = settings(signal)
    alone = HfTeacher(chosen, vocab_size=VOCAB, own_topk=4)
    twice = Ensemble(
        [(Member("one", 0.3, chosen), alone), (Member("two", 0.7, chosen), alone)],
        chosen,
        own_topk=4,
    )
    for one, other in zip(alone.score(requests()), twice.score(requests()), strict=True):
        np.testing.assert_allclose(one.logprob, other.logprob, atol=1e-5)
        np.testing.assert_allclose(one.at_student_topk, other.at_student_topk, atol=1e-5)
        assert one.topk is not None
        assert other.topk is not None
        np.testing.assert_allclose(one.topk.logprobs, other.topk.logprobs, atol=1e-5)
        if signal is SignalChoice.topk:
            assert isinstance(one.signal, TopKSignal)
            assert isinstance(other.signal, TopKSignal)
            np.testing.assert_allclose(one.signal.logprobs, other.signal.logprobs, atol=1e-5)


def test_two_teachers_are_their_mixture() -> None:
    mixed = make(SignalChoice.topk, teacher=0.25, student=0.75)
    for request, answer in zip(requests(), mixed.score(requests()), strict=True):
        true_mV = 0.25 * whole("teacher", request) + 0.75 * whole("student", request)
        rows = np.arange(len(true_mV))
        np.testing.assert_allclose(
            answer.logprob, np.log(true_mV[rows, request.response_ids]), atol=1e-4
        )
        np.testing.assert_allclose(
            answer.at_student_topk,
            np.log(np.take_along_axis(true_mV, request.student_topk.ids.astype(int), 1)),
            atol=1e-4,
        )
        assert answer.entropy is None
        assert isinstance(answer.signal, TopKSignal)
        named = np.take_along_axis(true_mV, answer.signal.ids.astype(int), 1)
        assert (np.exp(answer.signal.logprobs) <= named * (1 + 1e-4)).all()
        # What is likeliest under the mixture is likely under a member, so its list has it.
        np.testing.assert_allclose(
            answer.signal.logprobs[:, 0], np.log(true_mV.max(axis=1)), atol=0.05
        )


def test_a_full_store_names_the_key_of_its_teacher() -> None:
    chosen = {"signal": SignalChoice.topk, "topk": K, "store_bytes": 1}
    server = TeacherServer(make(SignalChoice.topk, teacher=1.0), NamedTeacher(name="b", **chosen))
    with pytest.raises(TeacherError, match=r"\(raise teachers\.b\.store_bytes, add replicas"):
        server.score(requests(1))


def test_hidden_states_and_heads_give_the_mixture() -> None:
    mixed = make(SignalChoice.hidden, teacher=0.25, student=0.75)
    server = TeacherServer(
        mixed, NamedTeacher(kind="ensemble", signal=SignalChoice.hidden, name="both")
    )
    one, two = server.output_head()
    assert (one.share, two.share) == (0.25, 0.75)
    (request, *_) = requests()
    (answer,) = mixed.score([request])
    assert isinstance(answer.signal, HiddenSignal)
    sizes = [part.weight.shape[1] for part in (one, two)]
    parts = to_tensor(answer.signal.hidden).split(sizes, dim=1)
    found = sum(
        part.share * torch.softmax(hidden @ to_tensor(part.weight).T, -1)
        for hidden, part in zip(parts, (one, two), strict=True)
    )
    true_mV = 0.25 * whole("teacher", request) + 0.75 * whole("student", request)
    np.testing.assert_allclose(found.numpy(), true_mV, atol=1e-5)
    # What a trainer gets says whose head it needs.
    server.score([request])
    (taken,) = server.signals.take({request.rollout_id: np.array([0])}).values()
    assert isinstance(taken, HiddenSignal)
    assert taken.teacher == "both"


@pytest.mark.parametrize("signal", list(SignalChoice))
def test_an_ensemble_keeps_the_contract(signal: SignalChoice) -> None:
    chosen = TeacherSettings(kind="ensemble", signal=signal, topk=K, batch_tokens=256)
    found = contract_violations(
        make(signal, own_topk=4, teacher=0.5, student=0.5),
        chosen,
        VOCAB,
        context_length=128,
        record_topk=5,
        own_topk=4,
    )
    assert found == []


class Bounded(HfTeacher):
    """As a server that names few tokens, behind kind actor."""

    def info(self) -> TeacherInfo:
        return replace(super().info(), meta={"reads_student_logprobs": True})


class Foreign(HfTeacher):
    """With a tokenizer of its own."""

    def info(self) -> TeacherInfo:
        return replace(super().info(), tokenizer_hash="another")


def test_a_member_that_knows_bounds_alone_is_refused() -> None:
    chosen = settings(SignalChoice.topk)
    with pytest.raises(TeacherError, match="member 'served' knows only bounds"):
        Ensemble([(Member("served", 1.0, chosen), Bounded(chosen))], chosen)


def test_members_with_two_tokenizers_are_refused_unless_what_differs_is_accepted() -> None:
    chosen = settings(SignalChoice.topk)
    accepting = replace(chosen, accept_mismatch=["merges"])
    for other, accepted in ((chosen, False), (accepting, True)):
        pair = [
            (Member("a", 0.5, chosen), HfTeacher(chosen)),
            (Member("b", 0.5, other), Foreign(other)),
        ]
        if accepted:
            assert Ensemble(pair, chosen).info().tokenizer_hash is None
        else:
            with pytest.raises(TeacherError, match="fingerprints .*another"):
                Ensemble(pair, chosen)


def test_members_that_do_not_fit() -> None:
    chosen = settings(SignalChoice.topk)
    whole_vocabulary, fewer = HfTeacher(chosen), HfTeacher(chosen, vocab_size=20)
    pair = [(Member("a", 0.5, chosen), whole_vocabulary), (Member("b", 0.5, chosen), fewer)]
    with pytest.raises(TeacherError, match=r"one vocabulary, theirs are \{'a': 24, 'b': 20\}"):
        Ensemble(pair, chosen)


def test_a_member_whose_head_does_not_fit_what_it_says_is_named() -> None:
    chosen = settings(SignalChoice.hidden)
    one, other = HfTeacher(chosen), HfTeacher(chosen)
    mixed = Ensemble([(Member("a", 0.5, chosen), one), (Member("b", 0.5, chosen), other)], chosen)
    other._info = replace(other.info(), hidden_size=8)
    with pytest.raises(TeacherError, match=r"^member 'b': output_head\(\) has shape"):
        mixed.head_parts()


class WholeOnly(HfTeacher):
    """A member that knows nothing of rows."""

    def info(self) -> TeacherInfo:
        return replace(super().info(), answers_rows=False)

    def score(self, requests: Sequence[ScoreRequest]) -> list[TeacherAnswer]:
        assert [request.rows for request in requests] == [None] * len(requests)
        return super().score(requests)


@pytest.mark.parametrize("signal", list(SignalChoice))
def test_asked_rows_are_those_rows_of_the_whole_answer(signal: SignalChoice) -> None:
    made = [
        (member("teacher", 0.25, signal), HfTeacher(settings(signal, "teacher"), vocab_size=VOCAB)),
        (member("student", 0.75, signal), WholeOnly(settings(signal, "student"), vocab_size=VOCAB)),
    ]
    mixed = Ensemble(made, made[0][0].settings)
    assert mixed.info().answers_rows
    request = max(requests(), key=lambda r: len(r.response_ids))
    rows = np.array([1, 2, 5], np.int32)
    topk = request.student_topk
    some = replace(request, rows=rows, student_topk=TopK(topk.ids[rows], topk.logprobs[rows]))
    [expected], [answer] = mixed.score([request]), mixed.score([some])
    check_answers(mixed.info(), [some], [answer], made[0][0].settings)
    for name in ("logprob", "at_student_topk"):
        np.testing.assert_allclose(
            getattr(answer, name), getattr(expected, name)[rows], atol=1e-5, err_msg=name
        )
    for name, values in vars(answer.signal).items():
        if isinstance(values, np.ndarray):
            whole_values = vars(expected.signal)[name][rows]
            np.testing.assert_allclose(values, whole_values, atol=1e-4, err_msg=name)


class Likes:
    """Gives one token 0.4, token 3 a probability of 0.35, and tokens 0 and the other the rest."""

    def __init__(self, token: int) -> None:
        self._token = token

    def info(self) -> TeacherInfo:
        return TeacherInfo(f"likes {self._token}", 4, 16, ("topk",), answers_rows=True)

    def score(self, requests: Sequence[ScoreRequest]) -> list[TeacherAnswer]:
        return [self._answer(request) for request in requests]

    def close(self) -> None: ...

    def _answer(self, request: ScoreRequest) -> TeacherAnswer:
        probabilities = np.array([0.125, 0.125, 0.125, 0.35])
        probabilities[self._token] = 0.4
        logprobs = np.log(probabilities).astype(np.float32)
        top = np.full((len(request.asked), 1), self._token, np.int32)
        return TeacherAnswer(
            request.rollout_id,
            logprobs[request.response_ids[request.asked]],
            logprobs[request.student_topk.ids],
            TopKSignal(top, logprobs[top]),
        )


def test_the_sampled_token_of_an_asked_row_is_known_for_sure() -> None:
    """Neither member lists token 3, of which both say as much as of no other together."""
    chosen = TeacherSettings(kind="ensemble", topk=1)
    made = [(Member(str(token), 0.5, chosen), Likes(token)) for token in (1, 2)]
    student = TopK(np.array([[0]], np.int32), np.full((1, 1), -1, np.float32))
    response = np.array([0, 0, 3], np.int32)
    ids = np.array([1], np.int32)
    asked = ScoreRequest("r", ids, response, student, rows=np.array([2], np.int32))
    [answer] = Ensemble(made, chosen).score([asked])
    assert isinstance(answer.signal, TopKSignal)
    assert answer.signal.ids.tolist() == [[3]]
    np.testing.assert_allclose(answer.signal.logprobs, np.log([[0.35]]), rtol=1e-6)
