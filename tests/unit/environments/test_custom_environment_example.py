"""The environment in examples/custom_environment works by its import path, as its README says."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd_ray.cli import main
from opd_ray.config.load import load_config
from opd_ray.data.sources import open_source
from opd_ray.environments.environment import ToolResult
from opd_ray.environments.load import environment_factory
from opd_ray.preflight.environments import environment_problems

FOLDER = Path(__file__).parents[3] / "examples" / "custom_environment"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


def test_it_is_short() -> None:
    assert len((FOLDER / "stock.py").read_text().splitlines()) < 50


def test_its_config_names_it_and_reads_its_rows() -> None:
    config = load_config(str(FOLDER / "stock.yaml"))
    assert list(environment_problems(config)) == []
    rows = open_source(config.data, columns=None)
    assert len(rows) == 1024
    assert rows.raw(1) == {
        "prompt": "Order 1: how many green boxes are there? Look at every shelf, then report.",
        "order": 1,
        "colour": "green",
    }


def test_a_student_that_looks_and_adds_is_right() -> None:
    for last, reward in ((0, 1.0), (1, 0.0)):
        stock = environment_factory("stock:Stock", {}, "environment.path")()
        row = {"prompt": [{"role": "user", "content": "How many?"}], "order": 7, "colour": "blue"}
        (message,) = stock.reset(row)
        shelves = int(message["content"].removeprefix("How many? There are ").split()[0])
        assert 2 <= shelves <= 4
        found = [stock.call_tool("look", {"shelf": n})["blue"] for n in range(1, shelves + 1)]
        with pytest.raises(ValueError, match=f"there is no shelf {shelves + 1}"):
            stock.call_tool("look", {"shelf": shelves + 1})
        assert stock.verify([]) == {"reward": 0.0}
        answer = stock.call_tool("report", {"count": sum(found) + last})
        assert answer == ToolResult("Thank you.", done=True)
        assert stock.verify([]) == {"reward": reward}


def test_the_check_of_its_readme_finds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    row = '{"order": 1, "colour": "red"}'
    assert main(["check-environment", "--path", "stock:Stock", "--row", row]) == 0
    said = capsys.readouterr().out
    assert "  look(shelf: integer)\n  report(count: integer)\n" in said
    assert "error: ValueError: there is no shelf" in said
    assert said.endswith("the environment stock:Stock can be used\n")
