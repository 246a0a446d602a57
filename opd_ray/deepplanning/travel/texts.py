"""What the official tools say, read from the user's checkout: labels, and answers without a result.

Every tool's class there has a table ``LANG_FIELDS`` of texts and of functions that fill a text in.
The table alone is run, after a look that it is nothing but that.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd_ray.borders import border
from opd_ray.deepplanning.checkout import Checkout, MissingBenchmark, parsed

_TABLE = "LANG_FIELDS"
_LANGUAGE = "en"
_TEXTS_ONLY = (
    *(ast.Module, ast.ClassDef, ast.Assign, ast.Name, ast.Load, ast.Store, ast.Dict, ast.Constant),
    *(ast.Lambda, ast.arguments, ast.arg, ast.JoinedStr, ast.FormattedValue),
)
_LEG = ("segment", "remaining_seats", "sufficient", "no_info", "not_found")
_ATTRACTION = (
    *("attraction_id", "attraction_name", "city", "address", "coordinates", "latitude"),
    *("longitude", "description", "rating", "visitor_rating", "opening_hours", "to"),
    *("closed_dates", "min_visit_hours", "max_visit_hours", "hours_unit", "ticket_price"),
    *("currency_unit", "attraction_type"),
)
# What our tools say.
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "query_train_info": (*_LEG, "station_sep"),
    "query_flight_info": _LEG,
    "query_hotel_info": ("not_found",),
    "recommend_attractions": ("not_found", "recommendations", "attraction_suffix"),
    "query_attraction_details": ("not_found", *_ATTRACTION),
    "search_location": ("not_found",),
    "query_road_route_info": ("not_found", "coord_not_in_range"),
    "recommend_restaurants": ("not_found",),
    "query_restaurant_details": ("not_found",),
}
TOOLS = tuple(_NEEDED)
_OTHER = "this version of opd-ray knows the benchmark as of its v1.1 (early 2026)"


@dataclass(frozen=True)
class Texts:
    """The texts of one tool by the names that the benchmark gives them."""

    table: Mapping[str, Any]

    def __getitem__(self, name: str) -> str:
        """A text as it is."""
        return self.table[name]

    def say(self, name: str, *values: object) -> str:
        """A text with these values filled in.

        Raises:
            TypeError: the benchmark's own text asks for another number of values.
        """
        return self.table[name](*values)


def read_texts(checkout: Checkout) -> dict[str, Texts]:
    """The texts of the nine tools by tool.

    Raises:
        MissingBenchmark: names the file and the tool or text that is not there.
    """
    folder = checkout.travel / "tools"
    if not folder.is_dir():
        raise MissingBenchmark(f"{folder}: is not there; clone Qwen-Agent again")
    found: dict[str, Texts] = {}
    for path in sorted(folder.glob("*_tool.py")):
        for name, cls in _tools(parsed(path)):
            if name in _NEEDED:
                found[name] = _texts(path, name, cls)
    for name in TOOLS:
        if name not in found:
            raise MissingBenchmark(f"{folder}: has no tool {name!r}; {_OTHER}")
    return found


def _tools(module: ast.Module) -> Iterator[tuple[str, ast.ClassDef]]:
    """The classes of a file that are registered as tools, each with its tool's name."""
    for cls in module.body:
        if isinstance(cls, ast.ClassDef):
            for decorator in cls.decorator_list:
                arguments = decorator.args if isinstance(decorator, ast.Call) else []
                if arguments and isinstance(arguments[0], ast.Constant):
                    yield str(arguments[0].value), cls


def _texts(path: Path, tool: str, cls: ast.ClassDef) -> Texts:
    tables = [
        statement
        for statement in cls.body
        if isinstance(statement, ast.Assign)
        and any(isinstance(t, ast.Name) and t.id == _TABLE for t in statement.targets)
    ]
    if not tables:
        raise MissingBenchmark(f"{path}: the tool {tool!r} has no {_TABLE}; {_OTHER}")
    # In a class of the same name, which is part of what Python says of a wrong call.
    alone = copy(cls)
    alone.bases, alone.keywords, alone.decorator_list = [], [], []
    alone.body = [tables[0]]
    module = ast.Module([alone], [])
    for node in ast.walk(module):
        if not isinstance(node, _TEXTS_ONLY):
            raise MissingBenchmark(
                f"{path}: {_TABLE} of {tool!r} is more than texts ({type(node).__name__} in line "
                f"{getattr(node, 'lineno', '?')}); {_OTHER}"
            )
    space: dict[str, Any] = {"__builtins__": {"__build_class__": __build_class__}}
    space["__name__"] = __name__
    with border(f"{path}: {_TABLE} of {tool!r}", _OTHER, MissingBenchmark):
        exec(compile(module, str(path), "exec"), space)
        table = vars(space[cls.name])[_TABLE].get(_LANGUAGE, {})
    for name in _NEEDED[tool]:
        if name not in table:
            raise MissingBenchmark(
                f"{path}: {_TABLE}[{_LANGUAGE!r}] of {tool!r} has no {name!r}; {_OTHER}"
            )
    return Texts(table)
