"""The journeys of one day in one direction: the one that is asked for, and others."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from opd_ray.deepplanning.synthetic.cities import city_between, city_centre, kilometres
from opd_ray.deepplanning.synthetic.journeys import (
    AIRCRAFT,
    AIRLINES,
    Journey,
    Leg,
)
from opd_ray.deepplanning.synthetic.places import Place
from opd_ray.deepplanning.synthetic.stations import Stations
from opd_ray.deepplanning.synthetic.trip import Trip
from opd_ray.deepplanning.synthetic.wording import MAKERS, clock_range, named

FIRST, LAST = 370, 1435
_SPACING, _RIVALS = 70, 6
_RANKS: dict[str, Callable[[Journey], int]] = {
    "cheapest": lambda journey: journey.price,
    "earliest": lambda journey: journey.departs,
    "latest": lambda journey: -journey.arrives,
    "shortest": lambda journey: journey.minutes,
}


@dataclass(frozen=True)
class Demand:
    """The constraint on a direction, taken apart.

    ``best`` says what the gold journey is best in (a key of the ranks, or ""), ``group`` among
    which it is so ("carrier", "maker" or ""), ``span`` the minutes of the day in which it alone
    departs or arrives.
    """

    kind: str
    number: str
    best: str
    group: str
    maker: str
    span: tuple[int, int] | None
    seats: str

    @property
    def word(self) -> str:
        """What the kind is about: cheapest, earliest, departure, arrival, seat, ..."""
        return self.kind.split("_")[1]


def demand_of(trip: Trip, mode: str, direction: str) -> Demand | None:
    """What the trip asks of ``mode`` (train or flight) in ``direction`` (outbound or inbound)."""
    for kind, constraint in trip.of(mode).items():
        number = constraint.get(f"{direction}_{mode}_no")
        if not number:
            continue
        place, word = f"task {trip.id}: {kind}", kind.split("_")[1]
        maker = named(place, constraint, MAKERS) if "manufacturer" in kind else ""
        in_class = "train_type" in kind or "airline" in kind
        return Demand(
            kind=kind,
            number=str(number),
            best=word if word in _RANKS else "",
            group="maker" if maker else "carrier" if in_class else "",
            maker=maker,
            span=clock_range(place, constraint) if kind.endswith("time_range") else None,
            seats=_seats(constraint, direction) if kind.endswith("seat_status") else "",
        )
    return None


def _seats(constraint: Mapping[str, Any], direction: str) -> str:
    return str(constraint.get(f"{direction}_seat_status") or 9)


class Timetable:
    """Draws the journeys of ``mode`` from ``start`` to ``end`` on one day of a trip."""

    def __init__(
        self, trip: Trip, mode: str, start: Stations, end: Stations, rng: random.Random
    ) -> None:
        self._trip, self._mode, self._start, self._end = trip, mode, start, end
        self._rng = rng
        self._homeward = start.city == trip.destination
        self._demand = demand_of(trip, mode, "inbound" if self._homeward else "outbound")
        self._used = {str(v) for c in trip.constraints.values() for v in c.values()}
        self._minutes, self._fare = _ordinary(mode, start.city, end.city)
        if trip.budget:
            self._fare = min(self._fare, trip.budget // (5 * trip.people))

    @property
    def served(self) -> bool:
        """Trains do not go beyond 1900 km, flights not below 250, but where they are asked for."""
        distance = kilometres(city_centre(self._start.city), city_centre(self._end.city))
        usual = distance < 1900 if self._mode == "train" else distance > 250
        return usual or self._demand is not None

    def build(self, change: Stations) -> list[Journey]:
        """The journeys by departure; ``change`` is where the one that is not direct changes."""
        if not self.served:
            return []
        demand = self._demand
        gold = self._gold(demand) if demand else None
        times = [
            (
                FIRST + step * _SPACING + self._five(50),
                self._minutes + 5 * self._rng.randint(-3, 12),
            )
            for step in range(14)
        ]
        times = [t for t in times if self._may_run(*t, gold, direct=True)]
        chosen = sorted(self._rng.sample(times, min(_RIVALS, len(times))))
        journeys = [self._rival(place, *time, gold) for place, time in enumerate(chosen)]
        journeys += [gold] if gold else []
        if changing := self._with_change(change, gold):
            journeys.append(changing)
        return sorted(journeys, key=lambda journey: (journey.departs, journey.number))

    def _gold(self, demand: Demand) -> Journey:
        minutes, price = self._minutes, self._fare
        if demand.number[:1] in "TKZ" and self._mode == "train" and demand.best != "shortest":
            minutes, price = 5 * round(minutes * 0.3), round(price * 0.6)
        price = round(price * (0.8 if demand.best == "cheapest" else 1.0))
        if demand.kind.endswith("seat_class"):
            price = self._first_class(price)
        departs, arrives = self._gold_times(demand, minutes)
        journey = self._direct(demand.number, departs, arrives - departs, price)
        if demand.kind.endswith("seat_class"):
            first = "First Class Seat" if self._mode == "train" else "First Class"
            journey = replace(journey, seat_class=first)
        if demand.maker:
            journey = self._made_by(journey, demand.maker)
        return replace(journey, seats=demand.seats)

    def _first_class(self, price: int) -> int:
        dear = round(price * (1.6 if self._mode == "train" else 2.6))
        budget = self._trip.budget
        return min(dear, budget // (5 * self._trip.people)) if budget else dear

    def _gold_times(self, demand: Demand, minutes: int) -> tuple[int, int]:
        """Departure and arrival, within the day; as early there and as late back as fits."""
        if demand.span and demand.word == "arrival":
            first, last = demand.span
            arrives = max(first + (last - first) // 2, min(last - 40, LAST - 60))
            return max(FIRST + 20, arrives - minutes), arrives
        if demand.span:
            first, last = demand.span
            departs = first + min(10 + self._five(30), (last - first) // 2)
        elif demand.best == "latest":
            departs = max(FIRST + 60, LAST - 45 - self._five(30) - minutes)
        elif self._homeward:
            departs = max(FIRST + 20, min(960 + self._five(90), LAST - 60 - minutes))
        else:
            departs = (405 if demand.best == "earliest" else 430) + self._five(40)
        return departs, min(departs + minutes, LAST)

    def _may_run(self, departs: int, minutes: int, gold: Journey | None, *, direct: bool) -> bool:
        """Whether a journey that is not the gold one may run then, within the day."""
        if departs < FIRST - 5 or departs + minutes > LAST:
            return False
        demand = self._demand
        if demand is None or gold is None:
            return True
        if demand.span:
            moment = departs + (minutes if demand.word == "arrival" else 0)
            return not demand.span[0] <= moment <= demand.span[1]
        if not direct or demand.group:
            return True
        return demand.best != "latest" or departs + minutes < gold.arrives - 20

    def _rival(self, place: int, departs: int, minutes: int, gold: Journey | None) -> Journey:
        """An ordinary direct journey that the demand rules out, in one respect where it can be."""
        price = round(self._fare * self._rng.uniform(0.7, 1.3))
        journey = self._direct(self._number(place), departs, minutes, price)
        few = self._trip.people > 1 and place == 3
        journey = replace(journey, seats="1" if few else "")
        demand = self._demand
        if demand is None or gold is None:
            return journey
        if demand.kind.endswith("seat_status"):
            return replace(journey, seats=str(self._rng.randint(1, max(1, self._trip.people - 1))))
        if demand.group and place % 2:
            return self._of_another_group(journey, gold, demand)
        if demand.group == "maker":
            journey = self._made_by(journey, demand.maker)
        elif demand.group == "carrier":
            journey = self._renumbered(journey, gold.number[: 1 if self._mode == "train" else 2])
        return self._behind(journey, gold, demand.best)

    def _of_another_group(self, journey: Journey, gold: Journey, demand: Demand) -> Journey:
        """Better than the gold one, but of another airline, type or maker."""
        if demand.group == "maker":
            other = next(maker for maker in AIRCRAFT if maker != demand.maker)
            journey = self._made_by(journey, other)
        elif self._mode == "train":
            journey = self._renumbered(journey, "D" if gold.number[0] == "G" else "G")
        else:
            codes = [code for code in AIRLINES if AIRLINES[code] != gold.carrier]
            journey = self._renumbered(journey, self._rng.choice(codes))
        if demand.best == "cheapest":
            return replace(journey, price=max(5, round(gold.price * 0.9)))
        return _moved(journey, FIRST + self._five(20)) if demand.best == "earliest" else journey

    def _behind(self, journey: Journey, gold: Journey, best: str) -> Journey:
        """The journey, made worse than the gold one in what that is best in, where it is not."""
        if best == "" or _RANKS[best](journey) > _RANKS[best](gold):
            return journey
        if best == "cheapest":
            return replace(journey, price=gold.price + 5 + self._five(60))
        if best == "earliest":
            return _moved(journey, gold.departs + 30 + self._five(120))
        leg = journey.legs[0]
        arrives = leg.departs + gold.minutes + 10 + self._five(40)
        departs = leg.departs - max(0, arrives - LAST)
        return replace(journey, legs=(replace(leg, departs=departs, arrives=min(arrives, LAST)),))

    def _with_change(self, change: Stations, gold: Journey | None) -> Journey | None:
        """A journey with one change; better than the gold one if that must be direct."""
        first, fare = _ordinary(self._mode, self._start.city, change.city)
        second, more = _ordinary(self._mode, change.city, self._end.city)
        wait = 45 + self._five(30)
        total = first + wait + second
        times = range(FIRST - 5, LAST - total, 15)
        if gold and self._demand and self._demand.best == "latest":
            times = range(LAST - total - 5, FIRST, -15)
        departs = next((t for t in times if self._may_run(t, total, gold, direct=False)), None)
        if departs is None:
            return None
        start, middle, end = self._ends(self._start, change, self._end)
        price = round(min(fare + more, self._fare) * 0.75)
        if gold and self._demand and self._demand.best == "cheapest":
            price = min(price, round(gold.price * 0.9))
        legs = (
            Leg(self._number(7), start, middle, departs, departs + first),
            Leg(self._number(8), middle, end, departs + first + wait, departs + total),
        )
        seat = "Second Class Seat" if self._mode == "train" else "Economy Class"
        short = self._demand is not None and self._demand.kind.endswith("seat_status")
        journey = Journey(self._mode, legs, seat, "1" if short else "", max(5, price))
        return journey if self._mode == "train" else self._made_by(journey, "Airbus")

    def _direct(self, number: str, departs: int, minutes: int, price: int) -> Journey:
        start, end = self._ends(self._start, self._end)
        leg = Leg(number, start, end, departs, departs + minutes)
        seat = "Second Class Seat" if self._mode == "train" else "Economy Class"
        journey = Journey(self._mode, (leg,), seat, "", max(5, price))
        if self._mode == "train":
            return journey
        return self._made_by(journey, self._rng.choice(list(AIRCRAFT)))

    def _ends(self, *cities: Stations) -> list[Place]:
        if self._mode == "flight":
            return [city.airport for city in cities]
        return [self._rng.choice(city.railway) for city in cities]

    def _made_by(self, journey: Journey, maker: str) -> Journey:
        return replace(journey, maker=maker, aircraft=self._rng.choice(AIRCRAFT[maker]))

    def _renumbered(self, journey: Journey, code: str) -> Journey:
        return replace(journey, legs=(replace(journey.legs[0], number=self._new_number(code)),))

    def _number(self, place: int) -> str:
        codes = ["G", "G", "D"] if self._mode == "train" else list(AIRLINES)[:10]
        return self._new_number(codes[place % 3] if self._mode == "train" else codes[place % 10])

    def _new_number(self, code: str) -> str:
        while True:
            number = f"{code}{self._rng.randint(1000, 9999)}"
            if number not in self._used:
                self._used.add(number)
                return number

    def _five(self, below: int) -> int:
        """A multiple of five from 0 to ``below``."""
        return 5 * self._rng.randint(0, below // 5)


def change_city(trip: Trip) -> str:
    """Where the journeys of a trip that are not direct change."""
    return city_between(trip.origin, trip.destination)


def _ordinary(mode: str, start: str, end: str) -> tuple[int, int]:
    """Minutes and yuan a person of an ordinary direct journey."""
    distance = kilometres(city_centre(start), city_centre(end))
    if mode == "train":
        minutes = min(840, 15 + distance * 1.2 / 230 * 60)
        return 5 * round(minutes / 5), max(18, round(0.48 * distance))
    return 5 * round((45 + distance / 750 * 60) / 5), round(260 + 0.42 * distance)


def _moved(journey: Journey, departs: int) -> Journey:
    leg = journey.legs[0]
    arrives = departs + leg.arrives - leg.departs
    return replace(journey, legs=(replace(leg, departs=departs, arrives=arrives),))
