"""A rank that sleeps gives its memory back and wakes as it was: every ZeRO stage and format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_models import make_tiny_qwen3
from trainer_data import ROWS, VOCAB, ragged_items, share_out, teacher_head, total_weight
from trainer_ranks import Ranks, shared_ranks

from opd_ray.config.choices import Dtype
from opd_ray.config.schema import TrainerSettings
from opd_ray.types import HeadPart

RANKS = 2
FORMATS = [(stage, Dtype.float32) for stage in range(4)]
FORMATS += [(stage, Dtype.bfloat16) for stage in (1, 2, 3)]  # 0 is 1 in bfloat16
HIDDEN, LAYERS = 512, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_qwen3(tmp_path_factory.mktemp("s"), vocab=ROWS, hidden=HIDDEN, layers=LAYERS)


def resident(group: Ranks) -> int:
    """Bytes of main memory that the ranks hold together."""
    pages = [
        int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        for process in group._processes
    ]
    return sum(pages) * 4096


def held_at_least(stage: int, dtype: Dtype, parameters: int) -> int:
    """Bytes of weights, masters and moments on all ranks together."""
    width = 2 if dtype is Dtype.bfloat16 else 4
    weights = parameters * width * (1 if stage == 3 else RANKS)
    masters = 0 if stage == 0 else 4 * parameters
    return weights + masters + 8 * parameters * (RANKS if stage == 0 else 1)


@pytest.mark.parametrize(("stage", "dtype"), FORMATS)
def test_asleep_its_memory_is_the_machines_and_awake_nothing_has_happened(folder, stage, dtype):
    items, signals = ragged_items(14)
    plan = share_out(items, RANKS, 1)
    total = total_weight(items)
    group = shared_ranks(RANKS)
    settings = TrainerSettings(zero_stage=stage, dtype=dtype)

    def step() -> None:
        group.call_each("train_step", [(own, total, 1e-3, signals) for own in plan])

    found = []
    for sleeps in (False, True):
        group.start(folder, settings, vocab_size=VOCAB, head=teacher_head())
        step()
        if sleeps:
            # Passes without a backward one leave what ZeRO-3 has asked for ahead.
            group.call_each("score", [(own, signals) for own in plan])
            before = resident(group)
            group.call("sleep")
            asleep = resident(group)
            group.call("sleep")
            assert group.call("set_teacher_head", (HeadPart(teacher_head(8)),)) == [None] * RANKS
            group.call("wake")
            group.call("set_teacher_head", (HeadPart(teacher_head()),))
        step()
        found.append(group.weights())
    plain, woken = found
    assert plain.keys() == woken.keys()
    for name, weight in plain.items():
        np.testing.assert_array_equal(woken[name], weight, err_msg=name)
    parameters = sum(
        weight.size for name, weight in plain.items() if name != "model.lm_head.weight"
    )
    # All but what is rounded to pages, and what Python takes meanwhile.
    assert before - asleep > 0.9 * held_at_least(stage, dtype, parameters)


def test_weights_can_be_read_while_the_rest_sleeps(folder):
    items, signals = ragged_items(14)
    plan = share_out(items, RANKS, 1)
    group = shared_ranks(RANKS)
    group.start(folder, TrainerSettings(zero_stage=3), vocab_size=VOCAB, head=teacher_head())
    group.call_each("train_step", [(own, total_weight(items), 1e-3, signals) for own in plan])
    plain, awake = group.weights(), resident(group)

    def read() -> None:
        for name, weight in group.weights().items():
            np.testing.assert_array_equal(weight, plain[name], err_msg=name)

    group.call("sleep", True)
    but_weights = resident(group)
    read()
    group.call("sleep")
    asleep = resident(group)
    group.call("wake", True)
    read()
    # All weights here are float32: the optimizer has twice as much, and as much again as masters.
    assert awake - but_weights > 2 * (but_weights - asleep) > 0
    group.call("wake")
    group.call_each("train_step", [(own, total_weight(items), 1e-3, signals) for own in plan])
