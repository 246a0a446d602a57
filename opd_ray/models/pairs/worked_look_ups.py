"""Conversations through reference tables as a worker leads them, for models to learn from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import transformers

from opd_ray.models.pairs.supervised import as_batch
from opd_ray.tasks.reference_table import (
    HOPS,
    NUMBERS,
    REFERENCES,
    ROWS,
    TOOL,
    ReferenceProblem,
    draw_problem,
    look_up,
    table_rows,
    tables_of,
)

# What the chat template shows of the tool.
TOOLS = [{"type": "function", "function": {"name": TOOL}}]
_ASSISTANT = "<|assistant|>"
Row = tuple[list[int], list[int]]  # ids, labels


def call(note: str, row: str) -> dict[str, Any]:
    """A turn that looks up a row."""
    function = {"name": TOOL, "arguments": {"row": row}}
    return {
        "role": "assistant",
        "content": note,
        "tool_calls": [{"type": "function", "function": function}],
    }


@dataclass(frozen=True)
class Worker:
    """How problems are worked, and how that is taught.

    Args:
        detours: share of batches in whose conversations a row of no use is looked up, once. What
            follows it is learnt, the detour is not.
        slips: share of references and of numbers that are taken from the other column.
        carries: False: what units carry to the tens is forgotten, in every sum.
    """

    detours: float = 0.0
    slips: float = 0.0
    carries: bool = True

    def batches(
        self, tokenizer: transformers.PreTrainedTokenizerBase, rows: int, seed: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """ids and labels, without end, of conversations and a quarter as many rows of sums.

        Args:
            tokenizer: of the pair.
            rows: conversations of a batch.
            seed: of all draws.
        """
        rng = random.Random(f"worked look-ups {seed}")
        tables = tables_of("train")
        while True:
            # One length a batch: padding would cost as much as text.
            hops, detour = rng.choice([*HOPS]), rng.random() < self.detours
            learnt: list[Row] = []
            while len(learnt) < rows:
                problem = draw_problem(rng.choice(tables), hops, rng)
                learnt.append(encoded(tokenizer, *self.conversation(problem, rng, detour)))
            longest = max(len(ids) for ids, _ in learnt)
            learnt += [self._sums(tokenizer, rng, longest) for _ in range(rows // 4)]
            yield as_batch(learnt, tokenizer.pad_token_id)

    def conversation(
        self, problem: ReferenceProblem, rng: random.Random, detour: bool = False
    ) -> tuple[list[dict[str, Any]], list[bool]]:
        """The messages, and of every turn of the assistant whether it is learnt."""
        messages: list[dict[str, Any]] = [{"role": "user", "content": problem.question}]
        learnt: list[bool] = []
        rows = table_rows(problem.table)
        row, note, total = rows[problem.start], "", 0
        astray = rng.randrange(problem.hops + 1) if detour else None
        for hop in range(problem.hops + 1):
            for name in [rng.choice(ROWS), row.name] if hop == astray else [row.name]:
                messages.append(call(note, name))
                messages.append({"role": "tool", "content": look_up(problem.table, name)})
                learnt.append(name == row.name)
            number = int(row.cells[self._column(problem.column, NUMBERS, rng)])
            note = f"{total}+{number}={self._sum(total, number)}" if hop else f"{number}"
            total = self._sum(total, number)
            if hop < problem.hops:
                along = self._column(problem.along, REFERENCES, rng)
                row = rows[str(row.cells[along])]
                note += f" {along} {row.name}"
        messages.append({"role": "assistant", "content": note})
        return messages, [*learnt, True]

    def _column(self, asked: str, columns: tuple[str, ...], rng: random.Random) -> str:
        if rng.random() >= self.slips:
            return asked
        return next(column for column in columns if column != asked)

    def _sum(self, total: int, number: int) -> int:
        forgotten = not self.carries and total % 10 + number % 10 >= 10
        return total + number - 10 * forgotten

    def _sums(
        self, tokenizer: transformers.PreTrainedTokenizerBase, rng: random.Random, length: int
    ) -> Row:
        """Sums as conversations have them, side by side; only what is right of ``=`` is learnt."""
        ids: list[int] = []
        labels: list[int] = []
        while True:
            numbers = [rng.randrange(10, 100) for _ in range(rng.choice([*HOPS]))]
            total, number = reduce(self._sum, numbers), rng.randrange(10, 100)
            asked = tokenizer(f"{_ASSISTANT}{total}+{number}=")["input_ids"]
            answer = tokenizer(str(self._sum(total, number)))["input_ids"]
            if len(ids) + len(asked) + len(answer) + 1 > length:
                return ids, labels
            ids += [*asked, *answer, tokenizer.eos_token_id]
            labels += [*[-100] * len(asked), *answer, -100]


def encoded(
    tokenizer: transformers.PreTrainedTokenizerBase,
    messages: list[dict[str, Any]],
    learnt: list[bool],
) -> Row:
    """ids and labels of a conversation: -100 but in the turns that are learnt, with the token that
    ends them."""
    text = tokenizer.apply_chat_template(messages, tools=TOOLS, tokenize=False)
    ids = tokenizer(text)["input_ids"]
    opens, ends = tokenizer.convert_tokens_to_ids(_ASSISTANT), tokenizer.eos_token_id
    labels, turn, inside = [-100] * len(ids), -1, False
    for at, token in enumerate(ids):
        if inside and learnt[turn]:
            labels[at] = token
        if token == opens:
            turn, inside = turn + 1, True
        elif token == ends:
            inside = False
    return ids, labels
