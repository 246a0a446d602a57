"""Table and plots of a study from made-up results."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from opd_ray.cli import main
from opd_ray.config.load import load_config, to_yaml
from opd_ray.study.cells import study_cells
from opd_ray.study.page import mean_rows
from opd_ray.study.plots import curve, overlap_matrix
from opd_ray.study.report import arms_of, results_table
from opd_ray.study.results import CellResult, StudyError, StudyFolder
from opd_ray.study.run import report
from opd_ray.tip.settings import TipSettings

ACCURACY = "eval/heldout/accuracy"


def result(arm: str, rule: str, rho: float, seed: int, accuracy: float, kl: float) -> CellResult:
    return CellResult(
        arm=arm,
        seed=seed,
        tip=asdict(TipSettings(rule=rule, rho=rho)),
        step_0={ACCURACY: 0.5, "eval/kl": 0.25},
        final={ACCURACY: accuracy, "eval/kl": kl},
        tokens_written=2000,
        tokens_trained=int(2000 * rho),
        step_seconds=10.0 + seed,
        seconds=20.0,
        overlaps={"soft_or": 0.25 + 0.5 * seed, "all": 1.0},
    )


RESULTS = [
    result("all", "all", 1.0, 0, 0.80, 0.10),
    result("chance", "random", 0.5, 0, 0.70, 0.14),
    result("half", "entropy_topk", 0.5, 0, 0.81, 0.11),
    result("tenth", "q3_only", 0.1, 0, 0.60, 0.20),
    result("all", "all", 1.0, 1, 0.84, 0.12),
    result("chance", "random", 0.5, 1, 0.72, 0.16),
    result("half", "entropy_topk", 0.5, 1, 0.87, 0.13),
]


def cells_of(table: str, arm: str) -> list[str]:
    row = next(line for line in table.splitlines() if line.startswith(f"| {arm} |"))
    return [text.strip() for text in row.strip("|").split("|")]


def test_the_table_by_hand() -> None:
    table = results_table(RESULTS, ACCURACY)
    # Two seeds: t = 12.706 on the error |difference| / 2 of two values.
    assert cells_of(table, "half") == [
        "half",
        "2",
        "1,000",
        "0.8400 ± 0.3812",  # 0.81 and 0.87
        "0.1200 ± 0.1271",
        "+0.0200 ± 0.1271",  # against all: 0.01 and 0.03
        "+0.0100 ± 0.0000",  # 0.01 and 0.01
        "+0.1300 ± 0.2541",  # against random of the same share: 0.11 and 0.15
        "-0.0300 ± 0.0000",
        "10",
    ]
    assert cells_of(table, "(step 0)")[1:5] == ["2", "0", "0.5000 ± 0.0000", "0.2500 ± 0.0000"]
    assert ACCURACY in table
    assert "2,000" in table


def test_any_arm_may_be_what_the_others_are_compared_with() -> None:
    table = results_table(RESULTS, ACCURACY, "half")
    assert "| accuracy − half | KL − half |" in table
    assert "to the arm `half`, and" in table
    assert cells_of(table, "half")[5:7] == ["–", "–"]
    assert cells_of(table, "all")[5] == "-0.0200 ± 0.1271"


def test_what_cannot_be_compared_is_left_open() -> None:
    table = results_table(RESULTS, ACCURACY)
    assert cells_of(table, "all")[5:9] == ["–"] * 4
    tenth = cells_of(table, "tenth")  # one seed: no interval; no random arm keeps a tenth
    assert tenth[3:9] == ["0.6000", "0.2000", "-0.2000", "+0.1000", "–", "–"]


def test_overlaps_are_means_over_the_seeds() -> None:
    names, values_AR = overlap_matrix([arm for arm in arms_of(RESULTS) if arm.arm != "all"])
    assert names == ["entropy_topk", "q3_only", "random", "soft_or"]
    nan = np.nan
    np.testing.assert_allclose(
        values_AR, [[nan, nan, 1, 0.5], [1, nan, nan, 0.5], [nan, 1, nan, 0.25]]
    )


def test_a_curve_has_the_steps_that_all_seeds_have() -> None:
    half = arms_of(RESULTS)[2]
    histories = {
        ("half", 0): [{"step": 0, ACCURACY: 0.5}, {"step": 1}, {"step": 2, ACCURACY: 0.8}],
        ("half", 1): [{"step": 0, ACCURACY: 0.4}, {"step": 2, ACCURACY: 0.9}],
    }
    steps, values_ST = curve(half, histories, ACCURACY)
    assert steps == [0, 2]
    np.testing.assert_array_equal(values_ST, [[0.5, 0.8], [0.4, 0.9]])


def test_the_report_is_made_from_the_result_files(tmp_path: Path) -> None:
    config = load_config("study", [f"run.output_dir={tmp_path}", "study.seeds=[0, 1]"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    with pytest.raises(StudyError, match="no finished cell"):
        report(config)
    folder = StudyFolder(tmp_path)
    for cell in study_cells(config)[:-2]:  # as far as a study came that is still at work
        made = result(cell.arm, cell.config.tip.rule, cell.config.tip.rho, cell.seed, 0.7, 0.1)
        made = CellResult(**{**asdict(made), "tip": asdict(cell.config.tip)})
        place = folder.cell(cell.arm, cell.seed)
        place.mkdir(parents=True)
        (place / "result.json").write_text(json.dumps(asdict(made)))
        rows = [{"step": 0, **made.step_0}, {"step": 50, **made.final}]
        folder.metrics(cell.arm, cell.seed).write_text(
            "".join(f"{json.dumps(row)}\n" for row in rows)
        )
    table = report(config).read_text()
    assert cells_of(table, "teachability_0.1")[1] == "1"
    assert cells_of(table, "random_0.1")[1] == "2"
    for name in ("learning_curves.png", "overlaps.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    # The page has the arms as runs, in the configuration's order; opd-ray report writes it again.
    page = tmp_path / "report.html"
    arms = [arm.name for arm in config.study.arms]
    for path in (page, tmp_path / "again.html"):
        assert path == page or main(["report", str(tmp_path), "--out", str(path)]) == 0
        (data,) = re.findall(r'id="data">(.*?)</script>', path.read_text())
        shown = json.loads(data)
        assert [run["name"] for run in shown["runs"]] == arms
        assert shown["title"] == tmp_path.name
        assert "tip.rule" in [row[0] for row in shown["keys"]]
    (kl,) = [row for row in shown["figures"] if row["name"] == "eval/kl"]
    assert kl["values"][0] == [pytest.approx(0.1), pytest.approx(0.0)]
    assert kl["values"][-1] == [pytest.approx(0.1), None]  # one seed


def test_seeds_have_one_curve_with_an_interval_over_them() -> None:
    seeds = [
        [{"step": 0, "eval/kl": 0.2, "eval/kl_se": 9.0}, {"step": 1, "train/loss": 1.0}],
        [{"step": 0, "eval/kl": 0.4, "eval/kl_se": 9.0}, {"step": 1, "train/loss": 2.0}],
    ]
    first, second = mean_rows(seeds)
    # Two seeds: t = 12.706 on the error 0.1; the page draws 1.96 of what stands here.
    assert first == pytest.approx(
        {"step": 0, "eval/kl": 0.3, "eval/kl_se": 12.706 * 0.1 / 1.96}, rel=1e-4
    )
    assert second == {"step": 1, "train/loss": 1.5}
    assert mean_rows(seeds[:1])[0] == {"step": 0, "eval/kl": 0.2}
