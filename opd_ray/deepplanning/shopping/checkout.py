"""What the benchmark says of shopping, read from the user's clone of Qwen-Agent."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from opd_ray.borders import border
from opd_ray.deepplanning.checkout import Checkout, MissingBenchmark, assigned, parsed, read_json
from opd_ray.environments.environment import Message, ToolSchema

LEVELS = (1, 2, 3)
_CLONE = "name a whole clone of https://github.com/QwenLM/Qwen-Agent, from January 2026 or later"


@dataclass(frozen=True)
class Delivery:
    """How many days a parcel takes from province to province."""

    provinces: Mapping[str, str]  # province by the names that it goes by
    regions: Mapping[str, str]  # region of a province
    days: Mapping[str, Mapping[str, int]]  # from region to region
    carriers: Mapping[str, int]  # days that a carrier takes more
    remote: list[str]  # provinces that take longer


@dataclass(frozen=True)
class ShoppingFacts:
    """Facts that the tools go by, as the clone has them.

    Attributes:
        schemas: of the tools, in the clone's order.
        coupons: those that there are, by the name of the tool that asks.
        search_score: that a product found must be above.
        second_look: the user's message after the first final answer.
    """

    schemas: list[ToolSchema]
    coupons: Mapping[str, list[str]]
    delivery: Delivery
    search_score: float
    second_look: Message


@cache
def read_facts(checkout: Checkout) -> ShoppingFacts:
    """The facts of a clone; nothing of it is executed.

    Raises:
        MissingBenchmark: a file or a name in it is not there.
    """
    folder = checkout.shopping
    tools = folder / "tools"
    schemas = read_json(tools / "shopping_tool_schema.json", _CLONE)
    with border(str(tools / "shopping_tool_schema.json"), _CLONE):
        schemas = [schema for schema in schemas if isinstance(schema["function"]["name"], str)]
    coupons = {
        "filter_by_applicable_coupons": tools / "filter_by_applicable_coupons_tool.py",
        "add_coupon_to_cart": tools / "add_coupon_to_cart.py",
        "delete_coupon_from_cart": tools / "delete_coupon_from_cart.py",
    }
    transport = tools / "calculate_transport_time_tool.py"
    names = _literal(transport, "PROVINCE_ALIASES")
    return ShoppingFacts(
        schemas=schemas,
        coupons={tool: _literal(path, "VALID_COUPONS") for tool, path in coupons.items()},
        delivery=Delivery(
            provinces={name: province for province, known in names.items() for name in known},
            regions=_literal(transport, "REGION_MAP"),
            days=_literal(transport, "BASE_REGION_TIME"),
            carriers=_literal(transport, "PROVIDER_MODIFIERS"),
            remote=_literal(transport, "remote_provinces"),
        ),
        search_score=_literal(tools / "search_products_tool.py", "BM25_SCORE_THRESHOLD"),
        second_look=_second_look(folder / "agent" / "shopping_agent.py"),
    )


def read_system_prompt(checkout: Checkout, level: int) -> str:
    """The system prompt of a level.

    Raises:
        MissingBenchmark: the clone has none.
    """
    return _literal(checkout.shopping / "agent" / "prompts.py", f"SYSTEM_PROMPT_level{level}")


def read_queries(checkout: Checkout, level: int) -> list[dict[str, str]]:
    """The tasks of a level: ``id`` and ``query``.

    Raises:
        MissingBenchmark: the file is not there, or holds something else.
    """
    path = checkout.shopping / "data" / f"level_{level}_query_meta.json"
    rows = read_json(path, _CLONE)
    with border(str(path), _CLONE):
        return [{"id": str(row["id"]), "query": str(row["query"])} for row in rows]


def _literal(path: Path, name: str) -> Any:
    return assigned(path, name, _CLONE)


def _second_look(path: Path) -> Message:
    """The message of the user that the clone's agent adds to a conversation."""
    for function in ast.walk(parsed(path, _CLONE)):
        if isinstance(function, ast.FunctionDef) and function.name == "_add_to_cart":
            for node in ast.walk(function):
                if isinstance(node, ast.Dict):
                    with border(f"{path}: {function.name}", _CLONE):
                        return ast.literal_eval(node)
    raise MissingBenchmark(f"{path}: has no message in _add_to_cart; {_CLONE}")
