"""The fifteen tools by name: required arguments, answers as text, errors as text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opd_ray.deepplanning.shopping.cart import Cart
from opd_ray.deepplanning.shopping.case import ShoppingCase
from opd_ray.deepplanning.shopping.catalogue import Catalogue
from opd_ray.deepplanning.shopping.checkout import ShoppingFacts
from opd_ray.deepplanning.shopping.refusal import Refusal
from opd_ray.environments.environment import ToolSchema
from opd_ray.errors import InputError

_NO_INDEX = "BM25 index is not available. Check database loading."


# Each is a method of the same name: of the catalogue, of the cart.
_LOOKING = (
    *("search_products", "filter_by_brand", "filter_by_color", "filter_by_size"),
    *("filter_by_applicable_coupons", "filter_by_range", "sort_products", "get_product_details"),
    *("calculate_transport_time", "get_user_info"),
)
_CART = (
    *("add_product_to_cart", "delete_product_from_cart", "get_cart_info"),
    *("add_coupon_to_cart", "delete_coupon_from_cart"),
)


def refuse_unknown_tools(schemas: Sequence[ToolSchema]) -> None:
    """See that every tool of a clone is one of the fifteen.

    Raises:
        InputError: one is not.
    """
    for schema in schemas:
        name = schema["function"]["name"]
        if name not in _LOOKING + _CART:
            raise InputError(
                f"the clone of Qwen-Agent has a shopping tool {name!r} that is not known here: "
                "check out a commit of early 2026"
            )


class ShoppingTools:
    """The tools of one rollout."""

    def __init__(self, case: ShoppingCase, facts: ShoppingFacts) -> None:
        self.cart = Cart(case, facts)
        self._catalogue = Catalogue(case, facts)
        self._tools: dict[str, Callable[[Mapping[str, Any]], Any]] = {
            **{name: getattr(self._catalogue, name) for name in _LOOKING},
            **{name: getattr(self.cart, name) for name in _CART},
        }
        self._required: dict[str, list[str]] = {
            schema["function"]["name"]: schema["function"].get("parameters", {}).get("required", [])
            for schema in facts.schemas
        }

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """What a tool answers, as JSON text; never raises for any JSON arguments."""
        try:
            return _text(self._answer(name, arguments))
        except Refusal as refused:
            return _text({"error": str(refused)})
        except Exception as error:
            # Wrong types are the student's to read about, in the words that Python has for them.
            return json.dumps({"error": str(error)}, ensure_ascii=False)

    def _answer(self, name: str, arguments: Mapping[str, Any]) -> Any:
        if name == "search_products" and not self._catalogue.can_search:
            raise Refusal(_NO_INDEX)
        for required in self._required[name]:
            if required not in arguments:
                raise Refusal(f"Missing required argument: {required}")
        return self._tools[name](arguments)


def _text(answer: Any) -> str:
    return json.dumps(answer, ensure_ascii=False, indent=2)
