"""Every figure that a step writes is explained in the docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from stand_in_run import StandInRun
from stand_ins import Response

from opd_ray.config.schema import RunSettings, TrainerSettings

DOCS = Path(__file__).parents[2] / "docs"
NAMED = {
    name
    for page in ("metrics.md", "teachers.md")
    for name in re.findall(r"`([^`\n]+)`", (DOCS / page).read_text())
}
# Families that the page explains by the parts of their names.
FAMILIES = (
    (r"scores/(\w+)_(mean|q\d\d)", "scores/NAME_mean"),
    (r"tip/Q[1-4]/(\w+)", "{0}"),
    (r"seconds/(\w+)", "{0}"),
    (r"teacher/(?:first|second)/(\w+)", "teacher/{0}"),
)
RESPONSES = {
    name: Response(mask=[1, 0, 1], logprob=[-1.0] * 3, reverse_kl=[0.1, 0.2, 0.3])
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


@pytest.mark.parametrize(
    "run", [RunSettings(steps=2), RunSettings(steps=3, lag=1), RunSettings(steps=2, overlap=True)]
)
def test_every_figure_of_a_step_is_in_the_docs(run: RunSettings) -> None:
    subject = StandInRun(RESPONSES, run=run, trainer=TrainerSettings(ranks=2))
    subject.go(0)
    names = {name for _, values in subject.rows for name in values} - {"eval/accuracy"}
    assert sorted(name for name in names if not explained(name)) == []
