"""The page: its figures are the run's, nothing of a run can break it, and it stays small."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_run import HOSTILE, make_run, row_of

from opd_ray.cli import main
from opd_ray.errors import InputError, OutputFolderError
from opd_ray.output.folder import OutputFolder
from opd_ray.report.compared_runs import compared_data
from opd_ray.report.page import embedded, html, within, write_report
from opd_ray.report.page_data import run_data
from opd_ray.report.run_folder import RunFolder
from opd_ray.report.shown_rollouts import MOST_BYTES, size


class Parts(HTMLParser):
    """The elements of a page, and the text of those that are scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script" and self.scripts:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = attributes, text + data


def parsed(page: Path) -> tuple[Parts, dict[str, Any]]:
    """Its elements and its data."""
    parts = Parts()
    parts.feed(page.read_text(encoding="utf-8"))
    (data,) = [text for attributes, text in parts.scripts if attributes.get("id") == "data"]
    return parts, json.loads(data)


def test_figures_of_the_page_are_those_of_the_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    write_report(folder, tmp_path / "page.html")
    _, data = parsed(tmp_path / "page.html")
    rows: dict[int, dict[str, Any]] = {}
    for line in (folder / "metrics.jsonl").open():
        row = json.loads(line)
        rows.setdefault(row["step"], {}).update(row)
    columns = data["rows"]
    assert columns["step"] == [0, 1, 2, 3, 4]
    assert len(columns) > 15
    for name, values in columns.items():
        assert values == [rows[step].get(name) for step in columns["step"]], name
    drawn = {curve["name"] for chart in data["charts"] for curve in chart["curves"]}
    assert drawn <= columns.keys()
    facts = {(label, unit): value for label, value, unit in data["facts"]}
    assert facts["median step", "s"] == 2.0
    assert facts["tokens written", "a second and GPU"] == 25.0  # 50 on two
    assert facts["rollouts", "a second"] == 5.0  # ten of ten tokens in two seconds
    assert facts["tokens trained on", "a second"] == (51 + 52 + 53 + 54) / 8
    assert facts["wall time", "duration"] == 4 * 2.0 + 2 * 3.0
    (accuracy,) = [row for row in data["held_out"] if row["name"] == "eval/sums/accuracy"]
    assert (accuracy["before"], accuracy["after"]) == ([0.5, 0.02], [0.7, 0.02])
    assert accuracy["teacher"] == [0.95, 0.01]
    (chart,) = [chart for chart in data["charts"] if chart["title"] == "sums, accuracy"]
    assert chart["lines"] == [["teacher", 0.95]]


def test_sources_and_teachers_have_a_table_each(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    assert run_data(RunFolder.read(folder))["groups"] == []
    kl = [4.0, 3.0, 2.0, 1.0]
    rows = [
        row_of(
            step,
            **{"source/a/b/tokens": 10.0, "source/a/b/reverse_kl_mean": kl[step - 1]},
            **{"source/c/tokens": 5.0 * step, "source/c/kept_share": 0.1 * step},
            **{"teacher/first/tokens": 7.0, "teacher/first/wait_max_seconds": float(step)},
            **{"teacher/replica/first-0/tokens": 7.0, "teacher/tokens": 7.0},
        )
        for step in range(1, 5)
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    sources, teachers = run_data(RunFolder.read(folder))["groups"]
    labels = [label for label, _ in sources["columns"]]
    of = {name: dict(zip(labels, cells, strict=True)) for name, *cells in sources["rows"]}
    assert [*of] == ["a/b", "c"]
    assert of["a/b"]["KL(student ‖ teacher)"] == [4.0, 1.0]
    assert of["c"]["KL(student ‖ teacher)"] == [None, None]
    assert of["c"]["tokens written"] == [None, 50.0]
    assert of["c"]["kept"] == [None, 0.4]
    ((name, tokens, *_, longest),) = teachers["rows"]
    assert (name, tokens, longest) == ("first", [None, 28.0], [None, 4.0])


def test_no_text_of_a_run_ends_an_element_or_loads_anything(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    write_report(folder, tmp_path / "page.html")
    parts, data = parsed(tmp_path / "page.html")
    assert parts.tags.count("script") == 2
    assert "img" not in parts.tags
    assert set(HOSTILE) <= set(data["vocabulary"])
    answers = data["answers"][0]["after"]["problems"]
    assert answers[1]["response"] == HOSTILE[0]
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    told = re.findall(
        r"""(?:src|href)=["']([^"'#]+)|url\(([^)#]+)\)|@import""", page.split("<script")[0]
    )
    assert [one for one in told if one[0] != "data:,"] == []
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|importScripts|eval)\(", page)


def test_a_name_that_is_markup_is_text(tmp_path: Path) -> None:
    page = html({"kind": "run"}, "</title><script>alert(1)</script>")
    parts = Parts()
    parts.feed(page)
    assert parts.tags.count("script") == 2
    assert embedded({"x": "</script>\u2028<!--"}) == '{"x":"\\u003c/script>\\u2028\\u003c!--"}'


def test_what_is_too_much_is_left_out_and_said(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [400] * 6)
    run = RunFolder.read(folder)
    whole = run_data(run)
    assert (len(whole["rollouts"]), whole["left_out"]) == (12, [])
    most = size(whole) * 2 // 3 + len(html({}, ""))
    page = within(lambda room: run_data(run, room), "", most)
    assert len(page.encode()) <= most
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    _, data = parsed(tmp_path / "page.html")
    kept = len(data["rollouts"])
    assert 0 < kept < 12
    assert f"{12 - kept} of 12 rollouts" in " ".join(data["left_out"])
    # The last step comes first.
    assert sum(one["step"] == 4 for one in data["rollouts"]) == 6
    assert data["rows"] == whole["rows"]


def test_twenty_rollouts_of_4000_tokens_fit(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [4000] * 10)
    write_report(folder, tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size <= MOST_BYTES
    _, data = parsed(tmp_path / "page.html")
    assert [one["tokens_shown"] for one in data["rollouts"]] == [4000] * 20


def test_a_rollout_that_is_kept_in_part_is_said(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [30], tokens=20)
    data = run_data(RunFolder.read(folder))
    assert data["rollouts"][0]["tokens_shown"] == 20
    assert data["left_out"] == ["the ends of 2 rollouts of more than report.tokens tokens"]


def test_a_long_run_shows_rows_evenly_and_every_evaluation(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    rows = [row_of(step) for step in range(1, 4001)]
    rows[1000] |= {"seconds/eval": 1.0, "eval/kl": 0.2}
    rows[10]["train/loss"] = math.inf
    text = "".join(f"{json.dumps(row)}\n" for row in rows).replace("Infinity", "null")
    (folder / "metrics.jsonl").write_text(text)
    data = run_data(RunFolder.read(folder))
    steps = data["rows"]["step"]
    assert len(steps) <= 1501
    assert {1, 1001, 4000} <= set(steps)
    assert "curves show" in data["left_out"][0]


@pytest.mark.parametrize("missing", ["close_ups.jsonl", "history.jsonl", "versions.json"])
def test_a_folder_of_an_older_version_has_a_page(tmp_path: Path, missing: str) -> None:
    folder = make_run(tmp_path / "run")
    (folder / missing).unlink()
    write_report(folder, tmp_path / "page.html")
    assert parsed(tmp_path / "page.html")[1]["kind"] == "run"


def test_a_key_that_is_gone_by_now_is_told(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    with (folder / "config.yaml").open("a") as file:
        file.write("gone: {key: 1}\n")
    assert "gone.key" in [key for key, *_ in RunFolder.read(folder).changed_keys()]


def test_a_run_before_its_first_step_has_a_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", finished=False)
    first = (folder / "metrics.jsonl").read_text().splitlines()[0]
    (folder / "metrics.jsonl").write_text(f"{first}\n")
    (folder / "close_ups.jsonl").unlink()
    write_report(folder, tmp_path / "page.html", locked=True)
    head = parsed(tmp_path / "page.html")[1]["head"]
    assert (head["state"], head["taken"]) == ("running", 0)


def test_how_a_run_ended(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", finished=False)
    assert RunFolder.read(folder).ending[0] == "unknown"
    output = OutputFolder(folder)
    with output:
        assert RunFolder.read(folder).ending[0] == "running"
    output.history.stop(2, "trainer-0 died", failed=True)
    assert RunFolder.read(folder).ending == ("failed", "after step 2: trainer-0 died")
    output.history.stop(3, "it was asked to stop", failed=False)
    assert RunFolder.read(folder).ending[0] == "stopped"
    output.history.finish(4)
    assert RunFolder.read(folder).ending == ("finished", "all 4 steps are taken")


def test_keys_that_differ_from_their_defaults_are_told(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", tip={"rho": 0.2})
    keys = {key: (here, before) for key, here, before in RunFolder.read(folder).changed_keys()}
    assert keys["tip.rho"] == (0.2, 0.5)
    assert keys["student.path"][0] == "models/student"
    assert "run.output_dir" not in keys
    assert [key for key in keys if key.startswith("eval.tasks")] == ["eval.tasks[0].name"]
    assert "tip.rule" not in keys


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="not the folder of a run"):
        RunFolder.read(tmp_path)
    assert main(["report", str(tmp_path)]) == 2
    assert "give the run.output_dir of one that has begun" in capsys.readouterr().err


def test_a_record_that_is_broken_is_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "close_ups.jsonl").write_text('{"step": 1, "kind": "nothing"}\n')
    with pytest.raises(InputError, match=r"close_ups\.jsonl"):
        RunFolder.read(folder)
    (folder / "close_ups.jsonl").unlink()
    (folder / "history.jsonl").write_text("[1]\n")
    with pytest.raises(OutputFolderError, match=r"history\.jsonl"):
        RunFolder.read(folder)


def test_the_command_writes_beside_the_run_or_where_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(tmp_path / "run")
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    assert main(["report", str(folder), "--out", str(tmp_path / "x" / "own.html")]) == 0
    assert (tmp_path / "x" / "own.html").is_file()
    monkeypatch.chdir(tmp_path)
    other = make_run(tmp_path / "other", tip={"rho": 0.2})
    assert main(["report", str(folder), str(other)]) == 0
    assert parsed(tmp_path / "comparison.html")[1]["kind"] == "compare"


def test_runs_are_compared_over_steps_tokens_and_time(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a" / "run", steps=3)
    second = make_run(tmp_path / "b" / "run", tip={"rho": 0.2}, seed=1)
    data = compared_data([RunFolder.read(one) for one in (first, second)])
    assert [run["name"] for run in data["runs"]] == ["a/run", "b/run"]
    rows = data["runs"][0]["rows"]
    assert rows["step"] == [0, 1, 2, 3]
    assert rows["kept"] == [0, 51, 103, 156]
    # The evaluation at the end is part of the last row.
    assert rows["seconds"] == [3.0, 5.0, 7.0, 12.0]
    assert rows["train/loss"] == [None, 0.5, 0.25, 0.5 / 3]
    assert [row for row in data["keys"] if row[0] != "report.rollouts"] == [
        ["run.steps", 3, 4],
        ["tip.rho", 0.5, 0.2],
    ]
    (accuracy,) = [row for row in data["figures"] if row["name"] == "eval/sums/accuracy"]
    assert accuracy["values"] == [[0.7, 0.02], [0.7, 0.02]]
