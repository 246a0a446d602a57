"""How versions of an adapter follow on each other in an engine; vLLM's is a stand-in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from actors.rollout.adapter import EngineAdapter, adapter_args
from actors.weights.chunks import pack
from opd_ray.config.lora import LoraSettings
from opd_ray.config.schema import StudentSettings
from opd_ray.models.pairs.demo import pair_folder

LORA = LoraSettings(rank=8, alpha=4.0)


class Engine:
    """Reads an adapter as it is added, as vLLM does; refuses one whose tensors are all zero."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[str, dict[str, Any], dict[str, torch.Tensor]]] = {}
        self.most_held = 0

    def add_lora(self, request: Any) -> bool:
        if request.lora_int_id in self.held:
            return False
        folder = Path(request.lora_path)
        tensors = load_file(folder / "adapter_model.safetensors")
        if not any(tensor.any() for tensor in tensors.values()):
            raise ValueError("all zero")
        config = json.loads((folder / "adapter_config.json").read_text())
        self.held[request.lora_int_id] = (request.lora_name, config, tensors)
        self.most_held = max(self.most_held, len(self.held))
        return True

    def remove_lora(self, number: int) -> bool:
        del self.held[number]
        return True


@pytest.fixture
def adapter() -> Any:
    pytest.importorskip("vllm.lora.request")
    made = EngineAdapter(Engine(), LORA)  # type: ignore[arg-type]
    return made


def tensors(value: float) -> dict[str, torch.Tensor]:
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    return {
        f"{layer}.lora_A.weight": torch.full((8, 4), value),
        f"{layer}.lora_B.weight": torch.full((6, 8), value),
    }


def load(adapter: EngineAdapter, version: int, value: float) -> None:
    adapter.begin()
    for chunk in pack(tensors(value).items(), 64):
        adapter.receive(chunk)
    adapter.finish(version)


def test_a_version_has_a_name_and_a_number_of_its_own_and_the_one_before_goes(adapter: Any) -> None:
    engine = adapter._engine
    assert adapter.request is None
    seen = set()
    # A run that goes back pushes version 1 once more.
    for version, value in ((1, 1.0), (2, 2.0), (1, 3.0)):
        load(adapter, version, value)
        [(number, (name, config, found))] = engine.held.items()
        assert adapter.request.lora_int_id == number
        assert (adapter.request.lora_name, f"version-{version}" in name) == (name, True)
        assert (number, name) not in seen
        seen.add((number, name))
        assert (config["r"], config["lora_alpha"], config["bias"]) == (8, 4.0, "none")
        assert config["target_modules"] == ["q_proj"]
        assert found.keys() == tensors(value).keys()
        assert all((tensor == value).all() for tensor in found.values())
        # vLLM has read it and never will again.
        assert not Path(adapter.request.lora_path).exists()
    assert len({name for _, name in seen}) == 3
    assert engine.most_held == 2  # the next one is whole before the last one goes


def test_one_that_is_refused_leaves_the_one_before(adapter: Any) -> None:
    load(adapter, 1, 1.0)
    before = adapter.request
    with pytest.raises(ValueError, match="all zero"):
        load(adapter, 2, 0.0)
    assert adapter.request is before
    assert [*adapter._engine.held] == [before.lora_int_id]
    adapter.begin()
    with pytest.raises(RuntimeError, match="without a tensor"):
        adapter.finish(3)


def test_what_broke_off_is_no_part_of_the_next(adapter: Any) -> None:
    adapter.begin()
    [first, *_] = pack([("base_model.model.x.layers.0.old.lora_A.weight", torch.ones(8, 2))], 64)
    adapter.receive(first)
    load(adapter, 1, 1.0)
    [(_, _, found)] = adapter._engine.held.values()
    assert found.keys() == tensors(1.0).keys()


def test_vllm_has_room_for_the_layers_that_are_trained_alone() -> None:
    path = str(pair_folder() / "student")
    args = adapter_args(StudentSettings(path=path, lora=LORA))
    assert (args["max_lora_rank"], args["max_loras"], args["max_cpu_loras"]) == (8, 1, 2)
    assert args["lora_target_modules"] == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    some = LoraSettings(rank=8, target_modules=["v_proj"])
    args = adapter_args(StudentSettings(path=path, lora=some))
    assert args["lora_target_modules"] == ["v_proj"]
