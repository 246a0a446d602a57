"""The nine travel tools: look-ups in a task's database, to the letter as the official ones answer.

What the official tools do not do, these do not either: hotels and attractions ignore city and date,
coordinates are compared as texts, and a broken cell ends in the error that Python has for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema

from opd_ray.deepplanning.checkout import Checkout, MissingBenchmark
from opd_ray.deepplanning.travel.database import Database
from opd_ray.deepplanning.travel.legs import flights, trains
from opd_ray.deepplanning.travel.tables import Row
from opd_ray.deepplanning.travel.texts import TOOLS, Texts, read_texts
from opd_ray.environments.environment import ToolSchema

Arguments = Mapping[str, Any]
Tool = Callable[[Database, Texts, Arguments], str]


@dataclass(frozen=True)
class TravelTools:
    """The tools of a checkout: their schemas, and their answers from any task's database."""

    schemas: tuple[ToolSchema, ...]
    texts: Mapping[str, Texts]

    def call(self, database: Database, name: str, arguments: Arguments) -> str:
        """What the official tool of that name answers; of a wrong call, its error.

        Raises:
            KeyError: there is no such tool.
        """
        parameters = next(
            schema["function"]["parameters"]
            for schema in self.schemas
            if schema["function"]["name"] == name
        )
        try:
            return self._answer(database, name, arguments, parameters)
        except RecursionError:
            # The official agent has no answer here: it ends in this error.
            return _error("the arguments are nested too deeply")

    def _answer(
        self, database: Database, name: str, arguments: Arguments, parameters: Mapping[str, Any]
    ) -> str:
        try:
            jsonschema.validate(instance=arguments, schema=parameters)
            return _TOOLS[name](database, self.texts[name], arguments)
        # All that a wrong argument or a broken cell can raise.
        except (jsonschema.ValidationError, TypeError, ValueError, AttributeError) as error:
            return _error(str(error))


def travel_tools(checkout: str | Path, named: str = "--from") -> TravelTools:
    """The tools of the checkout at ``checkout``, read once a process.

    Raises:
        MissingBenchmark: something of them is not there; or they are others than the nine.
    """
    return _read(Checkout.at(checkout, named))


@lru_cache(maxsize=8)
def _read(checkout: Checkout) -> TravelTools:
    schemas = tuple(checkout.travel_tools)
    names = [schema["function"]["name"] for schema in schemas]
    if sorted(names) != sorted(TOOLS):
        odd = sorted(set(names) ^ set(TOOLS)) or sorted(n for n in names if names.count(n) > 1)
        raise MissingBenchmark(
            f"{checkout.travel / 'tools' / 'tool_schema_en.json'}: has other tools than the nine "
            f"that opd-ray knows ({', '.join(odd)}): take the benchmark as of its v1.1"
        )
    return TravelTools(schemas, read_texts(checkout))


def _error(said: str) -> str:
    return json.dumps({"error": said}, ensure_ascii=False)


def _json(result: Any) -> str:
    return json.dumps(result, ensure_ascii=False, indent=2)


def _text(row: Row, column: str) -> str:
    """A cell as text; "" where it has no value or there is no such column."""
    cell = row.get(column, "")
    return cell if isinstance(cell, str) else ""


def _with_list(result: dict[str, Any], row: Row, column: str) -> dict[str, Any]:
    """``result`` with the texts between the semicolons of a cell, if it has any."""
    cell = row.get(column)
    if isinstance(cell, str) and cell.strip():
        result[column] = cell.split(";")
    return result


def _hotels(database: Database, texts: Texts, asked: Arguments) -> str:
    wanted = {"hotel_star": asked.get("hotelStar"), "brand": asked.get("hotelBrands")}
    rows = database.tables["hotels"].where(**{name: v for name, v in wanted.items() if v})
    if not rows:
        return texts.say(
            "not_found",
            asked.get("destination"),
            asked.get("checkinDate"),
            asked.get("checkoutDate"),
        )
    columns = {"name": "name", "address": "address", "latitude": "latitude"}
    columns |= {"longitude": "longitude", "decorationTime": "decoration_time"}
    columns |= {"hotelStar": "hotel_star", "price": "price", "score": "score", "brand": "brand"}
    return _json(
        [
            _with_list({key: _text(row, name) for key, name in columns.items()}, row, "services")
            for row in rows
        ]
    )


def _attractions(database: Database, texts: Texts, asked: Arguments) -> str:
    kind = asked.get("attraction_type")
    rows = database.tables["attractions"].where(**({"attraction_type": kind} if kind else {}))
    if not rows:
        return texts["not_found"]
    return "\n".join(
        [
            texts["recommendations"],
            *(
                texts.say(
                    "attraction_suffix",
                    row["attraction_name"],
                    row.get("description", ""),
                    row["attraction_type"],
                )
                for row in rows
            ),
        ]
    )


def _attraction(database: Database, texts: Texts, asked: Arguments) -> str:
    rows = database.tables["attractions"].where(attraction_name=asked.get("attraction_name"))
    if not rows:
        return texts.say("not_found", asked.get("attraction_name"))
    row = rows[0]
    cell = {name: str(row.get(name, "")) for name in _ATTRACTION_CELLS}
    opens, closes = cell["opening_time"], cell["closing_time"]
    hours = opens if opens == closes else f"{opens} {texts['to']} {closes}"
    unit = texts["hours_unit"]
    said = {
        "attraction_id": cell["attraction_id"],
        "attraction_name": cell["attraction_name"],
        "city": cell["city"],
        "address": cell["address"],
        "coordinates": (
            f"{texts['latitude']} {cell['latitude']}，{texts['longitude']} {cell['longitude']}"
        ),
        "description": cell["description"],
        "rating": f"{_number(row, 'rating')}{texts['visitor_rating']}",
        "opening_hours": hours,
        "closed_dates": cell["closing_dates"],
        "min_visit_hours": f"{_number(row, 'min_visit_hours')} {unit}",
        "max_visit_hours": f"{_number(row, 'max_visit_hours')} {unit}",
        "ticket_price": f"{_number(row, 'ticket_price', '0')} {texts['currency_unit']}",
        "attraction_type": cell["attraction_type"],
    }
    return "\n".join(f"{texts[name]}：{text}" for name, text in said.items())


_ATTRACTION_CELLS = (
    *("attraction_id", "attraction_name", "city", "address", "latitude", "longitude"),
    *("description", "opening_time", "closing_time", "closing_dates", "attraction_type"),
)


def _number(row: Row, column: str, without: str = "") -> str:
    """A cell as Python writes the number; ``without`` where it holds none."""
    cell = row.get(column)
    if not isinstance(cell, str):
        return without
    try:
        return str(float(cell))
    except ValueError:
        return without


def _location(database: Database, texts: Texts, asked: Arguments) -> str:
    rows = database.tables["locations"].where(poi_name=asked.get("place_name"))
    if not rows:
        return texts.say("not_found", asked.get("place_name"))
    row = rows[0]
    place = {"place_name": row["poi_name"]}
    return _json(place | {name: str(row[name]) for name in ("latitude", "longitude")})


def _way(database: Database, texts: Texts, asked: Arguments) -> str:
    ways = database.tables["ways"]
    ends = {name: asked[name] for name in ("origin", "destination")}
    for coordinate in ends.values():
        if coordinate not in ways.coordinates:
            return texts.say("coord_not_in_range", coordinate)
    rows = ways.where(**ends)
    if not rows:
        return texts.say("not_found", *ends.values())
    row = rows[0]
    return _json(
        {
            **ends,
            "distance_in_meters": int(row["distance_meters"]),
            "duration_in_minutes": int(row["duration_minutes"]),
            "cost": int(row["cost"]),
        }
    )


def _restaurants(database: Database, texts: Texts, asked: Arguments) -> str:
    at = (asked.get("latitude"), asked.get("longitude"))
    rows = database.tables["restaurants"].where(query_latitude=at[0], query_longitude=at[1])
    if not rows:
        return texts.say("not_found", *at)
    return _json([_restaurant(row, {"price": 0, "rating": 4.5}) for row in rows])


def _restaurant_details(database: Database, texts: Texts, asked: Arguments) -> str:
    name = asked.get("restaurant_name")
    rows = database.tables["restaurants"].where(restaurant_name=name)
    if not rows:
        return _json({"message": texts.say("not_found", name), "restaurant_name": name})
    row = rows[0]
    number = {"id": row.get("restaurant_id", "")}
    return _json(number | _restaurant(row, {"price": 100, "rating": 4.0}))


def _restaurant(row: Row, without: Mapping[str, float]) -> dict[str, Any]:
    """A restaurant; ``without`` has the numbers that stand in for columns that are not there."""
    result = {
        "name": row["restaurant_name"],
        "latitude": str(row.get("latitude", 0)),
        "longitude": str(row.get("longitude", 0)),
        "price_per_person": str(row.get("price_per_person", without["price"])),
        "cuisine": row.get("cuisine", ""),
        "opening_time": row.get("opening_time", ""),
        "closing_time": row.get("closing_time", ""),
        "nearby_attraction_name": row.get("nearby_attraction_name", ""),
        "rating": str(row.get("rating", without["rating"])),
    }
    return _with_list(result, row, "tags")


_TOOLS: dict[str, Tool] = {
    "query_train_info": trains,
    "query_flight_info": flights,
    "query_hotel_info": _hotels,
    "recommend_attractions": _attractions,
    "query_attraction_details": _attraction,
    "search_location": _location,
    "query_road_route_info": _way,
    "recommend_restaurants": _restaurants,
    "query_restaurant_details": _restaurant_details,
}
