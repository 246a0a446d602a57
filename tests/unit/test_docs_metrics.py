"""The docs explain the figures that a run writes: all of them, and no other."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_in_run import StandInRun
from stand_ins import Response

from opd_ray.config.choices import Scoring
from opd_ray.config.schema import RunSettings, TrainerSettings
from opd_ray.coordinator.metrics import SHOWN
from opd_ray.coordinator.saving import BLOCKED, WRITTEN
from opd_ray.coordinator.turn_metrics import rollout_metrics, turn_metrics
from opd_ray.evaluation.evaluator import Evaluator
from opd_ray.evaluation.figures import figures
from opd_ray.evaluation.folder import ProblemRecord
from opd_ray.tip import Selection, TokenScores
from opd_ray.types import Rollout, RolloutFigure

DOCS = Path(__file__).parents[2] / "docs"
NAMED = {
    name
    for page in ("metrics.md", "teachers.md", "evaluation.md")
    for name in re.findall(r"`([^`\n]+)`", (DOCS / page).read_text())
}
# Families that the page explains by the parts of their names.
FAMILIES = (
    (r"scores/(\w+)_(mean|q\d\d)", "scores/NAME_mean"),
    (r"tip/Q[1-4]/(\w+)", "{0}"),
    (r"seconds/(\w+)", "{0}"),
    (r"teacher/(?:first|second)/(\w+)", "teacher/{0}"),
    # Of a task, as evaluation.md has them: greedy, of samples (@2), their standard errors.
    (r"eval/sums/(environment|tools)/\w+(?:@2)?(?:_se)?", "{0}/NAME"),
    (r"eval/sums/(tokens_q90|tokens|truncated|accuracy)(?:@2)?(?:_se)?", "{0}"),
    (r"eval/sums/(mean|maj)@2(?:_se)?", "{0}@n"),
    (r"eval/sums/(pass)@2", "{0}@k"),
)
RESPONSES = {
    name: Response(
        mask=[1, 0, 1], logprob=[-1.0] * 3, reverse_kl=[0.1, 0.2, 0.3], exact_kl=[0.2, 0.1, 0.3]
    )
    for name in ("a0", "a1", "b0", "b1")
}


def explained(name: str) -> bool:
    if name in NAMED or f"seconds/{name}" in NAMED:
        return True
    patterns = (re.sub(r"[A-Z]{2,}|\bN\b", "[^/]+", re.escape(one)) for one in NAMED if "/" in one)
    if any(re.fullmatch(pattern, name) for pattern in patterns):
        return True
    for pattern, text in FAMILIES:
        if found := re.fullmatch(pattern, name):
            return text.format(*found.groups()) in NAMED
    return False


def of_steps(**sections: Any) -> set[str]:
    """Those of the steps of a run."""
    subject = StandInRun(RESPONSES, trainer=TrainerSettings(ranks=2), **sections)
    subject.go(0)
    return {name for _, values in subject.rows for name in values} - {"eval/accuracy"}


def of_acting() -> set[str]:
    """Those of rollouts with tools."""
    figures = {**dict.fromkeys(RolloutFigure, 1.0), "environment/success": 1.0}
    floats, ids = np.ones(2, np.float32), np.ones(2, np.int32)
    one = Rollout(
        rollout_id="a",
        prompt_id="a",
        sample=0,
        prompt_ids=ids,
        response_ids=ids,
        response_mask=np.ones(2, np.uint8),
        entropy=floats,
        logprob=floats,
        finish_reason="stop",
        weights_version=0,
        turns=np.array([0, 1], np.int16),
        figures=figures,
    )
    columns = {f"{name}_N": floats for name in SHOWN}
    mask_N, turns_N = np.ones(2, bool), np.array([0, 1])
    scores = TokenScores(np.array([2]), mask_N, 10, turns_N=turns_N, **columns)
    chosen = Selection(floats, 1.0, 1.0)
    return {*rollout_metrics([one]), *turn_metrics([one], scores, chosen)}


def of_evaluations() -> set[str]:
    """Those of held-out tasks, asked greedily and by samples, and of the divergence there."""
    lists: dict[str, Any] = {
        "responses": ["", ""],
        "extracted": ["1", None],
        "correct": [True, False],
        "tokens": [3, 4],
        "finish_reasons": ["stop", "length"],
        "figures": [{"calls": 1.0, "environment/success": 1.0}] * 2,
    }
    records = [ProblemRecord("1", "1", **lists)]
    distance = re.findall(r'"((?:eval|seconds)/\w+)"', inspect.getsource(Evaluator))
    assert len(distance) == 6
    return {*figures("sums", 0, records), *figures("sums", 2, records), *distance}


@pytest.fixture(scope="module")
def written() -> set[str]:
    """Every figure that the code writes, asked of what writes it."""
    return {
        *of_steps(run=RunSettings(steps=2)),
        *of_steps(run=RunSettings(steps=3, lag=1)),
        *of_steps(run=RunSettings(steps=2, overlap=True)),
        *of_steps(run=RunSettings(steps=2), scoring=Scoring.exact),
        *of_acting(),
        *of_evaluations(),
        *(BLOCKED, WRITTEN),
    }


def test_every_figure_that_is_written_is_in_the_docs(written: set[str]) -> None:
    assert sorted(name for name in written if not explained(name)) == []


def test_every_figure_in_the_docs_is_written(written: set[str]) -> None:
    gone = [name for name in listed() if not any(re.fullmatch(name, one) for one in written)]
    assert gone == []


def listed() -> Iterator[str]:
    """The names that the tables of figures list, as patterns."""
    steps = (DOCS / "metrics.md").read_text().partition("## Figures of a step")[2]
    teachers = (DOCS / "teachers.md").read_text().partition("says about its teacher")[2]
    for text in (steps, teachers.partition("\n## ")[0]):
        for cell in re.findall(r"^\|([^|]+)\|", text, re.MULTILINE):
            prefix = ""
            for name in re.findall(r"`([^`]+)`", cell):
                # `scores/NAME_q10`, `_q50`: only the end is another; of stages the same.
                whole = f"scores/NAME{name}" if name.startswith("_") else name
                stage = "/" not in whole and prefix == "seconds/" and name != "idle_share"
                whole = f"{prefix}{name}" if stage else whole
                prefix = f"{whole.partition('/')[0]}/"
                pattern = re.escape(whole)
                yield re.sub(r"[A-Z]{2,}|\bN\b", "[^/]+", pattern).replace(r"\.\.\.", ".+")
