"""Conversations in a reference table as a worker leads them: what a model is shown to learn from."""

from __future__ import annotations

import random
from dataclasses import dataclass

from opd_ray.environments.environment import Message
from opd_ray.environments.reference_table import (
    NUMBERS,
    REFERENCES,
    ROWS,
    ReferenceProblem,
    ReferenceTable,
)

_TOOL = ReferenceTable.tools[0]["function"]["name"]


@dataclass(frozen=True)
class Worker:
    """How well the problems are worked.

    Args:
        detour: whether a row that is of no use is looked up, once, at any time.
        slips: share of references and numbers taken from the other column.
    """

    detour: bool = False
    slips: float = 0.0

    def conversation(
        self, problem: ReferenceProblem, rng: random.Random
    ) -> tuple[list[Message], list[bool]]:
        """The messages, and of every turn of the assistant whether it is worth learning.

        Detours are not, what follows them is. Slips are like any turn.
        """
        world = ReferenceTable()
        opening: Message = {"role": "user", "content": problem.question}
        messages = world.reset({"prompt": [opening], **vars(problem)})
        learnt: list[bool] = []

        def look_up(note: str, row: str, worth: bool) -> None:
            arguments = {"row": row}
            call = {"type": "function", "function": {"name": _TOOL, "arguments": arguments}}
            messages.append({"role": "assistant", "content": note, "tool_calls": [call]})
            result = world.call_tool(_TOOL, arguments)
            messages.append({"role": "tool", "name": _TOOL, "content": result.text})
            learnt.append(worth)

        row = world.rows[problem.start]
        note, total = "", 0
        astray = rng.randrange(problem.hops + 1) if self.detour else None
        for hop in range(problem.hops + 1):
            if hop == astray:
                look_up(note, rng.choice(ROWS), False)
            look_up(note, row.name, True)
            number = int(row.cells[self._column(problem.column, NUMBERS, rng)])
            note = f"{total}+{number}={total + number}" if hop else f"{number}"
            total += number
            row = world.rows[str(row.cells[self._column(problem.along, REFERENCES, rng)])]
        messages.append({"role": "assistant", "content": note})
        return messages, [*learnt, True]

    def _column(self, asked: str, columns: tuple[str, ...], rng: random.Random) -> str:
        if rng.random() >= self.slips:
            return asked
        return next(column for column in columns if column != asked)


def carries(numbers: list[int]) -> bool:
    """Whether adding them one by one ever carries from the units to the tens."""
    total = 0
    for number in numbers:
        if total % 10 + number % 10 > 9:
            return True
        total += number
    return False
