"""Whose answers a folder holds: compared before anything in it is used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.teacher.protocol import TeacherError
from opd_ray.config.teacher import TeacherSettings
from opd_ray.types import TeacherInfo

FILE = "teacher.json"
_ENDS = 1 << 16  # bytes of a weight file's beginning and end that tell it from others


# What a teacher says of itself and must say again.
_OF_INFO = ("name", "vocab_size", "context_length", "hidden_size", "tokenizer_hash")
_KEYS = {"kind", "dtype", "weights", "reads_student_logprobs", *_OF_INFO}


def identity_in(settings: TeacherSettings) -> dict[str, Any]:
    """What tells a teacher from others, as far as a config shows it without the teacher."""
    known = {
        "kind": settings.kind,
        "dtype": settings.dtype.value,
        "weights": weights_fingerprint(settings.path),
    }
    if settings.traits.runs_model and settings.path:
        known["name"] = Path(settings.path).name
    elif settings.traits.asks_server and settings.model:
        known["name"] = settings.model
    return known


def identity_of(settings: TeacherSettings, info: TeacherInfo) -> dict[str, Any]:
    """What tells a loaded teacher from others."""
    said = {key: getattr(info, key) for key in _OF_INFO}
    # Whether answers depend on the student's probabilities, not on its ids alone.
    reads = bool(info.meta.get("reads_student_logprobs", False))
    return {**identity_in(settings), **said, "reads_student_logprobs": reads}


def info_of(identity: Mapping[str, Any], settings: TeacherSettings) -> TeacherInfo:
    """What the teacher said of itself, with the signal that the settings ask for."""
    said = {key: identity[key] for key in _OF_INFO}
    if settings.accept_mismatch:  # of a pair that was accepted when it was recorded
        said["tokenizer_hash"] = None
    meta = {
        "kind": identity["kind"],
        "cache_dir": settings.cache_dir,
        "reads_student_logprobs": identity["reads_student_logprobs"],
    }
    return TeacherInfo(
        signals=(settings.signal.value,),
        answers_rows=True,  # whatever the recorded teacher does: what is kept are asked rows
        meta=meta,
        **said,
    )


def read_identity(
    folder: Path, settings: TeacherSettings, mine: Mapping[str, Any]
) -> dict[str, Any]:
    """Of the teacher whose answers are in a folder; {} if nobody's are.

    Args:
        folder: of recorded answers.
        settings: of the teacher that looks for its answers there.
        mine: its identity, as far as it is known.

    Raises:
        TeacherError: the folder is another teacher's (naming the first thing in which it is), or
            the file that says whose cannot be read or says something else.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    remedy = f"use another {settings.key}.cache_dir and record anew"
    wrong = f"{path}: not a record of a teacher (%s); {remedy}"
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise TeacherError(wrong % error) from error
    if not isinstance(found, dict) or found.keys() != _KEYS:
        raise TeacherError(wrong % f"it needs {', '.join(sorted(_KEYS))}")
    for key, value in mine.items():
        # Weight files need not be where answers are replayed.
        if value != found[key] and not (key == "weights" and value is None):
            raise TeacherError(
                f"{settings.key}.cache_dir = {settings.cache_dir!r} holds answers of a teacher "
                f"with {key} {found[key]!r}; this one's is {value!r}: use another folder"
            )
    return found


def weights_fingerprint(path: str | None) -> str | None:
    """Of the weight files in a folder: names, sizes, and the first and last 64 KiB of each."""
    files = sorted(Path(path).glob("*.safetensors")) if path else []
    if not files:
        return None
    found = hashlib.blake2b(digest_size=16)
    for file in files:
        size = file.stat().st_size
        found.update(f"{file.name} {size}".encode())
        with file.open("rb") as content:
            found.update(content.read(_ENDS))
            content.seek(max(0, size - _ENDS))
            found.update(content.read(_ENDS))
    return found.hexdigest()
