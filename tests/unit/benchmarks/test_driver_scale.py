"""The benchmark of the driver runs whole steps, and all of their time has a part."""

from __future__ import annotations

import time

import numpy as np
import pytest
from driver_actors import Account, in_one_piece
from driver_scale import PARTS, growth, measure


def test_every_part_of_a_step_is_measured() -> None:
    found = measure(actors=4, rollouts=20, overlap=True, by_ray=False, topk=0)
    assert found["seconds"].keys() == {*PARTS, "stand-ins"}
    assert all(seconds > 0 for seconds in found["seconds"].values())
    assert found["peak"] > found["before"] > 1e7


def test_time_counts_for_the_innermost_part(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 7.0, 15.0, 31.0])
    monkeypatch.setattr(time, "process_time", lambda: next(clock))
    account = Account()
    with account.part("outer"), account.part("inner"):
        pass
    assert account.clear() == {"rest": 1.0 + 16.0, "outer": 2.0 + 8.0, "inner": 4.0}


def test_growth_is_the_power_of_the_law() -> None:
    rows = [{"rollouts": n, "seconds": 3.0 * n**1.5} for n in (10, 100, 1000)]
    assert growth(rows, "rollouts", "seconds") == pytest.approx(1.5)


def test_arrays_of_an_answer_lie_in_one_piece_and_cannot_be_changed() -> None:
    arrays = [np.arange(3, dtype=np.int32), np.array([0.5, 1.5], np.float32)]
    found = in_one_piece(arrays)
    assert [one.tolist() for one in found] == [[0, 1, 2], [0.5, 1.5]]
    assert [one.dtype for one in found] == [np.int32, np.float32]
    assert not any(one.flags.writeable for one in found)
    assert all(isinstance(one.base, bytes) and len(one.base) == 20 for one in found)
