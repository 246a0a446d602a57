"""Models that cannot be had, are not whole or exceed the engines: refused before anything loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from broken_models import DOWN, UP, demo_copy, set_config, without, wrapped

from opd_ray.config.load import load_config
from opd_ray.config.schema import Config
from opd_ray.coordinator.run import train
from opd_ray.errors import ConfigError
from opd_ray.evaluation.run import evaluate
from opd_ray.models.pairs.demo import pair_folder
from opd_ray.preflight.config import check_evaluation, config_problems
from opd_ray.preflight.contract.check import check_teacher
from opd_ray.preflight.model_files import check_model_files, models_of_evaluation, models_of_run


def demo(tmp_path: Path, *overrides: str) -> Config:
    return load_config(
        "demo", [f"run.output_dir={tmp_path / 'out'}", "teacher.topk=16", *overrides]
    )


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A teacher of wrapped names, and a student without a tensor."""
    folder = tmp_path_factory.mktemp("broken")
    teacher = demo_copy(folder / "teacher", wrapped)
    student = demo_copy(folder / "student", without(DOWN), of="student")
    return {"teacher": str(teacher), "student": str(student)}


@pytest.mark.parametrize("run", [train, check_teacher])
@pytest.mark.parametrize("kind", ["hf", "vllm"])
def test_every_command_refuses_before_a_model_loads(
    tmp_path: Path, broken: dict[str, str], run: Any, kind: str
) -> None:
    paths = (f"student.path={broken['student']}", f"teacher.path={broken['teacher']}")
    config = demo(tmp_path, *paths, f"teacher.kind={kind}", "teacher.signal=topk")
    with pytest.raises(ConfigError) as caught:
        run(config)
    student, teacher = str(caught.value).splitlines()
    assert student.startswith(f"student.path = {broken['student']!r}: ")
    assert f"1 missing ({DOWN})" in student
    assert teacher.startswith(f"teacher.path = {broken['teacher']!r}: ")
    assert "47 missing" in teacher
    assert not (tmp_path / "out").exists()


def test_an_evaluation_refuses_too(tmp_path: Path, broken: dict[str, str]) -> None:
    config = demo(tmp_path, f"student.path={broken['student']}")
    with pytest.raises(ConfigError, match=r"student.path = .*down_proj"):
        evaluate(config, tmp_path / "eval")
    assert not (tmp_path / "eval").exists()


def test_members_of_an_ensemble_are_looked_at_each(tmp_path: Path, broken: dict[str, str]) -> None:
    config = demo(
        tmp_path,
        "teacher.kind=ensemble",
        "teacher.members={good: 1, bad: 1}",
        f"teachers.good.path={pair_folder() / 'teacher'}",
        f"teachers.bad.path={broken['teacher']}",
    )
    with pytest.raises(ConfigError) as caught:
        check_model_files(config, models_of_run(config))
    assert str(caught.value).startswith("teachers.bad.path = ")


def test_a_teacher_that_is_the_student_is_its_files(tmp_path: Path, broken: dict[str, str]) -> None:
    config = demo(
        tmp_path, "teacher.kind=self", "teacher.path=null", f"student.path={broken['student']}"
    )
    with pytest.raises(ConfigError) as caught:
        check_model_files(config, models_of_run(config))
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith("student.path = ")


def test_the_demo_is_whole(tmp_path: Path) -> None:
    config = demo(tmp_path)
    check_model_files(config, models_of_run(config))
    assert config_problems(config) == []


def test_weights_on_the_nodes_of_a_cluster_need_not_be_here(tmp_path: Path) -> None:
    folder = demo_copy(tmp_path / "teacher")
    (folder / "model.safetensors").unlink()
    config = demo(tmp_path, f"teacher.path={folder}")
    with pytest.raises(ConfigError, match=r"teacher.path = .*: holds no weights"):
        check_model_files(config, models_of_run(config))
    config = replace(config, cluster=replace(config.cluster, address="auto"))
    check_model_files(config, models_of_run(config))


@pytest.mark.parametrize(
    ("of", "changed", "overrides", "parts"),
    [
        ("student", {"head_dim": 20}, [], ["student.path = ", "attention heads of 20"]),
        ("student", {"head_dim": 20}, ["rollout.gpus_per_actor=1"], []),
        ("teacher", {"head_dim": 20}, ["teacher.kind=vllm", "teacher.signal=topk"], ["of 20"]),
        # An hf teacher has heads of any size, unless a rollout engine writes with it.
        ("teacher", {"head_dim": 20}, ["eval.teacher_accuracy=false"], []),
        ("teacher", {"head_dim": 20}, ["eval.teacher_accuracy=true"], ["teacher.path", "of 20"]),
        (
            "student",
            {},
            ["rollout.tensor_parallel_size=3"],
            ["rollout.tensor_parallel_size = 3: num_attention_heads = 4"],
        ),
        (
            "teacher",
            {},
            ["teacher.kind=vllm", "teacher.signal=topk", "teacher.tensor_parallel_size=3"],
            ["teacher.tensor_parallel_size = 3: num_attention_heads = 4"],
        ),
        ("student", {"attention_dropout": 0.1}, [], ["attention_dropout = 0.1"]),
        ("teacher", {"attention_dropout": 0.1}, [], []),
        ("teacher", {"final_logit_softcapping": 30.0}, [], ["final_logit_softcapping = 30.0"]),
        ("student", {"architectures": ["Qwen3Reward"]}, [], ["architectures = Qwen3Reward"]),
    ],
)
def test_limits_of_the_engines_are_problems_of_the_config(
    tmp_path: Path, of: str, changed: dict[str, Any], overrides: list[str], parts: list[str]
) -> None:
    folder = set_config(demo_copy(tmp_path / "model", of=of), **changed)
    found = config_problems(demo(tmp_path, f"{of}.path={folder}", *overrides))
    limits = [text for text in found if str(folder) in text]
    assert bool(limits) == bool(parts), found
    for part in parts:
        assert part in limits[0]


def test_an_evaluation_looks_at_the_engine_alone(tmp_path: Path) -> None:
    folder = set_config(demo_copy(tmp_path / "model", of="student"), attention_dropout=0.1)
    config = demo(tmp_path, f"student.path={folder}")
    check_evaluation(config)
    (student,) = models_of_evaluation(config)
    assert not student.trained
    set_config(folder, head_dim=20)
    with pytest.raises(ConfigError, match="attention heads of 20"):
        check_evaluation(config)


def test_a_hub_model_that_is_known_is_held_against_the_engines(tmp_path: Path) -> None:
    overrides = ["rollout.tensor_parallel_size=3", "eval.teacher_accuracy=false"]
    config = demo(tmp_path, "student.path=Qwen/Qwen3-4B", *overrides)
    (text,) = [text for text in config_problems(config) if "num_attention_heads" in text]
    assert text.startswith("student.path = 'Qwen/Qwen3-4B' with rollout.tensor_parallel_size = 3")


def test_what_is_broken_twice_is_told_once(tmp_path: Path) -> None:
    folder = demo_copy(tmp_path / "model", without(UP))
    paths = [f"student.path={folder}", f"teacher.path={folder}"]
    config = demo(tmp_path, *paths)
    with pytest.raises(ConfigError) as caught:
        check_model_files(config, models_of_run(config))
    assert str(caught.value).count(UP) == 1
