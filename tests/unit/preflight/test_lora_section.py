"""``student.lora``: what vLLM cannot serve, what excludes what, and layers that are not there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from opd_ray.config.choices import BaseFormat, LoraForm, SyncBackend
from opd_ray.config.load import load_config
from opd_ray.config.lora import LoraSettings
from opd_ray.config.schema import Config
from opd_ray.errors import ConfigError
from opd_ray.models.engine_limits import lora_problems as engine_problems
from opd_ray.models.lora_targets import linear_layers, target_problems, targets
from opd_ray.preflight.config import config_problems
from opd_ray.preflight.doctor import examine
from opd_ray.preflight.findings import Verdict
from opd_ray.preflight.lora import layer_problems
from opd_ray.preflight.unused import unused_options

SELF = ("teacher.kind=self", "teacher.path=null", "eval.teacher_accuracy=false")


def config_of(*overrides: str, **lora: Any) -> Config:
    config = load_config("demo", ["student.lora.rank=16", *overrides])
    settings = replace(config.student.lora, **lora)
    return replace(config, student=replace(config.student, lora=settings))


def problem_of(config: Config) -> str:
    (problem,) = config_problems(config)
    return problem


def test_off_by_default_and_legal_where_it_is_on() -> None:
    assert not load_config("demo").student.lora.on
    assert config_problems(config_of()) == []
    assert config_problems(config_of(rank=24)) != []
    assert config_problems(config_of("sync.lora=merged", rank=24)) == []


def test_the_scale_is_alpha_over_rank() -> None:
    assert LoraSettings(rank=16).scale == 1.0
    assert LoraSettings(rank=16, alpha=4.0).scale == 0.25


@pytest.mark.parametrize(
    ("overrides", "lora", "parts"),
    [
        ((), {"rank": -1}, ["student.lora.rank = -1", "at least 0"]),
        ((), {"alpha": 0.0}, ["student.lora.alpha = 0.0", "above 0"]),
        ((), {"rank": 24}, ["student.lora.rank = 24", "8, 16, 32", "sync.lora=merged"]),
        (
            (*SELF, "teacher.follow_decay=0.9"),
            {},
            ["teacher.follow_decay = 0.9", "sync.lora = adapter", "sync.lora=merged"],
        ),
        (
            (*SELF, "trainer.zero_stage=3"),
            {},
            ["teacher.kind = self", "trainer.zero_stage = 3", "teacher.kind=hf"],
        ),
        (
            (*SELF, "teacher.dtype=bfloat16"),
            {},
            ["teacher.kind = self", "teacher.dtype = bfloat16", "trainer.dtype = float32"],
        ),
        (
            (*SELF, "teacher.gpus_per_replica=1"),
            {},
            ["teacher.kind = self", "teacher.gpus_per_replica = 1", "set it to 0"],
        ),
        (
            (*SELF, "cluster.placement=turns", "sync.lora=merged", "trainer.ranks=1"),
            {},
            ["teacher.kind = self", "cluster.placement = turns", "teacher.kind=hf"],
        ),
        (
            (),
            {"base": BaseFormat.nf4, "export": LoraForm.adapter},
            ["student.lora.base = nf4", "trainer.gpus_per_rank = 0", "student.lora.base=full"],
        ),
        (
            ("trainer.gpus_per_rank=1",),
            {"base": BaseFormat.nf4, "export": LoraForm.adapter},
            ["student.lora.base = nf4", "bitsandbytes", "not installed"],
        ),
    ],
)
def test_what_no_run_can_have_names_key_value_and_remedy(
    overrides: tuple[str, ...], lora: dict[str, Any], parts: list[str]
) -> None:
    problem = problem_of(config_of(*overrides, **lora))
    assert all(part in problem for part in parts), problem


@pytest.mark.parametrize(
    ("overrides", "lora", "parts"),
    [
        (("trainer.zero_stage=3",), {}, ["trainer.zero_stage = 3", "0, 1 or 2"]),
        (("sync.lora=merged",), {}, ["sync.lora = merged", "sync.lora=adapter"]),
        (
            (),
            {"export": LoraForm.merged},
            ["student.lora.export = merged", "student.lora.export=adapter"],
        ),
    ],
)
def test_four_bit_weights_are_never_merged_nor_sharded(
    overrides: tuple[str, ...],
    lora: dict[str, Any],
    parts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("opd_ray.preflight.lora.find_spec", lambda name: name)
    values = {"base": BaseFormat.nf4, "export": LoraForm.adapter} | lora
    problem = problem_of(config_of("trainer.gpus_per_rank=1", *overrides, **values))
    assert all(part in problem for part in ["student.lora.base = nf4", *parts]), problem


@pytest.mark.parametrize("gpus", [0, 1])
def test_where_roles_take_turns_the_base_as_teacher_becomes_a_copy(gpus: int) -> None:
    """What the message says makes the run legal, on GPUs and without."""
    turns = ["cluster.placement=turns", "trainer.ranks=1", f"trainer.gpus_per_rank={gpus}"]
    turns += [f"rollout.gpus_per_actor={gpus}"]
    problem = next(
        text for text in config_problems(config_of(*SELF, *turns)) if "they are asleep" in text
    )
    remedies = [word.rstrip(",;") for word in problem.split() if word.startswith("teacher.")]
    remedies = [word for word in remedies if "=" in word]
    assert [word.split("=")[0] for word in remedies][:2] == ["teacher.kind", "teacher.path"]
    config = config_of(*SELF, *turns, *remedies)
    assert config_problems(config) == []
    assert config.serves_adapter


def test_adapters_do_not_travel_over_nccl() -> None:
    gpus = ("trainer.gpus_per_rank=1", "rollout.gpus_per_actor=1", "sync.backend=nccl")
    problem = problem_of(config_of(*gpus))
    assert "sync.backend = nccl with sync.lora = adapter" in problem
    assert config_problems(config_of(*gpus, "sync.lora=merged")) == []
    assert config_of(*gpus).sync.backend is SyncBackend.nccl


@pytest.mark.parametrize("name", sorted(LoraSettings.refused_keys))
def test_keys_of_pefts_are_refused_with_a_reason(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("demo", [f"student.lora.{name}=true"])
    assert f"student.lora.{name}: {LoraSettings.refused_keys[name]}" in str(caught.value)


def test_layers_of_the_demos_student() -> None:
    path = load_config("demo").student.path
    layers = linear_layers(path)
    described = json.loads((Path(path) / "config.json").read_text())
    hidden, wide = described["hidden_size"], described["intermediate_size"]
    assert len(layers) == 7 * described["num_hidden_layers"]
    assert layers["model.layers.0.mlp.down_proj"] == (wide, hidden)
    assert targets(layers, []) == list(layers)
    chosen = targets(layers, ["q_proj"])
    assert len(chosen) == described["num_hidden_layers"]
    assert all(name.endswith("self_attn.q_proj") for name in chosen)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("qkv", "no linear layer qkv; it has down_proj"),
        ("lm_head", "lm_head is an embedding or the output head"),
        ("embed_tokens", "embed_tokens is an embedding"),
    ],
)
def test_a_layer_that_the_student_lacks_is_refused(name: str, part: str) -> None:
    config = config_of(target_modules=["q_proj", name])
    (problem,) = layer_problems(config)
    assert problem.startswith(f"student.lora.target_modules = ['q_proj', '{name}']: ")
    assert part in problem
    report = examine("demo", ["student.lora.rank=16", f"student.lora.target_modules=[{name}]"])
    assert any(
        part in str(finding) for finding in report.findings if finding.verdict is Verdict.fail
    )


def test_a_model_that_is_elsewhere_is_not_looked_at() -> None:
    assert [*target_problems({}, ["anything"])] == []


def test_doctor_says_how_large_the_adapter_is() -> None:
    report = examine("demo", ["student.lora.rank=8"])
    path = load_config("demo").student.path
    expected = sum(8 * (i + o) for i, o in linear_layers(path).values()) / 1e6
    assert any(f"{expected:,.2f} M parameters" in str(finding) for finding in report.findings)


@pytest.mark.parametrize(
    ("architecture", "served"),
    [
        ("LlamaForCausalLM", True),
        ("Qwen3ForCausalLM", True),
        ("MistralForCausalLM", True),  # by inheritance, from another file
        ("FlexOlmoForCausalLM", True),  # in a package: not known, so not refused
        ("GPT2LMHeadModel", False),
        ("NoModelOfThatName", True),
    ],
)
def test_architectures_to_which_vllm_adds_adapters(architecture: str, served: bool) -> None:
    problems = [*engine_problems({"architectures": [architecture]}, on_cpu=True)]
    assert (not problems) == served
    assert all("sync.lora=merged" in problem for problem in problems)


def test_options_without_an_adapter_have_no_effect() -> None:
    overrides = ["student.lora.alpha=3", "student.lora.target_modules=[q_proj]", "sync.lora=merged"]
    lines = unused_options(load_config("demo", overrides))
    assert [line.partition(" has no effect: ")[2] for line in lines] == [
        "student.lora.rank is 0"
    ] * 3


def test_adapters_of_mixtures_are_for_gpus() -> None:
    mixture = {"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 4}
    (problem,) = engine_problems(mixture, on_cpu=True)
    assert "num_experts = 4" in problem
    assert "sync.lora=merged" in problem
    assert [*engine_problems(mixture, on_cpu=False)] == []
    assert [*engine_problems(mixture | {"num_experts": 0}, on_cpu=True)] == []
