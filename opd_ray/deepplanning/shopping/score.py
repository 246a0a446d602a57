"""What a cart is worth: matches with the answer key, by case, by level and over levels.

Example: a key of four products and one coupon, twice; a cart with three of these products, two
others and that coupon twice. Score 4/5, case score 0. Products too many cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opd_ray.environments.environment import Message

_MOST_INCOMPLETE = 0.1  # of the cases of a level; with more of them it does not count


@dataclass(frozen=True)
class CaseScore:
    """One cart against its key."""

    matched: int  # products and coupons of the key that the cart has
    expected: int  # products and coupons of the key
    extra: int  # products of the cart that are not in the key
    coupons_matched: int
    coupons_expected: int
    completed: bool  # whether the conversation ended with an answer
    case_score: float  # 1: all matched, else 0

    @property
    def score(self) -> float:
        return self.matched / self.expected if self.expected else 0.0

    @property
    def coupon_score(self) -> float:
        return self.coupons_matched / self.coupons_expected if self.coupons_expected else 0.0

    def figures(self) -> dict[str, float]:
        """As an evaluation reads them."""
        return {
            "success": self.case_score,
            "case_score": self.case_score,
            "score": self.score,
            "matched": float(self.matched),
            "expected": float(self.expected),
            "extra": float(self.extra),
            "coupon_score": self.coupon_score,
            "completed": float(self.completed),
        }


def score_cart(
    cart: Mapping[str, Any] | None, answers: Mapping[str, Any], messages: Sequence[Message]
) -> CaseScore:
    """The score of a cart as ``cart.json`` has it; without a cart there is nothing to match.

    A product counts once, whatever its quantity; a coupon only with the very quantity of the key.
    """
    if not cart:
        return CaseScore(0, 0, 0, 0, 0, completed=False, case_score=0.0)
    items = cart.get("items", [])
    products = _product_ids(answers.get("ground_truth_products", []))
    key_coupons = answers.get("ground_truth_coupons", {})
    used = [(c.get("coupon_name", ""), int(c.get("quantity", 0))) for c in _coupons(cart)]
    coupons = sum(name in key_coupons and key_coupons[name] == number for name, number in used)
    matched = len(_product_ids(items) & products) + coupons
    expected = len(products) + len(key_coupons)
    known = products | set(key_coupons)
    return CaseScore(
        matched=matched,
        expected=expected,
        extra=sum(bool(i.get("product_id")) and i["product_id"] not in known for i in items),
        coupons_matched=coupons,
        coupons_expected=len(key_coupons),
        completed=is_completed(messages),
        case_score=float(matched == expected),
    )


def is_completed(messages: Sequence[Message]) -> bool:
    """Whether nothing is left open: the last message is no call and no result of a tool."""
    if not messages or messages[-1].get("role") == "tool":
        return False
    return not (messages[-1].get("role") == "assistant" and messages[-1].get("tool_calls"))


def level_statistics(scores: Sequence[CaseScore]) -> dict[str, Any]:
    """The benchmark's ``overall_statistics`` of the cases of one level."""
    total = len(scores)
    case_scores = [score.case_score for score in scores]
    successful = sum(score == 1.0 for score in case_scores)
    average = sum(case_scores) / total if total else 0.0
    matched, expected = sum(s.matched for s in scores), sum(s.expected for s in scores)
    incomplete = sum(not score.completed for score in scores)
    incomplete_rate = incomplete / total if total else 0.0
    return {
        "total_cases": total,
        "successful_cases": successful,
        "failed_cases": total - successful,
        "average_score": average,
        "average_case_score": average,
        "max_score": max(case_scores, default=0.0),
        "min_score": min(case_scores, default=0.0),
        "total_matched_products": matched,
        "total_expected_products": expected,
        "total_extra_products": sum(score.extra for score in scores),
        "overall_match_rate": matched / expected if expected else 0.0,
        "incomplete_cases": incomplete,
        "incomplete_rate": incomplete_rate,
        "valid": incomplete_rate <= _MOST_INCOMPLETE,
    }


def total_statistics(levels: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """The benchmark's ``total`` over levels, from the statistics of each."""
    numbers = sorted(levels)
    of = {
        key: sum(levels[number][key] for number in numbers)
        for key in (
            *("total_cases", "successful_cases", "failed_cases", "total_matched_products"),
            *("total_expected_products", "total_extra_products", "incomplete_cases"),
        )
    }
    cases, expected = of["total_cases"], of["total_expected_products"]
    weighted = sum(levels[n]["average_case_score"] * levels[n]["total_cases"] for n in numbers)
    return {
        **of,
        "successful_rate": of["successful_cases"] / cases if cases else 0.0,
        "match_rate": of["total_matched_products"] / expected if expected else 0.0,
        "weighted_average_case_score": weighted / cases if cases else 0.0,
        "incomplete_rate": of["incomplete_cases"] / cases if cases else 0.0,
        "valid": all(levels[number]["valid"] for number in numbers),
        "levels_completed": numbers,
    }


def _product_ids(products: Sequence[Mapping[str, Any]]) -> set[str]:
    return {product["product_id"] for product in products if product.get("product_id")}


def _coupons(cart: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return cart.get("used_coupons", [])
