"""A small clone of Qwen-Agent and small cases, with made-up contents in the real layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TOOLS: dict[str, list[str]] = {
    "search_products": ["query"],
    "filter_by_brand": ["brand_names"],
    "filter_by_color": ["colors"],
    "filter_by_size": ["sizes"],
    "filter_by_applicable_coupons": ["coupon_names"],
    "filter_by_range": ["condition_key", "operator", "value"],
    "sort_products": ["sort_by"],
    "get_product_details": ["product_ids"],
    "calculate_transport_time": ["product_id", "destination_address"],
    "get_user_info": [],
    "add_product_to_cart": ["product_id"],
    "delete_product_from_cart": ["product_id"],
    "get_cart_info": [],
    "add_coupon_to_cart": ["coupon_name"],
    "delete_coupon_from_cart": ["coupon_name"],
}
TEN, VIP = "Cross-store: ¥10 off every ¥100", "VIP: ¥1,050 off every ¥1,000"
_COUPONS = f"VALID_COUPONS = [{TEN!r}, {VIP!r}]\n"
_TRANSPORT = """
PROVINCE_ALIASES = {'near': ['near', 'n'], 'far': ['far', 'f'], 'hidden': ['hidden']}
REGION_MAP = {'near': 'A', 'far': 'B'}
BASE_REGION_TIME = {'A': {'A': 1, 'B': 3}, 'B': {'A': 3, 'B': 1}}
PROVIDER_MODIFIERS = {'fast': -3, 'slow': 2, 'default': 0}
def call():
    remote_provinces = ['far']
"""
_AGENT = """
class Agent:
    def _add_to_cart(self, messages):
        return [*messages, {"role": "user", "content": "Look over " "the cart."}]
"""


def small_clone(root: Path) -> Path:
    """A clone with facts of its own: two coupons, three provinces, two queries a level."""
    home = root / "benchmark" / "deepplanning" / "shoppingplanning"
    schemas = [
        {
            "type": "function",
            "function": {
                "name": name,
                "description": f"Does {name}.",
                "parameters": {
                    "type": "object",
                    "properties": {key: {"type": "string"} for key in required},
                    "required": required,
                },
            },
        }
        for name, required in TOOLS.items()
    ]
    files = {
        "tools/shopping_tool_schema.json": json.dumps(schemas),
        "tools/filter_by_applicable_coupons_tool.py": _COUPONS,
        "tools/add_coupon_to_cart.py": _COUPONS,
        "tools/delete_coupon_from_cart.py": _COUPONS,
        "tools/calculate_transport_time_tool.py": _TRANSPORT,
        "tools/search_products_tool.py": "BM25_SCORE_THRESHOLD = 0.5\n",
        "agent/shopping_agent.py": _AGENT,
        "agent/prompts.py": "".join(f"SYSTEM_PROMPT_level{n} = 'Level {n}.'\n" for n in (1, 2, 3)),
    }
    for level in (1, 2, 3):
        queries = [{"id": str(n), "query": f"Level {level}, query {n}."} for n in (1, 2)]
        files[f"data/level_{level}_query_meta.json"] = json.dumps(queries)
    for name, text in files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text, encoding="utf-8")
    return root


PRODUCTS: list[dict[str, Any]] = [
    {
        "product_id": "p1",
        "name": "Red Shoe",
        "brand": "Fox",
        "color": "Red",
        "size": "42",
        "price": 100.1,
        "stock_quantity": 3,
        "rating": {"average_score": 4.5},
        "applicable_coupons": [TEN],
        "shipping_info": {"origin": "Near City", "provider": "Slow"},
    },
    {
        "product_id": "p2",
        "name": "Blue Shoe",
        "brand": "Fox",
        "color": "Blue",
        "size": "M",
        "price": 50,
        "stock_quantity": 9,
        "rating": {"average_score": 4.9},
        "applicable_coupons": [TEN, VIP],
        "shipping_info": {"origin": "far province", "provider": "fast"},
    },
    {
        "product_id": "p3",
        "name": "Blue Hat",
        "brand": "owl",
        "color": "blue",
        "size": "L",
        "price": 70,
        "stock_quantity": 1,
        "rating": {"average_score": 4.5},
        "shipping_info": {"origin": "Hidden City"},
    },
]
USER = {"user_id": "u1", "is_vip": False, "coupons": {TEN: 2, VIP: 1}}
CART: dict[str, Any] = {
    "items": [],
    "used_coupons": [],
    "summary": {"total_items_count": 0, "total_price": 0.0},
}
ANSWERS = {
    "query": "Query 1.",
    "ground_truth_products": [{"product_id": "p1"}, {"product_id": "p2"}],
    "ground_truth_coupons": {TEN: 2},
}


def write_case(
    folder: Path,
    products: list[dict[str, Any]] | None = None,
    user: Any = USER,
    cart: Any = CART,
    answers: Any = ANSWERS,
) -> Path:
    """A case folder; None leaves user, cart or answers out."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps(p, ensure_ascii=False) for p in (PRODUCTS if products is None else products)
    ]
    (folder / "products.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    files = {"user_info.json": user, "cart.json": cart, "validation_cases.json": answers}
    for name, value in files.items():
        if value is not None:
            (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return folder
