"""Environments as users of TRL write them, for ``environment_factory``."""

from __future__ import annotations

from functools import wraps
from typing import Any


class Shelf:
    """Shared by classes below: what is inherited is a tool too."""

    def weigh(self, item: str) -> int:
        """Weighs an item.

        Args:
            item: its name.
        """
        return len(item)


def counted(method: Any) -> Any:
    """Keeps name, hints and docstring, as decorators do."""

    @wraps(method)
    def call(self: Any, *args: Any, **named: Any) -> Any:
        self.calls += 1
        return method(self, *args, **named)

    return call


class Shop(Shelf):
    """What TRL takes for tools and what not."""

    currency = "EUR"

    def __init__(self) -> None:
        self.calls, self.row, self.bought = 0, None, []

    def reset(self, **row: Any) -> str | None:
        self.row = row
        self.bought = []
        return f"\nBudget: {row['budget']}"

    @counted
    def buy(self, item: str, count: int = 1) -> str:
        """Buys an item.

        Args:
            item: its name.
            count: how often.

        Returns:
            What was bought.
        """
        self.bought += [item] * count
        return f"bought {count} {item}"

    async def order(self, item: str) -> str:
        """Orders an item.

        Args:
            item: its name.
        """
        return f"ordered {item}"

    @staticmethod
    def convert(amount: float) -> dict[str, float]:
        """Converts euros to dollars.

        Args:
            amount: in euros.
        """
        return {"dollars": amount * 2}

    @classmethod
    def open_everywhere(cls, where: str) -> str:
        """No tool: TRL takes plain functions alone.

        Args:
            where: the place.
        """
        return where

    @property
    def total(self) -> int:
        raise AssertionError("a property is no tool, and is not to be looked at")

    class Basket:
        """A class in a class is no tool."""

    def _count(self, item: str) -> int:
        return self.bought.count(item)

    def get_reward(self) -> float:
        return float(self._count("tea"))


class Level:
    """Takes one column of the row, not all of them."""

    def reset(self, level: int, rollout_seed: int = 0) -> None:
        self.level, self.seed = level, rollout_seed

    def look(self) -> str:
        """Looks around."""
        return f"level {self.level}"
