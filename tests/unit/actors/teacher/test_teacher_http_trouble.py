"""The teacher behind a URL against a small server that answers badly, late, or not at all."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake_server import KEY, FakeServer, V
from http_teachers import Make, requests, settings

from actors.teacher.http.client import asked_pause
from actors.teacher.http.teacher import HttpTeacher
from actors.teacher.protocol import TeacherError
from actors.teacher.service import TeacherServer
from opd_ray.types import TopK

_AT_0, _AT_7 = (f"Tue, 31 Dec 2080 00:00:0{second} GMT" for second in (0, 7))


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


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0.0),
        ({"Retry-After": "7.5"}, 7.5),
        ({"Retry-After": "-1"}, 0.0),
        ({"Retry-After": "nan"}, 0.0),
        ({"Retry-After": "soon"}, 0.0),
        # Years from now by any clock but the server's own.
        ({"Retry-After": _AT_7, "Date": _AT_0}, 7.0),
        ({"Retry-After": _AT_0, "Date": _AT_7}, 0.0),
        ({"Retry-After": _AT_7.replace("GMT", "-0000"), "Date": _AT_0}, 7.0),
        ({"Retry-After": _AT_7, "Date": "now"}, 0.0),
        ({"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
    ],
)
def test_a_pause_until_a_date_counts_by_the_servers_clock(
    headers: dict[str, str], seconds: float
) -> None:
    assert asked_pause(headers) == seconds


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
