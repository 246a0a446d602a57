"""The shop as an environment, its prompts, and a clone that lacks something."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shopping_world import ANSWERS, CART, TEN, TOOLS, small_clone, write_case

from opd_ray.cli import main
from opd_ray.deepplanning.checkout import Checkout
from opd_ray.deepplanning.shopping.checkout import read_facts
from opd_ray.deepplanning.shopping.environment import ShoppingEnvironment
from opd_ray.deepplanning.shopping.prepare import shopping_rows
from opd_ray.environments.environment import Environment, Responds
from opd_ray.environments.load import environment_factory
from opd_ray.errors import InputError

PATH = "opd_ray.deepplanning.shopping.environment:ShoppingEnvironment"


def database(root: Path, level: int) -> Path:
    for number in (1, 2):
        write_case(root / f"database_level{level}" / f"case_{number}")
    return root


def test_rows(tmp_path: Path) -> None:
    clone = small_clone(tmp_path / "clone")
    base = database(tmp_path / "base", 2)
    expected = {
        "id": "shopping2_1",
        "prompt": [
            {"role": "system", "content": "Level 2."},
            {"role": "user", "content": "Level 2, query 1."},
        ],
        "source": "deepplanning_shopping",
        "level": 2,
        "case_folder": str((base / "database_level2" / "case_1").resolve()),
    }
    rows = shopping_rows(Checkout.at(clone), base, 2)
    assert rows[0] == expected
    assert [row["id"] for row in rows] == ["shopping2_1", "shopping2_2"]
    assert shopping_rows(Checkout.at(clone), base / "database_level2", 2) == rows
    assert shopping_rows(Checkout.at(clone / "benchmark" / "deepplanning"), base, 2) == rows


def test_the_command_that_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clone, base = small_clone(tmp_path / "clone"), database(tmp_path / "base", 2)
    command = ["prepare", "deepplanning", "--from", str(clone), "--shopping", "2"]
    command += ["--database", str(base), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "shopping, level 2: 2 tasks for evaluation in" in capsys.readouterr().out
    path = tmp_path / "out" / "deepplanning_shopping_2.jsonl"
    written = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert written == [row | {"answer": None} for row in shopping_rows(Checkout.at(clone), base, 2)]
    assert main([*command, "--synthetic"]) == 2
    assert "--shopping: has neither --synthetic nor --seed" in capsys.readouterr().err


def test_rows_of_databases_within_the_clone(tmp_path: Path) -> None:
    clone = small_clone(tmp_path / "clone")
    home = database(clone / "benchmark" / "deepplanning" / "shoppingplanning", 1)
    first = shopping_rows(Checkout.at(clone), None, 1)[0]["case_folder"]
    assert first == str((home / "database_level1" / "case_1").resolve())


def test_missing_cases_are_named(tmp_path: Path) -> None:
    clone = small_clone(tmp_path / "clone")
    base = database(tmp_path / "base", 1)
    (base / "database_level1" / "case_2" / "validation_cases.json").unlink()
    with pytest.raises(InputError, match=r"database_level1: case_2/validation_cases\.json are not"):
        shopping_rows(Checkout.at(clone), base, 1)
    with pytest.raises(InputError, match=r"case_1/products\.jsonl, .*database_level1\.tar\.gz"):
        shopping_rows(Checkout.at(clone), tmp_path / "nothing", 1)
    with pytest.raises(InputError, match="levels 1 to 3, not 4"):
        shopping_rows(Checkout.at(clone), base, 4)


def test_a_rollout(tmp_path: Path) -> None:
    clone, case = small_clone(tmp_path / "clone"), write_case(tmp_path / "case_1")
    arguments = {"checkout": str(clone), "results": str(tmp_path / "out"), "name": "me"}
    environment = environment_factory(PATH, arguments, "environment.path")()
    assert isinstance(environment, Environment)
    assert isinstance(environment, Responds)
    assert [tool["function"]["name"] for tool in environment.tools] == list(TOOLS)
    prompt = [{"role": "user", "content": "Buy."}]
    row = {"prompt": prompt, "case_folder": str(case), "level": 3}
    for _ in range(2):  # the second begins anew
        assert environment.reset(row) == prompt
        assert json.loads(environment.call_tool("get_cart_info", {})) == CART
        environment.call_tool("add_product_to_cart", {"product_id": "p1", "quantity": 2})
        assert environment.respond("done") == [{"role": "user", "content": "Look over the cart."}]
        environment.call_tool("add_coupon_to_cart", {"coupon_name": TEN, "quantity": 2})
        assert environment.respond("done") is None
    figures = environment.verify([*prompt, {"role": "assistant", "content": "done"}])
    assert figures["matched"] == 2
    assert figures["expected"] == 3
    assert figures["completed"] == 1
    written = tmp_path / "out" / "database_me-1_level3_1" / "case_1"
    cart = json.loads((written / "cart.json").read_text())
    assert cart["summary"] == {"total_items_count": 2, "total_price": 180.2}
    assert json.loads((written / "validation_cases.json").read_text()) == ANSWERS
    environment.close()


def test_a_row_of_something_else_is_refused(tmp_path: Path) -> None:
    environment = ShoppingEnvironment(str(small_clone(tmp_path)))
    with pytest.raises(InputError, match="needs a column 'case_folder'; it has 'prompt', 'answer'"):
        environment.reset({"prompt": [], "answer": ""})


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("tools/shopping_tool_schema.json", None, "schema.json: is not there; name a whole clone"),
        ("tools/shopping_tool_schema.json", "[{}]", "schema.json: KeyError: 'function'"),
        ("tools/shopping_tool_schema.json", "[", "schema.json: .*name a whole clone"),
        ("tools/add_coupon_to_cart.py", "x = 1", "assigns nothing to VALID_COUPONS"),
        ("tools/add_coupon_to_cart.py", "VALID_COUPONS = f()", "VALID_COUPONS is no literal"),
        ("tools/search_products_tool.py", "def", "search_products_tool.py: SyntaxError"),
        ("agent/shopping_agent.py", "", "has no message in _add_to_cart"),
    ],
)
def test_a_clone_that_lacks_something(
    tmp_path: Path, file: str, text: str | None, said: str
) -> None:
    path = small_clone(tmp_path) / "benchmark" / "deepplanning" / "shoppingplanning" / file
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(InputError, match=said):
        read_facts(Checkout.at(tmp_path))


def test_nothing_of_the_clone_is_run(tmp_path: Path) -> None:
    path = small_clone(tmp_path) / "benchmark/deepplanning/shoppingplanning"
    with (path / "tools" / "search_products_tool.py").open("a") as file:
        file.write("raise SystemExit(3)\n")
    assert read_facts(Checkout.at(tmp_path)).search_score == 0.5


def test_a_tool_too_many_is_refused(tmp_path: Path) -> None:
    path = small_clone(tmp_path) / "benchmark/deepplanning/shoppingplanning"
    schema = path / "tools" / "shopping_tool_schema.json"
    tools = json.loads(schema.read_text())
    tools.append({"type": "function", "function": {"name": "pay", "parameters": {}}})
    schema.write_text(json.dumps(tools))
    with pytest.raises(InputError, match="a shopping tool 'pay' that is not known here"):
        ShoppingEnvironment(str(tmp_path))
