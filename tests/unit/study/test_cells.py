"""Which cells a study has, which are finished, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from opd_ray.config.load import load_config
from opd_ray.config.schema import Config
from opd_ray.errors import ConfigError, OutputFolderError
from opd_ray.output.folder import OutputFolder
from opd_ray.study.cells import Cell, study_cells
from opd_ray.study.results import StudyError, StudyFolder, cell_result
from opd_ray.study.run import _begin

ARMS = "study.arms=[{name: a, tip: {rule: random, rho: 0.1}}, {name: b, tip: {rule: all}}]"


def rows() -> list[dict[str, float]]:
    """Metrics of two steps, evaluated before and after."""
    step = {"train/loss": 0.5, "rollout/tokens": 100, "seconds/step": 1.5}
    return [
        {"step": 0, "eval/kl": 0.4, "eval/heldout/accuracy": 0.5, "seconds/eval": 1.0},
        {"step": 1, "train/kept_tokens": 30, "tip/overlap/soft_or": 0.2, **step},
        {
            "step": 2,
            "train/kept_tokens": 32,
            "tip/overlap/soft_or": 0.4,
            "eval/kl": 0.3,
            "eval/heldout/accuracy": 0.6,
            **step,
        },
    ]


@pytest.fixture
def config() -> Config:
    return load_config("study", [ARMS, "study.seeds=[5, 1]", "tip.h_clip=0.9"])


@pytest.fixture
def cells(config: Config) -> list[Cell]:
    return study_cells(config)


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return StudyFolder(tmp_path)


def finish(folder: StudyFolder, cell: Cell) -> None:
    path = folder.metrics(cell.arm, cell.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    folder.finish(cell, 9.0)


def test_the_packaged_study_has_every_arm_with_every_seed() -> None:
    config = load_config("study")
    cells = study_cells(config)
    assert {cell.seed for cell in cells} == {0, 1, 2, 3, 4}
    chosen = {(c.config.tip.rule, c.config.tip.rho) for c in cells if c.arm != "all"}
    assert chosen == {
        *(("random", rho) for rho in (0.5, 0.2, 0.1)),
        ("entropy_sample", 0.5),
        ("entropy_topk", 0.5),
        *(("soft_or", rho) for rho in (0.5, 0.2)),
        *(("q3_only", rho) for rho in (0.2, 0.1)),
        ("divergence_topk", 0.1),
        ("teachability", 0.1),
        ("bottom_soft_or", 0.5),
    }
    assert len(cells) == 5 * (len(chosen) + 1)
    assert config.eval.tasks[0].problems == 500


def test_cells_go_seed_by_seed_and_lay_the_arm_over_the_section(cells: list[Cell]) -> None:
    assert [(cell.seed, cell.arm) for cell in cells] == [(5, "a"), (5, "b"), (1, "a"), (1, "b")]
    assert [cell.config.run.seed for cell in cells] == [5, 5, 1, 1]
    tip = cells[0].config.tip
    assert (tip.rule, tip.rho, tip.h_clip) == ("random", 0.1, 0.9)
    assert cells[1].config.tip.rule == "all"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("study.arms=[]", "at least one"),
        ("study.seeds=[1, 1]", "1 is there 2 times"),
        ("study.arms[1].name=a", "'a' is there 2 times"),
        ("study.arms[0].name=a/b", "study.arms\\[0\\].name = 'a/b'"),
        ("study.arms[0].tip={rule: all, roh: 1}", "study.arms\\[0\\].tip: unknown key roh"),
        ("study.arms[0].tip={rule: randm}", "study.arms\\[0\\] \\(a\\): .*randm"),
        ("study.arms[0].tip={rho: 7}", "tip.rho=7"),
        ("eval.kl_prompts=0", "eval.kl_prompts"),
        ("trainer.zero_stage=2", "trainer.zero_stage = 2"),
        ("trainer.dtype=bfloat16", "stage 1 with trainer.dtype = bfloat16"),
        ("run.resume=never", "run.resume = 'never'"),
        ("rollout.prompts_per_step=0", "rollout.prompts_per_step = 0"),
    ],
)
def test_what_no_study_can_have_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study_cells(load_config("study", [ARMS, override]))


def test_a_cell_is_finished_when_its_account_is_there(
    folder: StudyFolder, cells: list[Cell]
) -> None:
    assert folder.results(cells) == []
    finish(folder, cells[2])
    assert [folder.result(cell) is not None for cell in cells] == [False, False, True, False]
    (result,) = folder.results(cells)
    assert (result.arm, result.seed, result.rule, result.rho) == ("a", 1, "random", 0.1)
    assert not list(folder.path.rglob("*.tmp"))


def test_a_cell_that_was_cut_short_is_not_finished(folder: StudyFolder, cells: list[Cell]) -> None:
    finish(folder, cells[0])
    account = folder.cell("a", 5) / "result.json"
    account.rename(account.with_suffix(".tmp"))  # as if the machine stopped while it was written
    assert folder.result(cells[0]) is None


def test_the_account_adds_up_the_steps(cells: list[Cell]) -> None:
    result = cell_result(cells[0], rows(), 9.0)
    assert result.step_0 == {"eval/kl": 0.4, "eval/heldout/accuracy": 0.5}
    assert result.final == {"eval/kl": 0.3, "eval/heldout/accuracy": 0.6}
    assert (result.tokens_written, result.tokens_trained) == (200, 62)
    assert (result.step_seconds, result.seconds) == (3.0, 9.0)
    assert result.overlaps == {"soft_or": pytest.approx(0.3)}


def test_a_result_of_another_arm_of_that_name_is_refused(
    folder: StudyFolder, cells: list[Cell]
) -> None:
    finish(folder, cells[0])
    changed = replace(cells[0].config.tip, rho=0.2)
    cell = replace(cells[0], config=replace(cells[0].config, tip=changed))
    with pytest.raises(StudyError, match=r"another tip\.rho: give the arm another name"):
        folder.result(cell)


def test_arms_differ_in_when_rollouts_are_written_and_trained_on(folder: StudyFolder) -> None:
    arms = "study.arms=[{name: a}, {name: b, overlap: true}, {name: c, lag: 1, tip: {rho: 0.25}}]"
    found = study_cells(load_config("study", [arms, "tip.normalise_over=rollout"]))[:3]
    told = [(cell.config.run.overlap, cell.config.run.lag, cell.config.tip.rho) for cell in found]
    assert told == [(False, 0, 0.5), (True, 0, 0.5), (False, 1, 0.25)]
    finish(folder, found[1])
    later = replace(found[0], arm="b")
    with pytest.raises(StudyError, match=r"another run\.overlap: give the arm another name"):
        folder.result(later)


def test_a_result_that_is_older_than_a_key_had_its_default(folder: StudyFolder, cells) -> None:
    finish(folder, cells[0])
    path = folder.cell(cells[0].arm, cells[0].seed) / "result.json"
    kept = json.loads(path.read_text())
    del kept["run"], kept["tip"]["rescore"]
    path.write_text(json.dumps(kept))
    assert folder.result(cells[0]) is not None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("study.baseline=c", r"study.baseline = 'c': no arm of that name; choose of \['a', 'b'\]"),
        ("rollout.top_p=2", "^rollout.top_p = 2.0: must be"),
        ("study.arms=[{name: a, lag: 2}]", r"study.arms\[0\].lag = 2: must be 0 or 1"),
        (
            "study.arms=[{name: a, overlap: true}]",
            "^study arm 'a': run.overlap = true with tip.normalise_over = bat",
        ),
    ],
)
def test_arms_that_cannot_be_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study_cells(load_config("study", [ARMS, override]))


def test_an_unreadable_result_is_named(folder: StudyFolder, cells: list[Cell]) -> None:
    finish(folder, cells[0])
    (folder.cell("a", 5) / "result.json").write_text("{}")
    with pytest.raises(StudyError, match="result.json cannot be read"):
        folder.result(cells[0])


def test_a_folder_takes_more_arms_but_no_other_training(tmp_path: Path, config: Config) -> None:
    with OutputFolder(tmp_path) as output:
        _begin(output, config)
        _begin(output, replace(config, study=replace(config.study, seeds=[5, 1, 2])))
        longer = replace(config, run=replace(config.run, steps=51))
        with pytest.raises(OutputFolderError, match="run.steps: 50 -> 51"):
            _begin(output, longer)
