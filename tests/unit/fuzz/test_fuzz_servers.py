"""Whatever a teacher's server answers: scores, or an error that names the teacher and the place."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fake_server import FakeServer, V, entry, running
from fuzzing import JSON, damaged, examples, only_ours
from http_teachers import requests, settings
from hypothesis import given
from hypothesis import strategies as st

from actors.teacher.http.client import HttpClient
from actors.teacher.http.probe import check_server
from actors.teacher.http.rows import read_rows
from actors.teacher.http.teacher import HttpTeacher

REQUEST = requests(1)[0]
TOKENS = np.concatenate((REQUEST.prompt_ids, REQUEST.response_ids)).tolist()
NAMED = 4
ANSWER = {
    "choices": [
        {
            "text": "",
            "prompt_token_ids": TOKENS,
            "prompt_logprobs": [None, *(entry(TOKENS, i, NAMED) for i in range(1, len(TOKENS)))],
        }
    ]
}


@examples(80)
@given(damaged(ANSWER) | JSON)
def test_any_answer_with_scores(body: Any) -> None:
    with only_ours("teacher 'x', rollout 'r0'", "position "):
        rows = read_rows("teacher 'x', rollout 'r0'", body, REQUEST, NAMED, V)
        rows.require(NAMED, "teacher")
        rows.look_up(REQUEST.student_topk.ids)
        assert np.isfinite(rows.logprob_n).all()


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeServer]:
    with running() as server:
        yield server


BODIES = st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode())
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "Retry-After": st.sampled_from(
            ["nan", "-1", "0", "1e999", "Thu, 01 Jan 0001 00:00:00 -0000"]
        )
        | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8),
        "Content-Encoding": st.sampled_from(["gzip", "deflate", "x"]),
        "Content-Type": st.sampled_from(["", "text/html; charset=none"]),
    },
)
STATUSES = st.sampled_from([200, 201, 204, 301, 304, 400, 401, 404, 418, 429, 500, 503, 599])


@examples(20)
@given(STATUSES, HEADERS, BODIES | st.just(b'{"a":' * 5000) | st.just(b"1" * 5000))
def test_any_reply(fake: FakeServer, status: int, headers: dict[str, str], body: bytes) -> None:
    fake.trouble = lambda number: (status, headers, body)
    asked = settings(fake, timeout_s=5.0)

    async def ask() -> Any:
        async with HttpClient(asked, 0) as client:
            return await client.ask("/completions", {"prompt": [1], "prompt_logprobs": 0})

    with only_ours(f"teacher.url = {fake.url!r}: "):
        assert asyncio.run(ask()).complaint


class Letters:
    """The tokenizer that the fake server has."""

    eos_token = pad_token = "a"

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [ord(letter) % V for letter in text]


MODELS = [{"id": "tiny", "max_model_len": 64}]


@examples(15)
@given(damaged(MODELS), st.just(ANSWER) | damaged(ANSWER))
def test_any_words_of_a_server_on_itself(fake: FakeServer, models: Any, answer: Any) -> None:
    fake.models = models
    fake.trouble = lambda number: (200, {}, answer)
    asked = settings(fake, max_retries=0)
    with only_ours(f"teacher.url = {fake.url!r}"):
        check_server(asked, Letters(), V, context_length=32)
        HttpTeacher(asked, vocab_size=V).close()
