"""Scores of carts, by hand, and what is written for the benchmark's own evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from shopping_world import ANSWERS, CART, TEN, VIP, write_case

from opd_ray.deepplanning.shopping.case import read_case
from opd_ray.deepplanning.shopping.results import write_results
from opd_ray.deepplanning.shopping.score import (
    CaseScore,
    is_completed,
    level_statistics,
    score_cart,
    total_statistics,
)
from opd_ray.errors import WriteError

SAID = {"role": "assistant", "content": "Done."}
CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"type": "function", "function": {"name": "sort_products", "arguments": {"sort_by": "é"}}},
        {"type": "function", "function": {"name": "get_cart_info", "arguments": {}}},
    ],
}
TOLD = [
    {"role": "tool", "name": "sort_products", "content": "{}"},
    {"role": "tool", "content": "error: no call"},
    {"role": "tool", "name": "get_cart_info", "content": "\ud83d"},
]


def cart(products: list[str], coupons: dict[str, int]) -> dict[str, Any]:
    return {
        "items": [{"product_id": name, "quantity": 1} for name in products],
        "used_coupons": [{"coupon_name": name, "quantity": n} for name, n in coupons.items()],
    }


@pytest.mark.parametrize(
    ("bought", "matched", "extra", "case_score"),
    [
        (cart(["p1", "p2"], {TEN: 2}), 3, 0, 1.0),
        (cart(["p2", "p1", "p9", "p8"], {TEN: 2, VIP: 1}), 3, 2, 1.0),  # too much costs nothing
        (cart(["p1", "p2"], {TEN: 1}), 2, 0, 0.0),  # not the number of coupons
        (cart(["p1", "p1", "p9", "p9"], {}), 1, 2, 0.0),
        (cart([], {}), 0, 0, 0.0),
    ],
)
def test_a_cart_against_its_key(
    bought: dict[str, Any], matched: int, extra: int, case_score: float
) -> None:
    score = score_cart(bought, ANSWERS, [SAID])
    assert (score.matched, score.expected, score.extra) == (matched, 3, extra)
    assert (score.case_score, score.score) == (case_score, matched / 3)
    assert score.completed


def test_figures() -> None:
    assert score_cart(cart(["p1"], {TEN: 2}), ANSWERS, []).figures() == {
        "success": 0.0,
        "case_score": 0.0,
        "score": 2 / 3,
        "matched": 2.0,
        "expected": 3.0,
        "extra": 0.0,
        "coupon_score": 1.0,
        "completed": 0.0,
    }


def test_no_cart_matches_nothing() -> None:
    for nothing in (None, {}):
        score = score_cart(nothing, ANSWERS, [SAID])
        assert (score.case_score, score.expected, score.completed) == (0.0, 0, False)


@pytest.mark.parametrize(
    ("messages", "completed"),
    [
        ([SAID], True),
        ([CALLED], False),
        ([CALLED, TOLD[0]], False),
        ([SAID, {"role": "user", "content": "Look."}], True),
        ([], False),
    ],
)
def test_completed(messages: list[dict[str, Any]], completed: bool) -> None:
    assert is_completed(messages) is completed


def scored(matched: int, expected: int, completed: bool = True) -> CaseScore:
    return CaseScore(matched, expected, 1, 0, 0, completed, float(matched == expected))


def test_levels_and_their_total() -> None:
    first = level_statistics([scored(2, 2), scored(1, 4)])
    assert first == {
        "total_cases": 2,
        "successful_cases": 1,
        "failed_cases": 1,
        "average_score": 0.5,
        "average_case_score": 0.5,
        "max_score": 1.0,
        "min_score": 0.0,
        "total_matched_products": 3,
        "total_expected_products": 6,
        "total_extra_products": 2,
        "overall_match_rate": 0.5,
        "incomplete_cases": 0,
        "incomplete_rate": 0.0,
        "valid": True,
    }
    second = level_statistics([scored(1, 1)] * 7 + [scored(0, 1, completed=False)])
    assert (second["incomplete_rate"], second["valid"]) == (0.125, False)
    assert total_statistics({2: second, 1: first}) == {
        "total_cases": 10,
        "successful_cases": 8,
        "failed_cases": 2,
        "total_matched_products": 10,
        "total_expected_products": 14,
        "total_extra_products": 10,
        "incomplete_cases": 1,
        "successful_rate": 0.8,
        "match_rate": 10 / 14,
        "weighted_average_case_score": 0.8,
        "incomplete_rate": 0.1,
        "valid": False,
        "levels_completed": [1, 2],
    }


def test_one_incomplete_case_of_ten_is_valid() -> None:
    assert level_statistics([scored(1, 1)] * 9 + [scored(1, 1, completed=False)])["valid"]


def test_no_cases_have_statistics() -> None:
    nothing = level_statistics([])
    assert (nothing["average_score"], nothing["max_score"], nothing["valid"]) == (0.0, 0.0, True)
    assert total_statistics({1: nothing})["weighted_average_case_score"] == 0.0


def test_results_as_the_benchmark_reads_them(tmp_path: Path) -> None:
    case = read_case(write_case(tmp_path / "case_1"))
    messages = [{"role": "user", "content": "Buy."}, CALLED, *TOLD, SAID]
    folder = write_results(tmp_path / "out", "me", 3, case, CART, messages)
    assert folder == tmp_path / "out" / "database_me-1_level3_1" / "case_1"
    assert json.loads((folder / "cart.json").read_text()) == CART
    assert json.loads((folder / "validation_cases.json").read_text()) == ANSWERS
    written = json.loads((folder / "messages.json").read_text(encoding="utf-8"))
    assert written["step"] == 2
    user, called, *told, said = written["messages"]
    assert (user, said) == (messages[0], SAID)
    assert called["tool_calls"] == [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "sort_products", "arguments": '{"sort_by": "é"}'},
        },
        {
            "id": "call_2",
            "type": "function",
            "function": {"name": "get_cart_info", "arguments": "{}"},
        },
    ]
    assert [(m["tool_call_id"], m["content"]) for m in told] == [
        ("call_1", "{}"),
        ("call_3", "error: no call"),
        ("call_2", "?"),
    ]


def test_rollouts_of_one_case_are_runs(tmp_path: Path) -> None:
    first = read_case(write_case(tmp_path / "case_1"))
    second = read_case(write_case(tmp_path / "case_2"))
    out = tmp_path / "out"
    folders = [write_results(out, "me", 1, case, None, []) for case in (first, second, first)]
    assert [str(folder.relative_to(out)) for folder in folders] == [
        "database_me-1_level1_1/case_1",
        "database_me-1_level1_1/case_2",
        "database_me-2_level1_1/case_1",
    ]
    assert not (folders[0] / "cart.json").exists()


def test_results_that_cannot_be_written(tmp_path: Path) -> None:
    case = read_case(write_case(tmp_path / "case_1"))
    (tmp_path / "out").write_text("a file")
    with pytest.raises(WriteError, match="out/.*; a file stands where a folder"):
        write_results(tmp_path / "out", "me", 1, case, CART, [])
