"""Places with coordinates, and the roads between them."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cached_property

from opd_ray.deepplanning.synthetic.cities import kilometres

_METRES_A_DEGREE = 111_195


@dataclass(frozen=True)
class Place:
    """A point on the map; ``latitude`` and ``longitude`` are the strings of every file."""

    name: str
    kind: str
    latitude: str
    longitude: str

    @cached_property
    def point(self) -> tuple[float, float]:
        """Latitude and longitude in degrees."""
        return float(self.latitude), float(self.longitude)

    @cached_property
    def key(self) -> str:
        """The point as the distance matrix and the route tool write it."""
        return f"{self.latitude},{self.longitude}"


@dataclass(frozen=True)
class Road:
    """The way from one place to another: metres, minutes and yuan for one car."""

    metres: int
    minutes: int
    cost: int


class Surveyor:
    """Hands out points, none twice; the draws come from ``rng``."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._taken: set[tuple[str, str]] = set()

    def place(
        self, name: str, kind: str, centre: tuple[float, float], nearest: int, farthest: int
    ) -> Place:
        """A new place between ``nearest`` and ``farthest`` metres from ``centre``."""
        while True:
            angle = self._rng.uniform(0, 2 * math.pi)
            metres = self._rng.uniform(nearest, farthest)
            north = metres * math.cos(angle) / _METRES_A_DEGREE
            east = metres * math.sin(angle) / _METRES_A_DEGREE
            latitude = f"{centre[0] + north:.6f}"
            longitude = f"{centre[1] + east / math.cos(math.radians(centre[0])):.6f}"
            if (latitude, longitude) not in self._taken:
                self._taken.add((latitude, longitude))
                return Place(name, kind, latitude, longitude)


def road(start: Place, end: Place) -> Road:
    """On foot up to 2 km (free), else by taxi: 30 km/h in town, 80 km/h beyond 30 km."""
    metres = max(1, round(kilometres(start.point, end.point) * 1300))
    if metres <= 2000:
        return Road(metres, max(1, round(metres / 75)), 0)
    town, beyond = min(metres, 30_000), max(0, metres - 30_000)
    minutes = 4 + town / 500 + beyond / 1333
    return Road(metres, round(minutes), round(10 + 2 * max(0, metres - 3000) / 1000))
