"""Railway stations and airports of the cities of a trip."""

from __future__ import annotations

from dataclasses import dataclass

from opd_ray.deepplanning.synthetic.cities import city_centre
from opd_ray.deepplanning.synthetic.places import Place, Surveyor


@dataclass(frozen=True)
class Stations:
    """Where one arrives in a city; ``railway`` has two stations."""

    city: str
    railway: tuple[Place, Place]
    airport: Place

    def all(self) -> list[Place]:
        """The three of them."""
        return [*self.railway, self.airport]


def build_stations(city: str, surveyor: Surveyor) -> Stations:
    """Two stations within 10 km of the centre, an airport 20 to 30 km from it."""
    centre = city_centre(city)
    near = surveyor.place(f"{city} Station", "railway_station", centre, 2000, 5000)
    south = surveyor.place(f"{city} South Station", "railway_station", centre, 6000, 10_000)
    airport = surveyor.place(f"{city} International Airport", "airport", centre, 20_000, 30_000)
    return Stations(city, (near, south), airport)


def station_code(place: Place) -> str:
    """Three letters from the name; two places of a city differ in the last one."""
    letters = "".join(c for c in place.name.upper() if c.isalpha())
    return letters[:2] + {"S": "S", "I": "A"}.get(place.name.split(" ")[-2][:1], "Z")
