"""Calls as templates write them and as students do: the same come out, or a word on why not."""

from __future__ import annotations

from typing import Any

import pytest
from chat_tokenizer import chat_tokenizer

from opd_ray.environments.calls import AssistantTurn, BadCall, CallParser, ToolCall
from opd_ray.environments.parsers.qwen3_coder import kinds_of
from opd_ray.environments.parsers.registry import get_parser

PROPERTIES: dict[str, Any] = {
    "city": {"type": "string"},
    "days": {"type": "integer"},
    "share": {"type": "number"},
    "sure": {"type": "boolean"},
    "list": {"type": "array"},
    "map": {"type": "object"},
    "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    "either": {"type": ["string", "integer"]},
}
LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {"type": "object", "properties": PROPERTIES},
    },
}
STOP = {"type": "function", "function": {"name": "stop", "parameters": None}}
HERMES = get_parser("hermes", "parser")
LLAMA = get_parser("llama3_json", "parser")
CODER = get_parser("qwen3_coder", "parser")

TURN = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}"
END = "{% endfor %}<|im_end|>{% endfor %}"
AS_QWEN3 = (
    TURN + "{{ '\\n' }}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n'
    "</tool_call>" + END
)
AS_LLAMA3 = (
    TURN + "{{ '; ' if not loop.first }}"
    '{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}' + END
)
AS_CODER = (
    TURN + "{{ '\\n' }}<tool_call>\n<function={{ c.function.name }}>\n"
    "{% for key, value in c.function.arguments.items() %}<parameter={{ key }}>\n"
    "{{ value | tojson if value is mapping or value is sequence and value is not string "
    "else value | string }}\n</parameter>\n{% endfor %}</function>\n</tool_call>" + END
)
ARGUMENTS = {
    "city": 'Köln "am"\nRhein\\',
    "days": 3,
    "share": -0.5,
    "sure": True,
    "list": [1, "a", None],
    "map": {"b": {"c": [False]}},
    "maybe": None,
    "either": "17b",
}


@pytest.mark.parametrize(
    ("parser", "template"), [(HERMES, AS_QWEN3), (LLAMA, AS_LLAMA3), (CODER, AS_CODER)]
)
def test_what_a_template_writes_is_read_as_the_same_calls(
    parser: CallParser, template: str
) -> None:
    calls = (ToolCall("look", ARGUMENTS), ToolCall("stop", {}), ToolCall("look", {"city": ""}))
    for turn in (AssistantTurn("", calls), AssistantTurn("I look.", calls[:1])):
        text = chat_tokenizer(template).apply_chat_template([turn.message()], tokenize=False)
        assert parser.parse(text.removesuffix("<|im_end|>"), [LOOK, STOP]) == turn


@pytest.mark.parametrize("word", ["</tool_call>", "<tool_call>", "<b>"])
def test_tags_in_the_arguments_of_a_json_call_are_text(word: str) -> None:
    turn = AssistantTurn("So:", (ToolCall("look", {"city": f"a{word}b"}),))
    text = chat_tokenizer(AS_QWEN3).apply_chat_template([turn.message()], tokenize=False)
    assert HERMES.parse(text.removesuffix("<|im_end|>"), [LOOK]) == turn


@pytest.mark.parametrize(
    ("parser", "text", "calls"),
    [
        (HERMES, '<tool_call>{"name": "stop"}', (ToolCall("stop", {}),)),
        (HERMES, '<tool_call>\n{"name": "stop"}\n', (ToolCall("stop", {}),)),
        (CODER, "<function=stop>\n</function>", (ToolCall("stop", {}),)),
        (CODER, "<tool_call>\n<function=stop></function>\n", (ToolCall("stop", {}),)),
        (
            CODER,
            "<tool_call><function=stop></function><function=look><parameter=days>3</function>",
            (ToolCall("stop", {}), ToolCall("look", {"days": 3})),
        ),
        (LLAMA, '{"name": "stop"}', (ToolCall("stop", {}),)),
        (
            LLAMA,
            '{"type": "function", "name": "look", "parameters": {"days": 3}}\n'
            '{"parameters": {}, "name": "stop"}',
            (ToolCall("look", {"days": 3}), ToolCall("stop", {})),
        ),
        (LLAMA, '{"name": "look", "arguments": {"days": 3}}', (ToolCall("look", {"days": 3}),)),
    ],
)
def test_calls_without_what_nobody_needs(
    parser: CallParser, text: str, calls: tuple[ToolCall, ...]
) -> None:
    assert parser.parse(text, [LOOK, STOP]) == AssistantTurn("", calls)


@pytest.mark.parametrize(
    ("parser", "text", "content", "kinds"),
    [
        (HERMES, 'a<tool_call>{"name": "stop"} x</tool_call>b', "ab", "B"),
        (HERMES, '<tool_call>{"name": "stop"}<tool_call>{"name": "stop"}</tool_call>', "", "BC"),
        (HERMES, '<tool_call></tool_call>a<tool_call>{"name": "stop"}</tool_call>', "a", "BC"),
        (CODER, "a<tool_call>stop</tool_call>b<function=stop></function>c", "abc", "BC"),
        (CODER, "<tool_call><function=look><tool_call><function=stop></function>", "", "BC"),
        (CODER, "<function=look><parameter=days>x</parameter></function>!", "!", "B"),
        (CODER, "<function=stop></function><function=>", "", "CB"),
        (LLAMA, '{"name": "look", "parameters": {} {"name": "stop"}; so', "so", "BC"),
        (LLAMA, '{"name": "look", "parameters": 3}{"name": "stop"}', "", "BC"),
        (LLAMA, '<|python_tag|>print("x")', "", "B"),
        (LLAMA, 'I know: {"name": "Bob", "age": 3}', 'I know: {"name": "Bob", "age": 3}', ""),
        (LLAMA, '{"type": "x"} or {"arguments": 3}', '{"type": "x"} or {"arguments": 3}', ""),
        (LLAMA, 'I look: {"name": "stop"}', "I look:", "C"),
    ],
)
def test_a_call_that_is_none_costs_no_other(
    parser: CallParser, text: str, content: str, kinds: str
) -> None:
    turn = parser.parse(text, [LOOK, STOP])
    assert turn.content == content
    assert "".join("B" if isinstance(call, BadCall) else "C" for call in turn.calls) == kinds


def test_where_a_call_stops_to_be_json_is_counted_from_its_own_beginning() -> None:
    said = problem(HERMES, "Hello.\n<tool_call>\n{'name': 1}</tool_call>")
    assert said == (
        "the tool call is not valid JSON: Expecting property name enclosed in double quotes, "
        "at character 1"
    )


def problem(parser: CallParser, text: str) -> str:
    (bad,) = parser.parse(text, [LOOK]).calls
    assert isinstance(bad, BadCall)
    return bad.problem


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ('"\\ud83d"', "a \\u escape is half of a surrogate pair"),
        ("[" * 101 + "]" * 101, "nested more than 100 levels deep"),
        ('{"a":' * 100_000, "nested more than 100 levels deep"),
        ("9" * 5000, "Exceeds the limit"),
    ],
)
def test_json_that_nothing_else_can_hold_is_refused(value: str, why: str) -> None:
    arguments = f'{{"map": {value}}}'
    assert why in problem(
        HERMES, f'<tool_call>{{"name": "a", "arguments": {arguments}}}</tool_call>'
    )
    assert why in problem(LLAMA, f'{{"name": "a", "parameters": {arguments}}}')
    assert why in problem(CODER, f"<function=look><parameter=map>{value}</parameter></function>")


def test_a_whole_pair_and_ninety_levels_are_taken() -> None:
    deep = "[" * 90 + "]" * 90
    arguments = f'{{"x": "\\ud83d\\ude00", "y": {deep}}}'
    text = f'<tool_call>{{"name": "a", "arguments": {arguments}}}</tool_call>'
    (call,) = HERMES.parse(text, []).calls
    assert isinstance(call, ToolCall)
    assert call.arguments["x"] == "😀"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("city", "None", "None"),
        ("city", "\n\n3\n", "\n3"),
        ("days", " 3 ", 3),
        ("days", "3.0", 3.0),
        ("share", "2", 2),
        ("sure", "True", True),
        ("sure", " false", False),
        ("maybe", "null", None),
        ("maybe", "7", 7),
        ("either", "7", 7),
        ("either", "7b", "7b"),
        ("either", "[7]", "[7]"),
        ("either", '"7"', '"7"'),
        ("city", '"a"', '"a"'),
        ("unknown", "7", "7"),
    ],
)
def test_values_of_parameters_have_the_types_of_the_schema(key: str, text: str, value: Any) -> None:
    (call,) = CODER.parse(
        f"<function=look><parameter={key}>{text}</parameter></function>", [LOOK]
    ).calls
    assert isinstance(call, ToolCall)
    assert call.arguments == {key: value}
    assert type(call.arguments[key]) is type(value)


@pytest.mark.parametrize(
    ("schema", "kinds"),
    [
        (None, {"string"}),
        (True, {"string"}),
        ({}, {"string"}),
        ({"enum": ["a", "b"]}, {"string"}),
        (
            {"enum": [1, 2.5, True, None, [1], {}]},
            {"integer", "number", "boolean", "null", "array", "object"},
        ),
        ({"type": "integer", "nullable": True}, {"integer", "null"}),
        ({"oneOf": [{"type": "array"}, {"anyOf": [{"type": "null"}]}]}, {"array", "null"}),
    ],
)
def test_types_that_a_schema_names(schema: Any, kinds: set[str]) -> None:
    assert kinds_of(schema) == kinds


@pytest.mark.parametrize("parser", [HERMES, CODER])
def test_thinking_ends_where_its_tag_stands_first(parser: CallParser) -> None:
    call = '<tool_call>{"name": "stop"}</tool_call>'
    if parser is CODER:
        call = "<tool_call><function=stop></function></tool_call>"
    stop = (ToolCall("stop", {}),)
    begun_in_prompt = parser.parse(f"hm {call}</think>{call} and </think>", [STOP])
    assert begun_in_prompt == AssistantTurn(f"hm {call}</think> and </think>", stop)
    assert parser.parse(f"I write <think> here {call}", [STOP]).calls == stop
    assert parser.parse(f"\n<think> here {call}", [STOP]).calls == ()


@pytest.mark.parametrize(
    ("parser", "piece"),
    [
        (HERMES, "<tool_call>"),
        (HERMES, '<tool_call>{"name": "a"}'),
        (CODER, "<tool_call><function=a>"),
        (CODER, "<function=a><parameter=b>"),
        (LLAMA, '{"name": "a", "parameters": {}}'),
        (LLAMA, '{"name": "a" '),
        (LLAMA, "{}"),
    ],
)
@pytest.mark.timeout(20)
def test_a_student_that_repeats_itself_is_read_in_time(parser: CallParser, piece: str) -> None:
    parser.parse(piece * 5_000, [LOOK])
