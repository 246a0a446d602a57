"""Estimates of memory and of what a step moves, and whether they fit."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import reduce
from typing import Any

import pytest
from planned import GB, SHAPE, machine, make_config

from opd_ray.cluster.memory import (
    GPU_PROCESS_BYTES,
    PROCESS_BYTES,
    checkpoint_bytes,
    judge_memory,
    rollout_memory,
    teacher_memory,
)
from opd_ray.cluster.memory_fit import _advice, capacity_problems, memory_problems
from opd_ray.cluster.nodes import Cluster, Node
from opd_ray.cluster.placed_actor import PlacedActor
from opd_ray.cluster.placement import plan_placement
from opd_ray.cluster.step_size import step_flows, step_tokens
from opd_ray.cluster.trainer_memory import activation_bytes_per_token, trainer_memory
from opd_ray.config.choices import (
    BaseFormat,
    Dtype,
    LoraForm,
    PlacementChoice,
    SignalChoice,
    Support,
    SyncBackend,
)
from opd_ray.config.environment import EnvironmentSettings
from opd_ray.config.lora import LoraSettings
from opd_ray.config.schema import (
    Config,
    LossSettings,
)
from opd_ray.config.teacher import TeacherSettings
from opd_ray.preflight.lora import lora_problems
from opd_ray.preflight.placement import placement_problems


def test_trainer_memory_by_hand() -> None:
    count = SHAPE.parameters
    plain = trainer_memory(make_config(), SHAPE, [SHAPE]).host
    assert plain["weights"] == plain["gradients"] == 4 * count
    assert plain["optimizer"] == 8 * count
    assert plain["process"] == PROCESS_BYTES
    sharded = make_config({"ranks": 4, "zero_stage": 3, "dtype": Dtype.bfloat16})
    parts = trainer_memory(sharded, SHAPE).host
    assert parts["weights"] == 2 * count // 4
    assert parts["gradients"] == 4 * count // 4  # sums in float32
    assert parts["gathered weights"] == 2 * count
    assert parts["gradient of the head"] == 4 * 1000 * 64
    assert parts["optimizer"] == 12 * count // 4
    second = trainer_memory(
        replace(sharded, trainer=replace(sharded.trainer, zero_stage=2)), SHAPE, None
    )
    assert second.host["weights"] == 2 * count
    assert second.host["gradients"] == 4 * count // 4
    # In bfloat16 there is no stage 0: DeepSpeed runs stage 1, which shards the optimizer.
    none = make_config({"ranks": 4, "dtype": Dtype.bfloat16})
    assert trainer_memory(none, SHAPE).host["optimizer"] == 12 * count // 4


def test_with_lag_the_weights_sent_last_stay_in_main_memory() -> None:
    plain = make_config({"ranks": 2})
    lagged = replace(plain, run=replace(plain.run, lag=1))
    assert "weights last sent" not in trainer_memory(plain, SHAPE).host
    assert trainer_memory(lagged, SHAPE).host["weights last sent"] == 4 * SHAPE.parameters // 2
    on_gpus = replace(lagged, trainer=replace(lagged.trainer, gpus_per_rank=1))
    found = trainer_memory(on_gpus, SHAPE)
    assert found.host["weights last sent"] == 4 * SHAPE.parameters // 2
    assert "weights last sent" not in found.device


def test_a_text_longer_than_the_micro_batch_goes_alone() -> None:
    long = make_config({"micro_batch_tokens": 10}, {"max_new_tokens": 1000})
    short = make_config({"micro_batch_tokens": 2048 + 1000}, {"max_new_tokens": 1000})
    found = [trainer_memory(config, SHAPE).host["activations"] for config in (long, short)]
    assert found[0] == found[1]
    # Of two norms input, scaled and output; of two of heads input and scaled; keys and values of 2
    # heads repeated for 4; of 4 layers.
    layer = 2 * 3 * 64 + 2 * (64 + 32) + (2 * 64 + 2 * 32 + 2 * 32) + 4 * 256
    assert found[0] == 3048 * 4 * layer * 4


def test_checkpointing_saves_activations_and_offload_moves_the_optimizer() -> None:
    config = make_config({"gpus_per_rank": 1, "zero_stage": 1})
    whole = trainer_memory(config, SHAPE)
    cut = trainer_memory(
        replace(
            config,
            trainer=replace(config.trainer, gradient_checkpointing=True, offload_optimizer=True),
        ),
        SHAPE,
        None,
    )
    assert cut.device["activations"] < whole.device["activations"]
    assert "optimizer" in whole.device
    assert "optimizer" not in cut.device
    assert cut.host["optimizer"] == whole.device["optimizer"]
    assert cut.host["gradients"] == 2 * whole.device["gradients"]


def test_layers_that_are_not_recomputed_keep_theirs_and_no_other_is_there_at_the_peak() -> None:
    layer, hidden = SHAPE.layer_activation_bytes(4), 64 * 4
    tokens = 2048 + 128  # of a text, more than a micro-batch has
    for recomputed, kept in ((None, 4 * hidden + layer), (3, 3 * hidden + layer)):
        settings = {"gradient_checkpointing": True, "recomputed_layers": recomputed}
        config = make_config({**settings, "micro_batch_tokens": 1})
        assert trainer_memory(config, SHAPE).host["activations"] == tokens * kept
    one = make_config({"gradient_checkpointing": True, "recomputed_layers": 1})
    assert activation_bytes_per_token(one, SHAPE) == hidden + 3 * layer
    none = make_config({"recomputed_layers": 1})
    assert activation_bytes_per_token(none, SHAPE) == 4 * layer


def test_parameters_that_are_offloaded_come_to_the_gpu_in_parts() -> None:
    config = make_config({"gpus_per_rank": 1, "zero_stage": 3, "dtype": Dtype.bfloat16})
    there = trainer_memory(config, SHAPE)
    assert there.device["weights"] == 2 * SHAPE.parameters
    assert "gathered weights" not in there.device  # of one rank they lie together already
    config.trainer.offload_parameters = True
    away = trainer_memory(config, SHAPE)
    assert "weights" not in away.device
    assert away.host["weights"] == away.device["gathered weights"] == 2 * SHAPE.parameters
    assert away.device["optimizer"] == there.device["optimizer"]


def test_of_an_adapter_the_optimizer_has_the_adapter_alone() -> None:
    """Rank 2 for queries (64 -> 4 x 16) and the way down (256 -> 64), in 4 layers."""
    adapter = 4 * 2 * ((64 + 64) + (256 + 64))
    assert SHAPE.adapter_parameters(2, ["q_proj", "down_proj"]) == adapter
    key = 64 + 2 * 16
    every = 4 * 2 * (2 * (64 + 64) + 2 * key + 3 * (64 + 256))
    assert SHAPE.adapter_parameters(2) == every
    lora = LoraSettings(rank=2, target_modules=["q_proj", "down_proj"])
    config = make_config({"gpus_per_rank": 1, "dtype": Dtype.bfloat16, "zero_stage": 1})
    config.student.lora = lora
    parts = trainer_memory(config, SHAPE).device
    assert parts["weights"] == 2 * (SHAPE.parameters + adapter)
    assert parts["optimizer"] == 12 * adapter
    assert parts["gradients"] == 4 * adapter
    assert "gradient of the head" not in parts
    # In four bits the matrices of the layers alone: half a byte, and a float32 scale for 64.
    matrices = 4 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 256)
    config.student.lora = replace(lora, base=BaseFormat.nf4)
    quarter = trainer_memory(config, SHAPE).device["weights"]
    assert quarter == parts["weights"] - 2 * matrices + matrices * 9 // 16
    config.run.lag, config.run.checkpoint_beside = 1, True
    host = trainer_memory(config, SHAPE).host
    assert host["weights last sent"] == 2 * adapter
    assert host["copy for a checkpoint"] == 12 * adapter
    config.sync.lora = LoraForm.merged
    assert trainer_memory(config, SHAPE).host["weights last sent"] == 2 * SHAPE.parameters


def test_an_engine_that_serves_an_adapter_holds_two_versions() -> None:
    config = make_config(rollout={"gpus_per_actor": 2, "tensor_parallel_size": 2})
    assert "adapters" not in rollout_memory(config, SHAPE).device
    config.student.lora = LoraSettings(rank=2)
    assert rollout_memory(config, SHAPE).device["adapters"] == 4 * SHAPE.adapter_parameters(2)
    config.sync.lora = LoraForm.merged
    assert "adapters" not in rollout_memory(config, SHAPE).device


def in_turns(**trainer: Any) -> Config:
    """One GPU for all, in turns."""
    config = make_config(
        {"gpus_per_rank": 1, "zero_stage": 1, "dtype": Dtype.bfloat16, **trainer},
        {"gpus_per_actor": 1},
        {"gpus_per_replica": 1},
    )
    config.cluster.placement = PlacementChoice.turns
    return config


def test_who_takes_turns_sleeps_in_main_memory() -> None:
    config = in_turns()
    trainer = trainer_memory(config, SHAPE)
    # Weights in bfloat16; master, moments and gradients in float32.
    assert trainer.host["asleep"] == (2 + 12 + 4) * SHAPE.parameters
    with_head = trainer_memory(config, SHAPE, [SHAPE]).host["asleep"]
    assert with_head == trainer.host["asleep"] + 4 * SHAPE.embedding_parameters
    offloaded = trainer_memory(in_turns(offload_optimizer=True), SHAPE)
    assert offloaded.host["asleep"] == 2 * SHAPE.parameters
    teacher = teacher_memory(config, config.teacher, SHAPE)
    assert teacher.host["asleep"] == teacher.device["weights"] == 4 * SHAPE.parameters
    assert "asleep" not in rollout_memory(config, SHAPE).host
    with_adapter = deepcopy(config)
    with_adapter.student.lora = LoraSettings(rank=2)
    found = rollout_memory(with_adapter, SHAPE)
    assert found.host["asleep"] == found.device["weights"] + found.device["adapters"]
    with_adapter.sync.lora = LoraForm.merged
    assert "asleep" not in rollout_memory(with_adapter, SHAPE).host
    # Engines take in weights from the object store when their turn comes; by IPC from the trainer.
    assert trainer.host["weights last sent"] == 2 * SHAPE.parameters
    config.sync.backend = SyncBackend.ipc
    assert "weights last sent" not in trainer_memory(config, SHAPE).host
    config.cluster.placement = PlacementChoice.separate
    assert "asleep" not in trainer_memory(config, SHAPE).host


def test_processes_that_sleep_keep_their_context_on_the_gpu() -> None:
    config = in_turns(micro_batch_tokens=1)
    needed = trainer_memory(config, SHAPE).device_bytes + 2 * GPU_PROCESS_BYTES
    roomy, tight = (
        [p for p in problems(config, cluster) if p.startswith("trainer-0: ")]
        for size in (needed, needed - 10)
        for cluster in [machine(4, gpus=1, gpu_memory_bytes=size)]
    )
    assert roomy == []
    assert "less 1.26 GB of those it shares the GPU with" in tight[0]


def test_teachers_wake_together_and_must_fit_together() -> None:
    config = in_turns()
    several = replace(
        config, teachers={"second": {"path": "t2"}}, routes={"a": "second", "b": "teacher"}
    )
    (one,) = (teacher_memory(config, config.teacher, SHAPE).device_bytes,)
    needed = 2 * one + 2 * GPU_PROCESS_BYTES

    def of_teachers(nbytes: int) -> list[str]:
        cluster = machine(4, gpus=1, gpu_memory_bytes=nbytes)
        plan = plan_placement(several, cluster, SHAPE, {"t": SHAPE, "t2": SHAPE})
        return [p for p in memory_problems(several, plan) if p.startswith("teacher")]

    assert of_teachers(needed) == []
    assert len(of_teachers(needed - 10)) == 2


def test_tokens_of_a_kv_cache() -> None:
    """Keys and values of 2 heads of 16 in 4 layers, 4 bytes each."""
    token = 2 * 2 * 16 * 4 * 4
    cpu = make_config(rollout={"kv_cache_bytes": 100 * token + 1})
    assert rollout_memory(cpu, SHAPE).cache_tokens(None) == 100
    assert teacher_memory(cpu, cpu.teacher, SHAPE).cache_tokens(None) is None
    gpu = rollout_memory(make_config(rollout={"gpus_per_actor": 1}), SHAPE)
    assert gpu.cache_tokens(None) is None
    without = gpu.device_bytes - gpu.device["KV cache"]
    assert gpu.cache_tokens(round((without + 1000 * token) / 0.9) + 1) == 1000
    assert gpu.cache_tokens(1) == 0
    split = make_config(rollout={"gpus_per_actor": 2, "tensor_parallel_size": 2})
    assert rollout_memory(split, SHAPE).cache_token_bytes == token // 2


def test_with_lag_a_checkpoint_holds_the_next_steps_rollouts() -> None:
    config = make_config()
    config.run.keep_checkpoints = 2
    plain = checkpoint_bytes(config, SHAPE)
    config.run.lag = 1
    # 128 rollouts of 128 tokens: id, mask, entropy, log-probability, 16 recorded; prompts of 2,048.
    ahead = 128 * 128 * (4 + 1 + 4 + 4 + 16 * 8) + 128 * 2048 * 4
    assert checkpoint_bytes(config, SHAPE) == plain + 3 * ahead


def test_checkpoints_and_exports_of_an_adapter_are_small() -> None:
    config = make_config()
    config.run.keep_checkpoints, config.run.export_at_end = 1, True
    config.student.lora = LoraSettings(rank=2)
    adapter = SHAPE.adapter_parameters(2)
    assert checkpoint_bytes(config, SHAPE) == 2 * 12 * adapter + 4 * SHAPE.parameters
    config.student.lora = LoraSettings(rank=2, export=LoraForm.adapter)
    assert checkpoint_bytes(config, SHAPE) == 2 * 12 * adapter + 4 * adapter


def test_a_checkpoint_has_twelve_bytes_a_parameter_on_disk_and_in_its_copy() -> None:
    """A float32 weight and two moments; the copies are the ranks' together."""
    config = make_config({"ranks": 2, "zero_stage": 3})
    config.run.keep_checkpoints, config.run.export_at_end = 2, False
    assert checkpoint_bytes(config, SHAPE) == 3 * 12 * SHAPE.parameters
    config.run.export_at_end = True
    assert checkpoint_bytes(config, SHAPE) == (3 * 12 + 4) * SHAPE.parameters
    for beside, copied in ((None, None), (False, None), (True, 6 * SHAPE.parameters)):
        config.run.checkpoint_beside = beside
        assert trainer_memory(config, SHAPE).host.get("copy for a checkpoint") == copied
    on_gpu = make_config({"ranks": 2, "gpus_per_rank": 1})
    on_gpu.run.checkpoint_beside = True
    assert trainer_memory(on_gpu, SHAPE).host["copy for a checkpoint"] == 6 * SHAPE.parameters


def test_rollout_and_teacher_memory() -> None:
    config = make_config(teacher={"signal": SignalChoice.hidden})
    assert rollout_memory(config, SHAPE).host["KV cache"] == config.rollout.kv_cache_bytes
    tokens = 32 * 4 * 128
    assert teacher_memory(config, config.teacher, SHAPE).host["signals"] == tokens * 64 * 4
    gpu = make_config(rollout={"gpus_per_actor": 2, "tensor_parallel_size": 2})
    split = rollout_memory(gpu, SHAPE)
    assert split.device["weights"] == 4 * SHAPE.parameters // 2
    assert split.host_bytes == PROCESS_BYTES


def test_processes_of_environments_are_counted_with_their_engine() -> None:
    config = make_config(rollout={"max_num_seqs": 8})
    base = rollout_memory(config, SHAPE).host_bytes
    for settings, processes in (
        (EnvironmentSettings(path="a:B"), 0),
        (EnvironmentSettings(own_process=True), 0),
        (EnvironmentSettings(path="a:B", own_process=True), 16),
        (EnvironmentSettings(path="a:B", own_process=True, concurrent_rollouts=5), 5),
    ):
        acting = replace(config, environment=settings)
        more = rollout_memory(acting, SHAPE).host_bytes - base
        assert more == processes * 75 * 1024 * 1024


@pytest.mark.parametrize(
    ("support", "places"), [(Support.teacher, 5), (Support.student, 3), (Support.union, 8)]
)
def test_a_signal_has_a_place_for_every_token_it_may_name(support: Support, places: int) -> None:
    """8 bytes each, held of every response token and sent of every kept one, here half of them."""
    config = make_config({}, {"record_topk": 3}, {"topk": 5})
    config = replace(config, loss=LossSettings(support=support))
    tokens = 32 * 4 * 128
    assert teacher_memory(config, config.teacher, SHAPE).host["signals"] == tokens * places * 8
    (flow,) = (f for f in step_flows(config, SHAPE, {"t": SHAPE}) if f.target == "trainer")
    assert flow.nbytes == tokens // 2 * places * 8
    named = {
        Support.teacher: "the teacher's 5",
        Support.student: "the student's 3",
        Support.union: "the teacher's 5 and the student's 3",
    }[support]
    said = f"signal of kept tokens: {named} likeliest tokens a row, and one tail"
    assert flow.what == said
    held = tokens * places * 8
    full, short = (
        capacity(replace(config, teacher=replace(config.teacher, store_bytes=size)))
        for size in (held, held - 1)
    )
    assert full == []
    assert f"set it to {held}" in short[0]
    hidden = replace(config, teacher=TeacherSettings(path="t", signal=SignalChoice.hidden))
    assert teacher_memory(hidden, hidden.teacher, SHAPE).host["signals"] == tokens * 64 * 4


def test_a_rollout_engine_on_a_cpu_reads_a_whole_context_at_once() -> None:
    def activations(**rollout: float) -> int:
        config = make_config(rollout={"max_num_batched_tokens": 64, **rollout})
        config.student.context_length = 512
        memory = rollout_memory(config, SHAPE)
        return (memory.device or memory.host)["activations"]

    assert activations() == 8 * activations(gpus_per_actor=1)


def problems(config: Config, cluster: Cluster) -> list[str]:
    return memory_problems(config, plan_placement(config, cluster, SHAPE, {"t": SHAPE}))


def test_what_is_set_already_is_not_advised() -> None:
    tight = machine(4, gpus=1, gpu_memory_bytes=10**6)
    config = make_config({"gpus_per_rank": 1})
    (problem,) = problems(config, tight)
    assert "use trainer.gradient_checkpointing=true, or a lower" in problem
    config.trainer.gradient_checkpointing = True
    config.loss.chunk_rows = 1
    (problem,) = problems(config, tight)
    assert "of that activations: use a lower trainer.micro_batch_tokens" in problem


def test_a_part_that_no_key_makes_smaller_is_passed_over() -> None:
    """With a huge vocabulary the gradient of the head is the largest part."""
    wide = replace(SHAPE, vocab_size=10**7)
    trainer = {"gpus_per_rank": 1, "zero_stage": 1, "offload_optimizer": True}
    config = make_config({**trainer, "dtype": Dtype.bfloat16})
    config.loss.chunk_rows = 1
    parts = trainer_memory(config, wide).device
    assert max(parts, key=lambda part: parts[part]) == "gradient of the head"
    tight = machine(4, gpus=1, gpu_memory_bytes=10**6)
    (problem,) = memory_problems(config, plan_placement(config, tight, wide))
    assert "gradient of the head" not in problem
    assert (
        "of that weights: use trainer.offload_parameters=true with trainer.zero_stage=3" in problem
    )


@pytest.mark.parametrize(
    ("changed", "advised"),
    [
        ({}, True),
        ({"cluster.placement": PlacementChoice.separate, "run.lag": 1}, False),
        ({"trainer.gpus_per_rank": 0, "run.lag": 1}, False),
        ({"rollout.gpus_per_actor": 0}, False),
        ({"rollout.actors": 3}, False),
        ({"student.lora.rank": 8, "sync.lora": LoraForm.merged}, True),
        ({"student.lora.rank": 8}, False),
    ],
)
def test_weights_within_gpus_are_advised_only_where_they_can_be_had(
    changed: dict[str, Any], advised: bool
) -> None:
    config = in_turns(ranks=2)
    for key, value in changed.items():
        *path, name = key.split(".")
        setattr(reduce(getattr, path, config), name, value)
    rank, sent = PlacedActor("trainer", 0, 1, 0, 1, None), {"weights last sent": 1}
    advice = _advice(config, rank, sent)
    assert ("sync.backend=ipc" in advice) is advised
    config.sync.backend = SyncBackend.ipc
    refused = [*placement_problems(config), *lora_problems(config)]
    assert any("sync.backend = ipc" in problem for problem in refused) is not advised
    config.trainer.dtype = Dtype.float32
    assert "trainer.dtype=bfloat16" in _advice(config, rank, sent)


def test_a_teachers_own_keys_are_named() -> None:
    config = make_config(teacher={"gpus_per_replica": 1, "batch_tokens": 1})
    (problem,) = problems(config, machine(4, gpus=1, gpu_memory_bytes=10**6))
    assert problem.startswith("teacher-0: ")
    assert "of that logits: use a lower teacher.batch_tokens" in problem


def test_too_little_memory_names_what_to_lower() -> None:
    small = Cluster((Node("n0", 4, 2 * GB, 0),))
    (problem,) = problems(make_config(), small)
    assert "node n0" in problem
    assert "2.00 GB" in problem
    assert problems(make_config(), machine(4)) == []
    tight = machine(4, gpus=1, gpu_memory_bytes=10**6)
    config = make_config({"gpus_per_rank": 1})
    (problem,) = problems(config, tight)
    assert problem.startswith("trainer-0")
    assert "of that activations" in problem
    assert "trainer.micro_batch_tokens" in problem


def capacity(config: Config) -> list[str]:
    return list(capacity_problems(config, SHAPE, {"t": SHAPE}))


def test_a_kv_cache_on_the_cpu_must_hold_one_text() -> None:
    """Keys and values of 2 heads of 16 in 4 layers; 4,096 tokens in blocks of 32, and one block."""
    needed = (4096 + 32) * 2 * 4 * 2 * 16 * 4
    enough = {"kv_cache_bytes": needed}
    engine = {"kind": "vllm", **enough}
    assert capacity(make_config(rollout=enough, teacher=engine)) == []
    too_few = {"kv_cache_bytes": needed - 1}
    (problem,) = capacity(make_config(rollout=too_few, teacher=engine))
    assert problem.startswith(f"rollout.kv_cache_bytes = {needed - 1}: ")
    assert f"takes {needed} bytes" in problem
    (problem,) = capacity(make_config(rollout=enough, teacher=engine | too_few))
    assert problem.startswith(f"teacher.kv_cache_bytes = {needed - 1}: ")
    half = {"kv_cache_bytes": needed // 2}
    assert capacity(make_config(rollout=half | {"dtype": Dtype.bfloat16})) == []
    # Each of two processes has one of the two heads; a third one has no less.
    for split in (2, 3):
        assert capacity(make_config(rollout=half | {"tensor_parallel_size": split})) == []
    # vLLM sizes it by itself on a GPU, and no other teacher has one.
    assert capacity(make_config(rollout=too_few | {"gpus_per_actor": 1})) == []
    assert capacity(make_config(rollout=enough, teacher=too_few)) == []


def test_a_store_must_hold_the_signals_of_a_step() -> None:
    held = 128 * 128 * (32 + 16) * 8
    assert capacity(make_config(teacher={"store_bytes": held})) == []
    (problem,) = capacity(make_config(teacher={"store_bytes": held - 1}))
    assert problem.startswith(f"teacher.store_bytes = {held - 1}: ")
    assert f"set it to {held}" in problem
    assert "teacher.signal=topk" not in problem
    (problem,) = capacity(make_config(teacher={"store_bytes": 1, "signal": SignalChoice.hidden}))
    assert "teacher.signal=topk" in problem
    assert capacity(make_config(teacher={"store_bytes": held // 2, "replicas": 2})) == []


def test_with_lag_a_store_holds_the_next_steps_signals_too() -> None:
    config = make_config()  # 128 rollouts of 128 tokens, 48 places of 8 bytes; measured on 64
    step = 128 * 128 * (32 + 16) * 8

    def held(rescore: bool, every: int) -> int:
        run, tip = replace(config.run, lag=1), replace(config.tip, rescore=rescore)
        lagged = replace(config, run=run, tip=tip, eval=replace(config.eval, every=every))
        (problem,) = capacity(
            replace(lagged, teacher=replace(config.teacher, store_bytes=step - 1))
        )
        found = teacher_memory(lagged, lagged.teacher, SHAPE).host["signals"]
        assert f"set it to {found}" in problem
        assert ("scored beside it with run.lag" in problem) is (found > step)
        return found

    assert held(rescore=False, every=0) == step
    assert held(rescore=False, every=10) == step + step // 2
    assert held(rescore=True, every=10) == 2 * step


def test_gpus_of_unknown_memory_are_named() -> None:
    config = make_config({"gpus_per_rank": 1})
    assert plan_placement(config, machine(4, gpus=1), SHAPE).unknown_gpu_memory() == ["n0"]
    known = machine(4, gpus=1, gpu_memory_bytes=GB)
    assert plan_placement(config, known, SHAPE).unknown_gpu_memory() == []
    assert plan_placement(make_config(), machine(4, gpus=1), SHAPE).unknown_gpu_memory() == []


def test_a_vllm_engine_must_fit_into_its_share_of_a_gpu() -> None:
    config = make_config(rollout={"gpus_per_actor": 1})
    needed = rollout_memory(config, SHAPE).device_bytes
    roomy = machine(4, gpus=1, gpu_memory_bytes=int(needed / 0.9) + 10)
    assert problems(config, roomy) == []
    tight = machine(4, gpus=1, gpu_memory_bytes=int(needed / 0.9) - 10)
    (problem,) = problems(config, tight)
    assert problem.startswith("rollout-0: needs about")
    assert "90% of" in problem


def test_flows_of_a_step_by_hand() -> None:
    config = make_config()
    tokens = step_tokens(config)
    assert (tokens.rollouts, tokens.response, tokens.kept) == (128, 128 * 128, 128 * 64)
    flows = {
        (flow.source, flow.target): flow.nbytes for flow in step_flows(config, SHAPE, {"t": SHAPE})
    }
    assert flows["rollout", "teacher"] == 128 * 128 * 16 * 8
    assert flows["teacher", "trainer"] == 128 * 64 * (32 + 16) * 8
    assert flows["trainer", "rollout"] == 4 * SHAPE.parameters
    config.student.lora = LoraSettings(rank=2)
    adapter = next(f for f in step_flows(config, SHAPE, {}) if f.target == "rollout")
    assert (adapter.what, adapter.nbytes) == (
        "adapter, to each actor",
        4 * SHAPE.adapter_parameters(2),
    )
    assert ("trainer", "rollout") not in {
        (flow.source, flow.target) for flow in step_flows(config, None)
    }


def test_a_base_in_the_trainers_memory_takes_its_signals_alone() -> None:
    config = make_config()
    student = replace(config.student, lora=LoraSettings(rank=8))
    config = replace(config, student=student, teacher=TeacherSettings(kind="self"))
    (teacher,) = config.teacher_set.working.values()
    found = judge_memory(config, teacher, {"s": SHAPE})
    assert found is not None
    assert found.host.keys() == {"process", "signals"}
    assert not found.device
    whole = replace(config, student=replace(student, lora=LoraSettings()))
    copy = judge_memory(whole, teacher, {"s": SHAPE})
    assert copy is not None
    assert copy.host["signals"] == found.host["signals"]
    assert copy.host["weights"] == 4 * SHAPE.parameters
