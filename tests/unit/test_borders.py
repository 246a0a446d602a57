"""What libraries raise over a user's input becomes a message with place and remedy."""

from __future__ import annotations

import json

import pytest

from opd_ray.borders import border, first_line
from opd_ray.errors import ConfigError, InputError, exit_code


def test_what_a_library_raises_becomes_bad_input_with_place_cause_and_remedy() -> None:
    with pytest.raises(InputError) as raised, border("a.json", "write an object"):
        json.loads("{")
    assert str(raised.value).startswith("a.json: JSONDecodeError: Expecting property name")
    assert str(raised.value).endswith("; write an object")
    assert isinstance(raised.value.__cause__, json.JSONDecodeError)
    assert exit_code(raised.value) == 2


def test_a_known_error_passes_a_border_as_it_is() -> None:
    known = ConfigError("run.steps = 0: at least 1")
    with pytest.raises(ConfigError) as raised, border("a.json", "write an object"):
        raise known
    assert raised.value is known


def test_the_class_of_a_border_is_the_class_that_is_raised() -> None:
    with pytest.raises(ConfigError), border("run.yaml", "mend it", ConfigError):
        raise TypeError


def test_the_first_line_that_says_something_without_its_full_stop() -> None:
    assert first_line(OSError("\n\n  no such folder.\nmore")) == "OSError: no such folder"
    assert first_line(KeyError()) == "KeyError"
