"""Of the student's top-K the coordinator's process holds references, at any moment of a run."""

from __future__ import annotations

import gc
import os
from dataclasses import replace
from pathlib import Path
from traceback import walk_stack
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import pytest
import ray
from stand_in_run import StandInRun
from stand_ins import Engine, Response, Script, Teacher, Trainer

from opd_ray.config.schema import RunSettings
from opd_ray.output.checkpoint import CheckpointStore
from opd_ray.output.rollouts_ahead import read_rollouts
from opd_ray.tip import TipSettings
from opd_ray.types import Rollout, RolloutRequest, TopK

RESPONSES = {
    name: Response([1, 1, 1], [-1.0] * 3, [0.1, 0.2, 0.3]) for name in ("a0", "a1", "b0", "b1")
}
MODES: list[dict[str, Any]] = [{}, {"lag": 1}, {"overlap": True}]


class Store:
    """An object store outside the process."""

    def __init__(self) -> None:
        self._values: dict[ray.ObjectRef, Any] = {}

    def put(self, value: Any) -> ray.ObjectRef:
        ref = ray.ObjectRef(os.urandom(28))
        self._values[ref] = value
        return ref

    def get(self, ref: ray.ObjectRef) -> Any:
        return self._values[ref]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store()
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "put", store.put)
    monkeypatch.setattr(ray, "get", store.get)
    return store


class RunOfReferences(StandInRun):
    """Its engines keep top-Ks in the store.

    At every event, and at every call to a trainer, it is looked what the coordinator holds.
    """

    def __init__(self, store: Store, run: dict[str, Any], **others: Any) -> None:
        tip = TipSettings(rule="divergence_topk", rho=0.5, normalise_over="rollout")
        super().__init__(RESPONSES, run=RunSettings(steps=3, **run), tip=tip, **others)
        self.most = 0  # arrays, at any moment
        write = self.script.write

        def by_reference(request: RolloutRequest, version: int) -> Rollout:
            topk = TopK(np.zeros((3, 4), np.int32), np.zeros((3, 4), np.float32))
            return replace(write(request, version), topk=store.put(topk))

        self.script.write = by_reference  # type: ignore[method-assign]
        for owner, name in [(self.watch, "turn"), *((one.call, "remote") for one in self.trainers)]:
            call = getattr(owner, name)
            setattr(owner, name, lambda *args, call=call: self.look() or call(*args))

    def look(self) -> None:
        found = held_by(self._coordinator, self.watch, *names_of_callers())
        assert not [one for one in found if isinstance(one, TopK)]
        arrays = [one for one in found if isinstance(one, np.ndarray)]
        assert all(array.ndim == 1 for array in arrays)
        self.most = max(self.most, len(arrays))


def names_of_callers() -> list[object]:
    """What the library's functions that are at work hold under their own names."""
    frames = [frame for frame, _ in walk_stack(None)]
    return [
        one
        for frame in frames
        if "/opd_ray/" in frame.f_code.co_filename
        for one in frame.f_locals.values()
    ]


def held_by(*roots: object) -> list[object]:
    """All that these objects hold, directly or through others; actors are other processes."""
    seen: dict[int, object] = {}
    queue = list(roots)
    while queue:
        one = queue.pop()
        if id(one) in seen or isinstance(
            one, type | ModuleType | Engine | Teacher | Trainer | Script | StandInRun | Store
        ):
            continue
        seen[id(one)] = one
        queue += (one.__closure__ or ()) if isinstance(one, FunctionType) else gc.get_referents(one)
    return list(seen.values())


def test_what_is_held_is_found() -> None:
    topk = TopK(np.zeros((3, 4)), np.zeros((3, 4)))
    assert any(one is topk for one in held_by([{"a": lambda: topk}]))


@pytest.mark.parametrize("run", MODES, ids=str)
def test_references_alone_are_held_while_a_run_goes_on(store: Store, run: dict[str, Any]) -> None:
    whole = RunOfReferences(store, run)
    whole.go(0)
    assert whole.most > 8 * len(RESPONSES)  # those of all rollouts and of their scores


def test_references_alone_are_held_of_rollouts_that_a_checkpoint_had(
    tmp_path: Path, store: Store
) -> None:
    lag = {"lag": 1}
    checkpoints = CheckpointStore(tmp_path, keep=9)
    RunOfReferences(store, lag | {"checkpoint_every": 1}, checkpoints=checkpoints).go(0)
    written = read_rollouts(tmp_path / "step_00000001" / "trainer")
    assert [store.get(one.topk).ids.shape for one in written] == [(3, 4)] * 4
    second = RunOfReferences(store, lag)
    assert second.read_ahead(tmp_path / "step_00000001", 1)
    second.look()
    second.go(1)
    assert second.most > 8 * len(RESPONSES)
