"""The tokenizer of the pair that calls tools: 48 tokens, words and pieces of JSON among them."""

from __future__ import annotations

import re

# As a whole: it imports a class's file when the class is first used, which takes seconds.
import transformers

from opd_ray.models.pairs.supervised import word_tokenizer
from opd_ray.tasks.reference_table import HOPS, NUMBERS, REFERENCES, ROWS, TOOL

PAD, END, UNK = "<pad>", "<|end|>", "<unk>"
ROLES = ("<|tools|>", "<|user|>", "<|assistant|>", "<|tool|>")
_SPECIAL = (PAD, END, UNK, *ROLES)
# What is asked has tokens of its own, so that a column in a question is none of a row's.
_WORDS = (
    "<tool_call>",
    "</tool_call>",
    f'{{"name": "{TOOL}", "arguments": {{"row": "',
    '"}}',
    TOOL,
    "Table ",
    ": start at ",
    *(f" and follow {column}" for column in REFERENCES),
    *(f" {times}; total of " for times in HOPS.values()),
    *(f"{column} ?" for column in NUMBERS),
    *(f" {column} " for column in (*REFERENCES, *NUMBERS)),
    "no row ",
)
VOCABULARY = (*_SPECIAL, *_WORDS, *ROWS, *"0123456789+=\n")

# What a tool answers stands in a turn of its own; no turn is ever written otherwise later on.
CHAT_TEMPLATE = (
    "{%- if tools %}{{ '<|tools|>' }}"
    "{%- for tool in tools %}{{ tool.function.name }}{% endfor %}{{ '<|end|>' }}{% endif %}"
    "{%- for message in messages %}{{ '<|' ~ message.role ~ '|>' ~ (message.content or '') }}"
    "{%- for call in message.tool_calls or [] %}"
    """{{ '<tool_call>{"name": "' ~ call.function.name ~ '", "arguments": ' }}"""
    "{{- call.function.arguments | tojson ~ '}</tool_call>' }}{% endfor %}{{ '<|end|>' }}"
    "{%- endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def tools_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Words as they stand in :data:`VOCABULARY`, the longest first; all else is ``<unk>``, once
    for as many characters as there are side by side."""
    known = "|".join(re.escape(word) for word in sorted(VOCABULARY, key=len, reverse=True))
    return word_tokenizer(
        VOCABULARY,
        known,
        _SPECIAL,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNK,
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
    )
