"""What a server lacks, found and named before a run depends on it."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import pytest
from fake_server import KEY, FakeServer, V

from actors.teacher.http.probe import check_server
from actors.teacher.protocol import TeacherError
from opd_ray.config.resolved_teachers import NamedTeacher

pytestmark = pytest.mark.usefixtures("short_pauses")


class Letters:
    """The tokenizer that the fake server has."""

    eos_token = "e"
    pad_token = None

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [ord(letter) % V for letter in text]


def check(fake: FakeServer | SimpleNamespace, context_length: int = 63, **changes: Any) -> Any:
    own_topk = changes.pop("own_topk", 0)
    vocab_size = changes.pop("vocab_size", V)
    settings = NamedTeacher(
        kind="http", url=fake.url, **{"topk": 4, "named_tokens": 8, "max_retries": 1, **changes}
    )
    return check_server(
        settings, Letters(), vocab_size, context_length=context_length, own_topk=own_topk
    )


def refused(*given: Any, **changes: Any) -> str:
    with pytest.raises(TeacherError) as raised:
        check(*given, **changes)
    return str(raised.value)


def test_a_server_that_has_everything(fake: FakeServer) -> None:
    served = check(fake)
    assert (served.model, served.context_length) == ("tiny", 63)
    fake.models.insert(0, {"id": "other"})
    assert check(fake, model="tiny").model == "tiny"


def test_nobody_is_there() -> None:
    with socket.socket() as taken:  # bound, so that nobody else takes it, and not listening
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        said = refused(SimpleNamespace(url=url))
        patient = refused(SimpleNamespace(url=url), max_retries=9)
    assert f"teacher.url = {url!r}: ClientConnectorError" in said
    assert said.endswith("(tried 2 times, teacher.max_retries = 1)")
    assert "tried 2 times" in said
    assert patient.endswith("(tried 3 times)")  # a start waits less than a run; the key is not 2


def test_another_url(fake: FakeServer) -> None:
    fake.url = fake.url.removesuffix("/v1")
    assert "GET /models gives no list of models (HTTP 404: Not Found)" in refused(fake)


def test_no_key_and_a_wrong_one(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.key = "another"
    assert "HTTP 401" in (said := refused(fake))
    assert "set teacher.api_key_env" in said
    monkeypatch.setenv("TEACHER_KEY", KEY)
    said = refused(fake, api_key_env="TEACHER_KEY")
    assert "the key in TEACHER_KEY is wrong" in said
    assert KEY not in said


def test_another_model_name_lists_what_is_served(fake: FakeServer) -> None:
    fake.models += [{"id": "large"}]
    assert "teacher.model = 'mine', the server offers tiny, large" in refused(fake, model="mine")
    assert "teacher.model = None, the server offers tiny, large" in refused(fake)


def test_no_prompt_log_probabilities(fake: FakeServer) -> None:
    fake.scores = False
    said = refused(fake)
    assert "cannot give prompt log-probabilities (its answer has no prompt_logprobs)" in said


def test_too_few_likeliest_tokens(fake: FakeServer) -> None:
    fake.max_logprobs = 5
    said = refused(fake)
    assert "its 8 likeliest tokens at a position" in said
    assert "max allowed: 5" in said
    assert "start it with --max-logprobs 8, or lower teacher.named_tokens" in said
    assert check(fake, named_tokens=1)  # topk is 4


def test_fewer_tokens_than_the_student(fake: FakeServer) -> None:
    said = refused(fake, vocab_size=V + 1)
    assert "cannot give token id 30, the student's highest" in said
    assert "out of vocabulary" in said


def test_another_tokenizer_and_a_shorter_context_are_said_together(fake: FakeServer) -> None:
    fake.offset = 1
    said = refused(fake, context_length=64)
    assert "it splits text otherwise: \"What is 1234 + 56.7?\\n\\nLet's see:" in said
    assert "its context (max_model_len) is 64 tokens, the run needs 65" in said
    assert check(fake, accept_mismatch=["probes"])


def test_a_tokenizer_that_cannot_be_asked(fake: FakeServer) -> None:
    fake.tokenizes = False
    said = refused(fake)
    assert "cannot be compared with the student's (POST /tokenize: HTTP 404: Not Found)" in said
    assert "set teacher.path" in said
    assert check(fake, path="files that check_pairing compared")


def test_no_context_length(fake: FakeServer) -> None:
    fake.models = [{"id": "tiny"}]
    assert "GET /models does not say max_model_len" in refused(fake)


SCORED = {"choices": [{"prompt_logprobs": [None, {str(token): {} for token in range(9)}]}]}


@pytest.mark.parametrize("length", ["64", 64.5, True, -3, 1, [64]])
def test_a_context_length_that_is_none(fake: FakeServer, length: Any) -> None:
    fake.models = [{"id": "tiny", "max_model_len": length}]
    fake.trouble = lambda number: (200, {}, SCORED)  # the fake server compares with it
    assert f"GET /models says max_model_len = {length!r}: it must be a length" in refused(fake)


def test_a_rule_that_needs_every_value_of_the_student(fake: FakeServer) -> None:
    said = refused(fake, own_topk=4)
    assert "tip.rule needs the teacher's log-probability of every token" in said
    assert check(fake, own_topk=4, named_tokens=V)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"model": "other"}, "teachers.b.model = 'other', the server offers tiny"),
        ({"own_topk": 4}, "teachers.b.kind=vllm, or teachers.b.named_tokens of the whole"),
        ({"api_key_env": "OPD_RAY_NO_KEY"}, "teachers.b.api_key_env = 'OPD_RAY_NO_KEY'"),
    ],
)
def test_a_named_teacher_is_spoken_of_by_its_key(
    fake: FakeServer, changes: dict[str, Any], part: str
) -> None:
    said = refused(fake, name="b", **changes)
    assert part in said
    assert said.startswith("teachers.b.")
    assert " teacher." not in said
