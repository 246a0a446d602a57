"""The teacher behind a URL against a small server that answers as it should."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake_replicas import FakeReplica, pool_of
from fake_server import FakeServer, V, distribution
from http_teachers import TOP, K, Make, requests, settings

from actors.teacher.contract.answers import check_answers
from actors.teacher.protocol import TeacherError
from actors.teacher.service import TeacherServer
from opd_ray.config.choices import SignalChoice
from opd_ray.config.teacher import TeacherSettings, batch_budget
from opd_ray.preflight.contract.probes import contract_violations
from opd_ray.types import Rollout, RolloutScores, ScoreRequest, TopK


def rows(request: ScoreRequest) -> np.ndarray:
    """The server's log-probabilities [m, V], from the definition."""
    text = [*request.prompt_ids.tolist(), *request.response_ids.tolist()]
    first = len(request.prompt_ids)
    return np.stack([distribution(text[: first + t]) for t in range(len(request.response_ids))])


def test_values_are_the_servers_where_it_tells_them(fake: FakeServer, teacher: Make) -> None:
    asked = requests()
    made = teacher()
    answers = made.score(asked)
    check_answers(made.info(), asked, answers, TeacherSettings(topk=TOP))
    unknown = 0
    for request, answer in zip(asked, answers, strict=True):
        truth = rows(request)
        at = np.arange(len(truth))
        np.testing.assert_allclose(answer.logprob, truth[at, request.response_ids], atol=1e-6)
        order = np.argsort(-truth, axis=1)
        np.testing.assert_array_equal(answer.signal.ids, order[:, :TOP])
        np.testing.assert_allclose(
            answer.signal.logprobs, np.take_along_axis(truth, order[:, :TOP], 1), atol=1e-6
        )
        named = order[:, :8]
        student = request.student_topk.ids
        known = (student[:, :, None] == named[:, None, :]).any(2)
        known |= student == request.response_ids[:, None]
        expected = np.take_along_axis(truth, student, 1)
        np.testing.assert_allclose(answer.at_student_topk[known], expected[known], atol=1e-6)
        cap = np.take_along_axis(truth, named, 1).min(1, keepdims=True)
        assert (answer.at_student_topk <= np.where(known, 0, cap) + 1e-6).all()
        unknown += int((~known).sum())
        assert answer.entropy is None
    assert unknown


def test_scores_are_lower_bounds_and_exact_once_every_token_is_named(
    fake: FakeServer, teacher: Make
) -> None:
    asked = requests(12)
    part = TeacherServer(teacher(), settings(fake)).score(asked)
    whole = TeacherServer(teacher(named_tokens=99), settings(fake)).score(asked)
    for request, few, all_ in zip(asked, part, whole, strict=True):
        truth = np.take_along_axis(rows(request), request.student_topk.ids, 1)
        np.testing.assert_allclose(all_.columns["teacher_mass"], np.exp(truth).sum(1), atol=1e-5)
        for name in ("reverse_kl", "forward_kl", "jsd"):
            assert (few.columns[name] <= all_.columns[name] + 2e-6).all(), name


def test_token_ids_are_sent_and_no_text(fake: FakeServer, teacher: Make) -> None:
    [request] = requests(1)
    teacher().score([request])
    [body] = fake.bodies
    assert body["prompt"] == [*request.prompt_ids.tolist(), *request.response_ids.tolist()]
    assert body["add_special_tokens"] is False
    assert body["prompt_logprobs"] == 8


def test_the_sampled_signal_and_no_requests(fake: FakeServer, teacher: Make) -> None:
    made = teacher(signal=SignalChoice.sampled)
    [answer] = made.score(requests(1))
    np.testing.assert_array_equal(answer.signal.logprobs, answer.logprob)
    assert made.score([]) == []


def test_answers_come_in_the_order_asked_with_bounded_concurrency(
    fake: FakeServer, teacher: Make
) -> None:
    made = teacher(concurrency=3)
    fake.seconds = 0.02
    asked = requests(10)
    assert [a.rollout_id for a in made.score(asked)] == [r.rollout_id for r in asked]
    assert fake.most_at_once == 3


def test_a_pool_keeps_all_requests_under_way_however_long_the_sequences(
    fake: FakeServer, teacher: Make
) -> None:
    """Every rollout is longer than batch_tokens: cut by those, the server would get one a time."""
    chosen = settings(fake, concurrency=3, batch_tokens=1)
    server = TeacherServer(teacher(concurrency=3), chosen)

    answers: list[list[RolloutScores]] = []

    class Replica(FakeReplica):
        """Its answers are the server's."""

        def _score(self, asked: list[ScoreRequest]) -> Any:
            answers.append(server.score(asked))
            return super()._score(asked)

        def value(self, ref: Any) -> Any:
            return answers[ref[2]]

    pool, watch, _ = pool_of([Replica("teacher-0")], batch_budget(chosen, longest=10))
    fake.seconds = 0.02
    asked = requests(9)
    for r in asked:
        floats = np.zeros(len(r.response_ids), np.float32)
        ids = (r.prompt_ids, r.response_ids, np.ones(len(floats), np.uint8))
        name = r.rollout_id
        pool.submit(Rollout(name, name, 0, *ids, floats, floats, "stop", 0, r.student_topk))
    scored: list[RolloutScores] = []
    pool.deliver = scored.append
    watch.wait_until(lambda: len(scored) == len(asked), "scores")
    assert [score.rollout_id for score in scored] == [r.rollout_id for r in asked]
    assert fake.most_at_once == 3


@pytest.mark.parametrize("signal", ["topk", "sampled"])
def test_it_keeps_the_contract(fake: FakeServer, teacher: Make, signal: str) -> None:
    chosen = settings(fake, signal=SignalChoice(signal))
    made = teacher(signal=SignalChoice(signal))
    assert contract_violations(made, chosen, V, context_length=40, record_topk=K) == []


def test_asked_rows_are_those_rows_of_the_whole_answer(fake: FakeServer, teacher: Make) -> None:
    made = teacher()
    whole = max(requests(30), key=lambda r: len(r.response_ids))
    index = np.array([0, 2, 4], np.int32)
    topk = whole.student_topk
    some = replace(whole, rows=index, student_topk=TopK(topk.ids[index], topk.logprobs[index]))
    assert len(whole.response_ids) == 5
    [expected], [answer] = made.score([whole]), made.score([some])
    check_answers(made.info(), [some], [answer], TeacherSettings(topk=TOP))
    np.testing.assert_array_equal(answer.logprob, expected.logprob[index])
    np.testing.assert_array_equal(answer.at_student_topk, expected.at_student_topk[index])
    np.testing.assert_array_equal(answer.signal.ids, expected.signal.ids[index])
    assert fake.bodies[0]["prompt"] == fake.bodies[1]["prompt"]  # all of it is read


def test_only_what_is_said_of_asked_rows_is_looked_at(fake: FakeServer, teacher: Make) -> None:
    made = teacher()
    whole = max(requests(30), key=lambda r: len(r.response_ids))
    first = len(whole.prompt_ids)

    def spoilt(entries: list[Any]) -> list[Any]:
        entries[first + 3] = {"5": {"logprob": None}}
        return entries

    fake.change = spoilt
    topk = whole.student_topk
    for rows in ([0, 2, 4], [1, 3]):
        index = np.array(rows, np.int32)
        some = replace(whole, rows=index, student_topk=TopK(topk.ids[index], topk.logprobs[index]))
        if 3 in rows:
            with pytest.raises(TeacherError, match="position 3: the server's entry is"):
                made.score([some])
        else:
            made.score([some])


def test_ids_beyond_the_students_tokens(fake: FakeServer, teacher: Make) -> None:
    """Padding rows are left out while they have no probability, refused when they have."""
    asked = [
        replace(r, student_topk=TopK(r.student_topk.ids % 20, r.student_topk.logprobs))
        for r in requests(1)
    ]
    asked = [
        replace(r, prompt_ids=r.prompt_ids % 20, response_ids=r.response_ids % 20) for r in asked
    ]
    made = teacher(20)
    with pytest.raises(TeacherError, match="to ids that are no tokens of the student"):
        made.score(asked)

    def unlikely(entries: list[Any]) -> list[Any]:
        for found in entries[1:]:
            for token in found:
                if int(token) >= 20:
                    found[token]["logprob"] = -20.0
        return entries

    fake.change = unlikely
    [answer] = teacher(20, topk=2).score(asked)
    assert answer.signal.ids.max() < 20


def test_padding_among_the_likeliest_may_leave_too_few(fake: FakeServer, teacher: Make) -> None:
    """Eight tokens are asked for; five of them are beyond the student's 20, at e^-30 each."""
    asked = [
        replace(r, prompt_ids=r.prompt_ids % 3, response_ids=r.response_ids % 3)
        for r in requests(1)
    ]
    asked = [
        replace(r, student_topk=TopK(r.student_topk.ids % 3, r.student_topk.logprobs))
        for r in asked
    ]
    names = [0, 1, 2, 25, 26, 27, 28, 29]
    entry = {str(token): {"logprob": -1.2 if token < 3 else -30.0} for token in names}
    fake.change = lambda entries: [None, *[entry] * (len(entries) - 1)]
    answers = teacher(20, topk=3).score(asked)
    assert (answers[0].signal.ids < 20).all()
    with pytest.raises(TeacherError, match="fewer than 4 likeliest .* raise teacher.named_tokens"):
        teacher(20, topk=4).score(asked)
