"""The kinds of hard constraint, and what each must say for a database to be made around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opd_ray.errors import InputError

_SIGHTS, _HOTEL, _EATERY = ("attraction_names",), ("hotel_name",), ("restaurant_name",)
_NEAR = ("restaurant_name", "attraction_name")
_TRAIN = ("outbound_train_no|inbound_train_no",)
_FLIGHT = ("outbound_flight_no|inbound_flight_no",)
# The keys that a kind must have; of several with | between them one.
KINDS: dict[str, tuple[str, ...]] = {
    "attraction_all_free_attractions": _SIGHTS,
    "attraction_all_of_type": (*_SIGHTS, "attraction_type"),
    "attraction_must_visit_named": _SIGHTS,
    "attraction_top_rated_must_visit": _SIGHTS,
    "attraction_type_highest_rated": (*_SIGHTS, "attraction_type"),
    "budget_constraint": ("max_budget",),
    "flight_arrival_time_range": ("inbound_flight_no",),
    "flight_cheapest_airline_direct": _FLIGHT,
    "flight_cheapest_direct": _FLIGHT,
    "flight_cheapest_manufacturer_direct": _FLIGHT,
    "flight_departure_time_range": ("outbound_flight_no",),
    "flight_earliest_airline_direct": ("outbound_flight_no",),
    "flight_earliest_departure_direct": ("outbound_flight_no",),
    "flight_seat_class": _FLIGHT,
    "flight_seat_status": _FLIGHT,
    "flight_shortest_duration_direct": _FLIGHT,
    "hotel_brand_highest_rated": _HOTEL,
    "hotel_cheapest_brand": _HOTEL,
    "hotel_cheapest_star": (*_HOTEL, "hotel_star"),
    "hotel_highest_rated": _HOTEL,
    "hotel_newest_decoration": (*_HOTEL, "decoration_time", "year_threshold"),
    "hotel_price_range": (*_HOTEL, "hotel_price", "min_price", "max_price"),
    "hotel_star_highest_rated": (*_HOTEL, "hotel_star"),
    "hotel_star_service_required": (*_HOTEL, "hotel_star", "required_service"),
    "restaurant_cheapest_nearby_attraction": _NEAR,
    "restaurant_closest_to_attraction": _NEAR,
    "restaurant_highest_rated": _NEAR,
    "restaurant_must_eat_named": _EATERY,
    "restaurant_specific_cuisine_nearby": _NEAR,
    "restaurant_specific_tag_nearby": _NEAR,
    "train_cheapest_direct": _TRAIN,
    "train_cheapest_train_type": _TRAIN,
    "train_departure_time_range": ("outbound_train_no",),
    "train_earliest_departure_direct": ("outbound_train_no",),
    "train_latest_arrival_direct": ("inbound_train_no",),
    "train_seat_class": _TRAIN,
    "train_seat_status": _TRAIN,
    "train_shortest_duration_direct": _TRAIN,
}
_NUMBERS = (
    "max_budget",
    "hotel_star",
    "hotel_price",
    "hotel_score",
    "decoration_time",
    "year_threshold",
    "min_price",
    "max_price",
    "price_per_person",
    "restaurant_rating",
)


def check_constraints(place: str, constraints: Mapping[str, Any]) -> None:
    """Refuse constraints around which no database can be made.

    Raises:
        InputError: a kind that is not known, a key that is missing, a number that is none.
    """
    for kind, constraint in constraints.items():
        here = f"{place}: hard_constraints.{kind}"
        if kind not in KINDS:
            raise InputError(f"{here}: no known kind; leave it out, or use one of {sorted(KINDS)}")
        if not isinstance(constraint, Mapping):
            raise InputError(f"{here}: {constraint!r} is no object; write one with {KINDS[kind]}")
        for keys in KINDS[kind]:
            if not any(constraint.get(key) for key in keys.split("|")):
                raise InputError(f"{here}: no {keys.replace('|', ' or ')}; add it")
        names = constraint.get("attraction_names", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(f"{here}: attraction_names: {names!r} is no list of names; write one")
        for key in _NUMBERS:
            _check_number(f"{here}.{key}", constraint.get(key))
        for rating in constraint.get("attraction_ratings", []):
            _check_number(f"{here}.attraction_ratings", rating)


def _check_number(place: str, value: Any) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise InputError(f"{place}: {value!r} is no number; write one")
