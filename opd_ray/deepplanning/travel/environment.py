"""A travel task as an environment: the tools over its database, the plan judged by its words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opd_ray.borders import border
from opd_ray.deepplanning.checkout import MissingBenchmark
from opd_ray.deepplanning.responses import final_answer
from opd_ray.deepplanning.synthetic.write import is_synthetic
from opd_ray.deepplanning.travel.database import Database, open_database
from opd_ray.deepplanning.travel.hard import judged
from opd_ray.deepplanning.travel.plan import read_plan
from opd_ray.deepplanning.travel.tools import travel_tools
from opd_ray.environments.environment import Message, ToolResult

_REMEDY = "make the prompts with: opd-ray prepare deepplanning"


class TravelEnvironment:
    """One rollout of a travel task, over rows that ``opd-ray prepare deepplanning`` wrote.

    Databases and schemas are read once a process and shared by all instances.

    Args:
        checkout: the user's clone of Qwen-Agent.

    Raises:
        MissingBenchmark: something of the checkout is not there.
    """

    def __init__(self, checkout: str) -> None:
        self._tools = travel_tools(checkout, "environment.arguments.checkout =")
        self.tools = self._tools.schemas
        self._database: Database | None = None
        self._meta: Mapping[str, Any] = {}
        self._synthetic = False

    def reset(self, row: Mapping[str, Any]) -> list[Message]:
        """The system prompt of the checkout and the query, as the row has them.

        Raises:
            MissingBenchmark: a column or the task's database is not there.
        """
        place = f"task {row.get('task_id', row.get('id', '?'))!r}"
        for column in ("prompt", "database", "meta_info"):
            if column not in row:
                raise MissingBenchmark(f"{place}: the row has no column {column!r}; {_REMEDY}")
        meta = row["meta_info"]
        with border(f"{place}: column 'meta_info'", _REMEDY, MissingBenchmark):
            self._meta = json.loads(meta) if isinstance(meta, str) else meta
        if not isinstance(self._meta, Mapping):
            raise MissingBenchmark(f"{place}: column 'meta_info' is no object; {_REMEDY}")
        self._database = open_database(row["database"])
        self._synthetic = is_synthetic(Path(row["database"]).parent)
        return [dict(message) for message in row["prompt"]]

    def call_tool(self, name: str, arguments: dict[str, Any]) -> ToolResult:
        """What the official tool answers."""
        if self._database is None:
            raise RuntimeError("reset comes first")
        return ToolResult(self._tools.call(self._database, name, arguments))

    def verify(self, messages: Sequence[Message]) -> dict[str, float]:
        """Of the plan in the last message: ``success``, 1 if all hard constraints are met;
        ``constraints_met``, the share of them that are; ``plan_given``, 1 if there is a plan.
        Beside them ``synthetic``, 1 if the database is made up, so that no figure passes for one of
        the benchmark.

        None of them needs the database. A rollout that was cut off before its plan has none.
        """
        plan = read_plan(final_answer(messages))
        met = list(judged(plan.as_json, self._meta).values())
        return {
            "success": float(bool(met) and all(met)),
            "constraints_met": sum(met) / len(met) if met else 0.0,
            "plan_given": float(plan.given),
            "synthetic": float(self._synthetic),
        }

    def close(self) -> None:
        """Nothing to let go of: what was read stays for other rollouts."""
