"""The trainer's Ray actors: two ranks on a real Ray, data by reference, weights in chunks."""

from __future__ import annotations

import numpy as np
import pytest
import ray
import torch
from tiny_models import make_tiny_qwen3
from trainer_data import (
    ROWS,
    VOCAB,
    naive_step,
    ragged_items,
    share_out,
    teacher_head,
    total_weight,
)
from transformers import AutoModelForCausalLM

from actors.process import trainer_environment
from actors.trainer.actor import TrainerActor
from actors.weights.chunks import unpack
from opd_ray.checksums import files_below
from opd_ray.config.schema import LossSettings, StudentSettings, SyncSettings, TrainerSettings
from opd_ray.pools.trainers import TrainerGroup
from opd_ray.pools.watch import ActorWatch
from opd_ray.types import HeadPart


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_qwen3(tmp_path_factory.mktemp("student"), vocab=ROWS)


@pytest.fixture(scope="module")
def ranks(folder, joined_ray):
    trainer = TrainerSettings(ranks=2, threads=1, zero_stage=3)
    handles = [
        TrainerActor.options(runtime_env={"env_vars": trainer_environment(trainer)}).remote(
            StudentSettings(path=str(folder)),
            trainer,
            LossSettings(),
            SyncSettings(chunk_bytes=1 << 16),
            rank=rank,
            vocab_size=VOCAB,
        )
        for rank in range(2)
    ]
    lifelines = [handle.lifeline.remote() for handle in handles]
    address, port = ray.get(handles[0].address.remote())
    ray.get([handle.setup.remote(address, port) for handle in handles])
    yield handles
    assert ray.wait(lifelines, timeout=0)[0] == []


def weights(handles) -> dict[str, torch.Tensor]:
    of_rank_0, of_rank_1 = ray.get([handle.weights.remote() for handle in handles])
    assert of_rank_1 == []
    assert len(of_rank_0) > 1
    return {name: t for chunk in ray.get(of_rank_0) for name, t in unpack(chunk)}


def test_a_step_by_reference_between_two_gathers_of_all_weights(ranks, folder, tmp_path):
    items, signals = ragged_items(8)
    head = teacher_head()
    by_reference = ray.put((HeadPart(head),))
    ray.get([handle.call.remote("set_teacher_head", by_reference) for handle in ranks])

    before = weights(ranks)
    original = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert list(before) == list(original)
    for name, weight in original.items():
        assert torch.equal(before[name], weight)

    names = sorted(signals)
    pieces = [ray.put({name: signals[name] for name in part}) for part in (names[:3], names[3:])]
    stats = ray.get(
        [
            handle.call.remote("train_step", plan, total_weight(items), 1e-2, *pieces)
            for handle, plan in zip(ranks, share_out(items, 2, 2), strict=True)
        ]
    )
    loss, gradients, _ = naive_step(folder, items, signals, head)
    assert sum(s.loss_sum for s in stats) / total_weight(items) == pytest.approx(loss, rel=1e-5)
    norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
    assert [s.grad_norm for s in stats] == pytest.approx([norm, norm], rel=1e-5)
    after = weights(ranks)
    assert torch.equal(after["lm_head.weight"], after["model.embed_tokens.weight"])
    assert not torch.equal(after["lm_head.weight"], before["lm_head.weight"])

    target = str(tmp_path / "export")
    ray.get([handle.call.remote("engine.export", target) for handle in ranks])
    exported = AutoModelForCausalLM.from_pretrained(target).state_dict()
    for name, weight in after.items():
        assert torch.equal(exported[name], weight)


def test_a_checkpoint_is_written_beside_a_step_as_it_was_before(ranks, tmp_path):
    items, signals = ragged_items(8, seed=1)
    ray.get(
        [handle.call.remote("set_teacher_head", (HeadPart(teacher_head()),)) for handle in ranks]
    )
    watch = ActorWatch(60, "run.stall_timeout_s")
    named = [(f"trainer-{n}", one) for n, one in enumerate(ranks)]
    group = TrainerGroup(watch, named, TrainerSettings())
    before = weights(ranks)
    assert group.have_room_to_copy()
    asked = group.begin_save(str(tmp_path))
    ray.get(
        [
            handle.call.remote("train_step", plan, total_weight(items), 1e-2, signals)
            for handle, plan in zip(ranks, share_out(items, 2, 2), strict=True)
        ]
    )
    of_rank_0, of_rank_1 = watch.get_all(asked)
    assert list(of_rank_1) == ["rank_00001_00000.safetensors"]
    assert (of_rank_0 | of_rank_1).keys() == set(files_below(tmp_path))
    after = weights(ranks)
    assert not torch.equal(after["lm_head.weight"], before["lm_head.weight"])
    group.load(str(tmp_path))
    for name, weight in weights(ranks).items():
        assert torch.equal(weight, before[name])


def test_scores_come_back_by_rollout(ranks):
    items, signals = ragged_items(5)
    answers = ray.get(
        [
            handle.call.remote("score", plan, ray.put(signals))
            for handle, plan in zip(ranks, share_out(items, 2, 2), strict=True)
        ]
    )
    found = {
        scores.rollout_id: len(scores.columns["entropy"]) for answer in answers for scores in answer
    }
    assert found == {item.rollout_id: len(item.rows) for item in items}


def test_a_rank_knows_its_peak_memory(ranks):
    for peak in ray.get([handle.peak_memory.remote() for handle in ranks]):
        assert 1 << 26 < peak < 1 << 34
