"""Answers of a teacher on disk: one safetensors file a scored batch.

Every file that is seen is whole. Names are random, so any number of replicas and runs may write to
one folder; each finds what the others wrote by listing it again. The names of a file's arrays say
whose answers are in it: there is no other index to lose.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from actors.teacher.protocol import TeacherError
from opd_ray.borders import writing
from opd_ray.types import HiddenSignal, SampledSignal, Signal, TeacherAnswer, TopK, TopKSignal
from opd_ray.whole_file import write_whole

# The arrays that an answer may have, by where they are in it.
_ARRAYS = (
    "logprob",
    "at_student_topk",
    "entropy",
    "topk.ids",
    "topk.logprobs",
    "signal.hidden",
    "signal.ids",
    "signal.logprobs",
)


class AnswerFiles:
    """Answers by key (without a dot) in one folder, which is made if it is missing.

    Args:
        folder: on storage that every replica sees.

    Raises:
        TeacherError: a file in it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._place: dict[str, Path] = {}
        self._seen: set[Path] = set()
        self._refresh()

    def __len__(self) -> int:
        return len(self._place)

    def write(self, answers: Mapping[str, TeacherAnswer]) -> None:
        """Add answers, all in one file."""
        path = self._folder / f"answers-{uuid.uuid4().hex}.safetensors"
        arrays = {
            f"{key}.{name}": values
            for key, answer in answers.items()
            for name, values in _arrays(answer)
        }
        write_whole(path, save(arrays))
        self._seen.add(path)
        self._place |= dict.fromkeys(answers, path)

    def read(self, keys: Sequence[str]) -> dict[str, TeacherAnswer]:
        """The answers there are among ``keys``, without their rollouts' ids.

        Raises:
            TeacherError: a file is damaged or gone.
        """
        if any(key not in self._place for key in keys):
            self._refresh()
        by_file: dict[Path, list[str]] = {}
        for key in keys:
            if key in self._place:
                by_file.setdefault(self._place[key], []).append(key)
        found: dict[str, TeacherAnswer] = {}
        for path, wanted in by_file.items():
            with opened(path) as file:
                there = set(file.keys())
                for key in wanted:
                    names = [name for name in _ARRAYS if f"{key}.{name}" in there]
                    found[key] = _answer({name: file.get_tensor(f"{key}.{name}") for name in names})
        return found

    def _refresh(self) -> None:
        """Take note of files that others wrote."""
        for path in set(self._folder.glob("answers-*.safetensors")) - self._seen:
            with opened(path) as file:
                names = list(file.keys())
            for key, _, name in (array.partition(".") for array in names):
                if name not in _ARRAYS:
                    raise _damaged(path, f"{key}.{name} is no part of an answer")
                self._place[key] = path
            self._seen.add(path)


@contextmanager
def opened(path: Path) -> Iterator[safe_open]:
    """A safetensors file.

    Raises:
        TeacherError: it cannot be read, or the block asks for what it lacks.
    """
    try:
        with safe_open(str(path), framework="numpy") as file:
            yield file
    except (SafetensorError, OSError, KeyError) as error:
        raise _damaged(path, repr(error)) from error


def _damaged(path: Path, what: str) -> TeacherError:
    return TeacherError(
        f"{path}: this file of recorded answers is damaged ({what}); delete it, and record what "
        "was in it again (cache=replay_or_ask)"
    )


def _arrays(answer: TeacherAnswer) -> Iterator[tuple[str, np.ndarray]]:
    for name in _ARRAYS:
        part, _, leaf = name.rpartition(".")
        values = getattr(getattr(answer, part) if part else answer, leaf, None)
        if values is not None:
            # safetensors writes the memory of a view as it lies, whatever its strides.
            yield name, np.ascontiguousarray(values)


def _answer(named: Mapping[str, np.ndarray]) -> TeacherAnswer:
    signal: Signal | None = None
    if "signal.hidden" in named:
        signal = HiddenSignal(named["signal.hidden"])
    elif "signal.ids" in named:
        signal = TopKSignal(named["signal.ids"], named["signal.logprobs"])
    elif "signal.logprobs" in named:
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
