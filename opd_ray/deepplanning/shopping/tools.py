"""The fifteen tools by name: required arguments, answers as text, errors as text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from opd_ray.deepplanning.shopping.cart import Cart
from opd_ray.deepplanning.shopping.case import ShoppingCase
from opd_ray.deepplanning.shopping.catalogue import Catalogue
from opd_ray.deepplanning.shopping.checkout import ShoppingFacts
from opd_ray.deepplanning.shopping.refusal import Refusal
from opd_ray.errors import InputError

_NO_INDEX = "BM25 index is not available. Check database loading."


class ShoppingTools:
    """The tools of one rollout.

    Raises:
        InputError: the clone has a tool that is not one of the fifteen.
    """

    def __init__(self, case: ShoppingCase, facts: ShoppingFacts) -> None:
        self.cart = Cart(case, facts)
        self._catalogue = Catalogue(case, facts)
        looks, carts = self._catalogue, self.cart
        self._tools: dict[str, Callable[[Mapping[str, Any]], Any]] = {
            "search_products": looks.search_products,
            "filter_by_brand": looks.filter_by_brand,
            "filter_by_color": looks.filter_by_color,
            "filter_by_size": looks.filter_by_size,
            "filter_by_applicable_coupons": looks.filter_by_applicable_coupons,
            "filter_by_range": looks.filter_by_range,
            "sort_products": looks.sort_products,
            "get_product_details": looks.get_product_details,
            "calculate_transport_time": looks.calculate_transport_time,
            "get_user_info": looks.get_user_info,
            "add_product_to_cart": carts.add_product_to_cart,
            "delete_product_from_cart": carts.delete_product_from_cart,
            "get_cart_info": carts.get_cart_info,
            "add_coupon_to_cart": carts.add_coupon_to_cart,
            "delete_coupon_from_cart": carts.delete_coupon_from_cart,
        }
        self._required: dict[str, list[str]] = {}
        for schema in facts.schemas:
            function = schema["function"]
            if function["name"] not in self._tools:
                raise InputError(
                    f"the clone of Qwen-Agent has a shopping tool {function['name']!r} that is not "
                    "known here: check out a commit of early 2026"
                )
            parameters = function.get("parameters", {})
            self._required[function["name"]] = parameters.get("required", [])

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
