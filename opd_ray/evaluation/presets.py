"""Evaluation by task names alone: the settings that it starts from, all in this one place.

They are the paper's: 16 samples a problem at temperature 1 from the whole distribution, prompts up
to 2,048 and responses up to 8,192 tokens, or what fits into the model's context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from opd_ray.config.data import PLACEHOLDER, DataKind, DataSettings, FieldSettings
from opd_ray.config.schema import EvalTask
from opd_ray.data.benchmarks import BENCHMARKS, nearest
from opd_ray.errors import ConfigError
from opd_ray.models.context import UNLIMITED, context_length
from opd_ray.models.shape import ModelShapeError, described_model, read_shape

SAMPLES = 16
TEMPERATURE = 1.0
TOP_P = 1.0
MAX_NEW_TOKENS = 8192
MAX_PROMPT_TOKENS = 2048
INSTRUCTION = (
    PLACEHOLDER + "\nPlease reason step by step, and put your final answer within \\boxed{}."
)


def base_values(model: str, max_new_tokens: int | None) -> dict[str, Any]:
    """What takes the place of a configuration file when there is none, as its keys and values.

    Prompts get up to half of a short context. With ``max_new_tokens`` None, responses are as long
    as the rest of it allows; else nothing shortens them here.
    """
    known = described_model(model)
    longest = MAX_PROMPT_TOKENS + (max_new_tokens or MAX_NEW_TOKENS)
    context = min(longest, context_length(known) if known else UNLIMITED)
    prompt = min(MAX_PROMPT_TOKENS, context // 2)
    return {
        "student": {"path": model, "context_length": context},
        "data": {
            "kind": "prepared",
            "path": "math500",
            "instruction": INSTRUCTION,
            "max_prompt_tokens": prompt,
        },
        "rollout": {
            "max_new_tokens": max_new_tokens or context - prompt,
            # No token is scored, and small vocabularies have no 16 tokens to record.
            "record_topk": 1,
            "dtype": "bfloat16",
            "kv_cache_bytes": max(1 << 30, _one_text(model, context)),
        },
    }


def _one_text(model: str, context: int) -> int:
    """Bytes of KV cache for a text of ``context`` tokens, in float32 too; 0: unknown."""
    try:
        shape = read_shape(model)
    except ModelShapeError:
        return 0
    return 0 if shape is None else shape.kv_cache_bytes(context, element_bytes=4)


def named_tasks(
    names: Sequence[str], data: DataSettings, folder: str | None, **asking: Any
) -> list[EvalTask]:
    """Evaluation tasks for sets that ``opd-ray prepare`` knows, over all of their problems.

    Args:
        names: of the sets, e.g. "math500".
        data: gives system prompt, instruction and chat template; without an instruction of its own
            the answer is asked for in a box.
        folder: where prepared sets lie; None: in the usual folder.
        asking: further keys of every task: greedy, samples, temperature, ...; all problems are
            asked unless ``problems`` is among them.

    Raises:
        ConfigError: an unknown name.
    """
    for name in names:
        if name not in BENCHMARKS:
            raise ConfigError(f"--tasks {name!r}: {nearest(name)}")
    instruction = INSTRUCTION if data.instruction == PLACEHOLDER else data.instruction
    return [
        EvalTask(
            name=name,
            data=replace(
                data,
                kind=DataKind.prepared,
                path=f"{folder}/{name}" if folder else name,
                fields=FieldSettings(),
                instruction=instruction,
                limit=None,
            ),
            task="math",
            **{"problems": None, **asking},
        )
        for name in dict.fromkeys(names)
    ]
