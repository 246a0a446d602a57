"""The five tools of the cart. It lives here, never in the case folder.

Their answers, errors included, are those of the benchmark's own tools, character for character.
Every tool works on a copy, which is kept only where it answers with the cart. Two ways of the
benchmark that may surprise: putting in or taking out a product sets a total without coupons, until
a coupon is put in or taken out; and what coupons need is not asked again when products go.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from opd_ray.deepplanning.shopping.case import ShoppingCase
from opd_ray.deepplanning.shopping.checkout import ShoppingFacts
from opd_ray.deepplanning.shopping.refusal import Refusal

_COUPON = re.compile(r"¥([\d,]+)\s+off\s+every\s+¥([\d,]+)")


class Cart:
    """The cart of one rollout.

    Attributes:
        kept: as ``cart.json`` would have it; None before anything is kept where the case has none.
    """

    def __init__(self, case: ShoppingCase, facts: ShoppingFacts) -> None:
        self._case = case
        self._facts = facts
        self.kept: Mapping[str, Any] | None = case.cart

    def get_cart_info(self, arguments: Mapping[str, Any]) -> Any:
        return self._opened(coupons=False)

    def add_product_to_cart(self, arguments: Mapping[str, Any]) -> Any:
        cart = self._opened(coupons=False)
        product_id = _named(arguments, "product_id")
        quantity = int(_quantity(arguments))
        product = self._product(product_id)
        name, price = product.get("name", ""), float(product.get("price", 0.0))
        stock = int(product.get("stock_quantity", 0))
        items = cart["items"]
        item = next((item for item in items if item.get("product_id") == product_id), None)
        has = item.get("quantity", 0) if item else 0
        if has + quantity > stock:
            raise Refusal(
                f"Insufficient stock: Product '{name}' (ID: {product_id}) has {stock} in stock, "
                f"cart already has {has}, cannot add {quantity} more"
            )
        if item is None:
            item = {"product_id": product_id, "name": name}
            items.append(item)
        item |= {"quantity": has + quantity, "price": price}
        return self._keep(cart)

    def delete_product_from_cart(self, arguments: Mapping[str, Any]) -> Any:
        cart = self._opened(coupons=False)
        product_id = _named(arguments, "product_id")
        quantity = int(_quantity(arguments))
        self._product(product_id)
        items = cart["items"]
        item = next((item for item in items if item.get("product_id") == product_id), None)
        if item is None:
            raise Refusal(f"Product not in cart: product_id '{product_id}'")
        item["quantity"] = item.get("quantity", 0) - quantity
        cart["items"] = [item for item in items if item.get("quantity", 0) > 0]
        return self._keep(cart)

    def add_coupon_to_cart(self, arguments: Mapping[str, Any]) -> Any:
        cart = self._opened(coupons=True)
        name = _named(arguments, "coupon_name")
        quantity = int(_quantity(arguments))
        known = self._facts.coupons["add_coupon_to_cart"]
        if name not in known:
            raise Refusal(f"Coupon not found: '{name}'. Valid coupons are: {', '.join(known)}")
        owns = self._case.user.get("coupons", {}).get(name, 0)
        used = cart["used_coupons"]
        same = [coupon for coupon in used if coupon.get("coupon_name") == name]
        has = sum(int(coupon.get("quantity", 0)) for coupon in same)
        if has + quantity > owns:
            raise Refusal(
                f"Insufficient coupon quantity: User owns {owns} of '{name}', "
                f"cart already uses {has}, cannot add {quantity} more"
            )
        if name.startswith("VIP:") and not self._case.user.get("is_vip", False):
            raise Refusal(f"VIP coupon '{name}' requires VIP status, but user is not a VIP")
        if same:
            same[0]["quantity"] = has + quantity
        else:
            used.append({"coupon_name": name, "quantity": quantity})
        base = _base_total(cart["items"])
        needed = _needed(used)
        if base < needed:
            raise Refusal(
                f"Cart total {base} is insufficient for this combination of coupons"
                f" (requires at least {needed})"
            )
        discounts = [(c.get("coupon_name", ""), int(c.get("quantity", 0))) for c in used]
        return self._keep(cart, discounts)

    def delete_coupon_from_cart(self, arguments: Mapping[str, Any]) -> Any:
        cart = self._opened(coupons=True)
        name = _named(arguments, "coupon_name")
        written = _quantity(arguments)
        known = self._facts.coupons["delete_coupon_from_cart"]
        if name not in known:
            raise Refusal(f"Invalid coupon name: '{name}'. Valid coupons are: {', '.join(known)}")
        quantity = int(written)
        used = cart["used_coupons"]
        coupon = next((c for c in used if _name_key(c) and _coupon_name(c) == name), None)
        if coupon is None:
            raise Refusal(f"Coupon not in cart: '{name}'")
        has = _coupon_quantity(coupon)
        if has < quantity:
            raise Refusal(
                f"Insufficient coupon quantity in cart: Cart has {has} of '{name}', "
                f"cannot remove {quantity}"
            )
        coupon[_quantity_key(coupon)] = has - quantity
        left = [c for c in used if _name_key(c) and _coupon_quantity(c) > 0]
        cart["used_coupons"] = left
        discounts = [(_coupon_name(c), _coupon_quantity(c)) for c in left if _coupon_name(c)]
        return self._keep(cart, discounts)

    def _opened(self, *, coupons: bool) -> dict[str, Any]:
        """A copy of the cart with all that a tool counts on, each where it would be added."""
        if self.kept is None:
            used: dict[str, Any] = {"used_coupons": []} if coupons else {}
            return {"items": [], **used, "summary": {"total_items_count": 0, "total_price": 0.0}}
        cart = copy.deepcopy(dict(self.kept))
        cart.setdefault("items", [])
        if coupons:
            cart.setdefault("used_coupons", [])
        cart.setdefault("summary", {"total_items_count": len(cart["items"]), "total_price": 0.0})
        return cart

    def _keep(
        self, cart: dict[str, Any], coupons: Sequence[tuple[str, int]] | None = None
    ) -> dict[str, Any]:
        """The cart with its new summary, which stays.

        Args:
            coupons: each so many times; None for a total without coupons.
        """
        items = cart["items"]
        count = sum(item.get("quantity", 0) for item in items)
        if coupons is None:
            total = sum(item.get("price", 0.0) * item.get("quantity", 0) for item in items)
        else:
            total = max(0.0, _base_total(items) - _discount(coupons))
        cart["summary"] |= {"total_items_count": count, "total_price": round(total, 2)}
        self.kept = cart
        return cart

    def _product(self, product_id: Any) -> Mapping[str, Any]:
        if product_id not in self._case.by_id:
            raise Refusal(f"Product not found: product_id '{product_id}'")
        return self._case.by_id[product_id]


def _named(arguments: Mapping[str, Any], key: str) -> Any:
    if not arguments.get(key):
        raise Refusal(f"{key} is required")
    return arguments[key]


def _quantity(arguments: Mapping[str, Any]) -> float:
    """As it was written; 1 where it was not."""
    quantity = arguments.get("quantity", 1)
    if not isinstance(quantity, int | float) or quantity <= 0:
        raise Refusal("quantity must be a positive number")
    return quantity


def _base_total(items: Sequence[Mapping[str, Any]]) -> float:
    """What the products cost that coupons are held against, in yuan."""
    total = 0.0
    for item in items:
        price = float(item.get("price") or item.get("items_price", 0.0))
        total += price * int(item.get("quantity", 0))
    return round(total, 2)


def _discount(coupons: Sequence[tuple[str, int]]) -> float:
    """What coupons take off, in yuan; a name that is no coupon's takes nothing."""
    discount = 0.0
    for name, quantity in coupons:
        if (terms := _terms(name)) is not None:
            discount += terms[0] * quantity
    return round(discount, 2)


def _needed(coupons: Sequence[Mapping[str, Any]]) -> float:
    """The total that a cart needs for these coupons, all of them added up."""
    quantities: dict[str, int] = {}
    for coupon in coupons:
        name = coupon.get("coupon_name", "")
        quantities[name] = quantities.get(name, 0) + int(coupon.get("quantity", 0))
    needed = 0.0
    for name, quantity in quantities.items():
        terms = _terms(name)
        if terms is None:
            raise Refusal(f"Invalid coupon format: {name}")
        needed += terms[1] * quantity
    return needed


def _terms(name: str) -> tuple[float, float] | None:
    """Discount and threshold of a coupon, in yuan, as its name says them."""
    found = _COUPON.search(name)
    if not found:
        return None
    try:
        return float(found[1].replace(",", "")), float(found[2].replace(",", ""))
    except ValueError:  # commas alone
        return None


# A cart that a case begins with may have coupons as {name: quantity} too.


def _name_key(coupon: Any) -> bool:
    """Whether it is a coupon in one of both forms."""
    return isinstance(coupon, dict) and (len(coupon) == 1 or "coupon_name" in coupon)


def _coupon_name(coupon: Mapping[str, Any]) -> Any:
    return next(iter(coupon)) if len(coupon) == 1 else coupon["coupon_name"]


def _quantity_key(coupon: Mapping[str, Any]) -> str:
    return next(iter(coupon)) if len(coupon) == 1 else "quantity"


def _coupon_quantity(coupon: Mapping[str, Any]) -> int:
    return int(coupon.get(_quantity_key(coupon), 0))
