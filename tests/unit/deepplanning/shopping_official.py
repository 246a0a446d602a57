"""The benchmark's own shopping code, in a process of its own.

As a program: ``python shopping_official.py CHECKOUT < request.json``. It adds nothing of its own to
what the code there answers; only the client of the model's server is left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any


def ask(checkout: Path, request: dict[str, Any]) -> Any:
    """What the code of the clone says to a request."""
    python = os.environ.get("OPD_RAY_DEEPPLANNING_PYTHON", sys.executable)
    done = subprocess.run(
        [python, __file__, str(checkout)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def can_search() -> bool:
    """Whether that Python has the package that the search needs."""
    python = os.environ.get("OPD_RAY_DEEPPLANNING_PYTHON", sys.executable)
    return subprocess.run([python, "-c", "import rank_bm25"], capture_output=True).returncode == 0


def _agent(home: Path, database: str, case: str) -> Any:
    from shopping_agent import ShoppingFnAgent  # type: ignore[import-not-found]

    schema = home / "tools" / "shopping_tool_schema.json"
    return ShoppingFnAgent(
        model="none",
        sample_id=case,
        database_base_path=database,
        tool_schema_path=str(schema),
    )


def _answer(home: Path, request: dict[str, Any]) -> Any:
    match request["want"]:
        case "calls":  # of each case its calls in order: [name, arguments as text]
            answers = {}
            for number, calls in request["calls"].items():
                agent = _agent(home, request["database"], number)
                answers[number] = [agent._exec_tool(name, text) for name, text in calls]
            return answers
        case "prompts":
            from prompts import prompt_lib  # type: ignore[import-not-found]

            agent = _agent(home, request["database"], "1")
            return {
                "system": [getattr(prompt_lib, f"SYSTEM_PROMPT_level{n}") for n in (1, 2, 3)],
                "second_look": agent._add_to_cart([])[0],
                "tools": agent.openai_tools,
            }
        case "scores":  # of each run its folder of cases; reports go to the folder of reports
            import evaluation_pipeline as pipeline  # type: ignore[import-not-found]
            import score_statistics  # type: ignore[import-not-found]

            reports = Path(request["reports"])
            levels, cases = {}, {}
            for run in request["runs"]:
                folders = sorted(p for p in Path(run).iterdir() if p.name.startswith("case_"))
                results = [pipeline.evaluate_single_case(folder) for folder in folders]
                out = reports / Path(run).name
                out.mkdir(parents=True)
                summary = pipeline.generate_summary_report(results, out)
                levels[run] = json.loads(summary.read_text(encoding="utf-8"))["overall_statistics"]
                cases[run] = {result["case_name"]: result for result in results}
            total = score_statistics.calculate_model_statistics(request["model"], reports)
            return {"cases": cases, "levels": levels, "total": total["total"]}
    raise ValueError(request["want"])


def _main() -> None:
    home = Path(sys.argv[1]) / "benchmark" / "deepplanning" / "shoppingplanning"
    client = types.ModuleType("call_llm")
    client.call_llm = None  # type: ignore[attr-defined]
    sys.modules["call_llm"] = client
    sys.path[:0] = [str(home / "agent"), str(home / "evaluation")]
    request = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        answer = _answer(home, request)
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    _main()
