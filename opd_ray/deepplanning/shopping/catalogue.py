"""The ten tools that only look: search, filters, order, details, delivery, the customer.

Their answers, errors included, are those of the benchmark's own tools, character for character.
Arguments may be of any type that JSON has: what Python says to a wrong one is what those tools say.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from opd_ray.deepplanning.shopping.case import Product, ShoppingCase
from opd_ray.deepplanning.shopping.checkout import ShoppingFacts
from opd_ray.deepplanning.shopping.refusal import Refusal
from opd_ray.deepplanning.shopping.search import SearchIndex
from opd_ray.deepplanning.shopping.transport import delivery_days, province_of

_SEARCHED = (
    *("brand", "color", "size", "thickness", "elasticity", "version_type", "collar_type"),
    *("suitable_season", "target_demographic", "name"),
)
_RESULTS = 20
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
}


class Catalogue:
    """The products and the customer of a case."""

    def __init__(self, case: ShoppingCase, facts: ShoppingFacts) -> None:
        self._case = case
        self._facts = facts

    @cached_property
    def _index(self) -> SearchIndex | None:
        """None where a searched field holds no text, or no product has a word."""
        try:
            texts = [
                " ".join([product.get(field, "") for field in _SEARCHED])
                for product in self._case.products
            ]
            return SearchIndex([text.lower().split() for text in texts])
        except (TypeError, ZeroDivisionError):
            return None

    @property
    def can_search(self) -> bool:
        return self._index is not None

    def search_products(self, arguments: Mapping[str, Any]) -> Any:
        assert self._index is not None
        query, limit = arguments.get("query"), arguments.get("limit", _RESULTS)
        if not query:
            return {"product_ids": []}
        scores = self._index.scores(query.lower().split())
        # With the name, of which nothing is used: a product without one is an error.
        found = [
            (score, product["product_id"], product["name"])
            for score, product in zip(scores, self._case.products, strict=True)
            if score > self._facts.search_score
        ]
        found.sort(key=operator.itemgetter(0), reverse=True)
        return {"product_ids": [product_id for _, product_id, _ in found[:limit]]}

    def filter_by_brand(self, arguments: Mapping[str, Any]) -> Any:
        return self._filter_by_text(arguments, "brand", arguments.get("brand_names", []))

    def filter_by_color(self, arguments: Mapping[str, Any]) -> Any:
        return self._filter_by_text(arguments, "color", arguments.get("colors", []))

    def filter_by_size(self, arguments: Mapping[str, Any]) -> Any:
        return self._filter_by_text(arguments, "size", arguments.get("sizes", []))

    def filter_by_applicable_coupons(self, arguments: Mapping[str, Any]) -> Any:
        asked = arguments.get("coupon_names", [])
        known = self._facts.coupons["filter_by_applicable_coupons"]
        if not all(name in known for name in asked):
            raise Refusal(f"Invalid coupon names: {asked}. Valid coupons are: {known}")
        if not asked:
            return _filtered([])
        among = self._among(arguments)
        names = set(asked)
        return _filtered([p for p in among if names <= set(p.get("applicable_coupons", []))])

    def filter_by_range(self, arguments: Mapping[str, Any]) -> Any:
        key, comparison = arguments.get("condition_key"), arguments.get("operator")
        bound = arguments.get("value")
        if not key or not comparison or bound is None:
            raise Refusal("Missing required parameters: condition_key, operator, or value.")
        return _filtered(
            [
                product
                for product in self._among(arguments)
                if _compares(_nested(product, key), comparison, bound)
            ]
        )

    def sort_products(self, arguments: Mapping[str, Any]) -> Any:
        key = arguments.get("sort_by", "").lower()
        order = arguments.get("order", "desc").lower()
        if not key:
            raise Refusal("Missing required parameter: sort_by.")
        if order not in ("asc", "desc"):
            given = arguments.get("order")
            raise Refusal(f"Invalid value for 'order': '{given}'. Must be 'asc' or 'desc'.")
        among = self._known(arguments) if arguments.get("product_ids") else self._case.products
        if among and _nested(among[0], key) is None:
            raise Refusal(
                f"Sort key '{key}' cannot be found in product data or is null. Please check again."
            )
        last = float("-inf" if order == "desc" else "inf")

        def rank(product: Product) -> Any:
            value = _nested(product, key)
            if isinstance(value, str):
                return value.lower()
            return value if isinstance(value, int | float) else last

        try:
            ranked = sorted(among, key=rank, reverse=order == "desc")
        except TypeError as error:  # text and numbers under one key
            raise Refusal(f"An error occurred during sorting on key '{key}': {error}") from error
        return {"sorted_product_ids": [product["product_id"] for product in ranked]}

    def get_product_details(self, arguments: Mapping[str, Any]) -> Any:
        return {"products": self._known(arguments) if arguments.get("product_ids") else []}

    def calculate_transport_time(self, arguments: Mapping[str, Any]) -> Any:
        product_id = arguments.get("product_id")
        destination = arguments.get("destination_address")
        product = self._case.by_id.get(product_id)  # type: ignore[arg-type]
        if not product:
            raise Refusal(f"Product with ID '{product_id}' not found.")
        shipping = product.get("shipping_info", {})
        origin, carrier = shipping.get("origin"), shipping.get("provider", "default").lower()
        if not origin:
            raise Refusal(f"Shipping origin not found for product '{product_id}'.")
        delivery = self._facts.delivery
        start, end = province_of(origin, delivery), province_of(destination, delivery)
        if not start:
            raise Refusal(f"Could not determine a valid province from origin address: '{origin}'.")
        if not end:
            raise Refusal(
                "Could not determine a valid province from destination address: "
                f"'{destination}'. Please provide a valid Chinese province name."
            )
        return {
            "product_id": product_id,
            "origin": origin,
            "destination": destination,
            "estimated_delivery_days": delivery_days(start, end, carrier, delivery),
        }

    def get_user_info(self, arguments: Mapping[str, Any]) -> Any:
        asked, user = arguments.get("user_id"), self._case.user
        if not asked:
            return user
        # A look-up, not a comparison: a list is another error than an unknown id.
        found = {user.get("user_id"): user}.get(asked)
        return found or {"error": f"User with user_id '{asked}' not found", "user": None}

    def _filter_by_text(self, arguments: Mapping[str, Any], field: str, asked: Any) -> Any:
        """The products whose field is one of those asked for, whatever the case of letters."""
        among = self._among(arguments)
        texts = {text.lower() for text in asked}
        return _filtered([p for p in among if p.get(field, "").lower() in texts])

    def _among(self, arguments: Mapping[str, Any]) -> Sequence[Product]:
        """The products that ``product_ids`` names, all of which must exist; without it, all."""
        ids = arguments.get("product_ids")
        if not ids:
            return self._case.products
        missing = [number for number in ids if number not in self._case.by_id]
        if missing:
            raise Refusal(f"Some product_ids not found in database: {missing}")
        return self._known(arguments)

    def _known(self, arguments: Mapping[str, Any]) -> list[Product]:
        """Those of the products that ``product_ids`` names which exist, in its order."""
        by_id = self._case.by_id
        return [by_id[number] for number in arguments["product_ids"] if number in by_id]


def _filtered(products: Sequence[Product]) -> dict[str, Any]:
    return {"filtered_products_ids": [product["product_id"] for product in products]}


def _nested(product: Product, path: Any) -> Any:
    """The value under a dotted path; None where there is none."""
    if not isinstance(path, str):
        return None
    value: Any = product
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _compares(value: Any, comparison: Any, bound: Any) -> bool:
    """Whether a value of a product compares so with a bound; what is no number never does.

    Raises:
        ValueError: the product has no such value.
    """
    if value is None:
        raise ValueError("condition_key cannot be found in product data, please check again.")
    try:
        value, bound = float(value), float(bound)
    except (ValueError, TypeError):
        return False
    return isinstance(comparison, str) and _compare(comparison, value, bound)


def _compare(comparison: str, value: float, bound: float) -> bool:
    known = _COMPARISONS.get(comparison)
    return known is not None and known(value, bound)
