"""What one cell of a column says as text: numbers as plain decimals, never changed in value."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any
from uuid import UUID

import numpy as np

from opd_ray.borders import first_line
from opd_ray.errors import OpdError

# A number with more digits than this is a fault of whoever wrote it.
MAX_DIGITS = 1000
# pandas' missing values, by the names of their classes: pandas itself need not be there.
_MISSING = ("NAType", "NaTType")


class BadRow(OpdError, ValueError):
    """What is wrong with one row; whoever knows the row's place adds it."""


class WrittenFloat(float):
    """A float that remembers how its file spells it, beyond the digits that a float holds."""

    written: str

    def __new__(cls, written: str) -> WrittenFloat:
        self = super().__new__(cls, written)
        self.written = written
        return self


def cell_text(value: Any, where: str) -> str:
    """The text of a cell; ``where`` names its column in messages.

    Text stays as it is. A number becomes a plain decimal: ``1e-05`` is "0.00001".

    Raises:
        BadRow: nothing that has one text: null, a missing value, a boolean, a date, a list.
    """
    if isinstance(value, str):
        text = str(value)
        refuse_half_characters(text, where)
    else:
        text = _number_text(value, where)
    if not text.strip():
        raise BadRow(f"{where} is empty")
    return text


def refuse_half_characters(value: Any, where: str) -> None:
    """Refuse text with half a surrogate pair, as deep as ``value`` is nested.

    Raises:
        BadRow: quotes the text around the half.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            around = ascii(value[max(0, error.start - 20) : error.end + 20])
            raise BadRow(
                f"{where} holds half a character (a surrogate without its other half) at position "
                f"{error.start}: {around}; write the whole character, or take the half out"
            ) from error
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            refuse_half_characters(name, where)
            refuse_half_characters(inner, where)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            refuse_half_characters(inner, where)


def kind_name(value: Any) -> str:
    """What a value is, for messages."""
    return "null" if value is None else type(value).__name__


def _number_text(value: Any, where: str) -> str:
    missing = type(value).__name__ in _MISSING
    if not missing and isinstance(value, (float, np.floating, Decimal)):
        return _decimal_text(value, where)
    if isinstance(value, (bool, np.bool_)):
        raise BadRow(
            f"{where} must be text or a number, not {kind_name(value)} ({value}): write the word "
            "that a response would give"
        )
    if isinstance(value, (int, np.integer, Fraction)):
        return _whole_text(value, where)
    if isinstance(value, UUID):
        return str(value)
    if missing:
        raise BadRow(_missing(where, value))
    remedy = ""
    if isinstance(value, (list, tuple, np.ndarray)):
        remedy = ": write it as one text, for example '1, 2'"
    elif value is None:
        remedy = ": give one, or take the row out"
    elif hasattr(value, "isoformat"):
        remedy = f" ({value}): write it as text, in the form that is wanted"
    raise BadRow(f"{where} must be text or a number, not {kind_name(value)}{remedy}")


def _whole_text(value: Any, where: str) -> str:
    try:
        return str(value)
    except ValueError as error:  # Python writes out 4,300 digits and no more
        raise BadRow(f"{where} is a number too long to write out: {first_line(error)}") from error


def _decimal_text(value: Any, where: str) -> str:
    # Of a NumPy float its own shortest form, not that of the double beside it.
    spelled = value.written if isinstance(value, WrittenFloat) else str(value)
    number = Decimal(spelled)
    if number.is_nan():
        raise BadRow(_missing(where, value))
    if number.is_infinite():
        raise BadRow(f"{where} is infinite ({value}): write a finite number, or text")
    exponent = int(number.as_tuple().exponent)
    if max(abs(number.adjusted()), abs(exponent)) > MAX_DIGITS:
        raise BadRow(
            f"{where} = {spelled[:40]} has more than {MAX_DIGITS} digits: write it as text"
        )
    return format(number, "f")


def _missing(where: str, value: Any) -> str:
    return (
        f"{where} is a missing value ({value}): write null where there is none, or take the row out"
    )
