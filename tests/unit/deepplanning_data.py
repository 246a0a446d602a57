"""A small travel database with awkward cells, a stand-in for a checkout, and the real one if named.

``OPD_RAY_DEEPPLANNING`` names a clone of Qwen-Agent; ``OPD_RAY_DEEPPLANNING_PYTHON`` a Python with
the packages that it needs (without it this one, with a stand-in for the one class of ``qwen_agent``
that the tools need).
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = os.environ.get("OPD_RAY_DEEPPLANNING", "")
PYTHON = os.environ.get("OPD_RAY_DEEPPLANNING_PYTHON") or sys.executable
needs_checkout = pytest.mark.skipif(
    not CHECKOUT,
    reason="compares with the benchmark's own program: set OPD_RAY_DEEPPLANNING to a clone of "
    "Qwen-Agent (docs/deepplanning.md)",
)

_LEG = (
    "origin_city,destination_city,dep_date,route_index,segment_index,dep_station_code,"
    "dep_station_name,arr_station_code,arr_station_name,dep_datetime,arr_datetime,duration,"
    "seat_class,seat_status,price"
)


def leg(route: str, segment: str, date: str = "2025-11-12", **other: str) -> str:
    """A row of trains or flights up to its price."""
    cells = {
        "origin_city": "Hefei",
        "destination_city": "Nanjing",
        "dep_date": date,
        "route_index": route,
        "segment_index": segment,
        "dep_station_code": f"D{segment}",
        "dep_station_name": f"Hefei South Station {segment}",
        "arr_station_code": f"A{segment}",
        "arr_station_name": f"Chuzhou {segment} Station",
        "dep_datetime": f"{date} 08:00:00",
        "arr_datetime": f"{date} 09:05:00",
        "duration": "65",
        "seat_class": "Second Class Seat",
        "seat_status": "7",
        "price": "67.5",
    }
    return ",".join((cells | other).values())


TRAINS = [
    f"{_LEG},train_type,train_no",
    leg("0", "0") + ",High-speed,G7798",
    leg("0", "1", seat_class="First Class Seat", price="107") + ",High-speed,G7798",
    leg("1", "10", seat_status="", price="abc") + ",Bullet,D10",
    leg("1", "9", seat_status=" ") + ",Bullet,D9",
    "",
    leg("1", "", seat_status="NaN") + ",Bullet,D0",
    leg("2", "0", date="2025-11-13", duration="") + ",High-speed,G1",
    leg("0", "0", date="2025-11-14", duration="12.5") + ",High-speed,G2",
    leg("", "0", date="2025-11-15") + ",High-speed,G3",
    leg("0", "0", date="2025-11-16", arr_station_name="") + ",High-speed,G4",
    leg("0", "1", date="2025-11-16") + ",High-speed,G4",
    leg("0", "0", date="2025-11-17", price="NA") + ',"High, speed",G5',
    leg("1", "0", date="2025-11-18") + ",High-speed,G6",
    leg("", "0", date="2025-11-18") + ",High-speed,G6",
    "Hefei,Nanjing,2025-11-19,0,0,X,Y,Z,Q,t,u,30",
]
FLIGHTS = [
    f"{_LEG},airline,flight_no,equip_size,equip_type,manufacturer",
    leg("0", "0") + ",Air China,CA1,M,A320,Airbus",
    leg("0", "1") + ",Air China,CA2,,737,Boeing",
    leg("3", "0", price="") + ',"""Sky"" Air",CA3,L,NULL,n/a',
]
HOTELS = [
    "name,address,latitude,longitude,decoration_time,hotel_star,price,score,brand,services,tags,stock",
    "Atour Hotel - Nanjing,1 Road,32.000001,118.000001,2020,3,300,4.5,Atour Hotel,Pool;Gym,a|b,5",
    'Hilton "N",,32.000002,118.000002,nan,5,NA,,Hilton, ,,',
    "Home Inn,x,,,2019,3.0,99,4,Home Inn,Laundry,,1",
]
ATTRACTIONS = [
    "attraction_id,attraction_name,city,address,latitude,longitude,description,rating,opening_time,"
    "closing_time,closing_dates,min_visit_hours,max_visit_hours,ticket_price,attraction_type",
    "A1,Laomendong,Nanjing,Gate,32.0,118.0,Old,4.7,Open 24 Hours,Open 24 Hours,,1,3,0,Landmark",
    'A2,"Knife, Scissors Museum",Nanjing,,32.1,118.1,"A museum\nof ""blades""",x,09:00,17:00,Mon,'
    "0.5,,abc,Art Exhibition",
    "A3,Nowhere,,,,,,,,,,,,,",
    "A1,Laomendong,Twice,,,,,1,,,,,,,Landmark",
    'A4,Café · 园,Nanjing,Å,32.2,118.2,été,1e1,08:00,24:00,"Monday,Sunday",inf,-0,12.50,None',
]
LOCATIONS = [
    "poi_name,latitude,longitude,poi_type",
    "Laomendong,32.0,118.0,attraction",
    "Nanjing South Station,31.968700,118.797000,station",
    "Nowhere,,NA,attraction",
]
WAYS = [
    "origin,destination,distance_meters,duration_minutes,cost",
    '"32.0,118.0","32.1,118.1",1500,20,0',
    '"32.1,118.1","32.0,118.0",1500.5,20,0',
    '"32.2,118.2","32.0,118.0",,20,0',
    '"32.0,118.0","32.2,118.2", 7 ,1_0,٣',
]
RESTAURANTS = [
    "restaurant_id,restaurant_name,latitude,longitude,query_latitude,query_longitude,"
    "price_per_person,cuisine,opening_time,closing_time,nearby_attraction_name,rating,tags",
    "R1,Six Dynasties,32.00,118.00,32.0,118.0,294,Tea,10:00,22:00,Laomendong,4.7,Birthday;Private",
    "R2,Jixian Hotel - Restaurant,,,32.0,118.0,,,,,,,",
    "R1,Six Dynasties,32.00,118.00,32.1,118.1,294,Tea,10:00,22:00,Museum,4.7, ",
]
FILES = {
    "trains/trains.csv": TRAINS,
    "flights/flights.csv": FLIGHTS,
    "hotels/hotels.csv": HOTELS,
    "attractions/attractions.csv": ATTRACTIONS,
    "locations/locations_coords.csv": LOCATIONS,
    "transportation/distance_matrix.csv": WAYS,
    "restaurants/restaurants.csv": RESTAURANTS,
}


def write_database(folder: Path) -> Path:
    """The database of one task."""
    for name, lines in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


TOOLS = {
    "query_train_info": ("origin", "destination", "depDate"),
    "query_flight_info": ("origin", "destination", "depDate"),
    "query_hotel_info": ("destination", "checkinDate", "checkoutDate"),
    "query_attraction_details": ("attraction_name",),
    "recommend_attractions": ("city",),
    "search_location": ("place_name",),
    "query_road_route_info": ("origin", "destination"),
    "recommend_restaurants": ("latitude", "longitude"),
    "query_restaurant_details": ("restaurant_name",),
}
_LABELS = "attraction_id attraction_name city address coordinates latitude longitude description"
_LABELS += " rating visitor_rating opening_hours to closed_dates min_visit_hours max_visit_hours"
_LABELS += " hours_unit ticket_price currency_unit attraction_type remaining_seats sufficient"
_LABELS += " no_info station_sep recommendations"


def write_checkout(folder: Path, tasks: int = 10) -> Path:
    """What a clone of Qwen-Agent has of the travel part, with other words and no program."""
    travel = folder / "benchmark" / "deepplanning" / "travelplanning"
    for name in ("agent", "data", "tools", "evaluation"):
        (travel / name).mkdir(parents=True)
    (travel / "agent" / "prompts.py").write_text(
        'import not_installed\nSYSTEM_PROMPT_EN = """Plan a trip."""\n', encoding="utf-8"
    )
    write_tasks(travel / "data" / "travelplanning_query_en.json", tasks)
    schemas, classes = [], []
    for tool, arguments in TOOLS.items():
        properties = {name: {"type": "string"} for name in arguments}
        parameters = {"type": "object", "properties": properties, "required": list(arguments)}
        function = {"name": tool, "description": f"{tool}.", "parameters": parameters}
        schemas.append({"type": "function", "function": function})
        texts = {name: name.upper() for name in _LABELS.split()}
        count = 4 if tool == "query_flight_info" else 0 if tool == "recommend_attractions" else None
        values = [f"v{n}" for n in range(len(arguments) if count is None else count)]
        nothing = '"nothing"'
        if values:
            filled = " ".join(f"{{{value}}}" for value in values)
            nothing = f'lambda {", ".join(values)}: f"nothing for {filled}"'
        more = (
            "'segment': lambda n: f'leg {n}', 'attraction_suffix': lambda a, b, c: f'{a}/{b}/{c}'"
        )
        more += ", 'coord_not_in_range': lambda c: f'{c} is nowhere'"
        classes.append(
            f"@register_tool({tool!r})\nclass Tool{len(classes)}(Base):\n"
            f"    LANG_FIELDS = {{'en': {repr(texts)[:-1]}, 'not_found': {nothing}, {more}}}}}\n"
            "    def call(self):\n        raise SystemExit\n"
        )
    (travel / "tools" / "tool_schema_en.json").write_text(json.dumps(schemas), encoding="utf-8")
    (travel / "tools" / "all_tool.py").write_text("\n".join(classes), encoding="utf-8")
    return folder


def write_tasks(path: Path, count: int) -> None:
    """Tasks of two and three days in turn, each with a restaurant and a train."""
    tasks = [
        {
            "id": str(number),
            "query": f"Query {number}.",
            "meta_info": {
                "days": 2 + number % 2,
                "people_number": 1,
                "room_number": 1,
                "hard_constraints": {
                    "restaurant_must_eat_named": {"restaurant_name": f"Bar {number}"},
                    "train_seat_class": {"outbound_train_no": "G7798"},
                },
            },
        }
        for number in range(count)
    ]
    path.write_text(json.dumps(tasks), encoding="utf-8")


def write_without_optional_columns(folder: Path) -> None:
    """Three files of a database anew, with those columns alone that the tools cannot do without."""
    files = {
        "hotels": ("hotel_star", "brand", "name", "price"),
        "attractions": ("attraction_type", "attraction_name"),
        "restaurants": ("query_longitude", "query_latitude", "restaurant_name"),
    }
    for name, columns in files.items():
        path = folder / name / f"{name}.csv"
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)


def cells() -> dict[str, list[str]]:
    """All texts of the database by column, for calls that find something."""
    found: dict[str, list[str]] = {}
    for lines in FILES.values():
        names, *rows = csv.reader("\n".join(lines).splitlines(keepends=True))
        for row in rows:
            for name, cell in zip(names, row, strict=False):
                found.setdefault(name, []).append(cell)
    return found


# The benchmark's own agent runs the calls; with the base class that it takes from qwen_agent, or a
# stand-in for it that checks arguments in the same way.
_OFFICIAL = """
import json, sys, types
travel, calls, out = sys.argv[1:]
sys.path.insert(0, travel)
try:
    import qwen_agent.tools.base
except ImportError:
    import jsonschema
    base = types.ModuleType("qwen_agent.tools.base")
    base.TOOL_REGISTRY = {}
    class BaseTool:
        name, description, parameters = "", "", []
        def __init__(self, cfg=None):
            self.cfg = cfg or {}
        def _verify_json_format_args(self, params):
            jsonschema.validate(instance=params, schema=self.parameters)
            return params
    def register_tool(name):
        def decorate(cls):
            cls.name = name
            base.TOOL_REGISTRY[name] = cls
            return cls
        return decorate
    base.BaseTool, base.register_tool = BaseTool, register_tool
    for name in ("qwen_agent", "qwen_agent.tools"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["qwen_agent.tools.base"] = base
from agent.tools_fn_agent import ToolsFnAgent
agents, said = {}, []
for folder, name, arguments in json.load(open(calls)):
    if folder not in agents:
        databases, _, task = folder.rpartition("/id_")
        agents[folder] = ToolsFnAgent("none", task, databases, language="en")
    said.append(agents[folder]._exec_tool(name, json.dumps(arguments)))
json.dump(said, open(out, "w"))
"""


def official_answers(calls: list[tuple[str, str, dict[str, Any]]], tmp_path: Path) -> list[str]:
    """What the benchmark's own tools answer to (a task's folder, a tool, its arguments)."""
    travel = Path(CHECKOUT).resolve() / "benchmark/deepplanning/travelplanning"
    asked, out = tmp_path / "calls.json", tmp_path / "answers.json"
    asked.write_text(json.dumps(calls), encoding="utf-8")
    command = [PYTHON, "-c", _OFFICIAL, str(travel), str(asked), str(out)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=travel, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(out.read_text(encoding="utf-8"))
