"""A plan: days of activities, written as the benchmark's lines and as its evaluator's JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from opd_ray.deepplanning.synthetic.map import Ticket
from opd_ray.deepplanning.synthetic.places import Road


@dataclass(frozen=True)
class Activity:
    """From ``start`` to ``end`` (minutes of the day); ``details`` as the evaluator reads them."""

    start: int
    end: int
    type: str
    details: dict[str, Any]

    @property
    def slot(self) -> str:
        """HH:MM-HH:MM."""
        return f"{self.start // 60:02}:{self.start % 60:02}-{self.end // 60:02}:{self.end % 60:02}"

    def line(self) -> str:
        """The activity as a line of the plan."""
        return f"{self.slot} | {self.type} | {self._said()}"

    def _said(self) -> str:
        d = self.details
        if self.type == "travel_intercity_public":
            return f"{d['mode']} {d['number']}, {d['from']} - {d['to']}, ¥{d['cost']}/person"
        if self.type == "travel_city":
            return f"{d['from']} - {d['to']}, {d['distance']}, {d['duration']}, ¥{d['cost']}"
        if self.type == "attraction":
            return f"{d['name']}, ¥{d['cost']}/person"
        if self.type == "meal":
            return f"{d['meal_type'].capitalize()}, {d['name']}, ¥{d['cost']}/person"
        if self.type == "hotel":
            return f"{d['activity']}, {d['name']}"
        return str(d["description"])


def ride(ticket: Ticket) -> Activity:
    """A train or a flight."""
    details = {
        "mode": ticket.mode,
        "number": ticket.number,
        "from": ticket.start,
        "to": ticket.end,
        "cost": ticket.price,
    }
    return Activity(ticket.departs, ticket.arrives, "travel_intercity_public", details)


def drive(start: int, here: str, there: str, road: Road) -> Activity:
    """A way within the city."""
    details = {
        "from": here,
        "to": there,
        "distance": f"{road.metres / 1000:.1f}km",
        "duration": f"{road.minutes}min",
        "cost": road.cost,
    }
    return Activity(start, start + road.minutes, "travel_city", details)


@dataclass
class Day:
    """``hotel`` is None on the day of return; ``price`` is yuan a room and night."""

    number: int
    city: str
    hotel: str | None
    price: int
    activities: list[Activity] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The day as the plan has it."""
        bed = f"{self.hotel}, ¥{self.price}/room/night" if self.hotel else "-"
        head = [f"Day {self.number}:", f"Current City: {self.city}", f"Accommodation: {bed}"]
        return [*head, *(activity.line() for activity in self.activities)]

    def json(self) -> dict[str, Any]:
        """The day as the evaluator reads it."""
        bed = {"accommodation": {"name": self.hotel, "price_per_night": self.price}}
        return {
            "day_number": self.number,
            "current_city": self.city,
            **(bed if self.hotel else {}),
            "activities": [
                {"time_slot": a.slot, "type": a.type, "details": dict(a.details)}
                for a in self.activities
            ],
        }


@dataclass(frozen=True)
class Costs:
    """Yuan for all travellers."""

    transportation: int
    accommodation: int
    meals: int
    tickets: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.transportation + self.accommodation + self.meals + self.tickets


@dataclass(frozen=True)
class Plan:
    """Days and what they cost, for ``people`` travellers in ``rooms`` rooms."""

    days: list[Day]
    people: int
    rooms: int

    def costs(self) -> Costs:
        """Every price times the people, rooms or cars (of four seats) that pay it."""
        cars = (self.people + 3) // 4
        fares = self._spent("travel_intercity_public") * self.people
        return Costs(
            transportation=fares + self._spent("travel_city") * cars,
            accommodation=sum(day.price for day in self.days if day.hotel) * self.rooms,
            meals=self._spent("meal") * self.people,
            tickets=self._spent("attraction") * self.people,
        )

    def _spent(self, kind: str) -> int:
        return sum(a.details["cost"] for day in self.days for a in day.activities if a.type == kind)

    def text(self) -> str:
        """The plan in the lines that the benchmark's prompt prescribes, within its tags."""
        costs = self.costs()
        parts = ["\n".join(day.lines()) + "\n" for day in self.days]
        summary = "\n".join(
            [
                "**Budget Summary**:",
                f"   **Transportation: {costs.transportation} RMB**",
                f"   **Accommodation: {costs.accommodation} RMB**",
                f"   **Meals: {costs.meals} RMB**",
                f"   **Attractions & Tickets: {costs.tickets} RMB**",
                f"   **Total Estimated Budget: {costs.total} RMB**",
            ]
        )
        return "\n".join(["<plan>", *parts, summary, "", "</plan>"]) + "\n"

    def json(self) -> dict[str, Any]:
        """The plan as the evaluator reads it."""
        costs = self.costs()
        return {
            "budget_summary": {
                "transportation": costs.transportation,
                "accommodation": costs.accommodation,
                "meals": costs.meals,
                "attractions_and_tickets": costs.tickets,
                "total_estimated_budget": costs.total,
                "currency": "CNY",
            },
            "daily_plans": [day.json() for day in self.days],
        }
