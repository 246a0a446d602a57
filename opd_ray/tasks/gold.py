r"""The short answer that a gold text holds: data sets give whole solutions as answers, too."""

from __future__ import annotations

import re

from opd_ray.tasks.boxes import boxed_parts

_AFTER_HASHES = re.compile(r"####[ \t]*(\S[^\n]*)")
# With the asterisks of Markdown's bold print around any of it.
_ANSWER_IS = re.compile(
    r"\banswer\**\s*(?:is\s*:?|:)[\s*]*([^\s*][^\n]*?)\**(?:(?<!\.)\.)?\**\s*\Z", re.IGNORECASE
)
# What pandas and others write for a value that is not there.
_MISSING = {"nan", "none", "null", "nat", "<na>"}
_COMMAND = re.compile(r"\\(?:begin|end|math[a-z]*)\s*\{[^{}]*\}|\\[A-Za-z]+")
_PROSE = re.compile(r"[A-Za-z]{2,}(?:[ \t,]+[A-Za-z]{2,})+")
_NEXT_SENTENCE = re.compile(r"[a-z\d)]\.\s+[A-Z][a-z]+\s")
# Words in a row; no short answer is a sentence of so many.
_SENTENCE_WORDS = 6


def short_gold(answer: str) -> str:
    r"""The answer behind ``####``, in ``\boxed{}`` or behind a closing "answer is"; else all of it.

    The last of each counts, in this order.
    """
    if hashes := _AFTER_HASHES.findall(answer):
        return hashes[-1].strip(" \t\r*")
    if boxed := ", ".join(boxed_parts(answer)):
        return boxed
    if said := _ANSWER_IS.search(answer):
        return said[1].strip()
    return answer.strip()


def no_short_answer(answer: str) -> str | None:
    """Why hardly any response can give such an answer in a box, or None for a usual one.

    ``answer`` is what :func:`short_gold` leaves.
    """
    if answer.lower() in _MISSING:
        return "a missing value as text"
    prose = _COMMAND.sub(" ", answer)
    words = max((len(run.split()) for run in _PROSE.findall(prose)), default=0)
    if words >= _SENTENCE_WORDS or _NEXT_SENTENCE.search(prose):
        return "whole sentences"
    if boxed_parts(f"\\boxed{{{answer}}}") != [answer]:
        return "nothing that a box can hold"
    return None
