"""How good the plans of a model are: hard constraints by our own count, the rest by the evaluator.

The share of hard constraints that are met is the figure of the TIP paper's table 7; the official
benchmark counts a task only where all of them are.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from opd_ray.borders import writing
from opd_ray.deepplanning.estimate import Share, share
from opd_ray.deepplanning.responses import Response
from opd_ray.deepplanning.travel.hard import judged
from opd_ray.deepplanning.travel.plan import Plan, read_plan
from opd_ray.errors import OutputFolderError
from opd_ray.whole_file import write_whole

Task = Mapping[str, Any]


@dataclass(frozen=True)
class TravelScores:
    """Figures over tasks, each a mean over the samples of a task first."""

    samples: int  # a task
    constraints_met: Share  # of all hard constraints of all tasks
    best: Share  # the same for the best sample of every task
    success: Share  # of plans that meet all of theirs
    plan_given: Share
    by_kind: dict[str, Share]  # constraints met, of one kind
    unread_lines: int  # of all plans
    official: dict[str, Share] = field(default_factory=dict)
    official_failed: int = 0  # plans on which the evaluator itself failed
    synthetic: bool = False  # whether the databases are made up

    def __str__(self) -> str:
        made_up = " on a synthetic database, which says nothing of the benchmark" * self.synthetic
        lines = [
            f"DeepPlanning, travel: {self.constraints_met.tasks} tasks, {self.samples} samples "
            f"each{made_up}; ± standard error, clustered by task",
            f"hard constraints met     {self.constraints_met}",
            f"  best of {self.samples:<4}           {self.best}",
            *(
                f"  {kind}: {of} ({_counted(of.tasks)})"
                for kind, of in sorted(self.by_kind.items())
            ),
            f"all constraints met      {self.success}",
            f"plans given              {self.plan_given}",
        ]
        if self.official:
            lines.append("official evaluator" + " (synthetic database)" * self.synthetic)
            lines += [f"  {name}: {of}" for name, of in self.official.items()]
        if self.official_failed:
            lines.append(f"  it failed on {self.official_failed} plans, which count 0")
        if self.unread_lines:
            lines.append(f"{self.unread_lines} lines of plans could not be read; see problems.json")
        return "\n".join(lines)

    def to_json(self) -> str:
        """All figures as JSON; a standard error that there is not is null."""
        return json.dumps(asdict(self, dict_factory=_with_null), indent=1) + "\n"


def _with_null(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """Fields by name, null for nan, which JSON has not."""
    return {name: None if value != value else value for name, value in items}


@dataclass(frozen=True)
class Judged:
    """The plans of all samples, and what each of them meets."""

    tasks: Sequence[Task]
    plans: dict[str, list[Plan]]  # by task id, one a sample

    @classmethod
    def of(cls, tasks: Sequence[Task], responses: Mapping[str, Sequence[Response]]) -> Judged:
        """Read the plans of the responses, which have the same number for every task."""
        return cls(
            tasks,
            {task: [read_plan(said.text) for said in all_] for task, all_ in responses.items()},
        )

    @property
    def samples(self) -> int:
        return len(next(iter(self.plans.values())))

    def problems_json(self) -> str:
        """What could not be read, a list a sample by task, as JSON."""
        found = {task: [plan.problems for plan in plans] for task, plans in self.plans.items()}
        return json.dumps(found, indent=1) + "\n"

    def scores(self) -> TravelScores:
        """All figures that need no database."""
        met: dict[str, list[list[bool]]] = {}  # by task: a list a sample, in one order
        kinds: dict[str, list[float]] = defaultdict(list)  # by kind: a mean over samples a task
        for task in self.tasks:
            name, meta = str(task["id"]), task["meta_info"]
            verdicts = [judged(plan.as_json, meta) for plan in self.plans[name]]
            met[name] = [list(verdict.values()) for verdict in verdicts]
            for kind in verdicts[0]:
                hits = [verdict[kind] for verdict in verdicts]
                kinds[kind].append(sum(hits) / len(hits))
        counts = [len(of[0]) for of in met.values()]
        ones = [1.0] * len(met)
        return TravelScores(
            samples=self.samples,
            constraints_met=share([_mean(map(sum, of)) for of in met.values()], counts),
            best=share([max(map(sum, of)) for of in met.values()], counts),
            success=share([_mean(bool(v) and all(v) for v in of) for of in met.values()], ones),
            plan_given=share([_mean(p.given for p in of) for of in self.plans.values()], ones),
            by_kind={kind: share(of, [1.0] * len(of)) for kind, of in kinds.items()},
            unread_lines=sum(len(plan.problems) for of in self.plans.values() for plan in of),
        )


def write_results(
    folder: Path,
    judged_plans: Judged,
    responses: Mapping[str, Sequence[Response]],
    model: str,
) -> list[Path]:
    """A folder a sample as the official evaluator reads it; a response without a plan has no plan
    file there, by which the evaluator knows that none was delivered.

    Raises:
        OutputFolderError: the folder holds something.
        WriteError: it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputFolderError(
            f"--out {folder}: is not empty; choose another folder, or delete it"
        )
    written = []
    for sample in range(judged_plans.samples):
        place = folder / f"sample_{sample}"
        for task in judged_plans.tasks:
            plan = judged_plans.plans[str(task["id"])][sample]
            _write_sample(place, task, plan, responses[str(task["id"])][sample], model)
        with writing(place):
            (place / "converted_plans").mkdir(exist_ok=True)
        written.append(place)
    return written


def _write_sample(place: Path, task: Task, plan: Plan, said: Response, model: str) -> None:
    name = f"id_{task['id']}"
    trajectory = {
        "id": name,
        "query": task["query"],
        "model": model,
        "language": "en",
        "final_plan": plan.text,
        "messages": said.messages or [{"role": "assistant", "content": said.text}],
        "success": True,
    }
    _write(place / "trajectories" / f"{name}.json", json.dumps(trajectory, indent=1))
    if plan.given:
        _write(place / "reports" / f"{name}.txt", plan.text)
        converted = json.dumps(plan.as_json, ensure_ascii=False, indent=1)
        _write(place / "converted_plans" / f"{name}_converted.json", converted)


def _write(path: Path, text: str) -> None:
    # A response may hold half a character, which no file in UTF-8 can.
    write_whole(path, text.encode(errors="replace"))


def _counted(tasks: int) -> str:
    return "1 task" if tasks == 1 else f"{tasks} tasks"


def _mean(values: Any) -> float:
    listed = [float(value) for value in values]
    return sum(listed) / len(listed)
