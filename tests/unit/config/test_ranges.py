"""The numbers that a key may hold: every one is checked at its bounds, by its section's name."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from opd_ray.config.data import ChainSumSettings, DataSettings
from opd_ray.config.ranges import (
    ABOVE_ZERO,
    SHARE,
    SHARE_ABOVE_ZERO,
    at_least,
    range_problems,
    share_below_one,
)
from opd_ray.config.schema import Config, EvalTask

AT_LEAST = {
    0: """
    run.steps run.checkpoint_every rollout.cpus_per_actor rollout.gpus_per_actor rollout.threads
    rollout.temperature rollout.top_k teacher.cpus_per_replica teacher.gpus_per_replica
    teacher.threads teacher.max_retries teacher.max_restarts trainer.cpus_per_rank trainer.threads
    trainer.learning_rate trainer.warmup_steps trainer.weight_decay trainer.max_grad_norm
    trainer.max_restarts eval.every eval.kl_prompts report.close_ups report.rollouts
    report.problems""",
    1: """
    run.keep_checkpoints cluster.num_cpus student.context_length
    rollout.actors rollout.tensor_parallel_size rollout.prompts_per_step rollout.samples_per_prompt
    rollout.max_new_tokens rollout.record_topk rollout.max_num_seqs rollout.max_num_batched_tokens
    rollout.kv_cache_bytes teacher.replicas teacher.topk teacher.batch_tokens teacher.kv_cache_bytes
    teacher.tensor_parallel_size teacher.store_bytes teacher.named_tokens teacher.concurrency
    loss.chunk_rows trainer.ranks trainer.micro_batch_tokens sync.chunk_bytes report.tokens""",
    78643200: "cluster.object_store_bytes",  # the least that Ray takes
}
ABOVE = """
    cluster.start_timeout_s cluster.stall_timeout_s teacher.timeout_s loss.temperature
    trainer.adam_eps trainer.answer_timeout_s sync.max_gap"""
FROM_ZERO_TO_ONE = {
    "run.lag": "must be 0 or 1",
    "trainer.gpus_per_rank": "must be 0 or 1",
    "trainer.min_lr_ratio": "must lie in [0, 1]",
    "rollout.top_p": "must be above 0 and at most 1",
    "rollout.gpu_memory_utilization": "must be above 0 and at most 1",
    "teacher.gpu_memory_utilization": "must be above 0 and at most 1",
    "trainer.adam_beta1": "must lie in [0, 1)",
    "trainer.adam_beta2": "must lie in [0, 1)",
    "teacher.follow_decay": ("must lie in [0, 1); for a teacher that stays as it is leave it out"),
}
CASES = [
    *(
        (key, n - 1, f"must be at least {n}")
        for n, keys in AT_LEAST.items()
        for key in keys.split()
    ),
    *((key, 0, "must be above 0") for key in ABOVE.split()),
    *((key, -0.5, words) for key, words in FROM_ZERO_TO_ONE.items()),
    *((key, 1.5, words) for key, words in FROM_ZERO_TO_ONE.items()),
    *((key, math.nan, words) for key, words in FROM_ZERO_TO_ONE.items()),
    ("trainer.learning_rate", math.inf, "must be at least 0 and finite"),
]


@pytest.mark.parametrize(("key", "value", "words"), CASES)
def test_a_value_outside_is_named_with_its_range(key: str, value: float, words: str) -> None:
    section, _, name = key.partition(".")
    settings = replace(getattr(Config(), section), **{name: value})
    assert list(range_problems(section, settings)) == [f"{key} = {value}: {words}"]
    # Under whatever key the section stands.
    assert list(range_problems("teachers.b", settings)) == [f"teachers.b.{name} = {value}: {words}"]


def test_the_defaults_lie_within() -> None:
    config = Config()
    for section in ("run", "cluster", "student", "rollout", "teacher", "loss", "trainer", "sync"):
        assert list(range_problems(section, getattr(config, section))) == []
    assert list(range_problems("eval.tasks[0]", EvalTask())) == []
    DataSettings().validate()


@dataclass
class Bounds:
    least: float = field(default=2, metadata=at_least(2))
    above: float = field(default=1e-9, metadata=ABOVE_ZERO)
    share: float = field(default=0, metadata=SHARE)
    above_share: float = field(default=1, metadata=SHARE_ABOVE_ZERO)
    below: float | None = field(default=0, metadata=share_below_one())
    free: float = -7


def test_bounds_belong_to_a_range_or_not() -> None:
    assert list(range_problems("s", Bounds())) == []
    assert list(range_problems("s", Bounds(share=1, below=None))) == []
    outside: dict[str, Any] = {"least": 1.9, "above": 0, "share": 1.1, "above_share": 0, "below": 1}
    found = [text.split(" ")[0] for text in range_problems("s", Bounds(**outside))]
    assert found == ["s.least", "s.above", "s.share", "s.above_share", "s.below"]


def test_what_was_told_of_other_settings_is_not_told_again() -> None:
    told = Bounds(least=1)
    assert list(range_problems("s", Bounds(least=1), told)) == []
    assert list(range_problems("s", Bounds(least=0), told)) == ["s.least = 0: must be at least 2"]


@pytest.mark.parametrize(
    ("task", "part"),
    [
        (EvalTask(problems=0), "problems = 0: must be at least 1"),
        (EvalTask(samples=-1), "samples = -1: must be at least 0"),
        (EvalTask(max_new_tokens=0), "max_new_tokens = 0: must be at least 1"),
        (EvalTask(top_p=1.5), "top_p = 1.5: must be above 0 and at most 1"),
    ],
)
def test_tasks_have_ranges(task: EvalTask, part: str) -> None:
    assert list(range_problems("eval.tasks[3]", task)) == [f"eval.tasks[3].{part}"]


def test_all_ranges_of_a_data_section_are_told_at_once() -> None:
    chain = ChainSumSettings(terms=1, digits=0, count=0)
    with pytest.raises(ValueError) as error:
        DataSettings(max_prompt_tokens=0, limit=0, chain_sum=chain).validate("eval.tasks[0].data")
    assert str(error.value).splitlines() == [
        "eval.tasks[0].data.max_prompt_tokens = 0: must be at least 1",
        "eval.tasks[0].data.limit = 0: must be at least 1",
        "eval.tasks[0].data.chain_sum.terms = 1: must be at least 2",
        "eval.tasks[0].data.chain_sum.digits = 0: must be at least 1",
        "eval.tasks[0].data.chain_sum.count = 0: must be at least 1",
    ]
