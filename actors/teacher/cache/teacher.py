"""A teacher whose answers are kept on disk, so that a costly one is asked once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from actors.teacher.cache.files import AnswerFiles, opened
from actors.teacher.cache.identity import FILE, identity_in, identity_of, info_of, read_identity
from actors.teacher.contract.answers import check_answers, checked_head
from actors.teacher.contract.rows import ask
from actors.teacher.protocol import AskingTeacher, SleepingTeacher, Teacher, TeacherError
from opd_ray.config.choices import CacheMode
from opd_ray.config.teacher import TeacherSettings
from opd_ray.types import ScoreRequest, TeacherAnswer, TeacherInfo
from opd_ray.whole_file import write_whole

_HEAD = "output_head.safetensors"


class CachedTeacher:
    """Any teacher, or none, behind a folder of recorded answers.

    An answer is found by the token ids of prompt, response and the student's top-K, by the rows
    that are asked about where they are not all, and by what of the teacher is asked for (signal, k,
    its own top-k).

    Args:
        settings: ``cache`` (not off), ``cache_dir``, ``signal``, ``topk``, and what names the
            teacher.
        load: makes the teacher; called at once to record, on the first missing answer with
            ``replay_or_ask``, never with ``replay``. After :meth:`ask` it is given ``trainer``.
        own_topk: how many of its own likeliest tokens each answer names beside the signal.

    Raises:
        TeacherError: the folder holds another teacher's answers, or none to replay.
    """

    def __init__(
        self, settings: TeacherSettings, load: Callable[..., Teacher], *, own_topk: int = 0
    ) -> None:
        assert settings.cache_dir is not None
        self._settings, self._load, self._own_topk = settings, load, own_topk
        self._folder = Path(settings.cache_dir)
        self._said = f"{settings.key}.cache_dir = {settings.cache_dir!r}"
        self._live: Teacher | None = None
        self._identity = read_identity(self._folder, settings, identity_in(settings))
        if not self._identity and settings.cache is CacheMode.replay:
            raise TeacherError(
                f"{self._said}: nothing was recorded there; record first with "
                f"{settings.key}.cache=record"
            )
        self._files = AnswerFiles(self._folder)
        if not self._identity or settings.cache is CacheMode.record:
            self._teacher()

    def info(self) -> TeacherInfo:
        """What the recorded teacher said of itself."""
        return info_of(self._identity, self._settings)

    def score(self, requests: Sequence[ScoreRequest]) -> list[TeacherAnswer]:
        """Recorded answers; what is missing is asked of the teacher and recorded.

        Raises:
            TeacherError: an answer is missing and no teacher may be asked.
        """
        keys = [self._key(request) for request in requests]
        found: dict[str, TeacherAnswer] = {}
        if self._settings.cache is not CacheMode.record:
            found = self._files.read(keys)
        missing = {key: r for key, r in zip(keys, requests, strict=True) if key not in found}
        if missing:
            found |= self._ask(missing, len(requests))
        return [
            replace(found[key], rollout_id=request.rollout_id)
            for key, request in zip(keys, requests, strict=True)
        ]

    def output_head(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Weight [V, D] and bias [V] or None as arrays (``to_array``), recorded once asked for.

        Raises:
            TeacherError: it was not recorded, or this kind of teacher has none.
        """
        path = self._folder / _HEAD
        if path.is_file():
            with opened(path) as file:
                bias = file.get_tensor("bias") if "bias" in set(file.keys()) else None
                return file.get_tensor("weight"), bias
        if self._settings.cache is CacheMode.replay:
            raise TeacherError(
                f"{self._said}: no output head was recorded there, which the hidden signal needs; "
                "record with teacher.signal=hidden"
            )
        weight, bias = checked_head(self._teacher())
        write_whole(path, save({"weight": weight} | ({} if bias is None else {"bias": bias})))
        return weight, bias

    def ask(self, trainer: Any) -> None:
        """Have a teacher whose answers a trainer rank computes ask this one, now or once loaded."""
        self._load = partial(self._load, trainer=trainer)
        live: object = self._live
        if isinstance(live, AskingTeacher):
            live.ask(trainer)

    def sleep(self) -> None:
        """Have the teacher give its memory back, if one was loaded and can."""
        live: object = self._live
        if isinstance(live, SleepingTeacher):
            live.sleep()

    def wake(self) -> None:
        """Have it take its memory again."""
        live: object = self._live
        if isinstance(live, SleepingTeacher):
            live.wake()

    def close(self) -> None:
        """Let the teacher go, if one was loaded."""
        if self._live is not None:
            self._live.close()

    def _teacher(self) -> Teacher:
        """The live teacher, loaded when it is first needed and held against the record."""
        if self._live is None:
            self._live = self._load()
            mine = identity_of(self._settings, self._live.info())
            # Another replica may have begun the folder meanwhile.
            self._identity = read_identity(self._folder, self._settings, mine)
            if not self._identity:
                write_whole(self._folder / FILE, json.dumps(mine, indent=1))
                self._identity = mine
        return self._live

    def _ask(self, missing: dict[str, ScoreRequest], asked: int) -> dict[str, TeacherAnswer]:
        """Answers of the live teacher by key, checked before they are recorded."""
        if self._settings.cache is CacheMode.replay:
            first = next(iter(missing.values()))
            raise TeacherError(
                f"rollout {first.rollout_id!r}: its answer is not among the {len(self._files)} "
                f"recorded in {self._said} ({len(missing)} of "
                f"{asked} rollouts of the batch are missing): replay the config and seed that "
                f"were recorded, or set {self._settings.key}.cache=replay_or_ask"
            )
        teacher, requests = self._teacher(), list(missing.values())
        info = teacher.info()
        answers = ask(teacher, info, requests)
        check_answers(info, requests, answers, self._settings)
        found = dict(zip(missing, answers, strict=True))
        self._files.write(found)
        return found

    def _key(self, request: ScoreRequest) -> str:
        signal = self._settings.signal.value
        topk = self._settings.topk if signal == "topk" else 0
        parts = [request.prompt_ids, request.response_ids, request.student_topk.ids]
        if self._identity["reads_student_logprobs"]:
            parts.append(request.student_topk.logprobs)
        if request.rows is not None:
            parts.append(request.rows)
        found = hashlib.blake2b(digest_size=20)
        found.update(json.dumps([signal, topk, self._own_topk, [p.shape for p in parts]]).encode())
        for part in parts:
            found.update(np.ascontiguousarray(part).tobytes())
        return found.hexdigest()
