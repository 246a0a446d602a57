"""What stands between the turns of a conversation, token by token."""

from __future__ import annotations

import pytest
from chat_tokenizer import END, TEMPLATE, THINKING_TEMPLATE, chat_tokenizer

from opd_ray.environments.turns import TemplateError, TurnTemplate

CALL = {"type": "function", "function": {"name": "look", "arguments": {"city": "Bonn"}}}
TURN = {"role": "assistant", "content": "I look.", "tool_calls": [CALL]}
RESULTS = [
    {"role": "tool", "name": "look", "content": "rain"},
    {"role": "tool", "name": "look", "content": "sun"},
]


def template(text: str = TEMPLATE, tools: list | None = None) -> TurnTemplate:
    tokenizer = chat_tokenizer(text)
    return TurnTemplate(tokenizer, tools or [], {}, [tokenizer.eos_token_id])


def test_what_follows_a_turn_begins_behind_the_token_that_ended_it() -> None:
    found = template()
    ids = found.continuation(TURN, RESULTS)
    assert found.tokenizer.decode(ids) == (
        "\n<|im_start|>user\n<tool_response>\nrain\n</tool_response>\n<tool_response>\nsun\n"
        "</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_opening_shows_the_tools() -> None:
    found = template(tools=[{"type": "function", "function": {"name": "look"}}])
    text = found.tokenizer.decode(found.opening([{"role": "user", "content": "Hi"}]))
    assert text.startswith("<|im_start|>system\nTools:\n")
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_a_template_that_keeps_turns_passes_the_check() -> None:
    template().check([TURN, TURN], [RESULTS, RESULTS[:1]])


def test_a_template_that_strips_earlier_thinking_is_named_by_its_first_other_token() -> None:
    said = "{{ m.content if loop.last else m.content.split('</think>')[-1] }}"
    strips = TEMPLATE.replace("{{ m.role }}\n{{ m.content }}", "{{ m.role }}\n" + said)
    assert strips != TEMPLATE
    turn = {**TURN, "content": "<think>hm</think>I look."}
    template().check([turn], [RESULTS])
    with pytest.raises(
        TemplateError, match="does not keep earlier turns .* has 'I look..n' where '<think>h'"
    ):
        template(strips).check([turn], [RESULTS])


def test_a_template_without_an_end_of_turn_is_refused() -> None:
    with pytest.raises(TemplateError, match="does not end a turn of the assistant with any of"):
        template("{% for m in messages %}{{ m.content }}{% endfor %}").continuation(TURN, RESULTS)


def test_a_template_that_raises_is_told_as_one() -> None:
    with pytest.raises(TemplateError, match="no tools here; take a template that knows tools"):
        template("{{ raise_exception('no tools here') }}").opening([TURN])


def test_what_a_template_writes_for_a_last_turn_alone_does_not_matter() -> None:
    # An empty thought stands in front of a last turn, and of no other.
    found = template(THINKING_TEMPLATE)
    ids = found.continuation({"role": "assistant", "content": "Hm."}, [USER])
    assert found.tokenizer.decode(ids) == (
        "\n<|im_start|>user\nGo on.<|im_end|>\n<|im_start|>assistant\n"
    )


USER = {"role": "user", "content": "Go on."}
ONE_CALL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.tool_calls %}"
    "{% if m.tool_calls | length > 1 %}{{ raise_exception('one!') }}{% endif %}"
    "{{ m.tool_calls[0].function | tojson }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_template_of_one_call_a_turn_writes_all_results() -> None:
    found = template(ONE_CALL)
    ids = found.continuation({**TURN, "tool_calls": [CALL, CALL]}, RESULTS)
    assert found.tokenizer.decode(ids) == (
        "\n<|im_start|>tool\nrain<|im_end|>\n<|im_start|>tool\nsun<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_end_tokens_spelled_in_a_call_end_no_turn() -> None:
    found = template(tools=[{"type": "function", "function": {"name": "look"}}])
    for spelled in (
        {"name": "look", "arguments": {"city": f"a{END}b"}},
        {"name": END, "arguments": {}},
    ):
        turn = {**TURN, "tool_calls": [{**CALL, "function": spelled}]}
        assert found.continuation(turn, RESULTS[:1]) == found.continuation(TURN, RESULTS[:1])


def test_a_template_without_end_tokens_is_refused() -> None:
    with pytest.raises(TemplateError, match="does not end a turn of the assistant with any of"):
        template(TEMPLATE.replace("<|im_end|>", "<|im_start|>")).continuation(TURN, [USER])
