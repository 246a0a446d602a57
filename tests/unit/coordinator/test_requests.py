"""What engines and teachers are asked at every step: prompts, seeds, how to sample."""

from __future__ import annotations

from typing import Any

import pytest
from stand_in_run import StandInRun, ids
from stand_ins import Response

from opd_ray.config.schema import RolloutSettings, RunSettings
from opd_ray.types import RolloutRequest, Sampling

RESPONSES = {
    f"{key}{sample}": Response(mask=[1, 1], logprob=[-1.0, -1.0], reverse_kl=[0.1, 0.2])
    for key in "ab"
    for sample in range(3)
}


def asked(run: StandInRun) -> list[RolloutRequest]:
    return [request for engine in run.engines for request in engine.given]


def seeds(run_seed: int) -> list[int]:
    """Of two steps with the same two prompts and three samples of each."""
    run = StandInRun(
        RESPONSES,
        run=RunSettings(steps=2, seed=run_seed),
        rollout=RolloutSettings(prompts_per_step=2, samples_per_prompt=3),
    )
    run.step(0)
    run.step(1)
    return sorted(request.seed for request in asked(run))


def test_no_two_responses_of_a_run_have_a_seed_in_common() -> None:
    found = seeds(0)
    assert len(found) == 12
    assert len(set(found)) == 12


def test_seeds_follow_from_the_runs_own() -> None:
    assert seeds(0) == seeds(0)
    assert set(seeds(0)).isdisjoint(seeds(1))


def test_every_prompt_of_the_step_is_asked_so_many_times() -> None:
    run = StandInRun(RESPONSES, rollout=RolloutSettings(prompts_per_step=1, samples_per_prompt=3))
    run.step(1)  # of one prompt a step, the second step has the second
    found = sorted(asked(run), key=lambda request: request.sample)
    assert [(one.prompt_id, one.sample, one.source) for one in found] == [
        ("b", 0, "code"),
        ("b", 1, "code"),
        ("b", 2, "code"),
    ]
    assert all(request.prompt_ids.tolist() == ids("so").tolist() for request in found)
    run.step(2)
    rollout_ids = [request.rollout_id for request in asked(run)]
    assert len(set(rollout_ids)) == 6


def test_the_engines_sample_as_the_run_says() -> None:
    settings = RolloutSettings(
        prompts_per_step=2,
        samples_per_prompt=2,
        temperature=0.7,
        top_p=0.9,
        top_k=40,
        max_new_tokens=17,
    )
    run = StandInRun(RESPONSES, rollout=settings)
    run.step(0)
    assert [engine.samplings for engine in run.engines] == [[Sampling(0.7, 0.9, 40, 17)]] * 2


@pytest.mark.parametrize("order", range(4))
def test_each_teacher_reads_its_own_prompt_of_the_rollouts_that_are_its_own(order: int) -> None:
    run = StandInRun(RESPONSES, order=order)
    run.step(0)
    for teacher, key, prompt in (("first", "a", "think"), ("second", "b", "so")):
        read = {}
        for replica in run.teachers[teacher]:
            for rollout_id, prompt_ids in replica.prompts.items():
                name = run.script.name(rollout_id)
                read[name] = prompt_ids.tolist()
                size = len(RESPONSES[name].mask)
                first = 10 * (1 + list(RESPONSES).index(name))
                topk: Any = replica.topks[rollout_id]
                assert topk.ids.tolist() == [[first + n] for n in range(size)]
        assert read == {f"{key}{sample}": ids(prompt).tolist() for sample in range(2)}
