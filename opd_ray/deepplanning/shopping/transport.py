"""How long a delivery takes, in whole days."""

from __future__ import annotations

from typing import Any

from opd_ray.deepplanning.shopping.checkout import Delivery
from opd_ray.deepplanning.shopping.refusal import Refusal

_REMOTE_DAYS = 2


def province_of(address: Any, delivery: Delivery) -> str | None:
    """The province whose name an address is, or else the first whose name is part of it."""
    if not address:
        return None
    words = address.lower()
    for dropped in (" ", "province", "city"):
        words = words.replace(dropped, "")
    known = delivery.provinces
    return known.get(words) or next((known[name] for name in known if name in words), None)


def delivery_days(start: str, end: str, carrier: str, delivery: Delivery) -> int:
    """Days from province to province, at least one.

    Raises:
        Refusal: a province lies in no region.
    """
    regions = delivery.regions
    if not regions.get(start) or not regions.get(end):
        raise Refusal("Could not map provinces to geographical regions.")
    days = delivery.days[regions[start]][regions[end]]
    if start in delivery.remote or end in delivery.remote:
        days += _REMOTE_DAYS
    return max(1, days + delivery.carriers.get(carrier, delivery.carriers["default"]))
