"""Every packaged config resolves, is legal and fits its machine; the models' sizes by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from opd_ray.cli import main
from opd_ray.cluster.memory import (
    rollout_memory,
    teacher_memory,
)
from opd_ray.cluster.memory_fit import memory_problems
from opd_ray.cluster.nodes import Cluster, Node
from opd_ray.cluster.placement import plan_placement
from opd_ray.cluster.step_size import step_flows, step_tokens
from opd_ray.cluster.trainer_memory import trainer_memory
from opd_ray.config.choices import Dtype, Scoring, SignalChoice
from opd_ray.config.files import packaged_folder, packaged_names
from opd_ray.config.load import load_config
from opd_ray.config.schema import Config
from opd_ray.evaluation.presets import INSTRUCTION
from opd_ray.models.shape import known_config, read_shape
from opd_ray.preflight.config import config_problems

GB = 10**9
PAIRS = ("tip_qwen3_8b_to_4b", "tip_llama33_70b_to_8b", "tip_qwen25_14b_to_1_5b")
ARMS = {
    "all": ("all", None),
    "entropy_50": ("entropy_sample", 0.5),
    "entropy_20": ("entropy_sample", 0.2),
    "entropy_10": ("entropy_sample", 0.1),
    "soft_or_20": ("soft_or", 0.2),
    "q3_20": ("q3_only", 0.2),
    "q3_10": ("q3_only", 0.1),
}
# Models in place of those that a file leaves open, or that a command makes first.
MODELS = {
    "tip_math": ("Qwen/Qwen3-4B", "Qwen/Qwen3-8B"),
    "smollm2_gsm8k": ("HuggingFaceTB/not-here", "HuggingFaceTB/not-here"),
    "study_lag_smollm2": ("HuggingFaceTB/not-here", "HuggingFaceTB/not-here"),
}
PUBLISHED = {
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "meta-llama/Llama-3.3-70B-Instruct": 70_553_706_496,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "Qwen/Qwen2.5-14B-Instruct": 14_770_033_664,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
}


# Of recipes for one GPU: gigabytes of the GPU and of main memory.
ONE_GPU = {"one_gpu_24gb": (24, 64), "one_gpu_80gb": (80, 160)}


def machine(gpus: int, gpu_gb: int = 80, main_gb: int = 1000) -> Cluster:
    """What the recipes' headers state; without GPUs, a small computer."""
    if gpus:
        return Cluster((Node("n0", 8 * gpus, main_gb * GB, gpus, gpu_gb * GB),))
    return Cluster((Node("n0", 2, 25 * GB),))


def too_small(config: Config, cluster: Cluster) -> list[str]:
    student = read_shape(config.student.path)
    path = config.teacher.path
    shape = read_shape(path) if path else None
    teachers = {path: shape} if path and shape else {}
    return memory_problems(config, plan_placement(config, cluster, student, teachers))


@pytest.mark.parametrize("name", packaged_names())
def test_every_packaged_config_is_legal_and_fits_its_machine(name: str) -> None:
    roles = zip(("student", "teacher"), MODELS.get(name, ()), strict=False)
    config = load_config(name, [f"{role}.path={path}" for role, path in roles])
    assert config_problems(config) == []
    on_gpus = config.trainer.gpus_per_rank > 0
    gpus = (4 if name.endswith("gpus_4") else 8) if on_gpus else 0
    cluster = machine(1, *ONE_GPU[name]) if name in ONE_GPU else machine(gpus)
    assert too_small(config, cluster) == []


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_has_the_papers_settings(pair: str) -> None:
    config = load_config(pair)
    trainer, rollout = config.trainer, config.rollout
    assert trainer.learning_rate == (3e-7 if "llama" in pair else 1e-6)
    assert (trainer.lr_schedule, trainer.weight_decay, trainer.max_grad_norm) == ("cosine", 0.1, 1)
    assert (rollout.prompts_per_step, rollout.samples_per_prompt) == (8, 16)
    assert (config.data.max_prompt_tokens, rollout.max_new_tokens) == (2048, 8192)
    assert (rollout.temperature, rollout.top_p, rollout.top_k) == (1.0, 1.0, 0)
    assert (config.tip.rule, config.tip.rho, config.loss.divergence) == (
        "soft_or",
        0.5,
        "reverse_kl",
    )
    assert (config.tip.h_clip, config.tip.divergence_clip) == (0.98, 1.0)
    assert [(t.name, t.problems, t.samples, t.greedy) for t in config.eval.tasks] == [
        ("math500", 500, 16, False),
        ("aime24", 30, 16, False),
        ("aime25", 30, 16, False),
    ]
    thinking = {"enable_thinking": False} if "qwen3" in pair else {}
    for data in (config.data, *(task.data for task in config.eval.tasks)):
        assert data.chat_template_kwargs == thinking
        assert data.instruction == INSTRUCTION  # the one that evaluation by task names uses


@pytest.mark.parametrize("pair", PAIRS)
def test_an_ablation_differs_in_its_rule_and_folder_alone(pair: str) -> None:
    base = load_config(pair)
    for arm, (rule, rho) in ARMS.items():
        config = load_config(f"{pair}/{arm}")
        assert config.run.output_dir == f"outputs/{pair}/{arm}"
        assert config.tip.rule == rule
        assert rho is None or config.tip.rho == rho
        assert replace(config, run=base.run, tip=base.tip) == base
        assert replace(config.run, output_dir=base.run.output_dir) == base.run
        assert replace(config.tip, rule=base.tip.rule, rho=base.tip.rho) == base.tip
    assert base.run.output_dir == f"outputs/{pair}/soft_or_50"
    found = {path.stem for path in (packaged_folder() / pair).iterdir()}
    assert found - set(ARMS) <= {"gpus_4", "exact"}


def test_the_exact_files_take_whole_distributions() -> None:
    for pair in ("tip_qwen3_8b_to_4b", "tip_qwen25_14b_to_1_5b"):
        config = load_config(f"{pair}/exact")
        assert config.teacher.signal is SignalChoice.hidden
        assert config.scoring is Scoring.exact


@pytest.mark.parametrize("name", PUBLISHED)
def test_known_shapes_count_the_published_parameters(name: str) -> None:
    shape = read_shape(name)
    assert shape is not None
    assert shape.parameters == PUBLISHED[name]


def test_a_name_that_is_not_known_leads_nowhere() -> None:
    assert known_config("Qwen/Qwen3-8B") is not None
    for name in ("Qwen/Qwen3", "Qwen", "../shapes/Qwen/Qwen3-8B", "nobody/Qwen3-8B", ""):
        assert known_config(name) is None


def test_llama_memory_by_hand() -> None:
    config = load_config("tip_llama33_70b_to_8b")
    student, teacher = read_shape(config.student.path), read_shape(str(config.teacher.path))
    assert student is not None
    assert teacher is not None
    big = teacher_memory(config, config.teacher, teacher).device
    assert big["weights"] == 70_553_706_496 * 2 // 4  # four GPUs
    assert big["KV cache"] == 10_240 * (2 * 80 * 8 * 128 * 2) // 4
    small = rollout_memory(config, student).device
    assert small["weights"] == 8_030_261_248 * 2 // 2
    assert small["KV cache"] == 10_240 * (2 * 32 * 8 * 128 * 2) // 2
    assert small["sampler"] == 3 * 128 * 128_256 * 4
    trainer = trainer_memory(config, student)
    assert trainer.device["weights"] == 8_030_261_248 * 2 // 2
    assert trainer.device["gathered weights"] == 10**9 * 2
    assert trainer.device["gradient of the head"] == 128_256 * 4096 * 4
    # Norms keep their input in float32.
    layer = 2 * 4096 * (4 + 2 + 2) + (2 * 4096 + 2 * 1024 + 4 * 14_336) * 2
    assert trainer.device["activations"] == 16_384 * (32 * 4096 * 2 + layer)
    # float32 master weights and two moments; gradients summed in float32, twice.
    assert trainer.host["optimizer"] == 8_030_261_248 * 12 // 2
    assert trainer.host["gradients"] == 8_030_261_248 * 4 // 2 * 2


def test_bytes_and_tokens_of_a_step_by_hand() -> None:
    config = load_config("tip_qwen3_8b_to_4b")
    student, teacher = read_shape(config.student.path), read_shape(str(config.teacher.path))
    assert teacher is not None
    shapes = {str(config.teacher.path): teacher}
    tokens = step_tokens(config)
    assert (tokens.rollouts, tokens.prompt) == (128, 128 * 2048)
    assert (tokens.response, tokens.kept) == (128 * 8192, 64 * 8192)
    flows = {(f.source, f.target): f.nbytes for f in step_flows(config, student, shapes)}
    assert flows["rollout", "teacher"] == 128 * 8192 * 64 * 8
    assert flows["teacher", "trainer"] == 64 * 8192 * (64 + 64) * 8
    assert flows["trainer", "rollout"] == 4_022_468_096 * 2
    exact = load_config("tip_qwen3_8b_to_4b/exact")
    hidden = [f.nbytes for f in step_flows(exact, student, shapes) if f.source == "teacher"]
    # Scores; every row's hidden state for the exact scores; the kept rows' for the loss.
    assert hidden == [128 * 8192 * 24, 128 * 8192 * 4096 * 2, 64 * 8192 * 4096 * 2]


@pytest.mark.parametrize(
    ("name", "overrides", "parts"),
    [
        (
            "tip_llama33_70b_to_8b",
            ["teacher.tensor_parallel_size=1", "teacher.gpus_per_replica=1"],
            ["teacher-0", "141.11 GB of that weights", "teacher.tensor_parallel_size"],
        ),
        (
            "tip_llama33_70b_to_8b",
            ["teacher.tensor_parallel_size=2", "teacher.gpus_per_replica=2"],
            ["teacher-0", "72.00 GB (90% of 80.00 GB)", "teacher.gpus_per_replica"],
        ),
        (
            "tip_llama33_70b_to_8b",
            ["trainer.offload_optimizer=false"],
            ["trainer-0", "48.18 GB of that optimizer", "trainer.offload_optimizer=true"],
        ),
        (
            "tip_qwen3_8b_to_4b",
            ["trainer.gradient_checkpointing=false"],
            ["trainer-0", "of that activations", "trainer.gradient_checkpointing=true"],
        ),
    ],
)
def test_what_cannot_fit_is_found_with_the_key_to_change(
    name: str, overrides: list[str], parts: list[str]
) -> None:
    problems = too_small(load_config(name, overrides), machine(8))
    assert problems
    for part in parts:
        assert part in problems[0]


def test_the_doctor_plans_a_recipe_without_models_or_gpus(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPD_RAY_DATA", str(tmp_path))
    nodes = ["--cpus", "64", "--memory-gb", "1000", "--gpus", "8", "--gpu-memory-gb", "80"]
    assert main(["doctor", "--config", "tip_llama33_70b_to_8b", *nodes]) == 0
    text = capsys.readouterr().out
    assert "70,553.71 M parameters" in text
    assert "trainer-0, trainer-1\n" in text
    assert "texts of the greatest length" in text
    assert "opd-ray prepare dapo_math_17k" in text
    one = ["teacher.tensor_parallel_size=1", "teacher.gpus_per_replica=1"]
    assert main(["doctor", "--config", "tip_llama33_70b_to_8b", *one, *nodes]) == 1
    text = capsys.readouterr().out
    assert "FAIL  memory: teacher-0: needs about" in text
    assert "-> what fits, and its keys: opd-ray doctor --budget" in text
    (tmp_path / "math500.jsonl").write_text('{"prompt": \n')
    assert main(["doctor", "--config", "tip_llama33_70b_to_8b", *nodes]) == 1
    assert "FAIL  eval.tasks[0].data" in capsys.readouterr().out


def test_dtype_of_every_engine_of_a_recipe() -> None:
    for pair in PAIRS:
        config = load_config(pair)
        formats = {config.rollout.dtype, config.teacher.dtype, config.trainer.dtype}
        assert formats == {Dtype.bfloat16}
