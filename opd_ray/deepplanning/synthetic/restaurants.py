"""The restaurants near each attraction: those that are asked for, and others that are not it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from opd_ray.deepplanning.synthetic.attractions import Attraction
from opd_ray.deepplanning.synthetic.places import Place, Surveyor, road
from opd_ray.deepplanning.synthetic.trip import Trip
from opd_ray.deepplanning.synthetic.wording import CUISINES, TAGS, named

LISTED = 6
_OWN = 2
_LOCAL = ("Local Cuisine", "Noodles", "Dumplings", "Barbecue", "Vegetarian", "Tea House")
_FIRST = ("Old", "Little", "Happy", "Golden", "Red Lantern", "Grandma's", "Spring", "Moonlight")
_SECOND = ("Kitchen", "Restaurant", "Noodle House", "Courtyard", "Garden", "Eatery", "Table")
_HOURS = (("10:00", "21:30"), ("10:30", "22:00"), ("11:00", "21:00"))
_ODD_HOURS = (("17:00", "02:00"), ("06:30", "14:30"))


@dataclass(frozen=True)
class Restaurant:
    """``rating`` in tenths, ``price`` in yuan a person."""

    place: Place
    price: int
    cuisine: str
    opens: str
    closes: str
    rating: int
    tags: tuple[str, ...]

    @property
    def name(self) -> str:
        """As every table and every plan has it."""
        return self.place.name


@dataclass(frozen=True)
class Wish:
    """A constraint on the restaurants near ``attraction``, met by ``gold`` alone.

    ``value`` is the cuisine or the tag that is asked for, "" for a superlative.
    """

    kind: str
    attraction: str
    gold: str
    value: str


def wishes_of(trip: Trip) -> list[Wish]:
    """The wishes that are about what is near an attraction."""
    wishes = []
    for kind, constraint in trip.of("restaurant").items():
        if "attraction_name" not in constraint:
            continue
        place, value = f"task {trip.id}: {kind}", ""
        if kind == "restaurant_specific_cuisine_nearby":
            value = named(place, constraint, CUISINES)
        elif kind == "restaurant_specific_tag_nearby":
            value = str(constraint.get("required_tag") or named(place, constraint, TAGS))
        attraction, gold = constraint["attraction_name"], constraint["restaurant_name"]
        wishes.append(Wish(kind, str(attraction), str(gold), value))
    return wishes


Listing = tuple[Attraction, Restaurant]


def build_restaurants(
    trip: Trip, attractions: list[Attraction], surveyor: Surveyor, rng: random.Random
) -> list[Listing]:
    """What is listed near each attraction, ``LISTED`` restaurants and more.

    Neighbours share restaurants; one that is listed twice is the same in both lists.
    """
    wishes = wishes_of(trip)
    builder = _Builder(trip, wishes, surveyor, rng)
    own: dict[str, list[Restaurant]] = {a.name: [] for a in attractions}
    by_name = {a.name: a for a in attractions}
    golds = builder.golds(by_name)
    for name, gold in golds.items():
        for home in builder.homes[name]:
            own[home].append(gold)
    for attraction in attractions:
        near = [w for w in wishes if w.attraction == attraction.name]
        for place in range(max(_OWN, 2 + len(near) * 2)):
            own[attraction.name].append(builder.rival(attraction, near, golds, place))
    listings: list[Listing] = []
    for attraction in attractions:
        near = [w for w in wishes if w.attraction == attraction.name]
        listed = list(own[attraction.name])
        for other in _neighbours(attraction, attractions):
            for restaurant in own[other.name]:
                known = restaurant.name in {r.name for r in listed}
                fits = not known and all(_misses(w, attraction, golds, restaurant) for w in near)
                if len(listed) < LISTED and fits:
                    listed.append(restaurant)
        rng.shuffle(listed)
        listings += [(attraction, restaurant) for restaurant in listed]
    return listings


def _neighbours(attraction: Attraction, attractions: list[Attraction]) -> list[Attraction]:
    others = [a for a in attractions if a.name != attraction.name]
    return sorted(others, key=lambda other: road(attraction.place, other.place).metres)[:3]


def _misses(
    wish: Wish, attraction: Attraction, golds: Mapping[str, Restaurant], other: Restaurant
) -> bool:
    """Whether a restaurant does not meet the wish, or is behind the gold one in it."""
    gold = golds[wish.gold]
    if other.name == gold.name:
        return True
    if wish.kind == "restaurant_cheapest_nearby_attraction":
        return other.price > gold.price
    if wish.kind == "restaurant_highest_rated":
        return other.rating < gold.rating
    if wish.kind == "restaurant_specific_cuisine_nearby":
        return other.cuisine != wish.value
    if wish.kind == "restaurant_specific_tag_nearby":
        return wish.value not in other.tags
    start = attraction.place
    return road(start, other.place).metres > road(start, gold.place).metres + 50


class _Builder:
    def __init__(
        self, trip: Trip, wishes: list[Wish], surveyor: Surveyor, rng: random.Random
    ) -> None:
        self._trip, self._wishes, self._surveyor, self._rng = trip, wishes, surveyor, rng
        self._names = set(trip.restaurant_names())
        self.homes: dict[str, list[str]] = {}

    def golds(self, attractions: Mapping[str, Attraction]) -> dict[str, Restaurant]:
        """The restaurants that constraints name, by name."""
        golds: dict[str, Restaurant] = {}
        for name in self._trip.restaurant_names():
            wishes = [w for w in self._wishes if w.gold == name]
            homes = list(dict.fromkeys(w.attraction for w in wishes))
            homes = homes or [next(iter(attractions))]
            self.homes[name] = homes
            golds[name] = self._gold(name, wishes, attractions[homes[0]])
        for wish in self._wishes:
            for name in golds:
                if wish.attraction in self.homes[name]:
                    golds[name] = self._behind(wish, golds[wish.gold], golds[name])
        return golds

    def _gold(self, name: str, wishes: list[Wish], home: Attraction) -> Restaurant:
        said: dict[str, Any] = {}
        for constraint in self._trip.of("restaurant").values():
            if constraint["restaurant_name"] == name:
                said |= constraint
        kinds = {w.kind: w.value for w in wishes}
        close = "restaurant_closest_to_attraction" in kinds
        tag = kinds.get("restaurant_specific_tag_nearby")
        others = {w.value for w in self._wishes if w.attraction == home.name}
        tags = {t for t in self._rng.sample(list(TAGS), 2) if t not in others}
        opens, closes = self._rng.choice(_HOURS)
        far = (40, 70) if close else (250, 700)
        return Restaurant(
            place=self._surveyor.place(name, "restaurant", home.place.point, *far),
            price=round(float(said.get("price_per_person") or 60)),
            cuisine=kinds.get("restaurant_specific_cuisine_nearby") or self._rng.choice(_LOCAL),
            opens=opens,
            closes=closes,
            rating=round(10 * float(said.get("restaurant_rating") or 4.5)),
            tags=tuple(sorted(tags | ({tag} if tag else set()))),
        )

    def rival(
        self,
        home: Attraction,
        wishes: list[Wish],
        golds: Mapping[str, Restaurant],
        place: int,
    ) -> Restaurant:
        """A restaurant near ``home`` that meets none of the wishes, some of them narrowly."""
        odd = self._rng.random() < 0.12
        opens, closes = self._rng.choice(_ODD_HOURS if odd else _HOURS)
        cuisines = [*_LOCAL, *CUISINES]
        restaurant = Restaurant(
            place=self._surveyor.place(self._name(), "restaurant", home.place.point, 200, 900),
            price=self._rng.randint(22, 120),
            cuisine=self._rng.choice(cuisines),
            opens=opens,
            closes=closes,
            rating=self._rng.randint(36, 48),
            tags=tuple(sorted(self._rng.sample(list(TAGS), self._rng.randint(0, 3)))),
        )
        for wish in wishes:
            gold = golds[wish.gold]
            if place % 2 == 0:
                restaurant = self._narrow(wish, gold, restaurant)
            restaurant = self._behind(wish, gold, restaurant)
        return restaurant

    def _narrow(self, wish: Wish, gold: Restaurant, rival: Restaurant) -> Restaurant:
        """As good as the gold one where the wish is a superlative, and all tags but the one."""
        if wish.kind == "restaurant_cheapest_nearby_attraction":
            return replace(rival, price=gold.price)
        if wish.kind == "restaurant_highest_rated":
            return replace(rival, rating=gold.rating)
        if wish.kind == "restaurant_specific_tag_nearby":
            return replace(rival, tags=tuple(sorted(TAGS)))
        return rival

    def _behind(self, wish: Wish, gold: Restaurant, other: Restaurant) -> Restaurant:
        """``other``, changed so that it misses the wish; the gold one itself stays as it is."""
        if other.name == gold.name:
            return other
        if wish.kind == "restaurant_cheapest_nearby_attraction" and other.price <= gold.price:
            return replace(other, price=gold.price + self._rng.randint(2, 9))
        if wish.kind == "restaurant_highest_rated" and other.rating >= gold.rating:
            return replace(other, rating=gold.rating - 1)
        if wish.kind == "restaurant_specific_cuisine_nearby" and other.cuisine == wish.value:
            return replace(other, cuisine=self._rng.choice(_LOCAL))
        if wish.kind == "restaurant_specific_tag_nearby":
            return replace(other, tags=tuple(tag for tag in other.tags if tag != wish.value))
        return other

    def _name(self) -> str:
        while True:
            name = (
                f"{self._rng.choice(_FIRST)} {self._trip.destination} {self._rng.choice(_SECOND)}"
            )
            if name in self._names:
                name += f" (Branch {self._rng.randint(1, 99)})"
            if name not in self._names:
                self._names.add(name)
                return name


def restaurant_row(listing: Listing, number: int) -> dict[str, str]:
    """A row of the restaurants' table; ``number`` is that of the restaurant."""
    attraction, restaurant = listing
    return {
        "restaurant_id": f"R{number:04}",
        "restaurant_name": restaurant.name,
        "latitude": restaurant.place.latitude,
        "longitude": restaurant.place.longitude,
        "query_latitude": attraction.place.latitude,
        "query_longitude": attraction.place.longitude,
        "price_per_person": str(restaurant.price),
        "cuisine": restaurant.cuisine,
        "opening_time": restaurant.opens,
        "closing_time": restaurant.closes,
        "nearby_attraction_name": attraction.name,
        "rating": f"{restaurant.rating / 10:.1f}",
        "tags": ";".join(restaurant.tags),
    }
