"""In what the token vocabularies, special tokens, templates and sizes of two models differ.

Each difference is a kind and a sentence that says what differs and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from opd_ray.models.tokenizer import PROBES, ModelFacts

# Differences a user may accept (``accept_mismatch`` of a teacher), and what they mean.
ACCEPTABLE = ("extra_tokens", "merges", "special_tokens", "probes", "eos", "pad", "chat_template")

_SHOWN = 5

Difference = tuple[str, str]  # kind, text


def differences(
    student: ModelFacts, teacher: ModelFacts, context_length: int, key: str = "teacher"
) -> list[Difference]:
    """All of them; ``context_length`` is the run's longest prompt plus response, tokens."""
    found = [
        *_token_differences(student, teacher),
        *_sequence_difference("merges", student.merges, teacher.merges),
        *_special_differences(student, teacher),
        *_probe_differences(student, teacher),
        *_end_differences(student, teacher),
        *_template_difference(student.chat_template, teacher.chat_template),
        *own_size_differences("student", student, context_length),
        *own_size_differences("teacher", teacher, context_length),
    ]
    return [(kind, text + _way_out(kind, key)) for kind, text in found]


def _way_out(kind: str, key: str) -> str:
    """What ends the sentence on a difference that may be accepted."""
    if kind not in ACCEPTABLE:
        return ""
    accept = "drop them from its distribution" if kind == "extra_tokens" else "accept it"
    return f", or {accept} with {key}.accept_mismatch=[{kind}]"


def own_size_differences(name: str, facts: ModelFacts, context_length: int) -> list[Difference]:
    """What of one model alone cannot be; ``name`` is "student" or "teacher"."""
    found = []
    if facts.rows < facts.vocab_size:
        found.append(
            (
                "rows",
                f"the {name}'s model has {facts.rows} vocabulary rows, its tokenizer "
                f"{facts.vocab_size} tokens: the tokenizer belongs to another model",
            )
        )
    if facts.context_length < context_length:
        found.append(
            ("context", context_problem(f"the {name}'s", facts.context_length, context_length))
        )
    return found


def context_problem(whose: str, has: int, needs: int) -> str:
    """A context shorter than the run needs, in words."""
    return (
        f"{whose} context is {has} tokens, the run needs {needs}: lower student.context_length "
        "(and rollout.max_new_tokens), or use a model with a longer context"
    )


def _token_differences(student: ModelFacts, teacher: ModelFacts) -> list[Difference]:
    common = student.tokens.keys() & teacher.tokens.keys()
    differing = sorted(i for i in common if student.tokens[i] != teacher.tokens[i])
    found = []
    if differing:
        shown = _first(
            [f"id {i}: {student.tokens[i]!r} / {teacher.tokens[i]!r}" for i in differing[:_SHOWN]],
            len(differing),
        )
        found.append(
            (
                "vocabulary",
                f"vocabulary: {len(differing)} ids mean different tokens (student / teacher): "
                f"{shown}; choose a teacher of the student's model family",
            )
        )
    for kind, name, mine, other, remedy in (
        ("vocabulary", "student", student, teacher, "choose a teacher that knows them"),
        (
            "extra_tokens",
            "teacher",
            teacher,
            student,
            "use one tokenizer",
        ),
    ):
        extra = sorted(mine.tokens.keys() - other.tokens.keys())
        if extra:
            shown = _first([f"id {i}: {mine.tokens[i]!r}" for i in extra[:_SHOWN]], len(extra))
            found.append(
                (kind, f"vocabulary: {len(extra)} tokens of the {name} alone: {shown}; {remedy}")
            )
    return found


def _sequence_difference(kind: str, mine: Sequence[str], other: Sequence[str]) -> list[Difference]:
    if mine == other:
        return []
    place = next(
        (i for i, (a, b) in enumerate(zip(mine, other, strict=False)) if a != b),
        min(len(mine), len(other)),
    )
    ours, theirs = (s[place] if place < len(s) else "(none)" for s in (mine, other))
    return [
        (
            kind,
            f"{kind}: {len(mine)} in the student, {len(other)} in the teacher, first differing at "
            f"number {place}: {ours!r} / {theirs!r}; the teacher would read splits it never saw: "
            "use one tokenizer",
        )
    ]


def _special_differences(student: ModelFacts, teacher: ModelFacts) -> list[Difference]:
    mine, other = student.special_tokens, teacher.special_tokens
    roles = sorted(r for r in mine.keys() | other.keys() if mine.get(r) != other.get(r))
    if not roles:
        return []
    shown = _first([f"{r}: {mine.get(r)!r} / {other.get(r)!r}" for r in roles[:_SHOWN]], len(roles))
    return [
        (
            "special_tokens",
            f"special tokens (student / teacher): {shown}; use one tokenizer",
        )
    ]


def _probe_differences(student: ModelFacts, teacher: ModelFacts) -> list[Difference]:
    for probe in PROBES:
        mine, other = (
            facts.tokenizer.encode(probe, add_special_tokens=False) for facts in (student, teacher)
        )
        if mine != other:
            problem = f"{probe!r} becomes {mine[:12]} / {other[:12]}"
        else:
            back, forth = (facts.tokenizer.decode(mine) for facts in (student, teacher))
            if back == forth:
                continue
            problem = f"the ids {mine[:12]} become {back!r} / {forth!r}"
        return [
            (
                "probes",
                f"probe text (student / teacher): {problem}; use one tokenizer",
            )
        ]
    return []


def _end_differences(student: ModelFacts, teacher: ModelFacts) -> list[Difference]:
    found = []
    if student.eos_ids != teacher.eos_ids:
        mine, other = (
            [f"{i} {facts.tokens.get(i)!r}" for i in facts.eos_ids] for facts in (student, teacher)
        )
        found.append(
            (
                "eos",
                f"end of sequence: the student stops at {mine}, the teacher at {other}, which "
                "would call any other end unlikely: set eos_token_id alike in both "
                "generation_config.json",
            )
        )
    if student.pad_id != teacher.pad_id:
        found.append(
            (
                "pad",
                f"padding: token id {student.pad_id} in the student, {teacher.pad_id} in the "
                "teacher; set pad_token alike in both tokenizers",
            )
        )
    return found


def _template_difference(mine: str | None, other: str | None) -> list[Difference]:
    if mine == other:
        return []
    if mine is None or other is None:
        problem = f"only the {'teacher' if mine is None else 'student'} has one"
    else:
        lines = zip_longest(mine.split("\n"), other.split("\n"), fillvalue="")
        number, (ours, theirs) = next(
            (n, pair) for n, pair in enumerate(lines, start=1) if pair[0] != pair[1]
        )
        problem = f"line {number} is {ours.strip()[:80]!r} / {theirs.strip()[:80]!r}"
    return [
        (
            "chat_template",
            f"chat template (student / teacher): {problem}; the teacher reads prompts made with "
            "the student's template: copy the teacher's to the student",
        )
    ]


def _first(shown: Sequence[str], count: int) -> str:
    more = f", ... ({count - len(shown)} more)" if count > len(shown) else ""
    return ", ".join(shown) + more
