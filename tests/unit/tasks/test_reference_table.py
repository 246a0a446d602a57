"""Reference tables: what follows from a number, and what is asked about it."""

from __future__ import annotations

import random

import pytest

from opd_ray.tasks.reference_table import (
    ROWS,
    ReferenceProblem,
    draw_problem,
    look_up,
    problems,
    table_rows,
    table_split,
)

PROBLEM = ReferenceProblem(48213, "C", "next", 2, "price")


def test_a_table_is_what_its_number_says_in_every_process_and_version() -> None:
    assert look_up(48213, "C") == "C next H back E price 47 weight 52"
    assert look_up(48213, "H") == "H next E back I price 74 weight 41"
    assert look_up(48213, "E") == "E next G back G price 64 weight 84"


def test_a_problem_adds_one_column_along_the_references_of_another() -> None:
    assert PROBLEM.question == "Table 48213: start at C and follow next twice; total of price ?"
    assert [row.name for row in PROBLEM.chain] == ["C", "H", "E"]
    assert PROBLEM.numbers == [47, 74, 64]
    assert PROBLEM.answer == 185
    once = ReferenceProblem(48213, "H", "next", 1, "weight")
    assert once.question == "Table 48213: start at H and follow next once; total of weight ?"
    assert (once.numbers, once.answer) == ([41, 84], 125)


@pytest.mark.parametrize("name", ["c", "", "CH", "K", "price", 7, None, ["C"]])
def test_a_row_that_is_not_there_is_said(name: object) -> None:
    assert look_up(48213, name) == f"no row {name}"


@pytest.mark.parametrize("column", ["next", "back"])
def test_references_lead_through_all_rows_before_they_come_back(column: str) -> None:
    rows = table_rows(77777)
    seen, name = [], "A"
    for _ in ROWS:
        seen.append(name)
        name = str(rows[name].cells[column])
    assert sorted(seen) == list("ABCDEFGHIJ")
    assert name == "A"


def test_numbers_have_two_digits_and_columns_differ() -> None:
    cells = [row.cells for row in table_rows(31415).values()]
    numbers = [cell[column] for cell in cells for column in ("price", "weight")]
    assert all(10 <= int(number) <= 99 for number in numbers)
    assert len(set(numbers)) > 10
    assert any(cell["next"] != cell["back"] for cell in cells)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("121+64=185", True),
        ("185", True),
        ("185.", True),
        ("The total is 185\n", True),
        ("121+64=1185", False),
        ("185+0", False),
        ("121+64=85", False),
        ("", False),
        ("none", False),
    ],
)
def test_the_last_number_is_the_answer(text: str, right: bool) -> None:
    assert PROBLEM.is_answered(text) is right


def test_the_splits_share_no_table() -> None:
    train = {row["table"] for row in problems("train", 3000, seed=0)}
    heldout = {row["table"] for row in problems("heldout", 3000, seed=0)}
    assert len(train) == len(heldout) == 3000
    assert not train & heldout
    assert [table for table in range(10000, 10040) if table_split(table) == "heldout"] == [
        10001,
        10022,
        10035,
    ]


def test_rows_hold_the_problem_its_question_and_its_answer() -> None:
    drawn = problems("heldout", 200, seed=3)
    assert drawn == problems("heldout", 200, seed=3)
    assert drawn != problems("heldout", 200, seed=4)
    for row in drawn:
        parts = ("table", "start", "along", "hops", "column")
        problem = ReferenceProblem(**{name: row[name] for name in parts})
        assert (row["prompt"], row["answer"]) == (problem.question, str(problem.answer))
    assert {(row["along"], row["hops"], row["column"]) for row in drawn} == {
        (along, hops, column)
        for along in ("next", "back")
        for hops in (1, 2)
        for column in ("price", "weight")
    }


def test_a_drawn_problem_has_the_hops_that_were_asked() -> None:
    assert draw_problem(48213, 2, random.Random(0)).hops == 2


@pytest.mark.parametrize(
    ("split", "count", "said"),
    [
        ("test", 3, "split = 'test': use 'train' or 'heldout'"),
        ("heldout", 9027, "count = 9027: 'heldout' has 1 to 9026 tables"),
        ("train", 0, "count = 0: 'train' has 1 to 80974 tables"),
    ],
)
def test_what_cannot_be_given_is_refused(split: str, count: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        problems(split, count)  # type: ignore[arg-type]
