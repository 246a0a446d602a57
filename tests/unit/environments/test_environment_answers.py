"""What environments return, as messages and figures; what is neither is named."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from opd_ray.environments.answers import as_figures, as_messages

ASKED = {"role": "user", "content": "Go on."}


def test_messages_are_copied_from_any_iterable() -> None:
    def told() -> Iterator[dict[str, Any]]:
        yield ASKED

    (message,) = as_messages(told())
    assert message == {"role": "user", "content": "Go on."}
    assert message is not ASKED


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (None, "it returned None: return a list of"),
        ("Go on.", "it returned 'Go on.': return a list of"),
        (ASKED, "it returned {'role': 'user', 'content': 'Go on.'}: return a list of"),
        (["Go on."], "'Go on.' is no chat message: return a list of"),
        ([{"role": "user"}], "{'role': 'user'} is no chat message"),
        ([{"role": "user", "content": None}], "'content': None} is no chat message"),
        ([], "the last message must be one that the student can answer"),
        ([ASKED, {"role": "assistant", "content": "x"}], "the last message must be one"),
    ],
)
def test_what_is_no_list_of_messages(made: Any, said: str) -> None:
    with pytest.raises(TypeError) as refused:
        as_messages(made)
    assert said in str(refused.value)


def test_figures_have_names_and_are_numbers() -> None:
    assert as_figures({"success": True, 3: "0.5"}) == {"success": 1.0, "3": 0.5}
    assert as_figures({}) == {}


@pytest.mark.parametrize(
    ("said", "error", "text"),
    [
        (None, TypeError, "it returned None: return figures by name, {} for none"),
        (1.0, TypeError, "it returned 1.0: return figures by name, {} for none"),
        ({"score": "high"}, ValueError, "'score' is 'high': return a finite number"),
        ({"score": float("nan")}, ValueError, "'score' is nan: return a finite number"),
        ({"score": 10**400}, ValueError, "'score' is 1000"),
    ],
)
def test_what_are_no_figures(said: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as refused:
        as_figures(said)
    assert text in str(refused.value)
