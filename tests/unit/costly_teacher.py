"""A teacher that is better asked once, requests to it, and caches of its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actors.teacher.cache.teacher import CachedTeacher
from opd_ray.config.choices import CacheMode, SignalChoice
from opd_ray.config.resolved_teachers import NamedTeacher
from opd_ray.config.teacher import TeacherSettings
from opd_ray.types import (
    HiddenSignal,
    SampledSignal,
    ScoreRequest,
    TeacherAnswer,
    TeacherInfo,
    TopK,
    TopKSignal,
)

V, K, TOP, D = 20, 4, 3, 6


class Costly:
    """Random answers that depend on the request alone, and an account of what was asked."""

    def __init__(self, settings: TeacherSettings, meta: dict[str, Any] | None = None) -> None:
        self.settings = settings
        self.asked: list[str] = []
        self.closed = False
        self.meta = meta or {}
        self.name = "costly"
        self.nan = False

    def info(self) -> TeacherInfo:
        signals = ("topk", "hidden", "sampled")
        return TeacherInfo(self.name, V, 64, signals, hidden_size=D, meta=self.meta)

    def score(self, requests: Sequence[ScoreRequest]) -> list[TeacherAnswer]:
        self.asked += [request.rollout_id for request in requests]
        return [self.answer(request) for request in requests]

    def answer(self, request: ScoreRequest) -> TeacherAnswer:
        m = len(request.response_ids)
        rng = np.random.default_rng([*request.prompt_ids, 99, *request.response_ids])
        logprobs = np.log(rng.dirichlet(np.ones(V), m)).astype(np.float32)
        order = np.argsort(-logprobs, axis=1)[:, :TOP].astype(np.int32)
        logprob = logprobs[np.arange(m), request.response_ids]
        if self.nan:
            logprob[0] = np.nan
        signal = {
            SignalChoice.topk: TopKSignal(order, np.take_along_axis(logprobs, order, 1)),
            SignalChoice.hidden: HiddenSignal(rng.integers(0, 1 << 14, (m, D)).astype(np.uint16)),
            SignalChoice.sampled: SampledSignal(logprob),
        }[self.settings.signal]
        return TeacherAnswer(
            request.rollout_id,
            logprob,
            np.take_along_axis(logprobs, request.student_topk.ids, 1),
            signal,
            entropy=-(np.exp(logprobs) * logprobs).sum(1),
            topk=TopK(order[:, :2], np.take_along_axis(logprobs, order[:, :2], 1)),
        )

    def output_head(self) -> tuple[np.ndarray, None]:
        return np.arange(V * D, dtype=np.float32).reshape(V, D), None

    def close(self) -> None:
        self.closed = True


def request(number: int, seed: int = 0) -> ScoreRequest:
    rng = np.random.default_rng([seed, number])
    m = int(rng.integers(1, 9))
    ids = np.stack([rng.choice(V, K, replace=False) for _ in range(m)]).astype(np.int32)
    logprobs = np.full(ids.shape, -3, np.float32)
    return ScoreRequest(
        f"r{number}",
        rng.integers(0, V, rng.integers(1, 9)).astype(np.int32),
        rng.integers(0, V, m).astype(np.int32),
        TopK(ids, logprobs),
    )


REQUESTS = [request(number) for number in range(6)]


def never() -> Costly:
    raise AssertionError("the teacher was loaded")


Cache = Callable[..., CachedTeacher]


def cached_teacher(folder: Path, mode: str, load: Any = never, **changes: Any) -> CachedTeacher:
    """Its answers are recorded in ``folder``; ``load`` is a teacher, or what makes one."""
    settings = NamedTeacher(
        kind="class", cache=CacheMode(mode), cache_dir=str(folder), topk=TOP, **changes
    )
    live = load(settings) if load is Costly else load
    return CachedTeacher(settings, live if callable(live) else lambda: live)


def same(one: TeacherAnswer, other: TeacherAnswer) -> None:
    assert one.rollout_id == other.rollout_id
    assert type(one.signal) is type(other.signal)
    for name in ("logprob", "at_student_topk", "entropy"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for part in ("signal", "topk"):
        mine, theirs = vars(getattr(one, part)), vars(getattr(other, part))
        assert mine.keys() == theirs.keys()
        for name in mine:
            np.testing.assert_array_equal(mine[name], theirs[name])
            assert np.asarray(mine[name]).dtype == np.asarray(theirs[name]).dtype
