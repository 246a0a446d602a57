"""The shop as an environment of one rollout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opd_ray.deepplanning.checkout import Checkout
from opd_ray.deepplanning.shopping.case import ShoppingCase, read_case
from opd_ray.deepplanning.shopping.checkout import read_facts
from opd_ray.deepplanning.shopping.results import write_results
from opd_ray.deepplanning.shopping.score import score_cart
from opd_ray.deepplanning.shopping.tools import ShoppingTools, refuse_unknown_tools
from opd_ray.environments.environment import Message
from opd_ray.errors import InputError


class ShoppingEnvironment:
    """The fifteen tools over a case folder, and the score of the cart.

    After the first turn without a call the customer asks once to look over the cart, as in the
    benchmark; the next one ends the rollout.

    Args:
        checkout: the user's clone of Qwen-Agent.
        results: folder for carts and conversations, see ``results.py``; None writes none.
        name: of the student, in the names of folders there.

    Raises:
        InputError: not a whole clone, or one with other tools.
    """

    def __init__(self, checkout: str, results: str | None = None, name: str = "student") -> None:
        self._facts = read_facts(Checkout.at(checkout, "environment.arguments.checkout ="))
        refuse_unknown_tools(self._facts.schemas)
        self._results = None if results is None else Path(results).expanduser()
        self._name = name
        self.tools = self._facts.schemas

    def reset(self, row: Mapping[str, Any]) -> list[Message]:
        """Begin with a case.

        Args:
            row: ``prompt`` (chat messages), ``case_folder``, and ``level`` where results are
                written: a row of ``shopping_rows``.

        Raises:
            InputError: no such column; the case folder cannot be read.
        """
        for column in ("prompt", "case_folder", "level"):
            if column not in row:
                raise InputError(
                    f"a row of DeepPlanning's shopping tasks needs a column {column!r}; it has "
                    f"{', '.join(map(repr, row))}: prepare the prompts anew"
                )
        self._level = int(row["level"])
        self._case: ShoppingCase = read_case(Path(row["case_folder"]))
        self._tools = ShoppingTools(self._case, self._facts)
        self._looked = False
        return [dict(message) for message in row["prompt"]]

    def call_tool(self, name: str, arguments: dict[str, Any]) -> str:
        return self._tools.call(name, arguments)

    def respond(self, text: str) -> list[Message] | None:
        if self._looked:
            return None
        self._looked = True
        return [dict(self._facts.second_look)]

    def verify(self, messages: Sequence[Message]) -> dict[str, float]:
        """Figures of the cart (see ``score.py``); writes it where ``results`` names a folder."""
        cart = self._tools.cart.kept
        if self._results is not None:
            write_results(self._results, self._name, self._level, self._case, cart, messages)
        return score_cart(cart, self._case.answers, messages).figures()

    def close(self) -> None:
        """Nothing is held."""
