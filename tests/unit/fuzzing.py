"""How often fuzzed tests draw, and JSON as files and servers may hold it.

Few examples by default, the same ones every time. With many, drawn at random:

    OPD_RAY_FUZZ=2000 bash launch/test.sh unit -k "fuzz or any_rows" --timeout 0
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from opd_ray.errors import OpdError

_ASKED = os.environ.get("OPD_RAY_FUZZ")


def examples(by_default: int) -> settings:
    """Settings of a fuzzed test: so many examples, or as many as OPD_RAY_FUZZ says."""
    return settings(
        max_examples=int(_ASKED or by_default),
        derandomize=not _ASKED,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def only_ours(*places: str) -> Iterator[None]:
    """Whatever is raised inside is an error of ours that says one of ``places``."""
    said = None
    try:
        yield
    except OpdError as error:
        said = str(error)
    if said is not None:
        assert any(place in said for place in places), said


TEXTS = st.sampled_from(
    [
        "",
        " ",
        "0",
        "-1",
        "1e999",
        "null",
        "${run.seed}",
        "${",
        "${oc.env:NOBODY}",
        "\x00",
        "~nobody/x",
    ]
) | st.text(st.characters(codec="utf-8"), max_size=8)
NUMBERS = (
    st.sampled_from([0, 1, -1, 2**31, 2**63, 10**400, 1e308, float("inf"), float("nan"), 0.5])
    | st.integers()
    | st.floats()
)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=4,
)


@st.composite
def damaged(draw: st.DrawFn, whole: Any, values: st.SearchStrategy[Any] = JSON) -> Any:
    """``whole``, a JSON value, with one to three of its parts replaced, gone or added."""
    made = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        owner, key = draw(st.sampled_from(list(_places(made)) or [(None, None)]))
        match draw(st.sampled_from(["replace", "replace", "delete", "add"])):
            case _ if owner is None:
                made = draw(values)
            case "replace":
                owner[key] = draw(values)
            case "delete":
                del owner[key]
            case "add" if isinstance(owner, dict):
                owner[draw(TEXTS)] = draw(values)
            case _:
                owner.insert(0, draw(values))
    return made


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (list or object, index or key) in a JSON value."""
    if not isinstance(value, dict | list):
        return
    for key, part in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(part, dict | list):
            yield from _places(part)
