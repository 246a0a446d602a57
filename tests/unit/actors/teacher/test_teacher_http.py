"""The teacher behind a URL against a small server that answers well, badly, late, or not at all."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake_replicas import FakeReplica, pool_of
from fake_server import KEY, FakeServer, V, distribution, running

import actors.teacher.http.client as http_client
from actors.teacher.contract.answers import check_answers
from actors.teacher.http.teacher import HttpTeacher
from actors.teacher.protocol import TeacherError
from actors.teacher.service import TeacherServer
from opd_ray.config.choices import SignalChoice
from opd_ray.config.teacher import TeacherSettings, batch_budget
from opd_ray.preflight.contract.probes import contract_violations
from opd_ray.types import Rollout, RolloutScores, ScoreRequest, TopK

K, TOP = 5, 4


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with running() as server:
        yield server


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(http_client, "_LONGEST_PAUSE", 0.02)


def settings(fake: FakeServer, **changes: Any) -> TeacherSettings:
    values = {"topk": TOP, "named_tokens": 8, "max_retries": 3, "concurrency": 4, **changes}
    return TeacherSettings(kind="http", url=fake.url, **values)


Make = Callable[..., HttpTeacher]


@pytest.fixture
def teacher(fake: FakeServer) -> Iterator[Make]:
    """Makes teachers of the fake server, whose account then begins anew; closes them at the end."""
    made: list[HttpTeacher] = []

    def make(vocab_size: int = V, **changes: Any) -> HttpTeacher:
        made.append(HttpTeacher(settings(fake, **changes), vocab_size=vocab_size))
        fake.bodies.clear()
        fake.most_at_once = 0
        return made[-1]

    yield make
    for one in made:
        one.close()


def requests(count: int = 6) -> list[ScoreRequest]:
    rng = np.random.default_rng(3)
    made = []
    for number in range(count):
        prompt, response = rng.integers(1, 6, 2)
        ids = rng.integers(0, V, prompt + response).astype(np.int32)
        top = np.stack([rng.choice(V, K, replace=False) for _ in range(response)]).astype(np.int32)
        logprobs = np.sort(np.log(rng.dirichlet(np.ones(K + 1), response)[:, :K]))[:, ::-1]
        made.append(
            ScoreRequest(
                f"r{number}", ids[:prompt], ids[prompt:], TopK(top, logprobs.astype(np.float32))
            )
        )
    return made


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


def busy(status: int, times: int, **headers: str) -> Callable[[int], Any]:
    return lambda number: (status, headers, {"error": "later"}) if number < times else None


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(fake: FakeServer, teacher: Make, status: int) -> None:
    made = teacher()
    fake.trouble = busy(status, 2)
    server = TeacherServer(made, settings(fake))
    [scores] = server.score(requests(1))
    assert scores.rollout_id == "r0"
    assert len(fake.bodies) == 3
    assert scores.retries == 2


def test_retry_after_is_respected(fake: FakeServer, teacher: Make) -> None:
    made = teacher()
    fake.trouble = busy(429, 1, **{"Retry-After": "0.3"})
    start = time.monotonic()
    made.score(requests(1))
    assert time.monotonic() - start >= 0.3


def test_a_server_that_asks_to_wait_for_an_hour_ends_it(fake: FakeServer, teacher: Make) -> None:
    made = teacher()
    fake.trouble = busy(429, 9, **{"Retry-After": "3600"})
    with pytest.raises(TeacherError, match="HTTP 429: later; it asks to wait 3600 s"):
        made.score(requests(1))


def test_errors_until_the_limit(fake: FakeServer, teacher: Make) -> None:
    made = teacher()
    fake.trouble = busy(500, 99)
    with pytest.raises(
        TeacherError, match=r"rollout 'r0': .*HTTP 500: later \(tried 4 times, teacher.max_retries"
    ):
        made.score(requests(1))
    assert len(fake.bodies) == 4


def test_what_no_retry_would_change_is_not_retried(fake: FakeServer, teacher: Make) -> None:
    made = teacher()
    fake.trouble = busy(400, 99)
    with pytest.raises(TeacherError, match="rollout 'r0'.*HTTP 400: later"):
        made.score(requests(1))
    assert len(fake.bodies) == 1


def test_a_dropped_connection_is_asked_again(fake: FakeServer, teacher: Make) -> None:
    made = teacher()
    fake.trouble = lambda number: "drop" if number < 2 else None
    assert sum(answer.retries for answer in made.score(requests(3))) == 2


def test_a_slow_answer_is_waited_for_and_a_lost_one_given_up(
    fake: FakeServer, teacher: Make
) -> None:
    made = teacher(timeout_s=0.3, max_retries=1)
    fake.seconds = 0.1
    assert len(made.score(requests(1))) == 1
    fake.seconds = 1.0
    with pytest.raises(TeacherError, match="no answer within teacher.timeout_s = 0.3 s"):
        made.score(requests(1))


def change_row(change: Callable[[dict[str, Any]], Any]) -> Callable[[list[Any]], Any]:
    return lambda entries: [*entries[:-1], change(entries[-1])]


def first_of(entry: dict[str, Any], logprob: float) -> dict[str, Any]:
    key = next(iter(entry))
    return {**entry, key: {**entry[key], "logprob": logprob}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entries: entries[:-1], r"prompt_logprobs has 3 entries; expected one for 4 tokens"),
        (lambda entries: None, r"prompt_logprobs has NoneType; expected one for 4"),
        (lambda entries: [*entries[:2], *entries[:1:-1]], r"position 0: the server says nothing"),
        (change_row(lambda entry: None), r"position 1: the server's entry is None; expected token"),
        (change_row(lambda entry: {"a": 1}), r"position 1: .*expected token ids with a logprob"),
        (change_row(lambda e: dict(list(e.items())[:3])), r"position 1: .*names 3 tokens; asked"),
        (change_row(lambda e: dict(list(e.items())[1:])), r"position 1: .*\d tokens|says nothing"),
        (change_row(lambda e: first_of(e, float("nan"))), r"position 1: .*a logprob of nan"),
        (change_row(lambda e: first_of(e, float("-inf"))), r"position 1: .*a logprob of -inf"),
        (change_row(lambda e: first_of(e, 0.7)), r"position 1: logprob is 0.69.*at most 0"),
        (
            change_row(lambda e: {k: {"logprob": -0.3} for k in e}),
            r"position 1: mass of at_student_topk is 1.48.*at most 1",
        ),
    ],
)
def test_wrong_answers_are_named(
    fake: FakeServer, teacher: Make, change: Any, message: str
) -> None:
    made = teacher()
    server = TeacherServer(made, settings(fake))
    request = replace(
        requests(1)[0],
        prompt_ids=np.array([1, 2], np.int32),
        response_ids=np.array([27, 28], np.int32),
        student_topk=TopK(np.array([[3, 4], [3, 4]], np.int32), np.full((2, 2), -1.0, np.float32)),
    )
    fake.change = change
    with pytest.raises(TeacherError, match=message) as raised:
        server.score([request])
    assert "teacher 'tiny', rollout 'r0'" in str(raised.value)


def test_another_text_read_is_named(fake: FakeServer, teacher: Make) -> None:
    made = teacher()

    def with_bos(number: int) -> Any:
        body = dict(fake.bodies[number])
        status, headers, reply = fake._scored(body)
        reply["choices"][0]["prompt_token_ids"] = [0, *body["prompt"]]
        return status, headers, reply

    fake.trouble = with_bos
    with pytest.raises(TeacherError, match=r"the server read \d+ tokens beginning with \[0, "):
        made.score(requests(1))


def test_no_json_is_an_error(fake: FakeServer, teacher: Make) -> None:
    made = teacher()
    fake.trouble = lambda number: (200, {}, b"<html>proxy</html>")
    with pytest.raises(TeacherError, match="the server's answer has no prompt_logprobs"):
        made.score(requests(1))


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


def test_the_key_is_sent_and_never_shown(
    fake: FakeServer,
    teacher: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    fake.key = KEY
    monkeypatch.setenv("TEACHER_KEY", KEY)
    chosen = settings(fake, api_key_env="TEACHER_KEY", max_retries=1)
    made = teacher(api_key_env="TEACHER_KEY", max_retries=1)
    made.score(requests(1))
    assert fake.headers[-1]["Authorization"] == f"Bearer {KEY}"
    said = [repr(chosen), repr(made.info()), repr(made._client)]
    for trouble in (busy(400, 99), busy(500, 99), lambda number: "drop"):
        fake.trouble = trouble
        with pytest.raises(TeacherError) as raised:
            made.score(requests(1))
        said.append("".join(traceback.format_exception(raised.value)))
    fake.trouble = lambda number: (403, {}, {"error": f"no access for {KEY}"})
    with pytest.raises(TeacherError, match=r"no access for \*\*\*") as raised:
        made.score(requests(1))
    said.append("".join(traceback.format_exception(raised.value)))
    fake.key = "another"
    with pytest.raises(TeacherError, match="the key in TEACHER_KEY is wrong") as raised:
        HttpTeacher(chosen, vocab_size=V)
    said.append("".join(traceback.format_exception(raised.value)))
    assert all(KEY not in text for text in [*said, caplog.text])


def test_a_key_that_is_not_there(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    with pytest.raises(TeacherError, match="teacher.api_key_env = 'TEACHER_KEY'.*is not set"):
        HttpTeacher(settings(fake, api_key_env="TEACHER_KEY"), vocab_size=V)


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
