"""One day laid out: stop after stop, each as early as ways, opening hours and meal times allow."""

from __future__ import annotations

from dataclasses import dataclass, replace

from opd_ray.deepplanning.synthetic.map import TaskMap, Visit
from opd_ray.deepplanning.synthetic.plan import Activity, drive

LUNCH, DINNER = (11 * 60, 13 * 60 + 30), (17 * 60, 20 * 60)
BED_TIME, MIDNIGHT = 22 * 60 + 30, 24 * 60


@dataclass(frozen=True)
class Stop:
    """An attraction (``meal`` empty) or a meal, begun between ``earliest`` and ``latest``."""

    visit: Visit
    meal: str
    earliest: int
    latest: int


def sight(visit: Visit) -> Stop:
    """A visit to an attraction while it is open."""
    return Stop(visit, "", visit.opens, visit.closes - visit.shortest)


def meal(visit: Visit, kind: str) -> Stop:
    """Lunch or Dinner, at its time and while the restaurant is open."""
    first, last = LUNCH if kind == "Lunch" else DINNER
    return Stop(visit, kind, max(first, visit.opens), min(last, visit.closes - visit.shortest))


class Layout:
    """Activities from a time and a place on; waiting is spent where one is, if it is open."""

    def __init__(self, task_map: TaskMap, city: str, now: int, here: str) -> None:
        self._map, self._city = task_map, city
        self.now, self.here = now, here
        self.activities: list[Activity] = []
        self._sights: dict[str, Visit] = {}

    def add(self, activity: Activity, here: str) -> None:
        """Something that begins now and ends at ``here``."""
        self.activities.append(activity)
        self.now, self.here = activity.end, here

    def go(self, there: str) -> None:
        """On the way, without waiting."""
        if there != self.here:
            way = self._map.road(self.here, there)
            self.add(drive(self.now, self.here, there, way), there)

    def stop(self, stop: Stop) -> bool:
        """Go to a stop and stay its shortest time; False, and nothing added, if it is too late."""
        way = self._map.road(self.here, stop.visit.name).minutes
        start = max(self.now + way, stop.earliest)
        if start > stop.latest:
            return False
        self.linger(start - way)
        self.go(stop.visit.name)
        end = start + stop.visit.shortest
        if stop.meal:
            details = {
                "meal_type": stop.meal.lower(),
                "name": stop.visit.name,
                "cost": stop.visit.price,
            }
            self.add(Activity(start, end, "meal", details), self.here)
        else:
            self._sights[stop.visit.name] = stop.visit
            details = {"name": stop.visit.name, "city": self._city, "cost": stop.visit.price}
            self.add(Activity(start, end, "attraction", details), self.here)
        return True

    def linger(self, until: int) -> None:
        """Stay where one is: longer at an attraction as far as it may be, then a buffer."""
        last = self.activities[-1] if self.activities else None
        if last and last.type == "attraction":
            visit = self._sights[last.details["name"]]
            end = min(until, visit.closes, last.start + visit.longest)
            if end > self.now:
                self.activities[-1] = replace(last, end=end)
                self.now = end
        self.wait(until, "Free time nearby")

    def wait(self, until: int, why: str) -> None:
        """A buffer, if there is something to wait for."""
        if until > self.now:
            self.add(Activity(self.now, until, "buffer", {"description": why}), self.here)

    def to_bed(self, hotel: str) -> bool:
        """Back to the hotel for the night; False if that is too late."""
        if self.now + self._map.road(self.here, hotel).minutes > BED_TIME:
            return False
        self.go(hotel)
        self.sleep(hotel)
        return True

    def sleep(self, hotel: str) -> None:
        """The rest of the day at the hotel, where one is."""
        details = {"activity": "Rest", "name": hotel}
        self.add(Activity(self.now, MIDNIGHT, "hotel", details), hotel)
