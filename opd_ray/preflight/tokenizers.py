"""In what the token vocabularies, special tokens, templates and sizes of two models differ.

Each difference is a kind and a sentence that says what differs and what to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest

from opd_ray.models.tokenizer import PROBES, ModelFacts

# Differences a user may accept (``accept_mismatch`` of a teacher), and what they mean.
ACCEPTABLE = ("extra_tokens", "merges", "special_tokens", "probes", "eos", "pad", "chat_template")

_SHOWN = 5

Difference = tuple[str, str]  # kind, text


def differences(
    student: ModelFacts, teacher: ModelFacts, context_length: int, key: str = "teacher"
) -> Iterator[Difference]:
    """All of them; ``context_length`` is the run's longest prompt plus response, tokens."""
    found = (
        *_token_differences(student, teacher),
        *_merge_differences(student.merges, teacher.merges),
        *_special_differences(student.special_tokens, teacher.special_tokens),
        *_probe_differences(student, teacher),
        *_end_differences(student, teacher),
        *_template_differences(student.chat_template, teacher.chat_template),
        *own_size_differences("student", student, context_length),
        *own_size_differences("teacher", teacher, context_length),
    )
    for kind, text in found:
        if kind in ACCEPTABLE:
            accept = "drop them from its distribution" if kind == "extra_tokens" else "accept it"
            text += f", or {accept} with {key}.accept_mismatch=[{kind}]"
        yield kind, text


def own_size_differences(name: str, facts: ModelFacts, context_length: int) -> Iterator[Difference]:
    """What of one model alone cannot be; ``name`` is "student" or "teacher"."""
    if facts.rows < facts.vocab_size:
        yield (
            "rows",
            f"the {name}'s model has {facts.rows} vocabulary rows, its tokenizer "
            f"{facts.vocab_size} tokens: the tokenizer belongs to another model",
        )
    if facts.context_length < context_length:
        text = context_problem(f"the {name}'s", facts.context_length, context_length)
        yield "context", text + (f" ({facts.context_remark})" if facts.context_remark else "")
    if name == "student" and facts.unknown_rope is not None:
        yield (
            "rope",
            f"the student's config.json has rope_type {facts.unknown_rope!r}, which transformers "
            "does not know, so it cannot be trained: choose another student",
        )


def context_problem(whose: str, has: int, needs: int) -> str:
    """A context shorter than the run needs, in words."""
    return (
        f"{whose} context is {has} tokens, the run needs {needs}: lower student.context_length "
        "(and rollout.max_new_tokens), or use a model with a longer context"
    )


def _token_differences(student: ModelFacts, teacher: ModelFacts) -> Iterator[Difference]:
    mine, other = student.tokens, teacher.tokens
    differing = sorted(i for i in mine.keys() & other.keys() if mine[i] != other[i])
    if differing:
        shown = _first([f"id {i}: {mine[i]!r} / {other[i]!r}" for i in differing])
        yield (
            "vocabulary",
            f"vocabulary: {len(differing)} ids mean different tokens (student / teacher): "
            f"{shown}; choose a teacher of the student's model family",
        )
    for kind, name, has, lacks, remedy in (
        ("vocabulary", "student", mine, other, "choose a teacher that knows them"),
        ("extra_tokens", "teacher", other, mine, "use one tokenizer"),
    ):
        extra = sorted(has.keys() - lacks.keys())
        if extra:
            shown = _first([f"id {i}: {has[i]!r}" for i in extra])
            yield kind, f"vocabulary: {len(extra)} tokens of the {name} alone: {shown}; {remedy}"


def _merge_differences(mine: Sequence[str], other: Sequence[str]) -> Iterator[Difference]:
    pairs = zip_longest(mine, other, fillvalue="(none)")
    for place, (ours, theirs) in enumerate(pairs):
        if ours != theirs:
            yield (
                "merges",
                f"merges: {len(mine)} in the student, {len(other)} in the teacher, first differing "
                f"at number {place}: {ours!r} / {theirs!r}; the teacher would read splits it never "
                "saw: use one tokenizer",
            )
            return


def _special_differences(mine: Mapping[str, str], other: Mapping[str, str]) -> Iterator[Difference]:
    roles = sorted(r for r in mine.keys() | other.keys() if mine.get(r) != other.get(r))
    if roles:
        shown = _first([f"{r}: {mine.get(r)!r} / {other.get(r)!r}" for r in roles])
        yield "special_tokens", f"special tokens (student / teacher): {shown}; use one tokenizer"


def _probe_differences(student: ModelFacts, teacher: ModelFacts) -> Iterator[Difference]:
    both = (student.tokenizer, teacher.tokenizer)
    for probe in PROBES:
        mine, other = (tokenizer.encode(probe, add_special_tokens=False) for tokenizer in both)
        if mine != other:
            problem = f"{probe!r} becomes {mine[:12]} / {other[:12]}"
        else:
            back, forth = (tokenizer.decode(mine) for tokenizer in both)
            if back == forth:
                continue
            problem = f"the ids {mine[:12]} become {back!r} / {forth!r}"
        yield "probes", f"probe text (student / teacher): {problem}; use one tokenizer"
        return


def _end_differences(student: ModelFacts, teacher: ModelFacts) -> Iterator[Difference]:
    if student.eos_ids != teacher.eos_ids:
        mine, other = (
            [f"{i} {facts.tokens.get(i)!r}" for i in facts.eos_ids] for facts in (student, teacher)
        )
        yield (
            "eos",
            f"end of sequence: the student stops at {mine}, the teacher at {other}, which "
            "would call any other end unlikely: set eos_token_id alike in both "
            "generation_config.json",
        )
    if student.pad_id != teacher.pad_id:
        yield (
            "pad",
            f"padding: token id {student.pad_id} in the student, {teacher.pad_id} in the "
            "teacher; set pad_token alike in both tokenizers",
        )


def _template_differences(mine: str | None, other: str | None) -> Iterator[Difference]:
    if mine == other:
        return
    if mine is None or other is None:
        problem = f"only the {'teacher' if mine is None else 'student'} has one"
    else:
        lines = zip_longest(mine.split("\n"), other.split("\n"), fillvalue="")
        number, (ours, theirs) = next(
            (n, pair) for n, pair in enumerate(lines, start=1) if pair[0] != pair[1]
        )
        problem = f"line {number} is {ours.strip()[:80]!r} / {theirs.strip()[:80]!r}"
    yield (
        "chat_template",
        f"chat template (student / teacher): {problem}; the teacher reads prompts made with "
        "the student's template: copy the teacher's to the student",
    )


def _first(shown: Sequence[str]) -> str:
    more = f", ... ({len(shown) - _SHOWN} more)" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more
