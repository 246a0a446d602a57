"""Rendering and tokenising of prompts, with and without a chat template."""

import numpy as np
import pytest
from rendering import render
from transformers import PreTrainedTokenizerFast

from opd_ray.config.data import ChatTemplate, DataSettings
from opd_ray.data.rows import DataError, PromptRow
from opd_ray.data.tokenize import tokenize
from opd_ray.models.pairs.demo import VOCABULARY, character_tokenizer

# The shape of the usual templates, in characters that the demo's tokenizer has.
TEMPLATE = (
    "{% for m in messages %}{{ {'system': '*', 'user': '?', 'assistant': ':'}[m.role] }}"
    "{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}-{% endif %}"
)


def row(text: str | None = "1+2=", **options: object) -> PromptRow:
    return PromptRow(id="p", text=text, answer="3", source="s", **{"messages": None, **options})  # type: ignore[arg-type]


@pytest.fixture
def plain() -> PreTrainedTokenizerFast:
    return character_tokenizer()


@pytest.fixture
def chatty() -> PreTrainedTokenizerFast:
    tokenizer = character_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_plain_text_is_its_characters(plain: PreTrainedTokenizerFast) -> None:
    (ids,) = tokenize([row()], plain, DataSettings())
    assert ids.dtype == np.int32
    assert [VOCABULARY[i] for i in ids] == ["1", "+", "2", "="]


def test_special_tokens_come_from_the_tokenizer_only_without_a_template(
    chatty: PreTrainedTokenizerFast,
) -> None:
    from tokenizers.processors import TemplateProcessing

    chatty.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", chatty.bos_token_id)]
    )
    (without,) = tokenize([row()], chatty, DataSettings(chat_template=ChatTemplate.never))
    (with_template,) = tokenize([row()], chatty, DataSettings())
    assert without[0] == chatty.bos_token_id
    assert chatty.bos_token_id not in with_template
    assert chatty.decode(with_template) == "?1+2=\n:"


def test_instruction_system_prompt_and_template_options(chatty: PreTrainedTokenizerFast) -> None:
    settings = DataSettings(
        instruction="{prompt} ?", system_prompt="***", chat_template_kwargs={"enable_thinking": 0}
    )
    assert render(row(), chatty, settings) == "****\n?1+2= ?\n:-"
    assert render(row(), chatty, DataSettings()) == "?1+2=\n:"


def test_braces_in_prompts_are_left_alone(plain: PreTrainedTokenizerFast) -> None:
    settings = DataSettings(instruction="{prompt} \\boxed{}")
    assert render(row("{x} {0} {prompt}"), plain, settings) == "{x} {0} {prompt} \\boxed{}"


def test_system_prompt_without_a_template_stands_first(plain: PreTrainedTokenizerFast) -> None:
    assert render(row(), plain, DataSettings(system_prompt="1:")) == "1:\n\n1+2="


def test_the_instruction_goes_round_the_last_user_message(chatty: PreTrainedTokenizerFast) -> None:
    messages = (
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "3"},
    )
    chat = row(None, messages=messages)
    assert render(chat, chatty, DataSettings(instruction="={prompt}=")) == "?1\n:2\n?=3=\n:"
    assert messages[2]["content"] == "3"


def test_the_teacher_reads_its_own_text_in_the_same_dress(chatty: PreTrainedTokenizerFast) -> None:
    rows = [row(teacher_text="9="), row()]
    settings = DataSettings(instruction="{prompt}?")
    student = [chatty.decode(ids) for ids in tokenize(rows, chatty, settings)]
    teacher = [chatty.decode(ids) for ids in tokenize(rows, chatty, settings, teacher=True)]
    assert student == ["?1+2=?\n:", "?1+2=?\n:"]
    assert teacher == ["?9=?\n:", "?1+2=?\n:"]


def test_what_cannot_be_rendered_is_refused(plain: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="has no chat template"):
        tokenize([row()], plain, DataSettings(chat_template=ChatTemplate.always))
    chat = row(None, messages=({"role": "user", "content": "1"},))
    with pytest.raises(DataError, match="prompt 'p': is a list of chat messages"):
        tokenize([chat], plain, DataSettings())


def test_no_rows_are_no_prompts(plain: PreTrainedTokenizerFast) -> None:
    assert tokenize([], plain, DataSettings()) == []
