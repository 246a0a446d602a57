"""Whose answers a folder holds: compared before anything in it is used."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actors.teacher.cache.files import write_whole
from actors.teacher.protocol import TeacherError
from opd_ray.config.teacher import TeacherSettings
from opd_ray.types import TeacherInfo

FILE = "teacher.json"
_ENDS = 1 << 16  # bytes of a weight file's beginning and end that tell it from others


@dataclass(frozen=True)
class Recorded:
    """The teacher that a folder's answers are from, as far as its config and itself tell."""

    kind: str
    name: str
    dtype: str
    weights: str | None  # fingerprint of the weight files; None where there are none to look at
    vocab_size: int
    context_length: int
    hidden_size: int | None
    tokenizer_hash: str | None
    reads_student_logprobs: bool  # answers depend on the student's probabilities, not its ids alone

    @classmethod
    def of(cls, settings: TeacherSettings, info: TeacherInfo) -> Recorded:
        """A loaded teacher."""
        return cls(
            kind=settings.kind,
            name=info.name,
            dtype=settings.dtype.value,
            weights=weights_fingerprint(settings.path),
            vocab_size=info.vocab_size,
            context_length=info.context_length,
            hidden_size=info.hidden_size,
            tokenizer_hash=info.tokenizer_hash,
            reads_student_logprobs=bool(info.meta.get("reads_student_logprobs", False)),
        )

    def info(self, settings: TeacherSettings) -> TeacherInfo:
        """What the teacher said of itself, with the signal that the settings ask for."""
        return TeacherInfo(
            name=self.name,
            vocab_size=self.vocab_size,
            context_length=self.context_length,
            signals=(settings.signal.value,),
            hidden_size=self.hidden_size,
            # Of a pair that was accepted when it was recorded.
            tokenizer_hash=None if settings.accept_mismatch else self.tokenizer_hash,
            meta={"kind": self.kind, "cache_dir": settings.cache_dir},
        )


def read_recorded(folder: Path) -> Recorded | None:
    """Whose answers are in a folder; None if nobody's are.

    Raises:
        TeacherError: the file that says so cannot be read.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        return Recorded(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise TeacherError(
            f"{path}: not a record of a teacher ({error}); use another teacher.cache_dir"
        ) from error


def write_recorded(folder: Path, recorded: Recorded) -> None:
    """Say whose answers the folder is for."""
    write_whole(folder / FILE, json.dumps(asdict(recorded), indent=1).encode())


def check_settings(recorded: Recorded, settings: TeacherSettings) -> None:
    """Whether a config names the teacher that was recorded, as far as that shows without it.

    Raises:
        TeacherError: naming what differs.
    """
    mine: dict[str, Any] = {"kind": settings.kind, "dtype": settings.dtype.value}
    if settings.kind in ("hf", "vllm") and settings.path:
        mine["name"] = Path(settings.path).name
        mine["weights"] = weights_fingerprint(settings.path)
    elif settings.kind == "http" and settings.model:
        mine["name"] = settings.model
    _compare(recorded, mine, settings)


def check_teacher(recorded: Recorded, teacher: Recorded, settings: TeacherSettings) -> None:
    """Whether a loaded teacher is the one that was recorded.

    Raises:
        TeacherError: naming what differs.
    """
    _compare(recorded, asdict(teacher), settings)


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


def _compare(recorded: Recorded, mine: dict[str, Any], settings: TeacherSettings) -> None:
    theirs = asdict(recorded)
    for key, value in mine.items():
        # Weight files need not be where answers are replayed.
        if value != theirs[key] and not (key == "weights" and value is None):
            raise TeacherError(
                f"teacher.cache_dir = {settings.cache_dir!r} holds answers of a teacher with "
                f"{key} {theirs[key]!r}; this one's is {value!r}: use another folder"
            )
