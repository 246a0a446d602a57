"""Illegal values and combinations: every one refused with key, value and remedy, legal ones not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from opd_ray.config.choices import Scoring, SignalChoice, Support, SyncBackend, TeacherTiming
from opd_ray.config.schema import Config, EvalTask, StudentSettings
from opd_ray.config.teacher import TeacherSettings
from opd_ray.errors import ConfigError
from opd_ray.preflight.config import check_config, check_evaluation, config_problems
from opd_ray.tip.normalise import NormaliseOver
from opd_ray.tip.select import ShareOf
from opd_ray.types import Divergence


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A legal config whose models have 100 vocabulary rows (of files alone)."""
    for name in ("student", "teacher"):
        (tmp_path / name).mkdir()
        sizes = {"vocab_size": 100, "num_hidden_layers": 2}
        (tmp_path / name / "config.json").write_text(json.dumps(sizes))
    return Config(
        student=StudentSettings(path=str(tmp_path / "student")),
        teacher=TeacherSettings(path=str(tmp_path / "teacher")),
    )


def changed(config: Config, **values: Any) -> Config:
    """``changed(config, trainer__ranks=2)`` is a copy with trainer.ranks = 2."""
    for key, value in values.items():
        section, _, name = key.partition("__")
        whole = value if not name else replace(getattr(config, section), **{name: value})
        config = replace(config, **{section: whole})
    return config


LAGGED = {"run__lag": 1, "teacher__signal": SignalChoice.sampled, "eval__kl_prompts": 0}


def test_a_legal_config_has_no_problem(config: Config) -> None:
    assert config_problems(config) == []
    check_config(config)
    # Without GPUs a pass takes as many tokens as the context is long.
    assert config_problems(changed(config, rollout__max_num_seqs=4096)) == []
    gpu = changed(
        config,
        trainer__gpus_per_rank=1,
        trainer__zero_stage=3,
        trainer__offload_optimizer=True,
        trainer__offload_parameters=True,
        trainer__recomputed_layers=2,
        rollout__gpus_per_actor=2,
        rollout__tensor_parallel_size=2,
        teacher__gpus_per_replica=0.5,
        sync__backend=SyncBackend.nccl,
        teacher__signal=SignalChoice.hidden,
        scoring=Scoring.exact,
        loss__divergence=Divergence.jsd,
    )
    assert config_problems(gpu) == []
    # The ratio that the sampled signal needs is known of plain sampling; others need none.
    assert config_problems(changed(config, **LAGGED)) == []
    tempered = {"rollout__temperature": 0.7, "rollout__top_p": 0.9, "rollout__top_k": 5}
    assert config_problems(changed(config, run__lag=1, **tempered)) == []
    assert config_problems(changed(config, **LAGGED | tempered | {"run__lag": 0})) == []


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"rollout__prompts_per_step": 0}, ["rollout.prompts_per_step = 0", "at least 1"]),
        ({"rollout__samples_per_prompt": 0}, ["rollout.samples_per_prompt = 0"]),
        ({"rollout__record_topk": 0}, ["rollout.record_topk = 0", "at least 1"]),
        ({"teacher__topk": 0}, ["teacher.topk = 0"]),
        ({"run__steps": -1}, ["run.steps = -1", "at least 0"]),
        ({"cluster__num_cpus": 0}, ["cluster.num_cpus = 0"]),
        ({"eval__every": -1}, ["eval.every = -1: must be at least 0"]),
        ({"loss__chunk_rows": 0}, ["loss.chunk_rows = 0: must be at least 1"]),
        ({"sync__chunk_bytes": 0}, ["sync.chunk_bytes = 0: must be at least 1"]),
        ({"trainer__ranks": 0}, ["trainer.ranks = 0: must be at least 1"]),
        ({"rollout__temperature": -0.1}, ["rollout.temperature = -0.1"]),
        ({"rollout__top_p": 0.0}, ["rollout.top_p = 0.0", "above 0"]),
        ({"rollout__top_p": 1.1}, ["rollout.top_p = 1.1", "at most 1"]),
        ({"loss__temperature": 0.0}, ["loss.temperature = 0.0", "above 0"]),
        ({"trainer__min_lr_ratio": -0.5}, ["trainer.min_lr_ratio = -0.5", "[0, 1]"]),
        ({"trainer__gpus_per_rank": 2}, ["trainer.gpus_per_rank = 2", "must be 0 or 1"]),
        ({"trainer__adam_beta2": 1.0}, ["trainer.adam_beta2 = 1.0", "[0, 1)"]),
        ({"trainer__zero_stage": 4}, ["trainer.zero_stage = 4", "0, 1, 2 and 3"]),
        ({"run__resume": "never-was"}, ["run.resume = 'never-was'", "auto, never"]),
        ({"sync__backend": SyncBackend.nccl}, ["sync.backend = nccl", "sync.backend=ray"]),
        (
            {"rollout__max_new_tokens": 2049},
            [
                "data.max_prompt_tokens = 2048 with rollout.max_new_tokens = 2049",
                "student.context_length = 4096",
                "lower one",
            ],
        ),
        (
            {"rollout__temperature": 0.0},
            ["rollout.samples_per_prompt = 4", "greedy", "raise the temperature"],
        ),
        (
            {"rollout__max_num_seqs": 4097},
            [
                "rollout.max_num_seqs = 4097 with rollout.max_num_batched_tokens = 2048",
                "raise the latter to 4097",
            ],
        ),
        (
            {"rollout__max_num_seqs": 2049, "rollout__gpus_per_actor": 1},
            ["rollout.max_num_seqs = 2049", "raise the latter to 2049"],
        ),
        (
            {"rollout__gpus_per_actor": 4, "rollout__tensor_parallel_size": 2},
            ["rollout.gpus_per_actor = 4", "make them equal"],
        ),
        (
            {"rollout__gpus_per_actor": 3, "rollout__tensor_parallel_size": 2},
            ["rollout.gpus_per_actor = 3", "make them equal"],
        ),
        (
            {"teacher__kind": "oracle"},
            ["teacher.kind = 'oracle'", "there is hf, vllm, http, class, actor"],
        ),
        ({"teacher__kind": "vlm"}, ["teacher.kind = 'vlm': did you mean vllm?"]),
        ({"teacher__kind": "vllm", "teacher__path": None}, ["teacher.path = null: kind vllm"]),
        (
            {"teacher__kind": "vllm", "teacher__signal": SignalChoice.hidden},
            ["teacher.signal = hidden with teacher.kind = vllm", "teacher.signal=topk"],
        ),
        (
            {"teacher__kind": "vllm", "teacher__gpus_per_replica": 2},
            ["teacher.gpus_per_replica = 2", "teacher.tensor_parallel_size = 1", "equal"],
        ),
        ({"teacher__kind": "class"}, ["teacher.class_path = null", "package.module:Class"]),
        (
            {"teacher__class_path": "a:B"},
            ["teacher.class_path = 'a:B'", "teacher.kind = 'hf'", "teacher.kind=class"],
        ),
        (
            {"teacher__arguments": {"k": 1}},
            ["teacher.arguments = {'k': 1} with teacher.kind = 'hf'", "leave it out"],
        ),
        ({"teacher__actor_name": "t"}, ["teacher.actor_name = 't'", "teacher.kind=actor"]),
        (
            {"teacher__kind": "actor", "cluster__address": "auto"},
            ["teacher.actor_name = null", "running Ray actor"],
        ),
        (
            {"teacher__kind": "actor", "teacher__actor_name": "t"},
            ["cluster.address = null with teacher.kind = 'actor'", "use auto"],
        ),
        (
            {
                "teacher__kind": "actor",
                "teacher__actor_name": "t",
                "teacher__gpus_per_replica": 1,
                "cluster__address": "auto",
            },
            ["teacher.gpus_per_replica = 1", "passes requests on", "set it to 0"],
        ),
        ({"teacher__path": None}, ["teacher.path = null", "needs a Hugging Face folder"]),
        ({"teacher__gpus_per_replica": 2.0}, ["teacher.gpus_per_replica = 2", "teacher.replicas"]),
        (
            {
                "teacher__signal": SignalChoice.sampled,
                "loss__divergence": Divergence.forward_kl,
                "eval__kl_prompts": 0,
            },
            ["loss.divergence = forward_kl", "teacher.signal = sampled", "reverse_kl"],
        ),
        (
            {"teacher__signal": SignalChoice.sampled},
            ["eval.kl_prompts = 64", "teacher.signal = sampled", "use eval.kl_prompts=0"],
        ),
        (
            LAGGED | {"rollout__temperature": 0.7},
            [
                "run.lag = 1",
                "teacher.signal = sampled",
                "rollout.temperature = 0.7",
                "use rollout.temperature=1",
            ],
        ),
        (
            {
                "run__overlap": True,
                "tip__normalise_over": NormaliseOver.rollout,
                "tip__share_of": ShareOf.rollout,
                "teacher__when": TeacherTiming.after_writing,
            },
            ["run.overlap = true", "teacher.when = after_writing", "use teacher.when=null"],
        ),
        (LAGGED | {"rollout__top_p": 0.9}, ["run.lag = 1", "rollout.top_p = 0.9", "run.lag=0"]),
        (LAGGED | {"rollout__top_k": 5}, ["run.lag = 1", "rollout.top_k = 5", "rollout.top_k=0"]),
        (
            {"teacher__signal": SignalChoice.topk, "loss__temperature": 2.0},
            ["loss.temperature = 2", "teacher.signal = topk", "use 1"],
        ),
        (
            {"loss__divergence": Divergence.jsd, "loss__beta": 1.0},
            ["loss.beta = 1", "both excluded"],
        ),
        (
            {"teacher__signal": SignalChoice.hidden, "loss__support": Support.teacher},
            ["loss.support = teacher", "teacher.signal = hidden", "use teacher.signal=topk, or"],
        ),
        (
            {
                "teacher__signal": SignalChoice.sampled,
                "loss__support": Support.union,
                "eval__kl_prompts": 0,
            },
            ["loss.support = union", "teacher.signal = sampled", "leave it out (null)"],
        ),
        ({"scoring": Scoring.exact}, ["scoring = exact", "teacher.signal=hidden"]),
        ({"rollout__record_topk": 101}, ["rollout.record_topk = 101", "100 tokens", "lower it"]),
        ({"teacher__topk": 101}, ["teacher.topk = 101", "100 tokens"]),
        (
            {"trainer__offload_optimizer": True, "trainer__zero_stage": 1},
            ["trainer.offload_optimizer = true", "trainer.gpus_per_rank = 0", "set it to false"],
        ),
        (
            {"trainer__offload_optimizer": True, "trainer__gpus_per_rank": 1},
            ["trainer.zero_stage = 0", "1, 2 or 3"],
        ),
        (
            {"trainer__offload_parameters": True, "trainer__zero_stage": 3},
            ["trainer.offload_parameters = true", "trainer.gpus_per_rank = 0", "set it to false"],
        ),
        (
            {
                "trainer__offload_parameters": True,
                "trainer__gpus_per_rank": 1,
                "trainer__zero_stage": 2,
            },
            ["trainer.offload_parameters", "trainer.zero_stage = 2", "use trainer.zero_stage=3"],
        ),
        (
            {"trainer__recomputed_layers": 3},
            ["trainer.recomputed_layers = 3", "the student has 2 layers", "or null for all"],
        ),
        ({"trainer__recomputed_layers": 0}, ["trainer.recomputed_layers = 0", "at least 1"]),
        ({"tip__rule": "no_such_module:rule"}, ["tip.rule", "No module named 'no_such_module'"]),
        ({"tip__rule": "json:dumps"}, ["tip.rule = 'json:dumps'", "is no rule"]),
        ({"data__instruction": "no place"}, ["data.instruction", "{prompt}"]),
        ({"trainer__learning_rate": float("nan")}, ["trainer.learning_rate = nan"]),
        ({"sync__max_gap": float("nan")}, ["sync.max_gap = nan"]),
        ({"eval__tasks": [EvalTask(), EvalTask()]}, ["2 tasks are called 'heldout'"]),
        ({"eval__tasks": [EvalTask(task="nope")]}, ["eval.tasks[0].task = 'nope'", "chain_sum"]),
        ({"eval__tasks": [EvalTask(problems=0)]}, ["eval.tasks[0].problems = 0"]),
        (
            {"eval__tasks": [EvalTask(samples=4, temperature=0.0)]},
            ["eval.tasks[0].temperature = 0", "samples to 0"],
        ),
        ({"eval__tasks": [EvalTask(top_p=0.0)]}, ["eval.tasks[0].top_p = 0"]),
        (
            {"eval__tasks": [EvalTask(max_new_tokens=3000)]},
            ["eval.tasks[0].data.max_prompt_tokens = 2048", "eval.tasks[0].max_new_tokens = 3000"],
        ),
    ],
)
def test_illegal_values_are_named(config: Config, values: dict[str, Any], parts: list[str]) -> None:
    problems = config_problems(changed(config, **values))
    assert len(problems) == 1, problems
    for part in parts:
        assert part in problems[0]


def test_a_context_of_nothing_is_refused(config: Config) -> None:
    said = config_problems(changed(config, student__context_length=0))
    assert "student.context_length = 0: must be at least 1" in said


def test_an_evaluation_has_the_same_ranges(config: Config) -> None:
    bad = changed(config, rollout__actors=0, teacher__replicas=0, eval__tasks=[EvalTask(top_p=2)])
    with pytest.raises(ConfigError) as caught:
        check_evaluation(bad)
    assert str(caught.value).splitlines() == [
        "rollout.actors = 0: must be at least 1",
        "teacher.replicas = 0: must be at least 1",
        "eval.tasks[0].top_p = 2: must be above 0 and at most 1",
    ]


def test_topk_signal_alone_bounds_topk(config: Config) -> None:
    wide = changed(config, teacher__topk=101, teacher__signal=SignalChoice.hidden)
    assert config_problems(wide) == []


@pytest.mark.parametrize(
    ("teachers", "expected"),
    [
        ([{"kind": "hf"}], Support.union),
        ([{"kind": "vllm"}], Support.union),
        ([{"kind": "self"}], Support.union),
        ([{"kind": "class"}], Support.union),
        ([{"kind": "http"}], Support.teacher),
        ([{"kind": "actor"}], Support.teacher),
        ([{"kind": "hf"}, {"kind": "vllm"}], Support.union),
        ([{"kind": "hf"}, {"kind": "http"}], Support.teacher),
        ([{"kind": "ensemble", "members": {"one": 1.0, "two": 1.0}}], Support.union),
    ],
)
def test_whose_tokens_the_loss_names_unless_told(
    teachers: list[dict[str, Any]], expected: Support
) -> None:
    """Both sides', where every teacher knows the student's."""
    first, *others = teachers
    named = {"one": {"kind": "hf", "path": "a"}, "two": {"kind": "hf", "path": "b"}}
    if others:
        named = {"one": {"path": "a", **others[0]}}
    config = Config(
        student=StudentSettings(path="s"),
        teacher=TeacherSettings(**first),
        teachers=named,
        routes={"x": "teacher", "y": "one"} if others else {},
    )
    assert config.support is expected
    for support in Support:
        told = changed(config, loss__support=support)
        assert told.support is support
        hidden = changed(config, teacher__signal=SignalChoice.hidden)
        assert hidden.support is Support.teacher


def test_a_top_k_that_is_not_asked_for_is_not_bounded(config: Config) -> None:
    for support in Support:
        wide = changed(config, teacher__topk=101, loss__support=support)
        said = ["teacher.topk = 101" in problem for problem in config_problems(wide)]
        assert said == ([] if support is Support.student else [True]), support


def test_the_smaller_vocabulary_bounds_topk(config: Config) -> None:
    (Path(config.teacher.path or "") / "config.json").write_text(json.dumps({"vocab_size": 10}))
    (problem_a, problem_b) = config_problems(changed(config, teacher__topk=11))
    assert "rollout.record_topk = 16" in problem_a
    assert "teacher.topk = 11: above the 10 tokens of teacher.path" in problem_b


def test_missing_models_are_named(config: Config, tmp_path: Path) -> None:
    gone = str(tmp_path / "not" / "there")
    (problem,) = config_problems(changed(config, student__path=gone))
    assert problem.startswith(f"student.path = {gone!r}: no such folder")


@pytest.mark.parametrize(
    ("package", "key"),
    [("wandb", "wandb_project"), ("mlflow", "mlflow_experiment"), ("trackio", "trackio_project")],
)
def test_a_tracker_needs_its_package(
    config: Config, monkeypatch: pytest.MonkeyPatch, package: str, key: str
) -> None:
    def spec(name: str) -> object:
        return None if name == package else object()

    monkeypatch.setattr("opd_ray.preflight.config.find_spec", spec)
    (problem,) = config_problems(changed(config, **{f"run__{key}": "mine"}))
    assert problem.startswith(f"run.{key} = 'mine': {package} is not installed; pip install")


def test_all_problems_come_in_one_error(config: Config) -> None:
    bad = changed(config, run__steps=-1, trainer__zero_stage=9, data__max_prompt_tokens=0)
    with pytest.raises(ConfigError) as caught:
        check_config(bad)
    assert len(str(caught.value).splitlines()) == 3


class Mute:
    """No teacher: it lacks score and close."""

    def info(self) -> None: ...


class Speaking(Mute):
    def __init__(self, temperature: float) -> None: ...

    def score(self, requests: Any) -> None: ...

    def close(self) -> None: ...


def test_a_teacher_class_is_looked_up_before_anything_starts(config: Config) -> None:
    def problems(class_path: str, **arguments: Any) -> list[str]:
        return config_problems(
            changed(
                config,
                teacher__kind="class",
                teacher__path=None,
                teacher__class_path=class_path,
                teacher__arguments=arguments,
            )
        )

    assert problems(f"{__name__}:Speaking", temperature=2.0) == []
    for class_path, arguments, part in (
        ("Speaking", {}, "write it as package.module:object"),
        ("nowhere.at_all:Speaking", {}, "No module named 'nowhere'; set PYTHONPATH"),
        (f"{__name__}:Absent", {}, "has no 'Absent'; define it there"),
        (f"{__name__}:Mute", {}, "it has no method score, close"),
        (f"{__name__}:Speaking", {}, "missing a required argument: 'temperature'"),
        (f"{__name__}:Speaking", {"temprature": 1}, "teacher.arguments = {'temprature': 1}"),
    ):
        [problem] = problems(class_path, **arguments)
        assert part in problem
