"""Environments that break one promise each, and some that keep all of them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

from opd_ray.environments.environment import Message, ToolResult


def schema(name: str, required: Sequence[str] = ("at",), **types: Any) -> dict[str, Any]:
    """Of a tool; ``types`` are JSON types or whole schemas by name."""
    types = types or {"at": "string"}
    properties = {k: {"type": t} if isinstance(t, str) else t for k, t in types.items()}
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    function = {"name": name, "description": "Does it.", "parameters": parameters}
    return {"type": "function", "function": function}


class Good:
    """Keeps every promise, with a random world that comes from the seed."""

    tools: Any = (schema("look", at="string"), schema("count", ["by"], by="integer"))

    def __init__(self) -> None:
        self.total = 0

    def reset(self, row: Mapping[str, Any]) -> list[Message]:
        self.rng = random.Random(row["rollout_seed"])
        self.total = 0
        return [*row["prompt"], {"role": "user", "content": f"Door {self.rng.random()}"}]

    def call_tool(self, name: str, arguments: dict[str, Any]) -> Any:
        return getattr(self, name)(**arguments)

    def look(self, at: str) -> Any:
        return f"{at} {self.rng.random()}"

    async def count(self, by: int) -> Any:
        await asyncio.sleep(0.001)
        self.total += by
        return ToolResult(str(self.total))

    def respond(self, text: str) -> list[Message] | None:
        return [{"role": "user", "content": f"{text} {self.rng.random()}"}]

    def verify(self, messages: Sequence[Message]) -> dict[str, float]:
        return {"total": float(self.total), "said": len(messages)}

    def close(self) -> None: ...


class Raises(Good):
    """A tool that raises keeps every promise."""

    def look(self, at: str) -> Any:
        raise KeyError(f"no {at}\n  second line")


class Constructor(Good):
    def __init__(self) -> None:
        raise OSError("no database")


class NoList(Good):
    tools = "look"


class ToolsRaise(Good):
    @property
    def tools(self) -> Any:
        raise ConnectionError("no server")


class NoForm(Good):
    tools = ({"name": "look"},)


class Twice(Good):
    tools = (schema("look"), schema("look"))


class NoJsonSchema(Good):
    tools = (schema("look", at={"type": "string", "enum": {"a"}}),)


class OddTypes(Good):
    tools = (schema("look", at={"type": "date"}), schema("count", ["by"], by={"description": "n"}))


class Undescribed(Good):
    tools = ({"type": "function", "function": {"name": "look", "description": " "}},)

    def look(self) -> str:
        return "x"


class OtherSignature(Good):
    tools = (
        schema("look", ["at", "near"], at="string"),
        schema("count", [], by="integer", twice="boolean"),
    )

    def look(self, at: str, how: str, when: str = "") -> str:
        return at


class OtherTools(Good):
    made = 0

    def __init__(self) -> None:
        super().__init__()
        OtherTools.made += 1
        self.tools = (schema("look"), schema(f"count{OtherTools.made}", ["by"], by="integer"))


class NoMessages(Good):
    def reset(self, row: Mapping[str, Any]) -> Any:
        super().reset(row)
        return "Begin."


class PartsInMessages(Good):
    def reset(self, row: Mapping[str, Any]) -> Any:
        return [*super().reset(row), {"role": "user", "content": [{"type": "text", "text": "a"}]}]


class Surrogate(Good):
    def reset(self, row: Mapping[str, Any]) -> Any:
        return [*super().reset(row), {"role": "user", "content": "a\ud83d"}]

    def look(self, at: str) -> str:
        return "b\ud83d"


class EndsWithAssistant(Good):
    def reset(self, row: Mapping[str, Any]) -> Any:
        return [*super().reset(row), {"role": "assistant", "content": "Yes?"}]


class ResetRaises(Good):
    def reset(self, row: Mapping[str, Any]) -> Any:
        return row["level"]


class ResetsOnce(Good):
    resets = 0

    def reset(self, row: Mapping[str, Any]) -> Any:
        self.resets += 1
        return [*super().reset(row), {"role": "user", "content": f"{self.resets}"}]


class Drawn(Good):
    def reset(self, row: Mapping[str, Any]) -> Any:
        return [*row["prompt"], {"role": "user", "content": f"{random.SystemRandom().random()}"}]


class DrawnLater(Good):
    def look(self, at: str) -> str:
        return f"{random.SystemRandom().random()}"


class Shares(Good):
    seen: list[str] = []  # noqa: RUF012

    def reset(self, row: Mapping[str, Any]) -> list[Message]:
        Shares.seen.clear()
        return super().reset(row)

    def look(self, at: str) -> str:
        Shares.seen.append(at)
        return f"{len(Shares.seen)}"


class Races(Good):
    """Alone, and step by step beside others, all is well."""

    inside = 0

    def look(self, at: str) -> str:
        Races.inside += 1
        time.sleep(0.02)
        found = Races.inside
        Races.inside -= 1
        return f"{found}"


class NoJson(Good):
    def look(self, at: str) -> Any:
        return {at}


class Slow(Good):
    def look(self, at: str) -> str:
        time.sleep(2)
        return at


class SlowCoroutine(Good):
    async def count(self, by: int) -> str:
        time.sleep(2)
        return f"{by}"


class Long(Good):
    def look(self, at: str) -> str:
        return "x" * 100_000


class Exits(Good):
    def look(self, at: str) -> str:
        raise SystemExit(3)


class NoFigures(Good):
    def verify(self, messages: Sequence[Message]) -> Any:
        return 1.0


class OddFigures(Good):
    def verify(self, messages: Sequence[Message]) -> Any:
        return {"reward": float("nan"), "plan": "good", "fine": True}


class NeedsCalls(Good):
    """Its figures divide by the calls, of which there may be none."""

    def verify(self, messages: Sequence[Message]) -> Any:
        return {"share": 1 / sum(message["role"] == "tool" for message in messages)}


class ClosesOnce(Good):
    open = True

    def close(self) -> None:
        if not self.open:
            raise ValueError("closed already")
        self.open = False


class OddResponse(Good):
    def respond(self, text: str) -> Any:
        return {"role": "user", "content": text}


class Walks:
    """A class whose methods are tools; everything holds."""

    def reset(self, rollout_seed: int) -> str:
        self.rng = random.Random(rollout_seed)
        return f" Begin at {self.rng.randint(0, 9)}."

    def go(self, where: str, steps: int = 1) -> dict[str, Any]:
        """Goes there.

        Args:
            where: the direction. (choices: ["north", "south"])
            steps: how far.
        """
        return {"at": [where, steps, self.rng.random()]}

    def get_reward(self) -> float:
        return self.rng.random()
