"""Calls of the trainer group end where the work is done; actors are real, without Ray or engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import call, create_autospec

import numpy as np
import pytest
import ray
import torch
from fake_replicas import Remote
from stand_ins import StandInWatch

from actors.trainer.actor import TrainerActor
from actors.trainer.engine import Engine
from actors.trainer.trainer import Trainer, TrainerError
from actors.weights.ipc import IpcSender
from actors.weights.nccl import NcclSender
from opd_ray.checksums import FileSum, sum_of
from opd_ray.config.choices import SyncBackend
from opd_ray.config.schema import SyncSettings, TrainerSettings
from opd_ray.errors import ActorFailure, ConnectionLost, DamagedCheckpoint
from opd_ray.output.checkpoint import CheckpointStore, RunState
from opd_ray.pools.trainers import TrainerGroup
from opd_ray.types import TrainItem

ITEM = TrainItem(
    rollout_id="a",
    prompt_ids=np.zeros(2, np.int32),
    response_ids=np.zeros(2, np.int32),
    rows=np.zeros(1, np.int32),
    weights=np.ones(1, np.float32),
    rollout_logprob=np.zeros(1, np.float32),
)


def rank(number: int, backend: SyncBackend = SyncBackend.ray, *, adapter: bool = False) -> Any:
    """A trainer actor of which only the trainer is a recorder, which allows what the real one has.

    Its weights are two matrices of 16 bytes, a chunk each; ``read`` has the names asked for.
    """
    plain = TrainerActor.__ray_metadata__.modified_class  # type: ignore[attr-defined]
    actor = plain.__new__(plain)
    trainer = create_autospec(Trainer, instance=True)
    trainer.engine = create_autospec(Engine, instance=True)
    actor.read = []

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        for name in ("a", "b"):
            actor.read.append(name)
            yield name, torch.zeros(2, 2)

    def small() -> Iterator[tuple[str, torch.Tensor]]:
        yield "the adapter", torch.zeros(1)

    trainer.engine.weights, trainer.engine.adapter = weights, small
    actor._sends_adapter = adapter
    actor._rank, actor._sync = number, SyncSettings(backend, chunk_bytes=16)
    actor._make_trainer = lambda master: trainer
    actor._gpu_share, actor._is_up = 1.0, threading.Event()
    actor.setup("here", 1)
    return actor


def group_of(*actors: Any) -> TrainerGroup:
    watch: Any = StandInWatch(None)  # type: ignore[arg-type]
    methods = ("call", "weights", "call_transport", "write_snapshot")
    handles = [
        SimpleNamespace(**{name: Remote(getattr(actor, name)) for name in methods})
        for actor in actors
    ]
    named = [(f"trainer-{number}", handle) for number, handle in enumerate(handles)]
    return TrainerGroup(watch, named, TrainerSettings())


@pytest.mark.parametrize("method", ["load", "export"])
def test_the_files_are_the_engines(method: str) -> None:
    actors = [rank(0), rank(1)]
    getattr(group_of(*actors), method)("folder")
    for actor in actors:
        getattr(actor._trainer.engine, method).assert_called_once_with("folder")


SUMS = [{"rank_0": FileSum(3, 1), "layout": FileSum(4, 2)}, {"rank_1": FileSum(5, 6)}]


def test_the_ranks_write_at_once_and_their_sums_are_put_together() -> None:
    actors = [rank(0), rank(1)]
    for actor, sums in zip(actors, SUMS, strict=True):
        actor._trainer.engine.save.return_value = sums
    assert group_of(*actors).save("folder") == SUMS[0] | SUMS[1]
    for actor in actors:
        actor._trainer.engine.save.assert_called_once_with("folder")


def test_all_ranks_have_copied_before_one_begins_to_write() -> None:
    actors = [rank(0), rank(1)]
    order: list[str] = []
    for actor, sums in zip(actors, SUMS, strict=True):
        engine = actor._trainer.engine
        engine.snapshot.side_effect = lambda: order.append("copy")
        engine.write_snapshot.side_effect = lambda folder, of=sums: order.append(folder) or of
    found: Any = group_of(*actors).begin_save("folder")
    assert order == ["copy", "copy", "folder", "folder"]
    owners = [f"trainer-{number} (writing a checkpoint)" for number in range(2)]
    assert found == list(zip(SUMS, owners, strict=True))


@pytest.mark.parametrize(
    ("rooms", "enough"),
    [
        ([("a", 10, 40), ("a", 10, 40)], True),
        ([("a", 10, 40), ("a", 11, 40)], False),  # the two of one machine together
        ([("a", 10, 40), ("b", 20, 40)], True),
        ([("a", 10, 40), ("b", 21, 40)], False),
        ([("a", 10, 40), ("a", 10, 39)], False),  # less by the time the second has looked
    ],
)
def test_copies_may_take_half_of_each_machines_free_memory(
    rooms: list[tuple[str, int, int]], enough: bool
) -> None:
    actors = [rank(0), rank(1)]
    for actor, room in zip(actors, rooms, strict=True):
        actor._trainer.engine.room_for_snapshot.return_value = room
    assert group_of(*actors).have_room_to_copy() is enough


def test_the_ranks_share_looking_a_checkpoint_over(tmp_path: Path) -> None:
    def write(folder: str) -> None:
        for name, size in {"a": 9, "b": 5, "c": 3, "d": 1}.items():
            (Path(folder) / name).write_bytes(b"1" * size)

    checkpoint = CheckpointStore(tmp_path, 1).save(RunState(1, 0, 1, {}, [], {}), write)
    trainer = str(checkpoint / "trainer")
    actors = [rank(0), rank(1)]
    group_of(*actors).load(trainer)
    for actor, names in zip(actors, ("a", "bcd"), strict=True):
        sums = {name: sum_of(Path(trainer, name)) for name in names}
        engine = actor._trainer.engine
        assert engine.method_calls == [call.check_files(trainer, sums), call.load(trainer)]


@pytest.mark.parametrize("cause", [DamagedCheckpoint("a is not whole"), None])
def test_what_a_rank_finds_damaged_is_told_and_not_loaded(
    tmp_path: Path, cause: Exception | None
) -> None:
    checkpoint = CheckpointStore(tmp_path, 1).save(RunState(1, 0, 1, {}, [], {}), lambda _: None)
    actors = [rank(0), rank(1)]
    failure = ActorFailure("trainer-1 (looking a checkpoint over)", "a is not whole")
    failure.__cause__ = cause
    actors[1]._trainer.engine.check_files.return_value = failure
    (checkpoint / "manifest.json").write_text('{"trainer/a": {"size": 1, "crc32": 2}}')
    with pytest.raises(DamagedCheckpoint if cause else ActorFailure, match="a is not whole"):
        group_of(*actors).load(str(checkpoint / "trainer"))
    for actor in actors:
        actor._trainer.engine.load.assert_not_called()


def test_steps_scores_and_heads_are_the_trainers() -> None:
    actor = rank(0)
    trainer = actor._trainer
    trainer.score.return_value = [SimpleNamespace(rollout_id="a")]
    group = group_of(actor)
    group.accumulate([ITEM], lambda wanted: [[{"a": "wave"}]])  # type: ignore[list-item]
    group.step([ITEM], 0.5, lambda wanted: [[{"a": "signal"}]])  # type: ignore[list-item]
    group.score([ITEM], lambda wanted: [[]])
    head: Any = "head"
    group.set_teacher_head(head, "coder")
    trainer.accumulate.assert_called_once_with([[ITEM]], {"a": "wave"})
    trainer.train_step.assert_called_once_with([[ITEM]], 2.0, 0.5, {"a": "signal"})
    trainer.score.assert_called_once_with([[ITEM]])
    trainer.set_teacher_head.assert_called_once_with("head", "coder")


def test_weights_are_put_into_the_store_by_rank_0_and_read_by_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored = []

    def put(chunk: Any) -> Any:
        stored.append(chunk.names)
        return chunk.names

    monkeypatch.setattr(ray, "put", put)
    actors = [rank(0), rank(1)]
    chunks: Any = group_of(*actors).weights()
    assert chunks == stored == [("a",), ("b",)]
    assert [actor.read for actor in actors] == [["a", "b"], ["a", "b"]]


def test_of_an_adapter_that_engines_serve_nothing_else_is_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "put", lambda chunk: chunk.names)
    actors = [rank(0, adapter=True), rank(1, adapter=True)]
    found: Any = group_of(*actors).weights()
    assert found == [("the adapter",)]
    assert [actor.read for actor in actors] == [[], []]


def test_the_transports_end_has_this_ranks_weights() -> None:
    actors = [rank(number, SyncBackend.nccl) for number in range(2)]
    for number, actor in enumerate(actors):
        end = actor._transport_end
        assert isinstance(end, NcclSender)
        assert (end.rank, end.weights) == (number, actor._trainer.engine.weights)
        end.send = create_autospec(end.send)
    group_of(*actors).call_transport("send", 7)
    for actor in actors:
        actor._transport_end.send.assert_called_once_with(7)


def test_where_gpus_share_their_memory_every_rank_has_the_weights_whole() -> None:
    actor = rank(1, SyncBackend.ipc)
    end = actor._transport_end
    assert isinstance(end, IpcSender)
    assert (end.rank, end.chunk_bytes) == (1, 16)
    assert (end.weights.func, end.weights.keywords) == (
        actor._trainer.engine.weights,
        {"on_every_rank": True},
    )


GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.1]"


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError(GLOO), True),
        (torch.distributed.DistBackendError("NCCL communicator was aborted on rank 1"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (TrainerError(f"a gradient is not finite; {GLOO}"), False),
    ],
)
def test_a_rank_says_when_it_no_longer_reaches_the_others(error: Exception, lost: bool) -> None:
    actor = rank(1, SyncBackend.nccl)
    actor._trainer.train_step.side_effect = error
    actor._trainer.engine.weights = create_autospec(lambda: None, side_effect=error)
    actor._transport_end.send = create_autospec(lambda version: None, side_effect=error)
    actor._make_trainer = create_autospec(lambda master: None, side_effect=error)
    for called in (
        lambda: actor.call("train_step", [], 1.0, 0.5),
        actor.weights,
        lambda: actor.call_transport("send", 1),
        lambda: actor.setup("here", 1),
    ):
        with pytest.raises(type(error) if not lost else ConnectionLost) as raised:
            called()
        assert lost or raised.value is error
