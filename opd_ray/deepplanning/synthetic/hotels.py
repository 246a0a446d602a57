"""The hotels of a city: the one that is asked for, and others that miss it in one respect."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from opd_ray.deepplanning.synthetic.cities import city_centre
from opd_ray.deepplanning.synthetic.places import Place, Surveyor
from opd_ray.deepplanning.synthetic.trip import Trip
from opd_ray.deepplanning.synthetic.wording import BRANDS, named

HOTELS = 14
SERVICES = (
    "Swimming Pool",
    "Robot Service",
    "Gym",
    "Free Parking",
    "TV Casting",
    "Washer and Dryer",
    "SPA Service",
    "Airport Transfer",
    "Luggage Storage",
)
_STARS = {
    "Ji Hotel": 3,
    "Atour Hotel": 4,
    "Marriott": 5,
    "Hilton": 4,
    "Home Inn": 2,
    "Jinjiang Inn": 2,
    "Hanting Hotel": 2,
    "Orange Hotel": 3,
}
_PRICES = {2: 160, 3: 260, 4: 420, 5: 780}
_QUARTERS = ("Riverside", "Old Town", "North Gate", "Lakeside", "University", "Market Street")
_NEWEST = 2022


@dataclass(frozen=True)
class Hotel:
    """``score`` is in tenths of a star of the guests, ``price`` in yuan a room and night."""

    place: Place
    brand: str
    star: int
    price: int
    score: int
    services: tuple[str, ...]
    decorated: int

    @property
    def name(self) -> str:
        """As every table and every plan has it."""
        return self.place.name


def build_hotels(trip: Trip, surveyor: Surveyor, rng: random.Random) -> list[Hotel]:
    """The gold hotels of the constraints and others, in an order that gives nothing away."""
    wanted = trip.of("hotel")
    builder = _Builder(trip, surveyor, rng)
    golds = {str(c["hotel_name"]): builder.gold(kind, c) for kind, c in wanted.items()}
    branded = (str(c["hotel_name"]) for kind, c in wanted.items() if "brand" in kind)
    brand = next((golds[name].brand for name in branded), None)
    rivals: list[Hotel] = []
    while len(golds) + len(rivals) < HOTELS:
        alike = brand if len(rivals) % 6 == 0 else None
        hotel = builder.ordinary(len(rivals), alike, set(golds) | {r.name for r in rivals})
        for kind, constraint in wanted.items():
            gold = golds[str(constraint["hotel_name"])]
            hotel = builder.ruled_out(kind, constraint, gold, hotel, len(rivals))
        rivals.append(hotel)
    hotels = [*golds.values(), *rivals]
    rng.shuffle(hotels)
    return hotels


def brand_asked(trip: Trip, kind: str, constraint: Mapping[str, Any]) -> str | None:
    """The brand that a constraint names; None where it is not about brands.

    Raises:
        InputError: it is, and names none that is known.
    """
    return named(f"task {trip.id}: {kind}", constraint, BRANDS) if "brand" in kind else None


class _Builder:
    def __init__(self, trip: Trip, surveyor: Surveyor, rng: random.Random) -> None:
        self._trip, self._surveyor, self._rng = trip, surveyor, rng
        self._centre = city_centre(trip.destination)

    def gold(self, kind: str, constraint: Mapping[str, Any]) -> Hotel:
        """The hotel of a constraint with all that the constraint says of it."""
        name = str(constraint["hotel_name"])
        brand = brand_asked(self._trip, kind, constraint)
        brand = brand or next((b for b in BRANDS if _begins(b) in name), "Independent")
        star = int(constraint.get("hotel_star") or _STARS.get(brand, 3))
        service = constraint.get("required_service")
        some = self._some_services() - {str(service)}
        return Hotel(
            place=self._surveyor.place(name, "hotel", self._centre, 300, 3000),
            brand=brand,
            star=star,
            price=round(float(constraint.get("hotel_price") or _PRICES[star])),
            score=round(10 * float(constraint.get("hotel_score") or 4.6)),
            services=tuple(sorted(some | ({str(service)} if service else set()))),
            decorated=int(constraint.get("decoration_time") or self._rng.randint(2016, _NEWEST)),
        )

    def ordinary(self, place: int, brand: str | None, taken: set[str]) -> Hotel:
        """A hotel that nobody asks for; of ``brand``, or of each in turn."""
        brand = brand or [*BRANDS, "Independent"][place % (len(BRANDS) + 1)]
        star = _STARS.get(brand, self._rng.randint(2, 5))
        first = brand if brand != "Independent" else self._rng.choice(("Grand", "Garden", "Jade"))
        city, quarter = self._trip.destination, self._rng.choice(_QUARTERS)
        name = f"{first} {'' if first.endswith(('Hotel', 'Inn')) else 'Hotel '}{city} {quarter}"
        while name in taken:
            name = f"{name} No. {self._rng.randint(2, 9)}"
        return Hotel(
            place=self._surveyor.place(name, "hotel", self._centre, 500, 7000),
            brand=brand,
            star=star,
            price=round(_PRICES[star] * self._rng.uniform(0.75, 1.5)),
            score=self._rng.randint(38, 48),
            services=tuple(sorted(self._some_services())),
            decorated=self._rng.randint(2012, _NEWEST),
        )

    def ruled_out(
        self, kind: str, constraint: Mapping[str, Any], gold: Hotel, hotel: Hotel, place: int
    ) -> Hotel:
        """The hotel, changed so that the constraint is not met by it; every third one narrowly.

        Of those that are near misses, the even ones stay within the brand or the star and are
        worse than ``gold``, the odd ones are better and of another brand or star.
        """
        near, inside = place % 3 == 0, place % 2 == 0
        dearer, worse = gold.price + 10 + self._rng.randint(0, 60), gold.score - 1
        if kind == "hotel_star_service_required":
            return self._without_service(str(constraint["required_service"]), gold, hotel, place)
        if kind == "hotel_price_range":
            low, high = int(constraint["min_price"]), int(constraint["max_price"])
            outside = low - 5 if inside else high + 5
            return replace(hotel, price=outside) if low <= hotel.price <= high or near else hotel
        if kind == "hotel_newest_decoration":
            limit = int(constraint["year_threshold"])
            return replace(hotel, decorated=limit - 1 if near else min(hotel.decorated, limit - 1))
        if kind == "hotel_highest_rated":
            return replace(hotel, score=worse if near else min(hotel.score, worse))
        if near and inside and "star" in kind:
            hotel = replace(hotel, star=gold.star)
        alike = hotel.brand == gold.brand if "brand" in kind else hotel.star == gold.star
        if kind.startswith("hotel_cheapest"):
            if alike:
                return replace(hotel, price=max(hotel.price, dearer))
            return replace(hotel, price=max(60, gold.price - 8)) if near else hotel
        if alike:
            return replace(hotel, score=min(hotel.score, worse))
        return replace(hotel, score=min(50, gold.score + 1)) if near else hotel

    def _without_service(self, service: str, gold: Hotel, hotel: Hotel, place: int) -> Hotel:
        """Of the same star without the service, or of another star with it."""
        star = gold.star if place % 2 == 0 else hotel.star
        others = set(hotel.services) - {service}
        return replace(
            hotel,
            star=star,
            services=tuple(sorted(others if star == gold.star else others | {service})),
        )

    def _some_services(self) -> set[str]:
        return set(self._rng.sample(SERVICES, self._rng.randint(2, 4)))


def hotel_row(hotel: Hotel, city: str) -> dict[str, str]:
    """A row of the hotels' table."""
    return {
        "name": hotel.name,
        "city": city,
        "address": f"No. {hotel.price % 90 + 1}, Lane {hotel.place.longitude[-3:]}, {city}",
        "latitude": hotel.place.latitude,
        "longitude": hotel.place.longitude,
        "decoration_time": str(hotel.decorated),
        "hotel_star": str(hotel.star),
        "price": str(hotel.price),
        "score": f"{hotel.score / 10:.1f}",
        "brand": hotel.brand,
        "services": ";".join(hotel.services),
        "tags": "",
        "stock": "9",
    }


def _begins(brand: str) -> str:
    """The word by which a name shows its brand."""
    return brand.removesuffix(" Hotel") + " " if brand == "Ji Hotel" else brand.split(" ")[0]
