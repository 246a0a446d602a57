"""A first step without a call: shown as it is, with what would have read it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest

from opd_ray.coordinator.no_calls import NoCallsError, check_calls
from opd_ray.errors import RunError
from opd_ray.types import Rollout

PARSERS = {"tables": ("environment.parser", "hermes")}
CODER = "<tool_call>\n<function=look>\n<parameter=key>\na\n</parameter>\n</function>\n</tool_call>"
END = "\x00"  # the token that ends a turn


def decode(ids: Sequence[int]) -> str:
    """A token a character."""
    return "".join("<|im_end|>" if chr(i) == END else chr(i) for i in ids)


def rollout(
    text: str,
    *,
    name: str = "0/a/0",
    source: str = "tables",
    turns: list[int] | None = None,
    mask: list[int] | None = None,
    ending: str = "stop",
    **figures: float,
) -> Rollout:
    ids = np.array([ord(c) for c in text], np.int32)
    floats = np.zeros(len(ids), np.float32)
    return Rollout(
        rollout_id=name,
        prompt_id=name.split("/")[1],
        sample=0,
        prompt_ids=np.zeros(1, np.int32),
        response_ids=ids,
        response_mask=np.ones(len(ids), np.uint8) if mask is None else np.array(mask, np.uint8),
        entropy=floats,
        logprob=floats,
        finish_reason=ending,
        weights_version=0,
        source=source,
        turns=np.array([0] * len(ids) if turns is None else turns, np.int16),
        figures={"calls": 0.0, "parse_error": 0.0} | figures,
    )


def refusal(
    rollouts: list[Rollout], parsers: dict[str, tuple[str, str]] | None = None
) -> list[str]:
    with pytest.raises(NoCallsError) as raised:
        check_calls(rollouts, parsers or PARSERS, decode)
    assert isinstance(raised.value, RunError)
    return str(raised.value).split("\n")


@pytest.mark.parametrize(
    "one",
    [
        rollout("x", calls=3.0, parse_error=2.0),
        rollout("x", ending="tool_limit"),  # called, with no call left to it
        rollout("x", ending="turns"),  # one turn was all
    ],
)
def test_one_call_is_enough(one: Rollout) -> None:
    check_calls([rollout("x"), one], PARSERS, decode)


def test_rollouts_without_tools_are_not_asked() -> None:
    check_calls([rollout("x", source="sums")], PARSERS, decode)
    check_calls([], PARSERS, decode)
    # Calls are looked for where there are tools.
    with pytest.raises(NoCallsError, match="in the 1 rollouts"):
        check_calls([rollout("x", source="sums", calls=1.0), rollout("y")], PARSERS, decode)


def test_the_text_is_shown_as_it_is_of_three_prompts_first() -> None:
    texts = ["no\ttool\n", "I think\x1b[2J" + END, "b", "c"]
    names = ["0/a/0", "0/a/1", "0/b/0", "0/c/0"]
    lines = refusal([rollout(text, name=name) for text, name in zip(texts, names, strict=True)])
    assert lines == [
        "there are tools, and not one call was read in the 4 rollouts of this step, with "
        "environment.parser = 'hermes'; 0 were written that it could not read",
        "check:",
        "- environment.parser: is it the format that the student writes? There are hermes, "
        "llama3_json, qwen3_coder, and a class of your own",
        "- the prompt: does the chat template show the student its tools, and is it asked to use "
        "them?",
        "- student.path: was the student trained to call tools?",
        "3 of the responses as they are:",
        "--- 0/a/0: 8 tokens, ended with stop",
        "no\\ttool",
        "",
        "--- 0/b/0: 1 tokens, ended with stop",
        "b",
        "--- 0/c/0: 1 tokens, ended with stop",
        "c",
    ]
    lines = refusal([rollout(texts[1])])
    assert lines[-2:] == ["--- 0/a/0: 12 tokens, ended with stop", "I think\\x1b[2J<|im_end|>"]


def test_a_parser_that_would_read_them_is_named() -> None:
    wrong = rollout(CODER + END, calls=1.0, parse_error=1.0)
    lines = refusal([wrong, rollout("nothing" + END)])
    assert lines[0].endswith("1 were written that it could not read")
    assert lines[2] == "- qwen3_coder reads calls in 1 of 2 rollouts: set environment.parser"
    hermes = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
    other = {"tables": ("environments.tables.parser", "qwen3_coder")}
    lines = refusal([rollout(hermes + END), rollout(hermes)], other)
    assert lines[2] == "- hermes reads calls in 2 of 2 rollouts: set environments.tables.parser"
    llama = '{"name": "look", "parameters": {}}'
    assert "- llama3_json reads calls in 1 of 1" in refusal([rollout(llama + END)])[2]


def test_calls_are_looked_for_in_each_turn_of_the_student_alone() -> None:
    # What others say between is no call of the student's; nor do two turns make one.
    said = f"a{CODER}b"
    mask = [1, *[0] * len(CODER), 1]
    lines = refusal([rollout(said, mask=mask, turns=[0] * (len(said) - 1) + [1], ending="turns")])
    assert lines[2].startswith("- environment.parser: is it the format")
    late = f"a?{CODER}{END}"
    turns = [0, 0] + [1] * (len(late) - 2)
    lines = refusal([rollout(late, mask=[1, 0] + [1] * (len(late) - 2), turns=turns)])
    assert "- qwen3_coder reads calls in 1 of 1" in lines[2]
    left_out = rollout(CODER, mask=[0] * len(CODER))
    assert "- qwen3_coder reads calls in 1 of 1" in refusal([left_out])[2]


def test_rollouts_that_were_cut_are_counted() -> None:
    lines = refusal(
        [rollout("x", ending="length"), rollout("y", ending="context"), rollout("z"), rollout("")]
    )
    assert (
        "- 2 of 4 rollouts were cut before they ended: raise environment.max_turn_tokens, "
        "rollout.max_new_tokens or student.context_length"
    ) in lines


def test_a_response_is_not_shown_without_end() -> None:
    lines = refusal([rollout("a" * 1500 + "b" * 1500)])
    assert lines[-3:] == ["a" * 1000, "[... 1000 characters ...]", "b" * 1000]


def test_parsers_of_all_sources_are_named_once() -> None:
    parsers = {
        "tables": ("environment.parser", "hermes"),
        "trips": ("environments.trips.parser", "mine:Parser"),
    }
    found = [rollout("x"), rollout("x"), rollout("y", source="trips")]
    words = "with environment.parser = 'hermes', environments.trips.parser = 'mine:Parser'; 0 were"
    with pytest.raises(NoCallsError, match=re.escape(words)):
        check_calls(found, parsers, decode)
