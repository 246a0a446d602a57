"""The parts of one line of a travel plan: prices, distances, ends of routes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

_DASHES = "-–—→"
_MARKUP = re.compile(r"^(?:[-*+•>#\s]|[0-9]+[.)]\s)+|[*_`]{2,}|`")
_COMMA = re.compile("[,，]")
# Runs of blanks, over which patterns would try every way to share them.
_BLANKS = re.compile(r"\s{3,}")
_NUMBER = r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]{1,6})?|[0-9]{1,12}(?:\.[0-9]{1,6})?"
_UNIT = r"(?:RMB|CNY|yuan|元)"
_AMOUNT = re.compile(rf"(?:¥|{_UNIT})\s*({_NUMBER})|({_NUMBER})\s*{_UNIT}", re.IGNORECASE)
_PER = r"(?:(?:/|per)\s*[^\W\d_]+(?:\s*(?:/|per)\s*[^\W\d_]+)?)"
_REMARK = r"(?:\s*[(（][^()（）]*[)）])?"
_PRICE = re.compile(
    rf"(?:^|[,，])\s*(?:approx\.?\s+)?(?:(?:¥|{_UNIT})\s*)?({_NUMBER})\s*{_UNIT}?\s*{_PER}?{_REMARK}$",
    re.IGNORECASE,
)
_FREE = re.compile(rf"(?:^|[,，])\s*free(?: of charge)?{_REMARK}$", re.IGNORECASE)
_DURATION = re.compile(
    r"(?:^|[,，])\s*((?:[0-9.]{1,8}\s*(?:h|hours?|hrs?)\s*)?(?:[0-9.]{1,8}\s*min(?:ute)?s?)?)$",
    re.IGNORECASE,
)
_DISTANCE = re.compile(
    r"(?:^|[,，])\s*([0-9.]{1,8}\s*(?:km|m|kilomet(?:re|er)s?|met(?:re|er)s?))$", re.IGNORECASE
)
_SPLIT = re.compile(rf"\s+[{_DASHES}]+>?\s+|\s*→\s*")
_TRAIN = re.compile(r"[GDCKTZYSL][0-9]{1,4}")
_FLIGHT = re.compile(r"[A-Z0-9]{2}[0-9]{3,4}")


def plain(line: str) -> str:
    """A line without Markdown around it, with the plain forms of ｜ and ￥."""
    line = _BLANKS.sub("  ", line.translate(str.maketrans("｜￥\u00a0", "|¥ ")))
    return _MARKUP.sub("", line).strip()


class Fields:
    """The details of a line; what is taken from either end is no longer in ``rest``."""

    def __init__(self, text: str) -> None:
        self.rest = text

    def take_price(self) -> int | float | None:
        """The price at the end, a number; None where there is none."""
        self.rest, price = price_of(self.rest)
        return price

    def take_duration(self) -> str:
        """The duration at the end, as written."""
        return self._take(_DURATION)

    def take_distance(self) -> str:
        """The distance at the end, as written."""
        return self._take(_DISTANCE)

    def take_first(self, only: Collection[str] | None = None) -> str | None:
        """What stands before the first comma, the whole where there is none.

        With ``only``, None and nothing taken where it is none of these words.
        """
        first, *rest = _COMMA.split(self.rest, maxsplit=1)
        if only is not None and first.strip().lower() not in only:
            return None
        self.rest = "".join(rest).strip()
        return first.strip()

    def _take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.search(self.rest)
        if found is None or not found[1]:
            return ""
        self.rest = self.rest[: found.start()].strip()
        return found[1].strip()


def fields_of(said: str) -> Fields:
    """The details of an activity's line, which bars may divide as commas do."""
    return Fields(re.sub(r"\s*\|\s*", ", ", said.strip().strip("|").strip()))


def price_of(text: str) -> tuple[str, int | float | None]:
    """A text without the price at its end, and the price; None where there is none."""
    if found := _FREE.search(text):
        return text[: found.start()].strip(), 0
    found = _PRICE.search(text)
    if found is None:
        return text.strip(), None
    return text[: found.start()].strip(), _number(found[1])


def amount_in(text: str) -> int | float | None:
    """The first sum of money in a text; where none has a currency, the first number."""
    if found := _AMOUNT.search(text):
        return _number(found[1] or found[2])
    bare = re.search(_NUMBER, text)
    return _number(bare[0]) if bare else None


def _number(written: str) -> int | float:
    number = float(written.replace(",", ""))
    return int(number) if number.is_integer() else number


def legs_number(head: str | None) -> tuple[str, str]:
    """ "flight CA1234" as mode and number; a number alone says by its form which it is."""
    mode, _, number = (head or "").partition(" ")
    if mode.lower() in ("flight", "train"):
        return mode.lower(), number.strip()
    alone = (head or "").strip()
    if _TRAIN.fullmatch(alone):
        return "train", alone
    if _FLIGHT.fullmatch(alone):
        return "flight", alone
    return mode.lower(), number.strip()


class RouteNames:
    """Splits routes where names may have dashes too: by the names that the plan has elsewhere."""

    def __init__(self, names: Iterable[str]) -> None:
        self._known = {name for name in names if name}

    def split(self, route: str) -> tuple[str, str] | None:
        """Where a route begins and ends; None where it has no dash between two ends.

        Of several ways to split it, one that gives most known names, the first of those.
        """
        found = [
            (route[: dash.start()].strip(), route[dash.end() :].strip())
            for dash in _SPLIT.finditer(route)
        ]
        found = [ends for ends in found if all(ends)]
        if not found:
            return None
        return max(found, key=lambda ends: sum(end in self._known for end in ends))
