"""Whole calls are read as vLLM reads them: what is served later calls the same tools."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
from chat_tokenizer import chat_tokenizer
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.tool_parsers import ToolParserManager

from opd_ray.environments.calls import ToolCall
from opd_ray.environments.parsers.registry import get_parser

KINDS: dict[str, dict[str, Any]] = {
    "text": {"type": "string"},
    "whole": {"type": "integer"},
    "share": {"type": "number"},
    "sure": {"type": "boolean"},
    "list": {"type": "array"},
    "things": {"type": "object"},
    "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    "any": {"type": ["string", "integer"]},
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": KINDS}},
    }
    for name in ("look", "go-on", "a.b")
]
WORDS = [
    "",
    "Rome",
    "a b",
    "zwölf",
    "\n\n",
    '"',
    "\\",
    "{",
    "}]",
    "<b>",
    "日本",
    "None",
    "true",
    "7",
]


def value(kind: str, draw: Random) -> Any:
    text = "".join(draw.choices(WORDS, k=draw.randrange(4)))
    number = draw.randrange(-1000, 1000)
    match kind:
        case "text":
            return text
        case "whole":
            return number
        case "share":
            return number / 8
        case "sure":
            return number > 0
        case "list":
            return [number, text, [None, True]]
        case "things":
            return {text: {"x": [number]}, "y": text}
        case "maybe":
            return number if number > 0 else None
        case _:
            return number if number > 0 else f"x{text}"


def calls(draw: Random) -> list[ToolCall]:
    return [
        ToolCall(
            draw.choice(TOOLS)["function"]["name"],
            {kind: value(kind, draw) for kind in draw.sample(sorted(KINDS), draw.randrange(5))},
        )
        for _ in range(draw.randrange(1, 4))
    ]


def hermes(made: list[ToolCall]) -> str:
    return "\n".join(
        f"<tool_call>\n{json.dumps({'name': c.name, 'arguments': c.arguments})}\n</tool_call>"
        for c in made
    )


def llama(made: list[ToolCall]) -> str:
    return "; ".join(json.dumps({"name": c.name, "parameters": c.arguments}) for c in made)


def coder(made: list[ToolCall]) -> str:
    def said(value: Any) -> str:
        return json.dumps(value) if isinstance(value, dict | list | None) else str(value)

    return "\n".join(
        f"<tool_call>\n<function={c.name}>\n"
        + "".join(f"<parameter={k}>\n{said(v)}\n</parameter>\n" for k, v in c.arguments.items())
        + "</function>\n</tool_call>"
        for c in made
    )


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    made = chat_tokenizer()
    tags = ["<tool_call>", "</tool_call>", "<think>", "</think>", "<|python_tag|>"]
    made.add_tokens(tags)
    return made


@pytest.mark.parametrize(
    ("name", "write"), [("hermes", hermes), ("llama3_json", llama), ("qwen3_coder", coder)]
)
def test_whole_calls_are_those_that_vllm_finds(tokenizer: Any, name: str, write: Any) -> None:
    draw = Random(0)
    request = ChatCompletionRequest(model="m", messages=[], tools=TOOLS)
    no_thinking = {"chat_template_kwargs": {"enable_thinking": False}}
    options = no_thinking if name == "qwen3_coder" else {}
    ours = get_parser(name, "parser")
    for _ in range(100):
        made = calls(draw)
        text = write(made)
        theirs = ToolParserManager.get_tool_parser(name)(tokenizer, request.tools, **options)
        found = theirs.extract_tool_calls(text, request).tool_calls
        expected = [(c.function.name, json.loads(c.function.arguments)) for c in found]
        parsed = ours.parse(text, TOOLS)
        assert [(c.name, c.arguments) for c in parsed.calls] == expected
        assert [(c.name, c.arguments) for c in made] == expected, text
        assert parsed.content == ""
