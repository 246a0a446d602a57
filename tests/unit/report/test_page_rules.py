"""The rules that run in the page choose what the library's filter chooses."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_run import make_run, snapshot_of

from opd_ray.output.close_ups import RolloutView, StepView, read_views
from opd_ray.report.page import script
from opd_ray.tip import TipFilter, TipSettings, rule_names

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="no Node.js here: install one (nodejs)")
# Reads cases from stdin; gives what the page would keep of each.
RUNNER = """
const cases = JSON.parse(require("fs").readFileSync(0, "utf8"));
const choices = cases.map(({ rule, rho, view, step }) => {
  const record = { ...view, tokens_shown: view.shown, chances: {} };
  const one = new Rollout(record, withEdges(step), [], []);
  return Array.from(choose(rule, one.columns, one.settings(rho)));
});
console.log(JSON.stringify(choices));
"""


def chosen_by_page(cases: list[dict[str, Any]]) -> list[list[int]]:
    """Run the page's own script up to its last part, which draws."""
    parts = script().split("// The page: what there is to show")[0]
    assert NODE is not None
    found = subprocess.run(
        [NODE, "-e", parts + RUNNER],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    answers: list[list[int]] = json.loads(found.stdout)
    return answers


def cases_of(folder: Path, rules: list[str], shares: list[float]) -> list[dict[str, Any]]:
    views = [view for _, view in read_views(folder / "close_ups.jsonl")]
    step = next(view for view in views if isinstance(view, StepView))
    count = step.rollouts
    rollouts = [view for view in views if isinstance(view, RolloutView)][:count]
    return [
        {"rule": rule, "rho": rho, "view": {**vars(one), "shown": one.tokens}, "step": vars(step)}
        for rule in rules
        for rho in shares
        for one in rollouts
    ]


def chosen_by_filter(
    settings: dict[str, Any], sizes: list[int], rules: list[str], shares: list[float], acting: bool
) -> list[list[int]]:
    """The same of the library, of the same draws."""
    found = []
    for rule in rules:
        for rho in shares:
            tip = TipFilter(TipSettings(**{**settings, "rule": rule, "rho": rho}))
            snapshot, _ = snapshot_of(np.random.default_rng(0), sizes, tip, acting=acting)
            mask_N = snapshot.scores.response_mask_N
            kept_M = (snapshot.selection.weights_N[mask_N] > 0).astype(int)
            lengths = snapshot.scores.student_tokens().lengths_R
            found += [part.tolist() for part in np.split(kept_M, np.cumsum(lengths)[:-1])]
    return found


@needs_node
@pytest.mark.parametrize(
    ("settings", "acting"),
    [
        ({}, False),
        ({"share_of": "turn", "normalise_over": "turn"}, True),
        ({"share_of": "batch", "divergence": "forward_kl"}, True),
        ({"normalisation": "rank", "alpha": 2.0, "gamma": 0.5, "normalise_over": "rollout"}, False),
        ({"divergence": "jsd", "normalisation": "q05_q95", "h_clip": 0.5}, True),
    ],
    ids=["paper", "turns", "batch", "ranks", "quantiles"],
)
def test_every_rule_keeps_the_same_tokens_in_the_page(
    tmp_path: Path, settings: dict[str, Any], acting: bool
) -> None:
    sizes, shares = [30, 1, 173, 64], [0.0, 0.05, 0.29, 0.5, 0.77, 1.0]
    rules = list(rule_names())
    folder = make_run(tmp_path, sizes, tip=settings, acting=acting)
    found = chosen_by_page(cases_of(folder, rules, shares))
    assert found == chosen_by_filter(settings, sizes, rules, shares, acting)


@needs_node
def test_the_page_knows_every_rule_of_the_library() -> None:
    parts = script().split("// The page: what there is to show")[0]
    assert NODE is not None
    told = subprocess.run(
        [NODE, "-e", parts + "console.log(JSON.stringify(Object.keys(RULES)))"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert sorted(json.loads(told.stdout)) == sorted(rule_names())


@needs_node
def test_packed_numbers_are_read_as_they_were_written() -> None:
    halves = np.array([0.0, -0.5, 1.0, -65504.0, 6e-5, 5.9e-8, -np.inf], np.float16)
    parts = script().split("// The page: what there is to show")[0]
    bits = halves.view(np.uint16).tolist()
    code = f"const values = Array.from(halves(Uint16Array.from({bits})));"
    code += "console.log(JSON.stringify(values.map(String)))"
    assert NODE is not None
    told = subprocess.run(
        [NODE, "-e", parts + code], capture_output=True, text=True, timeout=60, check=True
    )
    assert [float(x.replace("Infinity", "inf")) for x in json.loads(told.stdout)] == halves.tolist()
