"""A journey between two cities, direct or with one change, and its rows in the database."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from opd_ray.deepplanning.synthetic.places import Place
from opd_ray.deepplanning.synthetic.stations import station_code

TRAIN_TYPES = {
    "G": "High-Speed Rail",
    "D": "Bullet Train",
    "C": "Intercity Train",
    "Z": "Direct Express",
    "T": "Express Train",
    "K": "Fast Train",
}
AIRLINES = {
    "CA": "Air China",
    "MU": "China Eastern Airlines",
    "CZ": "China Southern Airlines",
    "HU": "Hainan Airlines",
    "MF": "Xiamen Airlines",
    "3U": "Sichuan Airlines",
    "ZH": "Shenzhen Airlines",
    "SC": "Shandong Airlines",
    "FM": "Shanghai Airlines",
    "HO": "Juneyao Airlines",
    "9C": "Spring Airlines",
    "G5": "Huaxia Airlines",
    "EU": "Chengdu Airlines",
    "NS": "Hebei Airlines",
    "FU": "Fuzhou Airlines",
    "PN": "West Air",
    "DZ": "Donghai Airlines",
    "GJ": "Loong Air",
    "RY": "Jiangxi Air",
    "KY": "Kunming Airlines",
}
AIRCRAFT = {
    "Airbus": (("A320", "Medium"), ("A321", "Medium"), ("A330", "Large")),
    "Boeing": (("737-800", "Medium"), ("737 MAX 8", "Medium"), ("787-9", "Large")),
}


@dataclass(frozen=True)
class Leg:
    """One train or flight; times are minutes of the day."""

    number: str
    start: Place
    end: Place
    departs: int
    arrives: int


@dataclass(frozen=True)
class Journey:
    """What one ticket buys; ``price`` is yuan a person for all legs, ``seats`` "" for plenty.

    ``maker`` and ``aircraft`` (type and size) are empty for trains.
    """

    mode: str
    legs: tuple[Leg, ...]
    seat_class: str
    seats: str
    price: int
    maker: str = ""
    aircraft: tuple[str, str] = ("", "")

    @property
    def number(self) -> str:
        """That of the first leg."""
        return self.legs[0].number

    @property
    def departs(self) -> int:
        """Minute of the day."""
        return self.legs[0].departs

    @property
    def arrives(self) -> int:
        """Minute of the day."""
        return self.legs[-1].arrives

    @property
    def minutes(self) -> int:
        """From the first departure to the last arrival."""
        return self.arrives - self.departs

    @property
    def carrier(self) -> str:
        """The type of train, or the airline."""
        return carrier_of(self.mode, self.number)


def carrier_of(mode: str, number: str) -> str:
    """The type of train or the airline that a number tells by its first letters."""
    if mode == "train":
        return TRAIN_TYPES.get(number[:1], "Regular Train")
    return AIRLINES.get(number[:2], f"{number[:2]} Airlines")


def journey_rows(
    journey: Journey, origin: str, destination: str, date: datetime.date, index: int
) -> list[dict[str, str]]:
    """A row a leg; all have the cities of the whole journey and its price."""
    rows = []
    for segment, leg in enumerate(journey.legs, 1):
        row = {
            "origin_city": origin,
            "destination_city": destination,
            "dep_date": date.isoformat(),
            "route_index": str(index),
            "segment_index": str(segment),
            "dep_station_code": station_code(leg.start),
            "dep_station_name": leg.start.name,
            "arr_station_code": station_code(leg.end),
            "arr_station_name": leg.end.name,
            "dep_datetime": _moment(date, leg.departs),
            "arr_datetime": _moment(date, leg.arrives),
            "duration": str(leg.arrives - leg.departs),
            "seat_class": journey.seat_class,
            "seat_status": journey.seats,
            "price": str(journey.price),
        }
        carrier = carrier_of(journey.mode, leg.number)
        if journey.mode == "train":
            row |= {"train_type": carrier, "train_no": leg.number}
        else:
            row |= {
                "airline": carrier,
                "flight_no": leg.number,
                "equip_type": journey.aircraft[0],
                "equip_size": journey.aircraft[1],
                "manufacturer": journey.maker,
            }
        rows.append(row)
    return rows


def _moment(date: datetime.date, minute: int) -> str:
    return f"{date} {minute // 60:02}:{minute % 60:02}:00"
