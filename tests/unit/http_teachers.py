"""Settings of a teacher behind the fake server, and requests to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from fake_server import FakeServer, V

from actors.teacher.http.teacher import HttpTeacher
from opd_ray.config.teacher import TeacherSettings
from opd_ray.types import ScoreRequest, TopK

K, TOP = 5, 4

Make = Callable[..., HttpTeacher]


def settings(fake: FakeServer, **changes: Any) -> TeacherSettings:
    values = {"topk": TOP, "named_tokens": 8, "max_retries": 3, "concurrency": 4, **changes}
    return TeacherSettings(kind="http", url=fake.url, **values)


def requests(count: int = 6) -> list[ScoreRequest]:
    rng = np.random.default_rng(3)
    made = []
    for number in range(count):
        prompt, response = rng.integers(1, 6, 2)
        ids = rng.integers(0, V, prompt + response).astype(np.int32)
        top = np.stack([rng.choice(V, K, replace=False) for _ in range(response)]).astype(np.int32)
        logprobs = np.sort(np.log(rng.dirichlet(np.ones(K + 1), response)[:, :K]))[:, ::-1]
        made.append(
            ScoreRequest(
                f"r{number}", ids[:prompt], ids[prompt:], TopK(top, logprobs.astype(np.float32))
            )
        )
    return made
