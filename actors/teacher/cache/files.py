"""Answers of a teacher on disk: one safetensors file a scored batch, each with an index of its own.

A file is written under another name and then renamed, so every file that is seen is whole. Names
are random, so any number of replicas and runs may write to one folder; each finds what the others
wrote by listing it again. A file's header names the answers in it: there is no other index to lose.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from actors.teacher.protocol import TeacherError
from opd_ray.types import HiddenSignal, SampledSignal, Signal, TeacherAnswer, TopK, TopKSignal

_PREFIX, _SUFFIX = "answers-", ".safetensors"


class AnswerFiles:
    """Answers by key in one folder, which is made if it is missing.

    Args:
        folder: on storage that every replica sees.

    Raises:
        TeacherError: a file in it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._place: dict[str, Path] = {}
        self._seen: set[Path] = set()
        self.refresh()

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, key: str) -> bool:
        return key in self._place

    def refresh(self) -> None:
        """Take note of files that others wrote.

        Raises:
            TeacherError: one of them is damaged.
        """
        for path in set(self._folder.glob(f"{_PREFIX}*{_SUFFIX}")) - self._seen:
            with _opened(path) as file:
                for key in file.metadata() or {}:
                    self._place[key] = path
            self._seen.add(path)

    def write(self, answers: Mapping[str, TeacherAnswer]) -> None:
        """Add answers, all in one file."""
        arrays: dict[str, np.ndarray] = {}
        digests: dict[str, str] = {}
        for key, answer in answers.items():
            # safetensors writes the memory of a view as it lies, whatever its strides.
            named = {name: np.ascontiguousarray(values) for name, values in _arrays(answer)}
            arrays |= {f"{key}.{name}": values for name, values in named.items()}
            digests[key] = _digest(named)
        path = self._folder / f"{_PREFIX}{uuid.uuid4().hex}{_SUFFIX}"
        write_whole(path, save(arrays, metadata=digests))
        self._seen.add(path)
        self._place |= dict.fromkeys(answers, path)

    def read(self, keys: Sequence[str]) -> dict[str, TeacherAnswer]:
        """The answers there are among ``keys``, without their rollouts' ids.

        Raises:
            TeacherError: a file is damaged or gone.
        """
        by_file: dict[Path, list[str]] = {}
        for key in keys:
            if key in self._place:
                by_file.setdefault(self._place[key], []).append(key)
        found: dict[str, TeacherAnswer] = {}
        for path, wanted in by_file.items():
            with _opened(path) as file:
                names = list(file.keys())
                for key in wanted:
                    named = {
                        name.removeprefix(f"{key}."): file.get_tensor(name)
                        for name in names
                        if name.startswith(f"{key}.")
                    }
                    if _digest(named) != file.metadata()[key]:
                        raise _damaged(path, f"answer {key} differs from its checksum")
                    found[key] = _answer(named)
        return found


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there in full or not at all, a crash included."""
    hidden = path.with_name(f".{uuid.uuid4().hex}.part")
    with hidden.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    hidden.replace(path)


class _opened:
    """A safetensors file; trouble with it is a TeacherError that names it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> safe_open:
        try:
            self._file = safe_open(str(self._path), framework="numpy")
        except (SafetensorError, OSError) as error:
            raise _damaged(self._path, str(error)) from error
        return self._file.__enter__()

    def __exit__(self, *error: object) -> None:
        self._file.__exit__(*error)


def _damaged(path: Path, what: str) -> TeacherError:
    return TeacherError(
        f"{path}: this file of recorded answers is damaged ({what}); delete it, and record what "
        "was in it again (teacher.cache=replay_or_ask)"
    )


def _arrays(answer: TeacherAnswer) -> Iterator[tuple[str, np.ndarray]]:
    yield "logprob", answer.logprob
    yield "at_student_topk", answer.at_student_topk
    if answer.entropy is not None:
        yield "entropy", answer.entropy
    if answer.topk is not None:
        yield "topk.ids", answer.topk.ids
        yield "topk.logprobs", answer.topk.logprobs
    if isinstance(answer.signal, HiddenSignal):
        yield "signal.hidden", answer.signal.hidden
        return
    yield "signal.logprobs", answer.signal.logprobs
    if isinstance(answer.signal, TopKSignal):
        yield "signal.ids", answer.signal.ids


def _answer(named: Mapping[str, np.ndarray]) -> TeacherAnswer:
    signal: Signal
    if "signal.hidden" in named:
        signal = HiddenSignal(named["signal.hidden"])
    elif "signal.ids" in named:
        signal = TopKSignal(named["signal.ids"], named["signal.logprobs"])
    else:
        signal = SampledSignal(named["signal.logprobs"])
    has_topk = "topk.ids" in named
    return TeacherAnswer(
        rollout_id="",
        logprob=named["logprob"],
        at_student_topk=named["at_student_topk"],
        signal=signal,
        entropy=named.get("entropy"),
        topk=TopK(named["topk.ids"], named["topk.logprobs"]) if has_topk else None,
    )


def _digest(named: Mapping[str, np.ndarray]) -> str:
    found = hashlib.blake2b(digest_size=8)
    for name in sorted(named):
        values = named[name]
        found.update(f"{name} {values.dtype} {values.shape}".encode())
        found.update(values.tobytes())
    return found.hexdigest()
