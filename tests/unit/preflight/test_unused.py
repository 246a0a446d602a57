"""Options without effect: each is said beside what makes it so, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd_ray.config.load import load_config
from opd_ray.preflight.unused import unused_options

CONFIGS = Path(__file__).parents[3] / "configs"
RECIPES = sorted(
    path.relative_to(CONFIGS).with_suffix("").as_posix()
    for path in CONFIGS.rglob("*.yaml")
    # These need models that are not here, or a path.
    if path.stem not in ("smollm2_gsm8k", "study_lag_smollm2", "tip_math")
)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_sets_nothing_in_vain(recipe: str) -> None:
    assert unused_options(load_config(recipe)) == []


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["cluster.address=auto", "cluster.num_cpus=2"],
            "cluster.num_cpus = 2 has no effect: the Ray at cluster.address = 'auto' runs already",
        ),
        (
            ["rollout.temperature=0", "rollout.samples_per_prompt=1", "rollout.top_p=0.9"],
            "rollout.top_p = 0.9 has no effect: rollout.temperature is 0",
        ),
        (
            ["rollout.enforce_eager=false"],
            "rollout.enforce_eager = False has no effect: rollout.gpus_per_actor is 0",
        ),
        (
            ["rollout.gpus_per_actor=1", "rollout.kv_cache_bytes=7"],
            "rollout.kv_cache_bytes = 7 has no effect: it is of engines on CPUs",
        ),
        (
            ["teacher.signal=hidden", "teacher.topk=5"],
            "teacher.topk = 5 has no effect: teacher.signal is hidden",
        ),
        (
            ["teacher.concurrency=3"],
            "teacher.concurrency = 3 has no effect: teacher.kind is hf",
        ),
        (
            ["teacher.actor_namespace=mine"],
            "teacher.actor_namespace = mine has no effect: teacher.kind is hf",
        ),
        (
            ["teacher.tensor_parallel_size=2"],
            "teacher.tensor_parallel_size = 2 has no effect: teacher.kind is hf",
        ),
        (
            ["teacher.kind=vllm", "teacher.gpu_memory_utilization=0.5"],
            "teacher.gpu_memory_utilization = 0.5 has no effect: teacher.gpus_per_replica is 0",
        ),
        (
            ["teacher.kind=self", "teacher.follow_decay=0.9", "teacher.max_restarts=3"],
            "teacher.max_restarts = 3 has no effect: one that follows the student is not started "
            "again",
        ),
        (
            ["teacher.kind=self", "student.lora.rank=8", "teacher.answer_timeout_s=9"],
            "teacher.answer_timeout_s = 9.0 has no effect: the trainers compute its answers, as "
            "student.lora.rank is above 0",
        ),
        (
            ["teacher.kind=self", "student.lora.rank=8", "teacher.threads=3"],
            "teacher.threads = 3 has no effect: the trainers compute its answers, as "
            "student.lora.rank is above 0",
        ),
        (
            ["trainer.answer_timeout_s=60", "cluster.stall_timeout_s=60"],
            "trainer.answer_timeout_s = 60.0 has no effect: cluster.stall_timeout_s = 60 ends the "
            "run before",
        ),
        (
            ["student.lora.rank=8", "student.lora.export=adapter", "run.export_at_end=false"],
            "student.lora.export = adapter has no effect: run.export_at_end is false",
        ),
        (
            ["report.close_ups=0", "report.rollouts=9"],
            "report.rollouts = 9 has no effect: report.close_ups is 0",
        ),
        (
            ["report.rollouts=0", "report.tokens=9"],
            "report.tokens = 9 has no effect: report.rollouts is 0",
        ),
        (
            ["eval.tasks=[]", "eval.teacher_accuracy=false", "report.problems=3"],
            "report.problems = 3 has no effect: eval.tasks is empty",
        ),
        (["loss.beta=0.3"], "loss.beta = 0.3 has no effect: loss.divergence is reverse_kl"),
        (
            ["loss.temperature=2", "sync.max_gap=1"],
            "sync.max_gap = 1.0 has no effect: at loss.temperature other than 1 trainers and vLLM "
            "are not compared",
        ),
        (
            ["tip.rule=all", "tip.rho=0.25"],
            "tip.rho = 0.25 has no effect: the rule all keeps every token",
        ),
        (
            ["tip.selection=soft", "tip.rho=0.25"],
            "tip.rho = 0.25 has no effect: tip.selection is soft",
        ),
        (
            ["tip.rho_end=0.25"],
            "tip.rho_end = 0.25 has no effect: tip.rho_schedule is constant",
        ),
        (["tip.rho=0"], "tip.rho = 0: no token is kept, so the student learns nothing"),
        (
            ["rollout.max_new_tokens=1"],
            "tip.rho = 0.5 with rollout.max_new_tokens = 1: less than one token of a response, so "
            "the student learns nothing; raise one of them, or set tip.share_of=batch",
        ),
        (
            [
                "environment.path=a:b",
                "environment.max_turn_tokens=3",
                "tip.share_of=turn",
                "tip.rho=0.25",
            ],
            "tip.rho = 0.25 with environment.max_turn_tokens = 3: less than one token of a turn, "
            "so the student learns nothing; raise one of them, or set tip.share_of=rollout",
        ),
        (
            ["environment.max_turns=3"],
            "environment.max_turns = 3 has no effect: environment.path is null",
        ),
        (
            ["environment.path=a:b", "rollout.max_num_seqs=9", "environment.concurrent_rollouts=2"],
            "rollout.max_num_seqs = 9 with environment.concurrent_rollouts = 2: an engine has no "
            "more than these under way, and so writes no more at once",
        ),
        (
            [
                "environment.path=a:b",
                "rollout.max_new_tokens=50",
                "environment.max_turn_tokens=51",
            ],
            "environment.max_turn_tokens = 51 has no effect: rollout.max_new_tokens = 50 bounds "
            "all turns together",
        ),
        (
            ["tip.share_of=turn"],
            "tip.share_of = turn does what rollout does: without an environment "
            "(environment.path) every response is one turn",
        ),
        (
            ["tip.normalise_over=turn"],
            "tip.normalise_over = turn does what rollout does: without an environment "
            "(environment.path) every response is one turn",
        ),
        (
            ["tip.alpha=2", "tip.overlap=false"],
            "tip.alpha = 2.0 has no effect: tip.rule is not product",
        ),
        (
            ["tip.stream_decay=0.5"],
            "tip.stream_decay = 0.5 has no effect: tip.normalise_over is batch",
        ),
        (
            ["tip.normalisation=rank", "tip.h_clip=0.5"],
            "tip.h_clip = 0.5 has no effect: tip.normalisation is rank",
        ),
        (
            ["trainer.recomputed_layers=2"],
            "trainer.recomputed_layers = 2 has no effect: trainer.gradient_checkpointing is false",
        ),
        (
            ["trainer.lr_schedule=constant", "trainer.min_lr_ratio=0.1"],
            "trainer.min_lr_ratio = 0.1 has no effect: trainer.lr_schedule is constant",
        ),
        (
            ["trainer.learning_rate=0"],
            "trainer.learning_rate = 0: the student learns nothing",
        ),
        (
            ["trainer.warmup_steps=9", "run.steps=4", "trainer.learning_rate=0.001"],
            "trainer.warmup_steps = 9 with run.steps = 4: the run ends before the learning rate "
            "has come to trainer.learning_rate = 0.001",
        ),
        (
            ["eval.tasks=[]", "eval.teacher_accuracy=true", "eval.kl_prompts=0"],
            "eval.teacher_accuracy = True has no effect: eval.tasks is empty",
        ),
        (
            ["eval.tasks=[{temperature: 0.5}]"],
            "eval.tasks[0].temperature = 0.5 has no effect: eval.tasks[0].samples is 0",
        ),
        (["data.split=test"], "data.split = test has no effect: data.kind is chain_sum"),
        (["data.path=x"], "data.path = x has no effect: data.kind is chain_sum"),
        (["data.arguments={a: 1}"], "data.arguments has no effect: data.kind is chain_sum"),
        (
            ["data.shuffle=false", "data.seed=4"],
            "data.seed = 4 has no effect: data.shuffle is false",
        ),
        (
            ["eval.tasks=[{data: {seed: 4}}]"],
            "eval.tasks[0].data.seed = 4 has no effect: the problems of a task are asked in the "
            "order of their source",
        ),
    ],
)
def test_an_option_in_vain_is_said(overrides: list[str], line: str) -> None:
    assert line in unused_options(load_config("demo", overrides))


def test_what_another_config_is_inherited_for_is_not_held_against_it() -> None:
    own = ["data={kind: jsonl, path: x}", "eval.tasks=[]", "eval.kl_prompts=0"]
    assert unused_options(load_config("demo", [*own, "eval.teacher_accuracy=false"])) == []


def test_what_a_further_teacher_inherits_is_not_held_against_it() -> None:
    routes = ["routes={a: teacher, b: other}"]
    http = ["teacher.kind=http", "teacher.url=http://h/v1", "teacher.concurrency=3", *routes]
    other = "teachers={other: {kind: hf, url: null, path: x}}"
    assert unused_options(load_config("demo", [*http, other])) == []
    own = "teachers={other: {kind: hf, url: null, path: x, max_retries: 1}}"
    assert unused_options(load_config("demo", [*http, own])) == [
        "teachers.other.max_retries = 1 has no effect: teachers.other.kind is hf"
    ]


def test_with_an_environment_turns_are_no_rollouts() -> None:
    scopes = ["tip.share_of=turn", "tip.normalise_over=turn"]
    assert unused_options(load_config("demo", [*scopes, "environment.path=a:b"])) == []
    own = [*scopes, "environment.max_turn_tokens=1", "environments={chain_sum: {path: 'a:b'}}"]
    # Prompts of other sources have no turns, but whole responses.
    assert unused_options(load_config("demo", own)) == []


def test_a_share_of_one_token_or_of_a_batch_is_enough() -> None:
    for enough in (["rollout.max_new_tokens=2"], ["tip.share_of=batch", "tip.rho=0.25"]):
        config = load_config("demo", ["rollout.max_new_tokens=1", *enough])
        assert unused_options(config) == []
