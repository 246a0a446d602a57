"""The attractions of a city: those that are asked for, and others that are none of them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from opd_ray.deepplanning.synthetic.cities import city_centre
from opd_ray.deepplanning.synthetic.places import Place, Surveyor
from opd_ray.deepplanning.synthetic.trip import Trip

ATTRACTIONS = 20
TYPES = {
    "Historical and Cultural": ("Ancient Temple", "Memorial Hall", "City Wall", "Old Academy"),
    "Natural Scenery": ("Wetland Park", "Hill Park", "Lotus Lake", "Bamboo Valley"),
    "Art Exhibition": ("Art Museum", "Porcelain Gallery", "Sculpture Hall", "Photo Gallery"),
    "City Landmark": ("Television Tower", "Grand Bridge", "Central Square", "Clock Tower"),
    "Theme Park": ("Amusement Park", "Ocean World", "Animal Park", "Science Park"),
    "Leisure Experience": ("Night Market", "Tea Street", "Snack Street", "Craft Village"),
}
_FIRST = ("Jade", "Cloud", "Phoenix", "Eastern", "Silver", "Harmony", "Dragon", "Autumn", "Pine")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
ALL_DAY = "Open 24 Hours"
_LOWEST, _HIGHEST = 38, 47


@dataclass(frozen=True)
class Attraction:
    """``rating`` in tenths, ``ticket`` in yuan, hours of a visit in halves of an hour.

    ``closed`` is a weekday, 1 for Monday, or 0; ``opens`` is ``ALL_DAY`` or HH:MM.
    """

    place: Place
    type: str
    rating: int
    ticket: int
    opens: str
    closes: str
    closed: int
    shortest: float
    longest: float

    @property
    def name(self) -> str:
        """As every table and every plan has it."""
        return self.place.name


def build_attractions(trip: Trip, surveyor: Surveyor, rng: random.Random) -> list[Attraction]:
    """Those that constraints name, and others up to ``ATTRACTIONS``, in no telling order."""
    wanted = list(dict.fromkeys([*trip.attraction_names(), *trip.meal_places()]))
    types = _Types(trip, rng)
    named = {name: types.of(name) for name in wanted}
    while len(named) < max(ATTRACTIONS, len(wanted) + 8):
        kind = types.free(len(named))
        name = f"{trip.destination} {rng.choice(_FIRST)} {rng.choice(TYPES[kind])}"
        named.setdefault(name, kind)
    ratings = _ratings(trip, named, rng)
    attractions = [
        _attraction(trip, name, kind, ratings[name], surveyor, rng) for name, kind in named.items()
    ]
    rng.shuffle(attractions)
    return attractions


class _Types:
    """Which type an attraction may have, so that "all of a type" and "the best of a type" hold."""

    def __init__(self, trip: Trip, rng: random.Random) -> None:
        wanted, self._rng = trip.of("attraction"), rng
        self._given: dict[str, str] = {}
        whole, best = wanted.get("attraction_all_of_type"), wanted.get(BEST_OF_TYPE)
        for constraint in (whole, best):
            if constraint:
                names, kind = constraint["attraction_names"], str(constraint["attraction_type"])
                self._given |= dict.fromkeys(names, kind)
        self._whole = str(whole["attraction_type"]) if whole else ""
        self._best = str(best["attraction_type"]) if best else ""
        self._wanted = set(trip.attraction_names())

    def of(self, name: str) -> str:
        """The type of an attraction that a constraint names."""
        barred = {self._whole, self._best if name in self._wanted else ""}
        return self._given.get(name) or self._rng.choice([t for t in TYPES if t not in barred])

    def free(self, place: int) -> str:
        """The type of one that nobody names; every third competes with the best of its type."""
        if self._best and place % 3 == 0 and self._best != self._whole:
            return self._best
        return self._rng.choice([kind for kind in TYPES if kind != self._whole])


BEST_OF_TYPE = "attraction_type_highest_rated"


def _ratings(trip: Trip, types: dict[str, str], rng: random.Random) -> dict[str, int]:
    """Tenths by name: as the constraints have them, lowered where one would spoil a superlative."""
    wanted = trip.of("attraction")
    given = {
        name: round(10 * float(rating))
        for c in wanted.values()
        for name, rating in zip(
            c["attraction_names"], c.get("attraction_ratings", ()), strict=False
        )
    }
    top = list(wanted.get("attraction_top_rated_must_visit", {}).get("attraction_names", ()))
    best = list(wanted.get(BEST_OF_TYPE, {}).get("attraction_names", ()))
    ratings = {name: given.get(name, 48) for name in top}
    limit = min(ratings.values(), default=51) - 1
    for name in best:
        ratings.setdefault(name, min(given.get(name, 48), limit))
    within = min((ratings[name] for name in best), default=51) - 1
    kind_of_best = types[best[0]] if best else None
    for place, name in enumerate(name for name in types if name not in ratings):
        highest = min(limit, within) if types[name] == kind_of_best else limit
        drawn = highest if place % 5 == 0 else rng.randint(_LOWEST, _HIGHEST)
        ratings[name] = min(given.get(name, drawn), highest)
    return ratings


def _attraction(
    trip: Trip, name: str, kind: str, rating: int, surveyor: Surveyor, rng: random.Random
) -> Attraction:
    required = name in trip.attraction_names()
    free = trip.of("attraction").get("attraction_all_free_attractions")
    if free:
        ticket = 0 if name in free["attraction_names"] else 10 * rng.randint(1, 6)
    else:
        ticket = rng.choice((0, 0, 10, 20, 30, 40, 50, 60, 80))
    if trip.budget and required:
        ticket = min(ticket, 40)
    opens, closes = rng.choice((("08:00", "18:00"), ("08:30", "17:30"), (ALL_DAY, ALL_DAY)))
    shortest = rng.choice((1.0, 1.0, 1.5))
    if kind == "Theme Park" and not required:
        opens, closes, shortest = "09:30", "20:00", 3.0
    elif not required and rng.random() < 0.1:
        opens, closes = "17:30", "22:30"
    longest = shortest + rng.choice((1.5, 2.0, 2.5))
    closed = rng.randint(1, 7) if rng.random() < 0.25 else 0
    if required and trip.days < 5:
        closed = 0
    place = surveyor.place(name, "attraction", city_centre(trip.destination), 600, 6000)
    return Attraction(place, kind, rating, ticket, opens, closes, closed, shortest, longest)


def attraction_row(attraction: Attraction, city: str, number: int) -> dict[str, str]:
    """A row of the attractions' table."""
    closed = WEEKDAYS[attraction.closed - 1] if attraction.closed else "No closing day"
    return {
        "attraction_id": f"A{number:04}",
        "attraction_name": attraction.name,
        "city": city,
        "address": f"No. {number}, Lane {attraction.place.longitude[-3:]}, {city}",
        "latitude": attraction.place.latitude,
        "longitude": attraction.place.longitude,
        "description": f"a place in {city} for a visit of {attraction.shortest:g} hours and more",
        "rating": f"{attraction.rating / 10:.1f}",
        "opening_time": attraction.opens,
        "closing_time": attraction.closes,
        "closing_dates": closed,
        "min_visit_hours": f"{attraction.shortest:.1f}",
        "max_visit_hours": f"{attraction.longest:.1f}",
        "ticket_price": str(attraction.ticket),
        "attraction_type": attraction.type,
    }
