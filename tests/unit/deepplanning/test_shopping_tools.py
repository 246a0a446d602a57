"""The shopping tools on a small made-up shop, with answers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from shopping_world import CART, PRODUCTS, TEN, TOOLS, USER, VIP, small_clone, write_case

from opd_ray.deepplanning.checkout import Checkout
from opd_ray.deepplanning.shopping.case import read_case
from opd_ray.deepplanning.shopping.checkout import read_facts
from opd_ray.deepplanning.shopping.search import SearchIndex
from opd_ray.deepplanning.shopping.tools import ShoppingTools
from opd_ray.errors import InputError


class Shop:
    """The tools of one case; answers as Python objects."""

    def __init__(self, root: Path, **case: Any) -> None:
        clone = small_clone(root / "clone")
        self.folder = write_case(root / "case_1", **case)
        self.tools = ShoppingTools(read_case(self.folder), read_facts(Checkout.at(clone)))

    def text(self, name: str, **arguments: Any) -> str:
        return self.tools.call(name, arguments)

    def __call__(self, name: str, **arguments: Any) -> Any:
        return json.loads(self.text(name, **arguments))

    def error(self, name: str, **arguments: Any) -> str:
        answer = self(name, **arguments)
        assert list(answer) == ["error"]
        return answer["error"]

    def total(self, name: str, **arguments: Any) -> float:
        return self(name, **arguments)["summary"]["total_price"]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


# Words: 1 fox red 42 red shoe, 2 fox blue m blue shoe, 3 owl blue l blue hat; mean length 5.
# A word of one product weighs ln(2.5/1.5) = 0.5108; one of two would weigh -0.5108 and weighs a
# quarter of the mean of all nine, (6 - 3) * 0.5108 / 9 / 4 = 0.04257.
def test_scores_are_those_worked_out_by_hand() -> None:
    texts = ["fox red 42 red shoe", "fox blue m blue shoe", "owl blue l blue hat"]
    index = SearchIndex([text.split() for text in texts])
    assert index.scores(["red"]) == pytest.approx([0.5108256 * 5 / 3.5, 0, 0])
    assert index.scores(["hat"]) == pytest.approx([0, 0, 0.5108256])
    assert index.scores(["shoe", "shoe", "none"]) == pytest.approx([0.0851376, 0.0851376, 0])


def test_a_longer_text_scores_less() -> None:
    index = SearchIndex([["a"], ["b", "b", "b"], ["c"], ["d"]])  # mean length 1.5
    # ln(3.5/1.5) * 1 * 2.5 / (1 + 1.5 * (0.25 + 0.75 * 1 / 1.5))
    assert index.scores(["a"])[0] == pytest.approx(0.8472979 * 2.5 / 2.125)
    assert index.scores(["b"])[1] == pytest.approx(0.8472979 * 7.5 / (3 + 1.5 * 1.75))


def test_search_ranks_and_limits(shop: Shop) -> None:
    assert shop("search_products", query="HAT red")["product_ids"] == ["p1", "p3"]
    assert shop("search_products", query="hat red", limit=1)["product_ids"] == ["p1"]
    assert shop("search_products", query="hat hat red")["product_ids"] == ["p3", "p1"]
    assert shop("search_products", query="blue")["product_ids"] == []  # 0.061 is not above 0.5
    assert shop("search_products", query="blue " * 9)["product_ids"] == ["p2", "p3"]
    assert shop("search_products", query="")["product_ids"] == []


def test_answers_are_json_of_two_spaces(shop: Shop) -> None:
    assert shop.text("search_products", query="hat") == '{\n  "product_ids": [\n    "p3"\n  ]\n}'


def test_a_shop_without_words_cannot_be_searched(tmp_path: Path) -> None:
    products = [{"product_id": "p1", "name": None}]
    error = Shop(tmp_path, products=products).error("search_products")
    assert error == "BM25 index is not available. Check database loading."


def test_filters(shop: Shop) -> None:
    def ids(name: str, **arguments: Any) -> list[str]:
        return shop(name, **arguments)["filtered_products_ids"]

    assert ids("filter_by_brand", brand_names=["FOX"]) == ["p1", "p2"]
    assert ids("filter_by_brand", brand_names=["fox"], product_ids=["p3", "p2"]) == ["p2"]
    assert ids("filter_by_color", colors=["BLUE"]) == ["p2", "p3"]
    assert ids("filter_by_size", sizes=["m", "42"]) == ["p1", "p2"]
    assert ids("filter_by_applicable_coupons", coupon_names=[VIP, TEN]) == ["p2"]
    assert ids("filter_by_applicable_coupons", coupon_names=[]) == []
    at = {"condition_key": "rating.average_score", "value": "4.5"}
    assert ids("filter_by_range", operator="==", **at) == ["p1", "p3"]
    assert ids("filter_by_range", operator=">=", **at) == ["p1", "p2", "p3"]
    assert ids("filter_by_range", operator=">", **at) == ["p2"]
    assert ids("filter_by_range", operator="<=", **at) == ["p1", "p3"]
    assert ids("filter_by_range", operator="about", **at) == []


def test_filters_refuse(shop: Shop) -> None:
    missing = shop.error("filter_by_size", sizes=["M"], product_ids=["p1", "p9"])
    assert missing == "Some product_ids not found in database: ['p9']"
    unknown = shop.error("filter_by_applicable_coupons", coupon_names=["x"])
    assert unknown == f"Invalid coupon names: ['x']. Valid coupons are: {[TEN, VIP]}"
    bound = {"operator": ">", "value": 1}
    assert shop.text("filter_by_range", condition_key="weight", **bound) == (
        '{"error": "condition_key cannot be found in product data, please check again."}'
    )


def test_sorting(shop: Shop) -> None:
    def ids(**arguments: Any) -> list[str]:
        return shop("sort_products", **arguments)["sorted_product_ids"]

    assert ids(sort_by="price") == ["p1", "p3", "p2"]
    assert ids(sort_by="PRICE", order="ASC") == ["p2", "p3", "p1"]
    assert ids(sort_by="rating.average_score") == ["p2", "p1", "p3"]  # equal ones stay in order
    assert ids(sort_by="color", order="asc") == ["p2", "p3", "p1"]  # Blue, blue, Red
    assert ids(sort_by="brand", order="asc", product_ids=["p3", "p9", "p1"]) == ["p1", "p3"]
    assert ids(sort_by="price", product_ids=["p9"]) == []
    assert shop.error("sort_products", sort_by="price", order="up") == (
        "Invalid value for 'order': 'up'. Must be 'asc' or 'desc'."
    )
    assert shop.error("sort_products", sort_by="weight") == (
        "Sort key 'weight' cannot be found in product data or is null. Please check again."
    )


@pytest.mark.parametrize(
    ("product", "to", "days"),
    [
        ("p1", "near", 3),  # 1 day, 2 of the slow carrier
        ("p1", "Far Province", 7),  # 3 days, 2 since it is remote, 2 of the carrier
        ("p2", "n", 2),  # 3 and 2 days, 3 days less of the fast carrier
        ("p2", "far", 1),  # 1 and 2 days less 3, and never less than one
        ("p1", "Finland", 3),  # no name, but the name n is part of it
    ],
)
def test_delivery(shop: Shop, product: str, to: str, days: int) -> None:
    answer = shop("calculate_transport_time", product_id=product, destination_address=to)
    assert answer["estimated_delivery_days"] == days
    assert answer["destination"] == to


@pytest.mark.parametrize(
    ("product", "to", "error"),
    [
        ("p9", "near", "Product with ID 'p9' not found."),
        ("p3", "near", "Could not map provinces to geographical regions."),
        (
            "p1",
            "Elsewhere",
            "Could not determine a valid province from destination address: 'Elsewhere'. "
            "Please provide a valid Chinese province name.",
        ),
    ],
)
def test_delivery_refuses(shop: Shop, product: str, to: str, error: str) -> None:
    asked = {"product_id": product, "destination_address": to}
    assert shop.error("calculate_transport_time", **asked) == error


def test_details_and_customer(shop: Shop) -> None:
    found = shop("get_product_details", product_ids=["p2", "p9", "p1"])
    assert found == {"products": [PRODUCTS[1], PRODUCTS[0]]}
    assert shop("get_product_details", product_ids=[]) == {"products": []}
    assert shop("get_user_info") == USER
    assert shop("get_user_info", user_id="u1") == USER
    assert shop("get_user_info", user_id="u2") == {
        "error": "User with user_id 'u2' not found",
        "user": None,
    }


def test_products_in_the_cart(shop: Shop) -> None:
    shop("add_product_to_cart", product_id="p1")
    assert shop("add_product_to_cart", product_id="p1", quantity=2.9) == {
        "items": [{"product_id": "p1", "name": "Red Shoe", "quantity": 3, "price": 100.1}],
        "used_coupons": [],
        "summary": {"total_items_count": 3, "total_price": 300.3},
    }
    assert shop.error("add_product_to_cart", product_id="p1") == (
        "Insufficient stock: Product 'Red Shoe' (ID: p1) has 3 in stock, cart already has 3, "
        "cannot add 1 more"
    )
    assert shop("get_cart_info")["summary"] == {"total_items_count": 3, "total_price": 300.3}
    assert shop.total("delete_product_from_cart", product_id="p1", quantity=2) == 100.1
    assert '"total_price": 0\n' in shop.text("delete_product_from_cart", product_id="p1")
    assert shop.error("delete_product_from_cart", product_id="p1") == (
        "Product not in cart: product_id 'p1'"
    )
    for name in ("add_product_to_cart", "delete_product_from_cart"):
        assert shop.error(name, product_id="p9") == "Product not found: product_id 'p9'"
        assert shop.error(name, product_id="") == "product_id is required"
        assert shop.error(name, product_id="p1", quantity=0) == (
            "quantity must be a positive number"
        )


def test_coupons_in_the_cart(shop: Shop) -> None:
    def add(**arguments: Any) -> str:
        return shop.error("add_coupon_to_cart", **arguments)

    shop("add_product_to_cart", product_id="p1", quantity=2)  # 200.20
    assert shop.total("add_coupon_to_cart", coupon_name=TEN) == 190.2
    assert add(coupon_name=TEN, quantity=2) == (
        f"Insufficient coupon quantity: User owns 2 of '{TEN}', cart already uses 1, "
        "cannot add 2 more"
    )
    assert shop.total("add_coupon_to_cart", coupon_name=TEN) == 180.2
    assert add(coupon_name=VIP) == f"VIP coupon '{VIP}' requires VIP status, but user is not a VIP"
    assert add(coupon_name="none") == (f"Coupon not found: 'none'. Valid coupons are: {TEN}, {VIP}")
    # A product sets a total without coupons, which the next change of a coupon takes off again.
    assert shop.total("add_product_to_cart", product_id="p2") == 250.2
    assert shop.total("delete_coupon_from_cart", coupon_name=TEN) == 240.2
    assert shop.error("delete_coupon_from_cart", coupon_name=TEN, quantity=2) == (
        f"Insufficient coupon quantity in cart: Cart has 1 of '{TEN}', cannot remove 2"
    )
    assert shop("delete_coupon_from_cart", coupon_name=TEN)["used_coupons"] == []
    assert shop.error("delete_coupon_from_cart", coupon_name=TEN) == f"Coupon not in cart: '{TEN}'"


def test_all_coupons_together_need_their_total(tmp_path: Path) -> None:
    shop = Shop(
        tmp_path,
        products=[{"product_id": "p", "name": "P", "price": 549.99, "stock_quantity": 9}],
        user={"user_id": "u", "is_vip": True, "coupons": {TEN: 6, VIP: 1}},
    )
    shop("add_product_to_cart", product_id="p")
    assert shop.error("add_coupon_to_cart", coupon_name=TEN, quantity=6) == (
        "Cart total 549.99 is insufficient for this combination of coupons"
        " (requires at least 600.0)"
    )
    shop("add_product_to_cart", product_id="p")  # 1,099.98
    assert shop.total("add_coupon_to_cart", coupon_name=VIP) == 49.98
    before = shop.text("get_cart_info")
    assert shop.error("add_coupon_to_cart", coupon_name=TEN) == (
        "Cart total 1099.98 is insufficient for this combination of coupons"
        " (requires at least 1100.0)"
    )
    assert shop.text("get_cart_info") == before


def test_required_arguments_are_asked_for(shop: Shop) -> None:
    for name, required in TOOLS.items():
        if required:
            assert shop.error(name) == f"Missing required argument: {required[0]}"


def test_wrong_types_are_answered(shop: Shop) -> None:
    assert shop.text("search_products", query=["hat"]) == (
        """{"error": "'list' object has no attribute 'lower'"}"""
    )
    assert shop.text("add_product_to_cart", product_id="p1", quantity=float("inf")) == (
        '{"error": "cannot convert float infinity to integer"}'
    )


def test_the_folder_is_never_written_to(shop: Shop) -> None:
    before = {path.name: path.read_bytes() for path in shop.folder.iterdir()}
    shop("add_product_to_cart", product_id="p1", quantity=2)
    shop("add_coupon_to_cart", coupon_name=TEN)
    assert {path.name: path.read_bytes() for path in shop.folder.iterdir()} == before
    assert read_case(shop.folder).cart == CART


def test_rollouts_share_no_cart(tmp_path: Path) -> None:
    first, second = Shop(tmp_path), Shop(tmp_path)
    first("add_product_to_cart", product_id="p1")
    assert second("get_cart_info") == CART


def test_a_case_without_cart_and_customer_begins_empty(tmp_path: Path) -> None:
    shop = Shop(tmp_path, user=None, cart=None)
    assert shop("get_user_info") == {}
    assert list(shop("get_cart_info")) == ["items", "summary"]
    shop("add_product_to_cart", product_id="p1")
    assert list(shop("get_cart_info")) == ["items", "summary"]


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("products.jsonl", '{"product_id": "a"}\n\n{"product_id"\n', r"products\.jsonl, line 3"),
        ("products.jsonl", '{"name": "a"}\n', "line 1: no product with a product_id"),
        ("cart.json", "[]", "cart.json: must hold one JSON object"),
        ("cart.json", '{"items": null}', "cart.json: items must be a list of objects"),
        ("cart.json", '{"used_coupons": [1]}', "used_coupons must be a list of objects"),
        ("cart.json", '{"summary": 3}', "summary must be an object"),
        ("user_info.json", "{", "user_info.json"),
        ("validation_cases.json", "", "no answers there"),
        ("validation_cases.json", '{"ground_truth_products": [1]}', "ground_truth_products"),
        ("validation_cases.json", '{"ground_truth_coupons": null}', "ground_truth_coupons"),
    ],
)
def test_a_broken_case_is_refused(tmp_path: Path, file: str, text: str, said: str) -> None:
    folder = write_case(tmp_path / "case_1")
    (folder / file).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        read_case(folder)


def test_a_case_without_products_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"case_1/products\.jsonl: is not there; unpack"):
        read_case(tmp_path / "case_1")
