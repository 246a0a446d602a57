"""The page in a real browser: it draws without a complaint, chooses as the library, and scrolls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_run import make_run, row_of, snapshot_of
from report_browser import Page, browser, needs_browser

from opd_ray.report.page import write_comparison, write_report
from opd_ray.tip import TipFilter, TipSettings

pytestmark = needs_browser
SIZES = [60, 41, 125]
ACTING = {"share_of": "turn", "normalise_over": "rollout"}
# Scrolls through the token view and gives the milliseconds of every frame.
SCROLL = """
new Promise((done) => {
  document.documentElement.style.scrollBehavior = "auto";
  const paper = document.querySelector(".paper");
  const top = paper.getBoundingClientRect().top + scrollY, end = top + paper.offsetHeight;
  const frames = []; let at = top, last = performance.now(), most = 0;
  const step = (now) => {
    frames.push(now - last); last = now;
    most = Math.max(most, document.querySelectorAll(".paper .t").length);
    at += 400;
    if (at > top + 80000 || at > end) { done({ frames, most, all: paper.offsetHeight }); return; }
    scrollTo(0, at);
    requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
})
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture(autouse=True)
def no_complaints(page: Page) -> Iterator[None]:
    page.errors.clear()
    page.requests.clear()
    yield
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []


def written(folder: Path, sizes: list[int], **options: Any) -> Path:
    make_run(folder, sizes, **options)
    write_report(folder, folder / "report.html")
    return folder / "report.html"


def kept_by_library(rule: str, rho: float) -> list[list[int]]:
    """Of the last step of the made run: its second batch."""
    draw = np.random.default_rng(0)
    own = TipFilter(TipSettings(**ACTING))
    snapshot_of(draw, SIZES, own, acting=True)
    tip = TipFilter(TipSettings(**ACTING, rule=rule, rho=rho))
    snapshot, _ = snapshot_of(draw, SIZES, tip, acting=True)
    kept_M = snapshot.selection.weights_N[snapshot.scores.response_mask_N] > 0
    lengths = snapshot.scores.student_tokens().lengths_R
    return [part.astype(int).tolist() for part in np.split(kept_M, np.cumsum(lengths)[:-1])]


def drawn_marks(page: Page) -> list[int]:
    """Of every token of the student's as it is drawn: whether it is marked as kept."""
    marks: list[int] = page.run(
        """new Promise((done) => {
          const look = () => {
            const all = [...document.querySelectorAll(".paper .t")];
            if (all.length < opdRay.view.shown.reduce((sum, one) => sum + one.size, 0)) {
              requestAnimationFrame(look);
              return;
            }
            const own = all.filter((token) => !token.matches(".o"));
            done(own.map((token) => Number(token.classList.contains("k"))));
          };
          look();
        })"""
    )
    return marks


def test_slider_and_rule_choose_as_the_library_does(tmp_path: Path, page: Page) -> None:
    page.resize(1280, 4000)  # all of them are near enough to be drawn
    page.open(written(tmp_path, SIZES, acting=True, tip=ACTING))
    page.run("document.querySelector('.paper').scrollIntoView()")
    kept = "opdRay.view.shown.map((one) => Array.from(one.kept))"
    assert page.run(kept) == kept_by_library("soft_or", 0.5)  # as the run chose
    for rule, rho in (("soft_or", 20), ("entropy_sample", 35), ("q3_only", 10), ("all", 10)):
        page.run(
            f"""(() => {{
              const rule = document.getElementById("rule"), rho = document.getElementById("rho");
              rule.value = "{rule}"; rule.dispatchEvent(new Event("change"));
              rho.value = {rho}; rho.dispatchEvent(new Event("input"));
            }})()"""
        )
        wanted = kept_by_library(rule, rho / 100)
        assert page.run(kept) == wanted
        assert drawn_marks(page) == [mark for one in wanted for mark in one]
    assert "keeps" in page.run("document.getElementById('told').textContent")
    page.run("document.getElementById('as-run').click()")
    assert page.run(kept) == kept_by_library("soft_or", 0.5)
    page.resize(1280, 900)


def test_a_token_tells_all_that_is_known_of_it(tmp_path: Path, page: Page) -> None:
    page.open(written(tmp_path, SIZES, acting=True, tip=ACTING))
    page.run("opdRay.view.goWrong(1)")
    card = page.run("document.getElementById('card').innerText")
    for words in ("Q3", "turn ", "probability of this token", "likeliest, student", "teacher"):
        assert words in card
    assert page.run("document.querySelectorAll('#card .likeliest').length") == 2
    page.run("opdRay.view.go(opdRay.view.shown[0], 15)")  # a tool's
    assert "never scored" in page.run("document.getElementById('card').innerText")
    before = page.run("opdRay.view.cursor.i")
    page.run(
        "document.querySelector('.paper').dispatchEvent("
        "new KeyboardEvent('keydown', { key: 'ArrowRight' }))"
    )
    assert page.run("opdRay.view.cursor.i") == before + 1


def test_sources_and_teachers_stand_in_tables(tmp_path: Path, page: Page) -> None:
    folder = make_run(tmp_path / "run", SIZES)
    figures = {"source/<b>/kept_share": 0.25, "source/c/tokens": 1200.0, "teacher/one/tokens": 7.0}
    rows = [row_of(step, **figures) for step in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    write_report(folder, folder / "report.html")
    page.open(folder / "report.html")
    cells = "[...document.querySelectorAll('#{} .figures tbody tr')].map((row) => row.innerText)"
    first, second = page.run(cells.format("training"))
    assert first.split()[0] == "<b>"
    assert "25.0 %" in first.replace("\u00a0", " ")
    assert second.split()[:3] == ["c", "—", "2,400"]
    (teacher,) = page.run(cells.format("time"))
    assert teacher.split()[:2] == ["one", "14"]


def test_hostile_tokens_are_text(tmp_path: Path, page: Page) -> None:
    page.open(written(tmp_path, SIZES))
    text = page.run("document.querySelector('.paper').textContent")
    assert "</script><script>alert(1)</script>" in text
    assert "\u202e" not in text
    assert page.run("document.querySelectorAll('.paper img, .paper script').length") == 0


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone_nothing_runs_out_of_the_screen(tmp_path: Path, page: Page, dark: bool) -> None:
    page.resize(390, 844, phone=True)
    page.dark(dark)
    page.open(written(tmp_path, SIZES, acting=True))
    assert page.run("document.documentElement.scrollWidth") == 390
    ink, paper = page.run(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert (brightness(ink) > brightness(paper)) == dark
    page.resize(1280, 900)
    page.dark(False)


def test_long_rollouts_are_drawn_where_one_looks(tmp_path: Path, page: Page) -> None:
    page.open(written(tmp_path, [4000] * 20, tip={"overlap": False}, rollouts=20))
    shown = page.run("opdRay.view.shown.map((one) => one.size)")
    assert shown == [4000] * len(shown)
    assert len(shown) >= 18
    found = page.run(SCROLL)
    frames = np.array(found["frames"][2:])
    print(
        f"{len(frames)} frames through {found['all']:.0f} px: median {np.median(frames):.1f} ms, "
        f"99th percentile {np.quantile(frames, 0.99):.1f} ms; at most {found['most']} tokens drawn"
    )
    assert 0 < found["most"] < 12_000  # of 80,000


def test_several_runs_side_by_side(tmp_path: Path, page: Page) -> None:
    runs = [
        make_run(tmp_path / "a", SIZES),
        make_run(tmp_path / "b", SIZES, tip={"rho": 0.2}, seed=1),
    ]
    write_comparison(runs, tmp_path / "page.html")
    page.open(tmp_path / "page.html")
    text = page.run("document.body.innerText")
    assert "tip.rho" in text
    assert "0.7 ± 0.039" in text
    curves = "document.querySelectorAll('#curves svg .curve').length"
    assert page.run(curves) > 10
    page.run("[...document.querySelectorAll('#curves button')].at(-1).click()")
    assert page.run(curves) > 10
    assert "seconds of wall time" in page.run("document.getElementById('curves').textContent")


def brightness(colour: str) -> float:
    return sum(map(float, colour.strip("rgb()").split(",")[:3]))
