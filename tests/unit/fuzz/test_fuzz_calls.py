"""Whatever a student writes is read, and whatever a tool answers is text, or a problem in words."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from chat_tokenizer import END, TURNS, chat_tokenizer
from fuzzing import JSON, TEXTS, damaged, examples
from hypothesis import given
from hypothesis import strategies as st

from opd_ray.environments.answers import as_figures, as_messages
from opd_ray.environments.calls import ToolCall
from opd_ray.environments.parsers.registry import get_parser, parser_names
from opd_ray.environments.tool_class import as_tool_result
from opd_ray.environments.turns import TurnTemplate
from opd_ray.environments.words import shortened

TOKENIZER = chat_tokenizer()
TEMPLATE = TurnTemplate(
    TOKENIZER, [], {"chat_template": TURNS}, [TOKENIZER.convert_tokens_to_ids(END)]
)
SCHEMA = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": ["integer", "null"]},
                "more": {"anyOf": [{"type": "array"}, {"type": "object"}], "enum": [1, "a", None]},
            },
        },
    },
}
CALL = {"name": "look", "arguments": {"city": "Bonn", "days": 2, "more": [{"a": None}]}}
PIECES = st.sampled_from(
    [
        "<tool_call>",
        "</tool_call>",
        "<think>",
        "</think>",
        "<|python_tag|>",
        "<function=look>",
        "<parameter=city>",
        "<parameter=days>",
        "<parameter=more>",
        "</parameter>",
        "</function>",
        '{"name":',
        '"look"',
        '"arguments":',
        "{",
        '"parameters":',
        "}",
        "]",
        "[",
        ";",
        "NaN",
        "1e999",
        "\\ud83d",
        "-",
        '"',
        ",",
    ]
) | st.sampled_from(["\n", "[" * 3000, '{"a":' * 3000, "1" * 5000])
TURN = st.lists(
    PIECES | TEXTS | damaged(CALL).map(json.dumps) | JSON.map(json.dumps), max_size=8
).map("".join)


@examples(60)
@given(TURN, st.sampled_from(parser_names()))
def test_any_turn_is_taken_apart(text: str, name: str) -> None:
    turn = get_parser(name, "parser").parse(text, [SCHEMA])
    for call in turn.calls:
        if isinstance(call, ToolCall):
            # The chat template, a record's file and the tokenizer take them.
            json.dumps(call.arguments, ensure_ascii=False).encode()
        else:
            assert call.written in text
            assert call.problem
    json.dumps(turn.message(), ensure_ascii=False).encode()


ANSWERS = JSON | st.binary(max_size=3) | st.sets(st.integers(), max_size=2) | st.just(object())


@examples(60)
@given(ANSWERS, st.integers(1, 20))
def test_any_result_is_shown_or_a_problem_in_words(answered: Any, most: int) -> None:
    try:
        text = as_tool_result(answered).text
    except (TypeError, ValueError) as error:  # the student reads it
        text = str(error)
        assert text
    shown, _ = shortened(text, TEMPLATE, most)
    shown.encode()


MESSAGES = [{"role": "user", "content": "a"}, {"role": "tool", "name": "look", "content": "b"}]


@examples(60)
@given(damaged(MESSAGES) | ANSWERS)
def test_any_answer_of_an_environment(said: Any) -> None:
    for read in (as_messages, as_figures):
        with suppress(TypeError, ValueError):  # which the run names the environment with
            read(said)
