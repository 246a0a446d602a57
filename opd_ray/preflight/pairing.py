"""Whether student and teacher speak of the same tokens, checked from their files, without weights.

Rows of the two distributions are compared id by id, so equal ids must mean equal tokens. Everything
else that is checked here makes a run learn the wrong thing without failing.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from opd_ray.config.choices import SignalChoice, Support
from opd_ray.config.schema import Config, StudentSettings
from opd_ray.config.teacher import TeacherSettings, model_path
from opd_ray.errors import OpdError
from opd_ray.models.tokenizer import ModelFacts, describe_model, fingerprint_problems
from opd_ray.preflight.tokenizers import (
    ACCEPTABLE,
    context_problem,
    differences,
    own_size_differences,
)
from opd_ray.types import TeacherInfo


class PairingError(OpdError, ValueError):
    """A student and a teacher that do not fit."""

    @classmethod
    def listing(cls, who: str, problems: Iterable[str]) -> PairingError:
        """Of ``who``, every problem on a line of its own."""
        return cls("\n  - ".join([f"{who}:", *problems]))


@dataclass(frozen=True)
class Pairing:
    """What a checked pair shares."""

    vocab_size: int  # real tokens; rows beyond them are padding in both models
    tokenizer_hash: str  # the student's
    tokenizer: Any = field(default=None, repr=False, compare=False)  # the student's, loaded
    end_ids: tuple[int, ...] = ()  # of the student's tokens that end a response
    accepted: tuple[str, ...] = ()  # differences found and accepted, in words
    # Tokens a teacher can read, by its path, of teachers with files.
    teacher_contexts: Mapping[str, int] = field(default_factory=dict)


def check_pairing(
    student: ModelFacts,
    teacher: ModelFacts | None,
    *,
    context_length: int,
    accept: Iterable[str] = (),
    key: str = "teacher",
) -> Pairing:
    """Compare a student with a teacher.

    Args:
        student: what its files say.
        teacher: likewise; None for one without files: then only the student is looked at, and
            :func:`check_teacher_info` asks the running teacher later.
        context_length: longest prompt plus response of the run, tokens.
        accept: names out of ACCEPTABLE of differences that are reported, not refused.
        key: where the configuration speaks of the teacher.

    Raises:
        PairingError: listing every difference that is not accepted and what to do about it.
    """
    if teacher is None:
        problems = [text for _, text in own_size_differences("student", student, context_length)]
        if problems:
            raise PairingError.listing(f"student {student.path}", problems)
        return Pairing(
            student.vocab_size, student.tokenizer_hash, student.tokenizer, student.eos_ids
        )
    accepted = set(accept)
    if unknown := sorted(accepted - set(ACCEPTABLE)):
        raise PairingError(
            f"{key}.accept_mismatch names {unknown[0]!r}; it may name {', '.join(ACCEPTABLE)}"
        )
    found = list(differences(student, teacher, context_length, key))
    refused = [text for kind, text in found if kind not in accepted]
    if refused:
        who = f"student {student.path} and teacher {teacher.path} do not pair"
        raise PairingError.listing(who, refused)
    return Pairing(
        vocab_size=min(student.vocab_size, teacher.vocab_size),
        tokenizer_hash=student.tokenizer_hash,
        tokenizer=student.tokenizer,
        end_ids=student.eos_ids,
        accepted=tuple(text for _, text in found),
        teacher_contexts={teacher.path: teacher.context_length},
    )


def check_pairings(config: Config) -> Pairing:
    """Compare the student of a run with every teacher in it; what all of them share.

    Raises:
        ModelFactsError: the files of one of them cannot be read.
        PairingError: see :func:`check_pairing`, of the first teacher that does not fit; or a top-k
            wider than the vocabulary.
    """
    student = describe_student(config.student)
    pairings = {
        key: check_pairing(
            student,
            _describe_teacher(settings),
            context_length=config.student.context_length,
            accept=settings.accept_mismatch,
            key=key,
        )
        for key, settings in config.teacher_set.models.items()
    }
    found = list(pairings.values())
    vocab_size = min(pairing.vocab_size for pairing in found)
    _refuse_wide_topks(config, vocab_size)
    return Pairing(
        vocab_size=vocab_size,
        tokenizer_hash=student.tokenizer_hash,
        tokenizer=student.tokenizer,
        end_ids=student.eos_ids,
        accepted=tuple(f"{key}: {text}" for key, p in pairings.items() for text in p.accepted),
        teacher_contexts=dict(ChainMap(*(dict(p.teacher_contexts) for p in found))),
    )


def check_student(config: Config) -> Pairing:
    """Look at the student of a config alone, as an evaluation does, which asks no teacher.

    Raises:
        ModelFactsError, PairingError: see :func:`check_pairings`.
    """
    student = describe_student(config.student)
    pairing = check_pairing(student, None, context_length=config.student.context_length)
    _refuse_wide_topks(config, pairing.vocab_size, of_teacher=False)
    return pairing


def describe_student(settings: StudentSettings) -> ModelFacts:
    """What the student's files say; see :func:`describe_model`."""
    return describe_model(settings.path, trust_remote_code=settings.trust_remote_code)


def _describe_teacher(settings: TeacherSettings) -> ModelFacts | None:
    path = model_path(settings)
    trust = settings.trust_remote_code
    return None if path is None else describe_model(path, trust_remote_code=trust)


def topks_in_use(config: Config, *, of_teacher: bool = True) -> dict[str, int]:
    """How many tokens a position are recorded and asked for, by key."""
    topks = {"rollout.record_topk": config.rollout.record_topk}
    first = config.teacher_set.first
    by_topk = first.signal is SignalChoice.topk and config.support is not Support.student
    return topks | ({"teacher.topk": first.topk} if of_teacher and by_topk else {})


def _refuse_wide_topks(config: Config, vocab_size: int, *, of_teacher: bool = True) -> None:
    """Refuse to record or send more tokens a position than there are; padding rows are none."""
    problems = [
        f"{key} = {value}: above the {vocab_size} tokens of the tokenizer; lower it"
        for key, value in topks_in_use(config, of_teacher=of_teacher).items()
        if value > vocab_size
    ]
    if problems:
        raise PairingError("\n".join(problems))


def check_teacher_info(
    pairing: Pairing, info: TeacherInfo, *, context_length: int, accept: Iterable[str] = ()
) -> None:
    """Compare the pair's common facts with what a running teacher says of itself.

    Args:
        pairing: of the student with all teachers.
        info: of one of them.
        context_length: most tokens that it has to read.
        accept: differences accepted of this teacher.

    Raises:
        PairingError: another tokenizer, fewer tokens, or a context shorter than the run needs.
    """
    problems = fingerprint_problems(info, pairing.tokenizer_hash, accept)
    if info.vocab_size < pairing.vocab_size:
        problems.append(
            f"it knows {info.vocab_size} tokens, the student's tokenizer has {pairing.vocab_size}"
        )
    if info.context_length < context_length:
        problems.append(_short_context(info, context_length))
    if problems:
        raise PairingError.listing(f"teacher {info.name!r} does not fit the student", problems)


def uncompared_tokenizer(info: TeacherInfo, models: Iterable[TeacherSettings]) -> str | None:
    """That nobody could compare a running teacher's tokenizer with the student's, in words.

    ``models`` are its settings, or those of its members.
    """
    # A server's tokenizer is probed, or the server is refused.
    unseen = [m for m in models if model_path(m) is None and not m.traits.asks_server]
    if info.tokenizer_hash is not None or not unseen:
        return None
    return (
        f"teacher {info.name!r}: its tokenizer was not compared with the student's: it has neither "
        f"{unseen[0].key}.path nor info().tokenizer_hash (opd_ray.models.tokenizer.tokenizer_hash)"
    )


def _short_context(info: TeacherInfo, needs: int) -> str:
    """Why a running teacher has no room for ``needs`` tokens; its engine's cache may be it."""
    limit = info.meta.get("context_limit")
    if limit is None:
        return context_problem("its", info.context_length, needs)
    key, value = limit["key"], limit["value"]
    said = (
        f"its KV cache ({key} = {value}) has room for {info.context_length} tokens, the run needs "
        f"{needs}: "
    )
    if not isinstance(value, int):
        return said + f"raise {key}, or lower student.context_length"
    # One block is the engine's own, and the last one may be half empty.
    enough = -(-value * (needs + 2 * limit["block"]) // limit["tokens"])
    return said + f"raise {key} to {enough}, or lower student.context_length"
