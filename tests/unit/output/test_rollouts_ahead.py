"""Rollouts come back from a checkpoint as they were, whatever they are."""

from __future__ import annotations

import weakref
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from ray.exceptions import OwnerDiedError

from opd_ray.output.rollouts_ahead import read_rollouts, write_rollouts
from opd_ray.types import Rollout, TopK


def acting() -> Rollout:
    """Two turns in an environment, of a prompt whose key is no file's name."""
    return Rollout(
        rollout_id="7/a.b/ü\u2028/0",
        prompt_id="a.b/ü\u2028",
        sample=0,
        prompt_ids=np.array([5, 6], np.int32),
        response_ids=np.array([1, 2, 3], np.int32),
        response_mask=np.array([1, 0, 1], np.uint8),
        entropy=np.array([0.5, 0, 0.25], np.float32),
        logprob=np.array([-1, 0, -2], np.float32),
        finish_reason="tool_limit",
        weights_version=6,
        topk=TopK(np.array([[1, 4], [3, 9]], np.int32), np.array([[-1, -3], [-2, -5]], np.float32)),
        turns=np.array([0, 0, 1], np.int16),
        figures={"calls": 2, "environment/reward": 0.125},
        source="code\nand more",
    )


def test_every_kind_of_rollout_comes_back(tmp_path: Path) -> None:
    plain = replace(acting(), turns=None, figures={}, source="")
    empty = np.zeros(0, np.int32)
    none = replace(
        plain, response_ids=empty, response_mask=empty.astype(np.uint8), topk=None, logprob=empty
    )
    # More than ten: lines are told apart by their numbers.
    rollouts = [acting(), plain, acting().dropped(), none, *[acting()] * 8]
    write_rollouts(tmp_path, rollouts)
    found = read_rollouts(tmp_path)
    assert len(found) == 12
    for one, other in zip(rollouts, found, strict=True):
        for field in fields(Rollout):
            assert_same(getattr(one, field.name), getattr(other, field.name))


def assert_same(one: object, other: object) -> None:
    assert type(one) is type(other)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        assert one.dtype == other.dtype
        assert one.tolist() == other.tolist()
    elif isinstance(one, TopK) and isinstance(other, TopK):
        assert_same(one.ids, other.ids)
        assert_same(one.logprobs, other.logprobs)
    else:
        assert one == other


def test_in_a_run_each_top_k_goes_into_the_object_store_as_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, last = (
        TopK(np.array([[token]], np.int32), np.array([[-0.5]], np.float32)) for token in (7, 8)
    )
    rollouts = [replace(acting(), topk=first), acting().dropped(), replace(acting(), topk=last)]
    write_rollouts(tmp_path, rollouts)
    stored: list[int] = []
    here: list[weakref.ref[TopK]] = []

    def put(topk: TopK) -> str:
        assert not any(one() for one in here), "an earlier one is still in this process"
        here.append(weakref.ref(topk))
        stored.append(topk.ids.item())
        return f"reference {len(stored)}"

    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.put", put)
    found = read_rollouts(tmp_path)
    assert [one.topk for one in found] == ["reference 1", None, "reference 2"]
    assert stored == [7, 8]


def test_a_checkpoint_without_any_holds_none(tmp_path: Path) -> None:
    assert read_rollouts(tmp_path) == []


def test_where_a_top_k_is_lost_with_its_actor_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ref:
        pass

    def get(ref: Ref) -> TopK:
        raise OwnerDiedError("00ff", None, "")

    monkeypatch.setattr("ray.ObjectRef", Ref)
    monkeypatch.setattr("ray.get", get)
    whole = acting()
    assert write_rollouts(tmp_path, [whole, replace(whole, topk=Ref())]) is False
    assert [*tmp_path.iterdir()] == []
    assert write_rollouts(tmp_path, [whole]) is True
    assert [found.rollout_id for found in read_rollouts(tmp_path)] == [whole.rollout_id]
