"""The rollout actor on real Ray and vLLM: streams, late requests, errors, weights by reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import ray
from rollout_checks import (
    CONTEXT_LENGTH,
    assert_scores_match,
    change_all_weights,
    load,
    tiny_requests,
    tiny_settings,
)
from tiny_models import make_tiny_qwen3

from actors.process import vllm_environment
from actors.rollout.actor import RolloutActor
from actors.weights.chunks import named_weights, pack
from opd_ray.config.schema import SyncSettings
from opd_ray.types import Sampling, TopK

SAMPLING = Sampling(temperature=1.7, max_tokens=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(make_tiny_qwen3(tmp_path_factory.mktemp("student")))


@pytest.fixture(scope="module")
def actor(folder, joined_ray):
    student, rollout = tiny_settings(folder, cpus_per_actor=1.0)
    environment = {"env_vars": vllm_environment(rollout.threads)}
    return RolloutActor.options(runtime_env=environment).remote(student, rollout, SyncSettings())


def collect(stream):
    """(all rollouts with their top-K fetched, how many each step brought)."""
    steps = [ray.get(ref) for ref in stream]
    rollouts = [rollout for step in steps for rollout in step]
    assert all(isinstance(rollout.topk, ray.ObjectRef) for rollout in rollouts)
    return [replace(r, topk=ray.get(r.topk)) for r in rollouts], [len(step) for step in steps]


def test_rollouts_come_as_they_end(actor, folder):
    rollouts, per_step = collect(actor.generate.remote(tiny_requests(), SAMPLING, True, False))
    assert {r.rollout_id for r in rollouts} == {r.rollout_id for r in tiny_requests()}
    assert len(per_step) > 2
    model = load(folder)
    for rollout in rollouts:
        assert isinstance(rollout.topk, TopK)
        assert_scores_match(model, rollout)


def test_the_engine_is_free_between_streams_and_the_process_is_measured(actor):
    assert 1 << 27 < ray.get(actor.peak_memory.remote()) < 1 << 34


def test_requests_join_a_running_stream(actor):
    requests = tiny_requests(samples=4)
    stream = actor.generate.remote(requests[:4], SAMPLING, True, True)
    rollouts = ray.get(next(stream))  # running
    ray.get(actor.add.remote(requests[4:10], True))
    while len(rollouts) < 10:
        rollouts += ray.get(next(stream))
    # Nothing is left to do, yet the stream stays open: more were announced.
    ready, _ = ray.wait([stream], timeout=0.5)
    assert not ready
    ray.get(actor.add.remote(requests[10:], True))
    ray.get(actor.add.remote([], False))
    rollouts += collect(stream)[0]
    assert sorted(r.rollout_id for r in rollouts) == sorted(r.rollout_id for r in requests)


def test_a_stream_can_begin_empty_and_end_empty(actor):
    stream = actor.generate.remote([], SAMPLING, True, True)
    ray.get(actor.add.remote([], False))
    assert collect(stream) == ([], [])


def test_without_recording_no_reference_is_made(actor):
    (ref,) = actor.generate.remote(tiny_requests(1, 1), SAMPLING, False, False)
    (rollout,) = ray.get(ref)
    assert rollout.topk is None


def test_weights_come_by_reference_and_wait_for_the_stream(actor, folder):
    model = load(folder)
    change_all_weights(model, seed=3)
    stream = actor.generate.remote(tiny_requests(), SAMPLING, True, False)
    refs = [ray.put(chunk) for chunk in pack(named_weights(model), chunk_bytes=1 << 16)]
    assert len(refs) > 2
    update = actor.call_transport.remote("load", 7, *refs)
    assert {rollout.weights_version for rollout in collect(stream)[0]} == {0}
    ray.get(update)
    for rollout in collect(actor.generate.remote(tiny_requests(), SAMPLING, True, False))[0]:
        assert rollout.weights_version == 7
        assert_scores_match(model, rollout)


def test_a_batch_that_is_given_up_lets_new_weights_in(actor, folder):
    model = load(folder)
    change_all_weights(model, seed=4)
    refs = [ray.put(chunk) for chunk in pack(named_weights(model), chunk_bytes=1 << 16)]
    stream = actor.generate.remote(tiny_requests(), SAMPLING, True, True, 7)
    ray.get(next(stream))
    ray.get(actor.abort.remote(7))
    ray.get(actor.call_transport.remote("load", 8, *refs), timeout=60)
    collect(stream)
    again = actor.generate.remote(tiny_requests()[:4], SAMPLING, True, True, 8)
    actor.add.remote(tiny_requests()[4:], False, 8)
    rollouts, _ = collect(again)
    assert sorted(r.rollout_id for r in rollouts) == sorted(r.rollout_id for r in tiny_requests())
    for rollout in rollouts:
        assert rollout.weights_version == 8
        assert_scores_match(model, rollout)


def test_errors_come_out_of_the_stream(actor):
    long = replace(tiny_requests(1, 1)[0], prompt_ids=np.ones(CONTEXT_LENGTH, np.int32))
    with pytest.raises(ValueError, match="prompt 'p0' has 128 tokens"):
        collect(actor.generate.remote([long], SAMPLING, True, False, 9))
    # The engine took nothing on, so the actor goes on.
    rollouts, _ = collect(actor.generate.remote(tiny_requests(1, 1), SAMPLING, True, False, 10))
    assert len(rollouts) == 1


def test_an_error_half_way_ends_the_stream(actor):
    """Last: the actor is of no use afterwards, and says so."""
    stream = actor.generate.remote(tiny_requests(), SAMPLING, True, True, 11)
    ray.get(next(stream))
    bad = replace(tiny_requests()[0], prompt_ids=np.ones(0, np.int32))
    ray.get(actor.add.remote([bad], True, 11))
    with pytest.raises(ValueError, match="prompt 'p0' has 0 tokens"):
        collect(stream)
    with pytest.raises(RuntimeError, match="did not come to its end"):
        collect(actor.generate.remote(tiny_requests(), SAMPLING, True, False, 12))
