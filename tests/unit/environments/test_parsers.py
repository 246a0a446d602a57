"""Tool calls in what a student writes: every one found, in order, with an error of its own."""

from __future__ import annotations

import random

import pytest

from opd_ray.environments.calls import AssistantTurn, BadCall, ToolCall
from opd_ray.environments.parsers.registry import get_parser
from opd_ray.errors import ConfigError

LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        },
    },
}
HERMES = get_parser("hermes", "parser")
LLAMA = get_parser("llama3_json", "parser")
CODER = get_parser("qwen3_coder", "parser")


def test_hermes_calls_in_the_order_in_which_they_were_written() -> None:
    text = (
        'I look.\n<tool_call>\n{"name": "look", "arguments": {"city": "Bonn"}}\n</tool_call>\n'
        '<tool_call>{"name": "stop"}</tool_call>'
    )
    turn = HERMES.parse(text, [LOOK])
    assert turn == AssistantTurn(
        "I look.", (ToolCall("look", {"city": "Bonn"}), ToolCall("stop", {}))
    )


def test_a_bad_call_leaves_the_others_alone() -> None:
    text = (
        "<tool_call>{'name': 1}</tool_call>"
        '<tool_call>{"name": "look", "arguments": {}}</tool_call><tool_call>{"name": "lo'
    )
    first, second, third = HERMES.parse(text, [LOOK]).calls
    assert isinstance(first, BadCall)
    assert "not valid JSON" in first.problem
    assert second == ToolCall("look", {})
    assert isinstance(third, BadCall)
    assert "not closed" in third.problem


@pytest.mark.parametrize(
    ("inside", "problem"),
    [
        ("[]", "must be a JSON object"),
        ('{"arguments": {}}', 'needs a "name"'),
        ('{"name": "look", "arguments": "x"}', '"arguments" of a tool call must be'),
        ('{"name": "look", "arguments": null}', '"arguments" of a tool call must be'),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_what_is_wrong_with_a_hermes_call(inside: str, problem: str) -> None:
    (bad,) = HERMES.parse(f"<tool_call>{inside}</tool_call>", [LOOK]).calls
    assert isinstance(bad, BadCall)
    assert problem in bad.problem


def test_calls_that_are_only_thought_of_are_none() -> None:
    thought = '<think>\n<tool_call>{"name": "look"}</tool_call>\n'
    assert HERMES.parse(f"{thought}</think>\nNo.", [LOOK]).calls == ()
    assert HERMES.parse(thought, [LOOK]).calls == ()
    turn = HERMES.parse(thought + '</think>\n<tool_call>{"name": "stop"}</tool_call>', [LOOK])
    assert turn.calls == (ToolCall("stop", {}),)


def test_llama_calls() -> None:
    text = '{"name": "look", "parameters": {"city": "Bonn"}}; {"name": "stop", "parameters": {}}'
    calls = (ToolCall("look", {"city": "Bonn"}), ToolCall("stop", {}))
    assert LLAMA.parse(text, [LOOK]) == AssistantTurn("", calls)
    assert LLAMA.parse(f"Well. <|python_tag|>{text}", [LOOK]) == AssistantTurn("Well.", calls)
    assert LLAMA.parse('The set {"a"} is small.', [LOOK]).calls == ()
    assert LLAMA.parse('{"total": 3}', [LOOK]).calls == ()
    good, bad = LLAMA.parse('{"name": "look", "parameters": {}} {"name": ', [LOOK]).calls
    assert good == ToolCall("look", {})
    assert isinstance(bad, BadCall)


def test_coder_calls_with_the_types_of_the_schema() -> None:
    text = (
        "Now.\n<tool_call>\n<function=look>\n<parameter=city>\n17\n</parameter>\n"
        "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>"
    )
    assert CODER.parse(text, [LOOK]) == AssistantTurn(
        "Now.", (ToolCall("look", {"city": "17", "days": 3}),)
    )
    wrong = text.replace("\n3\n", "\nthree\n")
    (bad,) = CODER.parse(wrong, [LOOK]).calls
    assert isinstance(bad, BadCall)
    assert "'days' is not valid JSON" in bad.problem
    (bad,) = CODER.parse("<tool_call><function=look>", [LOOK]).calls
    assert isinstance(bad, BadCall)


@pytest.mark.parametrize("parser", [HERMES, LLAMA, CODER])
def test_nothing_that_a_student_can_write_raises(parser) -> None:
    draw = random.Random(0)
    pieces = [
        *("<tool_call>", "</tool_call>", "<think>", "</think>", "<function=look>", "</function>"),
        *(
            "<parameter=days>",
            "</parameter>",
            '{"name": "look"',
            '"arguments": {',
            "}",
            "[",
            "\x00",
        ),
        *("<|python_tag|>", ";", '"', "\\", "\n", "é", "1e999", "\ud83d", "NaN"),
    ]
    for _ in range(3000):
        text = "".join(draw.choices(pieces, k=draw.randrange(12)))
        turn = parser.parse(text, [LOOK])
        assert turn.message()["role"] == "assistant"


def test_an_unknown_parser_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(
        ConfigError, match="environment.parser = 'herms' is unknown: use one of herm"
    ):
        get_parser("herms", "environment.parser")
