"""The user's clone of Qwen-Agent: where its DeepPlanning has what, read without importing any."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from opd_ray.borders import border
from opd_ray.environments.environment import ToolSchema
from opd_ray.errors import InputError

_INSIDE = Path("benchmark/deepplanning")
_PARTS = ("travelplanning", "shoppingplanning")
_PROMPT = "SYSTEM_PROMPT_EN"
CLONE = "clone https://github.com/QwenLM/Qwen-Agent"


class MissingBenchmark(InputError):
    """Something of the benchmark that is not where it should be, or not as it should be."""


@dataclass(frozen=True)
class Checkout:
    """A clone of Qwen-Agent, by the folder ``benchmark/deepplanning`` in it."""

    folder: Path

    @classmethod
    def at(cls, place: str | Path, named: str = "--from") -> Checkout:
        """The checkout at ``place``: the clone itself, or the benchmark's folder within it.

        Raises:
            MissingBenchmark: there is none; ``named`` is the option or key that says where.
        """
        given = Path(place).expanduser().resolve()
        if not given.is_dir():
            raise MissingBenchmark(f"{named} {place}: there is no such folder; {CLONE}")
        for folder in (given / _INSIDE, given):
            if any((folder / part).is_dir() for part in _PARTS):
                return cls(folder)
        raise MissingBenchmark(
            f"{named} {place}: no {_INSIDE} in it: give a clone of Qwen-Agent that "
            f"has the benchmark ({CLONE}; the package qwen-agent does not contain it)"
        )

    @property
    def travel(self) -> Path:
        """The folder of the travel part."""
        return self.folder / "travelplanning"

    @property
    def travel_database(self) -> Path:
        """Where the benchmark looks for the English databases, one folder a task."""
        return self.travel / "database" / "database_en"

    @cached_property
    def travel_tasks(self) -> list[dict[str, Any]]:
        """The English tasks, each with ``id``, ``query`` and ``meta_info``.

        Raises:
            MissingBenchmark: names the file, and the task and column where one lacks.
        """
        path = self.travel / "data" / "travelplanning_query_en.json"
        return read_tasks(path)

    @cached_property
    def travel_tools(self) -> list[ToolSchema]:
        """The schemas of the English tools.

        Raises:
            MissingBenchmark: the file is not there, or holds something else.
        """
        path = self.travel / "tools" / "tool_schema_en.json"
        schemas = read_json(path)
        good = isinstance(schemas, list) and all(
            isinstance(schema, dict)
            and isinstance(function := schema.get("function"), dict)
            and isinstance(function.get("name"), str)
            and isinstance(function.get("parameters"), dict)
            for schema in schemas
        )
        if not good or not schemas:
            raise MissingBenchmark(f"{path}: holds no list of function schemas; {CLONE}")
        return schemas

    @cached_property
    def travel_prompt(self) -> str:
        """The English system prompt of the travel part, a constant of its ``agent/prompts.py``.

        Raises:
            MissingBenchmark: the file is not there, or has no such constant.
        """
        path = self.travel / "agent" / "prompts.py"
        prompt = assigned(path, _PROMPT)
        if not isinstance(prompt, str):
            raise MissingBenchmark(f"{path}: {_PROMPT} is no text; {CLONE}")
        return prompt

    @property
    def shopping(self) -> Path:
        """The folder of the shopping part."""
        return self.folder / "shoppingplanning"


def read_tasks(path: Path, remedy: str = CLONE) -> list[dict[str, Any]]:
    """The travel tasks of a file in the benchmark's form; ``remedy`` is what makes one.

    Raises:
        MissingBenchmark: names the file, and the task and column where one lacks.
    """
    tasks = read_json(path, remedy)
    if not isinstance(tasks, list) or not tasks:
        raise MissingBenchmark(f"{path}: holds no list of tasks; {remedy}")
    seen: set[str] = set()
    for number, task in enumerate(tasks, 1):
        place = f"{path}: task {number}"
        if not isinstance(task, dict):
            raise MissingBenchmark(f"{place} is {type(task).__name__}, not an object; {remedy}")
        _need(task, {"id": (str, int), "query": (str,), "meta_info": (dict,)}, place, remedy)
        name = str(task["id"])
        place = f"{path}: task {name!r}, meta_info"
        _need(task["meta_info"], {"days": (int,), "hard_constraints": (dict,)}, place, remedy)
        if name in seen:
            raise MissingBenchmark(f"{path}: two tasks have the id {name!r}; {remedy}")
        seen.add(name)
    return tasks


def read_json(path: Path, remedy: str = CLONE) -> Any:
    """What a JSON file of the benchmark holds.

    Raises:
        MissingBenchmark: it is not there, or is no JSON.
    """
    with border(str(path), remedy, MissingBenchmark):
        return json.loads(_read(path, remedy))


def parsed(path: Path, remedy: str = CLONE) -> ast.Module:
    """The syntax tree of a Python file of the benchmark, which is not run.

    Raises:
        MissingBenchmark: it is not there, or is no Python.
    """
    with border(str(path), remedy, MissingBenchmark):
        return ast.parse(_read(path, remedy))


def assigned(path: Path, name: str, remedy: str = CLONE) -> Any:
    """The literal that a Python file of the benchmark assigns to a name, in whatever block.

    Raises:
        MissingBenchmark: it assigns none; or the file is not there, or is no Python.
    """
    for node in ast.walk(parsed(path, remedy)):
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == name for target in node.targets
        ):
            try:
                return ast.literal_eval(node.value)
            except ValueError:
                raise MissingBenchmark(f"{path}: {name} is no literal; {remedy}") from None
    raise MissingBenchmark(f"{path}: assigns nothing to {name}; {remedy}")


def _read(path: Path, remedy: str) -> str:
    if not path.is_file():
        raise MissingBenchmark(f"{path}: is not there; {remedy}")
    with border(str(path), remedy, MissingBenchmark):
        return path.read_text(encoding="utf-8")


def _need(row: dict[str, Any], columns: dict[str, Sequence[type]], place: str, remedy: str) -> None:
    for column, kinds in columns.items():
        if column not in row:
            have = ", ".join(row) or "nothing"
            raise MissingBenchmark(f"{place} has no {column!r} (it has {have}); {remedy}")
        if not isinstance(row[column], tuple(kinds)) or isinstance(row[column], bool):
            found = type(row[column]).__name__
            raise MissingBenchmark(f"{place}: {column!r} is {found}; {remedy}")
