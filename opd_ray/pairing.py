"""Whether student and teacher speak of the same tokens, checked from their files, without weights.

Rows of the two distributions are compared id by id, so equal ids must mean equal tokens. Everything
else that is checked here makes a run learn the wrong thing without failing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from opd_ray.errors import OpdError
from opd_ray.model_facts import ModelFacts, describe_model
from opd_ray.types import TeacherInfo

# Differences a user may accept (teacher.accept_mismatch), and what they mean.
ACCEPTABLE = ("extra_tokens", "merges", "special_tokens", "probes", "eos", "pad", "chat_template")
# Digits, spaces, line breaks, quotes, code, accents, other scripts, an emoji: where they part.
PROBES = (
    "What is 1234 + 56.7?\n\nLet's see:  12*34 = 408.",
    "def f(x):\n\treturn x**2  # café, naïve",
    "Ответ: 答案是 42 🙂",
)
_SHOWN = 5


class PairingError(OpdError, ValueError):
    """A student and a teacher that do not fit; the message lists every difference."""


@dataclass(frozen=True)
class Pairing:
    """What a checked pair shares."""

    vocab_size: int  # real tokens; rows beyond them are padding in both models
    eos_ids: tuple[int, ...]  # the student's
    pad_id: int | None  # the student's
    context_length: int  # the shorter of both models
    tokenizer_hash: str  # the student's
    accepted: tuple[str, ...]  # differences found and accepted, for the log


def check_pairing(
    student_path: str,
    teacher_path: str | None,
    *,
    context_length: int,
    accept: Iterable[str] = (),
    trust_student_code: bool = False,
    trust_teacher_code: bool = False,
) -> Pairing:
    """Compare a student with a teacher, both Hugging Face folders or hub names.

    Args:
        teacher_path: None for a teacher without files: then only the student is looked at, and
            :func:`check_teacher_info` asks the running teacher later.
        context_length: longest prompt plus response of the run, tokens.
        accept: names out of ACCEPTABLE of differences that are reported, not refused.

    Raises:
        ModelFactsError: the files of one of them cannot be read.
        PairingError: listing every difference that is not accepted and what to do about it.
    """
    student = describe_model(student_path, trust_remote_code=trust_student_code)
    if teacher_path is None:
        return _student_alone(student, context_length)
    teacher = describe_model(teacher_path, trust_remote_code=trust_teacher_code)
    return compare_models(student, teacher, context_length=context_length, accept=accept)


def compare_models(
    student: ModelFacts, teacher: ModelFacts, *, context_length: int, accept: Iterable[str] = ()
) -> Pairing:
    """As :func:`check_pairing`, of facts already read."""
    accepted = _accepted(accept)
    found = [
        *_token_differences(student, teacher),
        *_sequence_difference("merges", student.merges, teacher.merges),
        *_special_differences(student, teacher),
        *_probe_differences(student, teacher),
        *_end_differences(student, teacher),
        *_template_difference(student.chat_template, teacher.chat_template),
        *_size_differences(student, teacher, context_length),
    ]
    refused = [text for kind, text in found if kind not in accepted]
    if refused:
        listed = "\n".join(f"  - {text}" for text in refused)
        raise PairingError(
            f"student {student.path} and teacher {teacher.path} do not pair:\n{listed}"
        )
    return Pairing(
        vocab_size=min(student.vocab_size, teacher.vocab_size),
        eos_ids=student.eos_ids,
        pad_id=student.pad_id,
        context_length=min(student.context_length, teacher.context_length),
        tokenizer_hash=student.tokenizer_hash,
        accepted=tuple(text for _, text in found),
    )


def _student_alone(student: ModelFacts, context_length: int) -> Pairing:
    """Its own tokens and ends, where the teacher has no files to compare."""
    problems = _own_size_differences("student", student, context_length)
    if problems:
        listed = "\n".join(f"  - {text}" for _, text in problems)
        raise PairingError(f"student {student.path}:\n{listed}")
    return Pairing(
        vocab_size=student.vocab_size,
        eos_ids=student.eos_ids,
        pad_id=student.pad_id,
        context_length=student.context_length,
        tokenizer_hash=student.tokenizer_hash,
        accepted=(),
    )


def check_teacher_info(pairing: Pairing, info: TeacherInfo, *, context_length: int) -> None:
    """Compare the pair's common facts with what a running teacher says of itself.

    Raises:
        PairingError: another tokenizer, fewer tokens, or a context shorter than the run needs.
    """
    problems = []
    if info.tokenizer_hash not in (None, pairing.tokenizer_hash) and not pairing.accepted:
        problems.append(
            f"its tokenizer's fingerprint is {info.tokenizer_hash}, the student's is "
            f"{pairing.tokenizer_hash}: serve a teacher with the student's tokenizer"
        )
    if info.vocab_size < pairing.vocab_size:
        problems.append(
            f"it knows {info.vocab_size} tokens, the student's tokenizer has {pairing.vocab_size}"
        )
    if info.context_length < context_length:
        problems.append(_context_problem("its", info.context_length, context_length))
    if problems:
        listed = "\n".join(f"  - {text}" for text in problems)
        raise PairingError(f"teacher {info.name!r} does not fit the student:\n{listed}")


Difference = tuple[str, str]  # kind, text


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
            f"use one tokenizer, or drop them from its distribution with {_remedy('extra_tokens')}",
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
            f"use one tokenizer, or accept it with {_remedy(kind)}",
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
            f"special tokens (student / teacher): {shown}; use one tokenizer, or accept it with "
            f"{_remedy('special_tokens')}",
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
                f"probe text (student / teacher): {problem}; use one tokenizer, or accept it with "
                f"{_remedy('probes')}",
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
                f"generation_config.json, or accept it with {_remedy('eos')}",
            )
        )
    if student.pad_id != teacher.pad_id:
        found.append(
            (
                "pad",
                f"padding: token id {student.pad_id} in the student, {teacher.pad_id} in the "
                f"teacher; set pad_token alike in both tokenizers, or accept it with "
                f"{_remedy('pad')}",
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
            "the student's template: copy the teacher's to the student, or accept it with "
            f"{_remedy('chat_template')}",
        )
    ]


def _size_differences(
    student: ModelFacts, teacher: ModelFacts, context_length: int
) -> list[Difference]:
    return [
        *_own_size_differences("student", student, context_length),
        *_own_size_differences("teacher", teacher, context_length),
    ]


def _own_size_differences(name: str, facts: ModelFacts, context_length: int) -> list[Difference]:
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
            ("context", _context_problem(f"the {name}'s", facts.context_length, context_length))
        )
    return found


def _context_problem(whose: str, has: int, needs: int) -> str:
    return (
        f"{whose} context is {has} tokens, the run needs {needs}: lower student.context_length "
        "(and rollout.max_new_tokens), or use a model with a longer context"
    )


def _accepted(accept: Iterable[str]) -> frozenset[str]:
    accepted = frozenset(accept)
    unknown = sorted(accepted - set(ACCEPTABLE))
    if unknown:
        raise PairingError(
            f"teacher.accept_mismatch names {unknown[0]!r}; it may name {', '.join(ACCEPTABLE)}"
        )
    return accepted


def _remedy(kind: str) -> str:
    return f"teacher.accept_mismatch=[{kind}]"


def _first(shown: Sequence[str], count: int) -> str:
    more = f", ... ({count - len(shown)} more)" if count > len(shown) else ""
    return ", ".join(shown) + more
