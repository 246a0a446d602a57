from __future__ import annotations

import numpy as np
import pytest

from actors.teacher.protocol import TeacherError
from actors.teacher.service import SignalStore
from opd_ray.types import HiddenSignal, SampledSignal, TopKSignal


def topk(rows: int, k: int = 4) -> TopKSignal:
    ids = np.arange(rows * k, dtype=np.int32).reshape(rows, k)
    return TopKSignal(ids, -ids.astype(np.float32))


def test_take_gives_the_kept_rows_and_forgets():
    store = SignalStore(1 << 20)
    store.put("a", topk(5))
    store.put("b", SampledSignal(np.arange(3, dtype=np.float32)))
    store.put("c", topk(2))
    taken = store.take({"a": np.array([1, 4]), "b": np.array([0])})
    np.testing.assert_array_equal(taken["a"].ids, [[4, 5, 6, 7], [16, 17, 18, 19]])
    np.testing.assert_array_equal(taken["b"].logprobs, [0])
    assert store.nbytes == topk(2).nbytes
    with pytest.raises(TeacherError, match="no signal is held for rollout 'a'"):
        store.take({"a": np.array([0])})


def test_taken_rows_do_not_keep_the_whole_signal_alive():
    store = SignalStore(1 << 20)
    store.put("a", HiddenSignal(np.zeros((1000, 8), np.float32)))
    assert store.take({"a": np.array([7])})["a"].hidden.base is None


def test_rows_keeps_everything():
    store = SignalStore(1 << 20)
    store.put("a", topk(5))
    store.take({"a": np.arange(5)}, forget=False)
    assert store.nbytes == topk(5).nbytes
    assert len(store.take({"a": np.arange(5)})["a"].ids) == 5


def test_unknown_rollout_takes_nothing_with_it():
    store = SignalStore(1 << 20)
    store.put("a", topk(5))
    for call in (
        lambda: store.take({"a": np.array([0]), "x": np.array([0])}),
        lambda: store.forget(["a", "x"]),
        lambda: store.take({"a": np.array([5])}),
    ):
        with pytest.raises(TeacherError, match=r"rollout '(x|a)'"):
            call()
        assert store.nbytes == topk(5).nbytes


def test_a_full_store_says_so():
    store = SignalStore(3 * topk(10).nbytes)
    for name in "abc":
        store.put(name, topk(10))
    store.put("a", topk(10))  # replaces: no more bytes
    with pytest.raises(TeacherError, match=r"rollout 'd'.*does not fit.*teacher\.store_bytes"):
        store.put("d", topk(1))
    store.forget(["b"])
    store.put("d", topk(1))


def test_a_thousand_rollouts_leave_the_store_flat():
    store = SignalStore(1 << 30)
    rng = np.random.default_rng(0)
    held = []
    for number in range(1000):
        name = f"r{number}"
        store.put(name, topk(int(rng.integers(1, 200))))
        held.append(name)
        if len(held) == 8:
            store.take({key: np.array([0]) for key in held[:4]})
            store.forget(held[4:])
            held.clear()
            assert store.nbytes == 0


def test_all_can_be_forgotten_at_once():
    store = SignalStore(1 << 20)
    store.put("a", topk(5))
    store.put("b", topk(3))
    store.forget_all()
    assert store.nbytes == 0
    with pytest.raises(TeacherError, match="no signal is held for rollout 'b'"):
        store.take({"b": np.array([0])})
    store.put("a", topk(2))
    assert store.nbytes == topk(2).nbytes
