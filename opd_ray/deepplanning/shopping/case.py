"""A case folder of the benchmark: the shop, its customer, the cart at first, the answer key."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd_ray.borders import border
from opd_ray.errors import InputError

PRODUCTS, USER, CART = "products.jsonl", "user_info.json", "cart.json"
ANSWERS = "validation_cases.json"
_UNPACK = "unpack the benchmark's database anew"

Product = Mapping[str, Any]


@dataclass(frozen=True)
class ShoppingCase:
    """What lies in a case folder. Nothing in it is ever changed.

    Attributes:
        products: in the order of the file.
        by_id: the last product of every id.
        user: empty where the folder has none.
        cart: as the file has it; None where there is none, or a blank one.
        answers: ``ground_truth_products`` and ``ground_truth_coupons``.
    """

    folder: Path
    products: Sequence[Product]
    by_id: Mapping[str, Product]
    user: Mapping[str, Any]
    cart: Mapping[str, Any] | None
    answers: Mapping[str, Any]


def read_case(folder: Path) -> ShoppingCase:
    """The case in a folder.

    Raises:
        InputError: a file that cannot be read; products or answers are not there.
    """
    products = _read_products(folder / PRODUCTS)
    return ShoppingCase(
        folder=folder,
        products=products,
        by_id={product["product_id"]: product for product in products},
        user=_read_object(folder / USER) or {},
        cart=_read_cart(folder / CART),
        answers=_read_answers(folder / ANSWERS),
    )


def _read_products(path: Path) -> list[Product]:
    products: list[Product] = []
    if not path.is_file():
        raise InputError(f"{path}: is not there; {_UNPACK}")
    # Line ends as the benchmark's own tools see them.
    with border(str(path), _UNPACK), path.open(encoding="utf-8") as file:
        lines = list(file)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        with border(place, _UNPACK):
            product = json.loads(line)
        if not isinstance(product, dict) or not isinstance(product.get("product_id"), str):
            raise InputError(f"{place}: no product with a product_id as text; {_UNPACK}")
        products.append(product)
    return products


def _read_object(path: Path) -> dict[str, Any] | None:
    """The object of a JSON file; None of a file that is blank or not there."""
    if not path.exists():
        return None
    with border(str(path), _UNPACK):
        text = path.read_text(encoding="utf-8").strip()
        value = json.loads(text) if text else None
    if value is not None and not isinstance(value, dict):
        raise InputError(f"{path}: must hold one JSON object; {_UNPACK}")
    return value


def _read_cart(path: Path) -> dict[str, Any] | None:
    cart = _read_object(path)
    for key in ("items", "used_coupons"):
        if not _are_objects((cart or {}).get(key, [])):
            raise InputError(f"{path}: {key} must be a list of objects; {_UNPACK}")
    if not isinstance((cart or {}).get("summary", {}), dict):
        raise InputError(f"{path}: summary must be an object; {_UNPACK}")
    return cart


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _read_answers(path: Path) -> dict[str, Any]:
    answers = _read_object(path)
    if not answers:
        raise InputError(f"{path}: no answers there, without which no cart is scored; {_UNPACK}")
    if not _are_objects(answers.get("ground_truth_products", [])):
        raise InputError(f"{path}: ground_truth_products must be a list of objects; {_UNPACK}")
    if not isinstance(answers.get("ground_truth_coupons", {}), dict):
        raise InputError(
            f"{path}: ground_truth_coupons must be an object of names and numbers; {_UNPACK}"
        )
    return answers
