"""A tokenizer of bytes with the template of Qwen's chats, for tests that talk in several turns."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

END = "<|im_end|>"
TOOLS = (
    "{% if tools %}<|im_start|>system\nTools:"
    "{% for t in tools %}{{ '\\n' }}{{ t | tojson }}{% endfor %}"
    "<|im_end|>\n{% endif %}"
)
TURNS = (
    "{% for m in messages %}"
    "{% if m.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}"
    "{{ '\\n' }}<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}"
    "{% else %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '\\n' }}<tool_call>\n{{ c.function | tojson }}"
    "{{ '\\n' }}</tool_call>"
    "{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATE = TOOLS + TURNS
# As Qwen3's: thinking stays behind the last message of the user's alone, and there an empty thought
# is written for the last turn, but not for others; without thinking, turns begin with an empty one.
_ASKED = (
    "{% set asked = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set asked.last = loop.index0 %}{% endif %}"
    "{% endfor %}"
)
_THOUGHT = (
    "{% set parts = m.content.split('</think>') %}"
    "{% set thought = parts[0].split('<think>')[-1].strip() if parts | length > 1 else '' %}"
    "{% if loop.index0 > asked.last and (loop.last or thought) %}"
    "<think>\n{{ thought }}{{ '\\n' }}</think>\n\n{% endif %}{{ parts[-1].strip() }}"
)
_OPENED = "<|im_start|>assistant\n"
THINKING_TEMPLATE = (
    TOOLS
    + _ASKED
    + TURNS.replace(
        "{{ m.role }}\n{{ m.content }}",
        "{{ m.role }}\n{% if m.role == 'assistant' %}" + _THOUGHT + "{% else %}{{ m.content }}"
        "{% endif %}",
    ).replace(
        _OPENED + "{% endif %}",
        _OPENED + "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
    )
)


def chat_tokenizer(template: str = TEMPLATE) -> Any:
    """A token a byte, and the special ones of the template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=END)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = template
    return tokenizer


def call(name: str, **arguments: Any) -> str:
    """A tool call as a Hermes model writes it."""
    written = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{written}\n</tool_call>"
