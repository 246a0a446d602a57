"""The calls by which a vLLM engine sleeps and wakes, held against the installed source."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, call, create_autospec, patch

import pytest
import torch
from torch import nn

from actors.engine_sleep import PARTS, Sleep, SleepOnCpu, fall_asleep, wake_up
from actors.rollout.adapter import EngineAdapter
from actors.rollout.engine import RolloutEngine
from opd_ray.config.schema import RolloutSettings
from opd_ray.errors import Asleep


def engine_of_vllm() -> Any:
    """A recorder that takes no other arguments than vLLM's engine."""
    from vllm.v1.engine.llm_engine import LLMEngine

    return create_autospec(LLMEngine, instance=True)


def test_on_a_gpu_it_is_vllms_own_sleep_by_its_own_names() -> None:
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.executor.abstract import SLEEP_TAGS

    engine = engine_of_vllm()
    fall_asleep(engine, Sleep.dropping_weights, on_gpu=True)
    for part in PARTS:
        wake_up(engine, part, on_gpu=True)
    assert engine.mock_calls == [
        call.sleep(level=2),
        call.wake_up(tags=["weights"]),
        call.wake_up(tags=["kv_cache"]),
    ]
    assert set(PARTS) == set(SLEEP_TAGS)
    # Requests are none, so that it does not matter what becomes of them.
    assert inspect.signature(EngineCore.sleep).parameters["mode"].default == "abort"


def test_on_a_cpu_the_workers_drop_what_vllm_leaves() -> None:
    engine = engine_of_vllm()
    fall_asleep(engine, Sleep.keeping_weights, on_gpu=False)
    wake_up(engine, "weights", on_gpu=False)
    assert engine.mock_calls == [
        call.sleep(level=1),
        call.collective_rpc("fall_asleep_on_cpu", args=(1,)),
        call.collective_rpc("wake_up_on_cpu", args=("weights",)),
        call.wake_up(tags=["weights"]),
    ]
    for name in ("fall_asleep_on_cpu", "wake_up_on_cpu"):
        assert callable(getattr(SleepOnCpu, name))


def worker() -> Any:
    model = nn.Linear(3000, 2)
    model.cpu_linear = lambda x, weight, bias: x
    found = SleepOnCpu()
    found.model_runner = SimpleNamespace(model=model, kv_caches=[torch.ones(9000)])
    return found


def test_a_worker_without_weights_to_keep_has_none_until_others_come() -> None:
    one = worker()
    model, (cache,) = one.model_runner.model, one.model_runner.kv_caches
    one.fall_asleep_on_cpu(2)
    assert not hasattr(model, "cpu_linear")
    assert not cache[4000]
    one.wake_up_on_cpu("weights")
    assert bool(model.weight.isnan().all())
    one.wake_up_on_cpu("kv_cache")
    assert not cache.any()


def test_a_worker_that_keeps_its_weights_has_them_again() -> None:
    one = worker()
    model = one.model_runner.model
    kept = model.weight.detach().clone()
    one.fall_asleep_on_cpu(1)
    assert not model.weight[0, 1500]
    one.wake_up_on_cpu("weights")
    assert torch.equal(model.weight, kept)
    assert hasattr(model, "cpu_linear")


def engine_of(gpus: int = 0) -> Any:
    engine = RolloutEngine.__new__(RolloutEngine)
    engine._rollout = RolloutSettings(gpus_per_actor=gpus)
    engine._requests, engine._weights_complete, engine._asleep = {}, True, set()
    engine._adapter = None
    engine._engine = engine_of_vllm()
    engine._engine.model_config = SimpleNamespace(max_model_len=8)
    return engine


def test_an_engine_asleep_writes_nothing_and_takes_weights_once_it_has_memory_for_them() -> None:
    engine = engine_of(gpus=1)
    engine.sleep()
    engine.sleep()
    assert engine._engine.mock_calls == [call.sleep(level=2)]
    for refused in (lambda: engine.add([], None, record=True), engine.start_weight_update):
        with pytest.raises(Asleep, match="^the rollout engine: asleep"):
            refused()
    engine.wake("weights")
    with pytest.raises(Asleep):
        engine.add([], None, record=True)
    engine.start_weight_update()
    engine.finish_weight_update(3)
    engine.wake("kv_cache")
    engine.wake("kv_cache")
    engine.add([], None, record=True)
    named = [one for one in engine._engine.mock_calls if one[0] in ("sleep", "wake_up")]
    assert named[1:] == [call.wake_up(tags=["weights"]), call.wake_up(tags=["kv_cache"])]


def test_without_new_weights_an_engine_that_slept_writes_nothing() -> None:
    engine = engine_of()
    engine.sleep()
    for part in PARTS:
        engine.wake(part)
    with pytest.raises(RuntimeError, match="incomplete until another one is whole"):
        engine.add([], None, record=True)


def test_half_awake_it_wakes_before_it_sleeps_as_a_whole() -> None:
    engine = engine_of(gpus=1)
    engine.sleep()
    engine.wake("weights")
    engine.start_weight_update()  # and the trainers die
    engine.sleep()
    assert engine._engine.mock_calls[-3:] == [
        call.wake_up(tags=["kv_cache"]),
        call.collective_rpc("drop_weight_update"),
        call.sleep(level=2),
    ]


def test_below_an_adapter_weights_are_kept_and_the_adapter_comes_anew() -> None:
    engine = engine_of(gpus=1)
    engine._adapter = adapter = create_autospec(EngineAdapter, instance=True)
    adapter.request = None
    engine.sleep()
    with pytest.raises(Asleep):
        engine.start_weight_update()
    engine.wake("weights")
    engine.start_weight_update()  # and the trainers die
    engine.sleep()
    for part in PARTS:
        engine.wake(part)
    with pytest.raises(RuntimeError, match="incomplete until another one is whole"):
        engine.add([], None, record=True)
    engine.start_weight_update()
    engine.receive_weights({"chunk": "A and B"})
    engine.finish_weight_update(3)
    engine.add([], None, record=True)
    named = [one for one in engine._engine.mock_calls if "reset_prefix_cache" not in one[0]]
    assert named == [
        call.sleep(level=1),
        call.wake_up(tags=["weights"]),
        call.wake_up(tags=["kv_cache"]),
        call.sleep(level=1),
        call.wake_up(tags=["weights"]),
        call.wake_up(tags=["kv_cache"]),
        call.set_weight_version("3"),
    ]
    assert adapter.mock_calls == [
        call.begin(),
        call.begin(),
        call.receive("A and B"),
        call.finish(3),
    ]


def test_vllm_has_an_adapters_tensors_in_the_memory_that_level_1_keeps() -> None:
    """Those that its workers make beside a model are made while the model is loaded."""
    from vllm.device_allocator.sleep_mode_backend import CuMemBackend
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner
    from vllm.v1.worker.gpu_worker import Worker

    assert '_maybe_get_memory_pool_context(tag="weights")' in inspect.getsource(Worker.load_model)
    assert "load_lora_model" in inspect.getsource(GPUModelRunner.load_model)
    backend, allocator = CuMemBackend(), Mock()
    with patch("vllm.device_allocator.get_mem_allocator_instance", return_value=allocator):
        for level in Sleep:
            backend.suspend(int(level))
    kept, dropped = (one.kwargs["offload_tags"] for one in allocator.sleep.mock_calls)
    assert "weights" in kept
    assert "weights" not in dropped


def test_it_does_not_sleep_over_requests() -> None:
    engine = engine_of()
    engine._requests = {"a": object()}
    with pytest.raises(RuntimeError, match="1 requests are unfinished"):
        engine.sleep()
