"""Output heads that a loss can use, and those that none can."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.teacher.contract.answers import checked_head
from actors.teacher.protocol import TeacherError
from opd_ray.types import TeacherInfo

V, D = 20, 6
INFO = TeacherInfo("big", V, context_length=16, signals=("hidden",), hidden_size=D)


class WithHead:
    """A teacher with an output head of any shape."""

    def __init__(self, weight: tuple[int, ...], bias: tuple[int, ...] | None = None) -> None:
        self.head = np.ones(weight, np.float32), None if bias is None else np.ones(bias)

    def info(self) -> TeacherInfo:
        return INFO

    def output_head(self) -> tuple[np.ndarray, np.ndarray | None]:
        return self.head


def test_an_output_head_is_taken_as_it_is_where_its_shape_is_right() -> None:
    for bias in (None, (V,)):
        teacher = WithHead((V, D), bias)
        given = zip(checked_head(teacher), teacher.head, strict=True)
        assert all(mine is theirs for mine, theirs in given)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (SimpleNamespace(info=lambda: INFO), r"has no output_head\(\): set teacher.signal to topk"),
        (WithHead((V - 1, D)), r"has shape \(19, 6\), bias None; its info\(\) says \(20, 6\)"),
        (WithHead((V, D + 1)), r"has shape \(20, 7\), bias None; its info\(\) says \(20, 6\)"),
        (WithHead((V, D), (V, 1)), r"has shape \(20, 6\), bias \(20, 1\); its info\(\) says"),
    ],
)
def test_an_output_head_that_no_loss_can_use_is_named(teacher: Any, message: str) -> None:
    with pytest.raises(TeacherError, match="^teacher 'big'.*" + message):
        checked_head(teacher)
    with pytest.raises(TeacherError, match="^member 'a'.*" + message):
        checked_head(teacher, "member 'a'")
