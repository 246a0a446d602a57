"""The rollout engine on real vLLM: scores, seeds, ends of responses, and new weights."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from broken_models import change_weights, without
from rollout_checks import (
    CONTEXT_LENGTH,
    TOPK,
    assert_scores_match,
    change_all_weights,
    load,
    start_host,
    tiny_requests,
)
from tiny_models import EOS, make_tiny_qwen3, set_positions

from actors.rollout.recorded_scores import TOPK_CONFIG, VOCAB_CONFIG
from actors.weights.chunks import named_weights, pack, stored_weights
from opd_ray.models.engine_limits import CPU_HEAD_SIZES, vllm_architectures
from opd_ray.models.shape import read_shape
from opd_ray.models.tokenizer import describe_model
from opd_ray.models.weight_files import WeightsError
from opd_ray.types import Sampling

# Of the 96 rows of the output; the rest stand for padding in one engine.
REAL_TOKENS = 60
YARN = {"rope_type": "yarn", "rope_theta": 10000.0}
# So hot that some responses of the random model stop early.
SAMPLING = Sampling(temperature=1.7, max_tokens=40)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    dense = {
        tied: str(make_tiny_qwen3(folder / f"tied-{tied}", tied=tied)) for tied in (True, False)
    }
    return {**dense, "mixture": str(make_tiny_qwen3(folder / "mixture", experts=4))}


ENDS = [EOS, *range(4, 96, 2)]  # about half of all tokens


@pytest.fixture(scope="module")
def stretched(tmp_path_factory):
    """64 positions that YaRN makes 256, and many ends in the generation config alone."""
    folder = make_tiny_qwen3(tmp_path_factory.mktemp("stretched"))
    set_positions(folder, max_position_embeddings=64, rope_parameters=dict(YARN, factor=4.0))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ENDS}))
    return str(folder)


@pytest.fixture(scope="module")
def host(folders, stretched):
    """One process with six engines; "cramped" must preempt, "chunked" reads prompts in parts."""
    manager, handle = start_host()
    kv_bytes_of_a_block = 2 * 2 * 32 * 32 * 4  # layers x (K, V) x tokens x head size x float32
    # First: vLLM sets a process up for mixtures only if its first model is one.
    handle.start("mixture", folders["mixture"], {})
    handle.start("tied", folders[True], {})
    handle.start("untied", folders[False], {})
    handle.start("cramped", folders[True], {}, kv_cache_bytes=8 * kv_bytes_of_a_block)
    in_parts = {"enable_chunked_prefill": True, "max_num_batched_tokens": 16}
    handle.start("chunked", folders[True], in_parts)
    padded = {"additional_config": {TOPK_CONFIG: TOPK, VOCAB_CONFIG: REAL_TOKENS}}
    handle.start("padded", folders[True], padded)
    handle.start("stretched", stretched, {}, context_length=256)
    yield handle
    manager.shutdown()


def generate(host, name, requests, record=True, **sampling):
    return host.generate(name, requests, replace(SAMPLING, **sampling), record)


def responses(rollouts):
    return {rollout.rollout_id: rollout.response_ids.tolist() for rollout in rollouts}


@pytest.fixture(scope="module")
def rollouts(host):
    """What the "tied" engine wrote first: 12 ragged requests, four at a time."""
    return generate(host, "tied", tiny_requests())


def test_scores_equal_those_of_a_hugging_face_forward(rollouts, folders):
    model = load(folders[True])
    assert {r.rollout_id for r in rollouts} == {r.rollout_id for r in tiny_requests()}
    # Rows of the batch moved: responses of different length made room for waiting requests.
    assert len({len(rollout.response_ids) for rollout in rollouts}) > 2
    for rollout in rollouts:
        assert_scores_match(model, rollout)


def test_norms_are_compiled_and_else_those_of_pytorch(host):
    assert host.norms("tied") == [["opd_ray_cpu", "native"]] * 2


def test_rollouts_carry_what_was_asked(rollouts):
    asked = {request.rollout_id: request for request in tiny_requests()}
    for rollout in rollouts:
        request = asked[rollout.rollout_id]
        assert (rollout.prompt_id, rollout.sample) == (request.prompt_id, request.sample)
        assert np.array_equal(rollout.prompt_ids, request.prompt_ids)
        assert rollout.response_ids.dtype == np.int32
        assert rollout.response_mask.dtype == np.uint8
        assert rollout.response_mask.tolist() == [1] * len(rollout.response_ids)
        assert rollout.weights_version == 0


def test_a_response_ends_with_eos_or_at_its_longest(rollouts):
    assert {rollout.finish_reason for rollout in rollouts} == {"stop", "length"}
    for rollout in rollouts:
        ids = rollout.response_ids.tolist()
        if rollout.finish_reason == "stop":
            assert ids.index(EOS) == len(ids) - 1
        else:
            assert len(ids) == SAMPLING.max_tokens
            assert EOS not in ids


def test_a_response_ends_at_the_context_length(host, folders):
    (request,) = tiny_requests(prompts=1, samples=1, shortest=CONTEXT_LENGTH - 3)
    (rollout,) = generate(host, "tied", [request], temperature=0.0)
    assert rollout.finish_reason == "length"
    assert len(rollout.prompt_ids) + len(rollout.response_ids) == CONTEXT_LENGTH
    assert_scores_match(load(folders[True]), rollout)


def test_lengthened_positions_are_those_of_hugging_face(host, stretched):
    requests = tiny_requests(prompts=3, samples=1, shortest=50, step=75)
    assert [len(request.prompt_ids) for request in requests] == [50, 125, 200]
    rollouts = generate(host, "stretched", requests, temperature=1.0)
    model = load(stretched)
    for rollout in rollouts:
        assert_scores_match(model, rollout)


def test_responses_end_at_every_end_of_the_generation_config(host, stretched):
    assert list(describe_model(stretched).eos_ids) == ENDS
    rollouts = generate(host, "stretched", tiny_requests(), temperature=1.7)
    for rollout in rollouts:
        ids = rollout.response_ids.tolist()
        assert [token in ENDS for token in ids] == [False] * (len(ids) - 1) + [True]
        assert rollout.finish_reason == "stop"


LONG = {"short_factor": [1.0] * 16, "long_factor": [2.0] * 16, "rope_theta": 10000.0}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("changes", "longest"),
    [
        ({}, 64),
        ({"rope_parameters": YARN | {"factor": 4.0}}, 256),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, 256),
        (
            {
                "rope_scaling": {"type": "yarn", "factor": 4.0},
                **{"original_max_position_embeddings": 32},
            },
            128,
        ),
        (
            {
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 2.0,
                    "original_max_position_embeddings": 32,
                }
            },
            64,
        ),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 128),
        ({"rope_parameters": {"rope_type": "linear", "factor": 3, "rope_theta": 1e4}}, 192),
        ({"rope_scaling": {"rope_type": "ntk", "factor": 2.0}}, 128),
        ({"rope_scaling": LLAMA3 | {"type": "llama3", "original_max_position_embeddings": 16}}, 64),
        (
            {
                "rope_parameters": LONG
                | {"rope_type": "longrope", "original_max_position_embeddings": 32}
            },
            32,
        ),
        ({"rope_scaling": LONG | {"type": "su"}, "original_max_position_embeddings": 16}, 16),
    ],
)
def test_vllm_goes_by_the_same_length(host, changes, longest, folders, tmp_path):
    shutil.copytree(folders[True], tmp_path / "model")
    set_positions(tmp_path / "model", max_position_embeddings=64, **changes)
    assert host.longest(str(tmp_path / "model")) == longest
    assert describe_model(str(tmp_path / "model")).context_length == longest


def test_scores_survive_preemption(host, rollouts, folders):
    """A cache of eight blocks: requests are thrown out half-way and begin again."""
    cramped = generate(host, "cramped", tiny_requests())
    assert host.preemptions("cramped") > 0
    model = load(folders[True])
    for rollout in cramped:
        assert_scores_match(model, rollout)
    # ... and continue with the same draws.
    assert responses(cramped) == responses(rollouts)


def test_scores_survive_chunked_prefill(host, folders):
    """16 tokens a step: prompts take several, and rows of partly read prompts are thrown away.

    Greedy, because vLLM cannot do this with seeds on the CPU; the engine avoids it there.
    """
    model = load(folders[True])
    for rollout in generate(host, "chunked", tiny_requests(shortest=30), temperature=0.0):
        assert_scores_match(model, rollout)


def test_a_seed_gives_its_response_in_any_company(host, rollouts):
    backwards = generate(host, "tied", tiny_requests()[::-1])
    assert responses(backwards) == responses(rollouts)
    alone = generate(host, "tied", tiny_requests()[3:4])
    assert responses(alone).items() <= responses(rollouts).items()


def test_another_seed_gives_another_response(host, rollouts):
    others = [replace(request, seed=request.seed + 5000) for request in tiny_requests()]
    first = responses(rollouts)
    second = responses(generate(host, "tied", others))
    assert all(first[key] != second[key] for key in first if len(first[key]) > 3)


def test_greedy_takes_the_likeliest_token(host):
    for rollout in generate(host, "tied", tiny_requests(prompts=2), temperature=0.0):
        assert rollout.response_ids.tolist() == rollout.topk.ids[:, 0].tolist()


def test_scores_describe_temperature_one_whatever_the_sampling(host, folders):
    model = load(folders[True])
    rollouts = generate(host, "tied", tiny_requests(), temperature=0.5, top_k=3, top_p=0.9)
    for rollout in rollouts:
        assert_scores_match(model, rollout)
        assert all(
            token in topk[:3]
            for token, topk in zip(rollout.response_ids, rollout.topk.ids, strict=True)
        )
    assert any((rollout.response_ids != rollout.topk.ids[:, 0]).any() for rollout in rollouts)


def test_without_recording_only_the_text_comes(host, rollouts):
    bare = generate(host, "tied", tiny_requests(), record=False)
    assert responses(bare) == responses(rollouts)
    for rollout in bare:
        assert (len(rollout.entropy), len(rollout.logprob), rollout.topk) == (0, 0, None)


def test_recorded_and_unrecorded_requests_share_a_batch(host, folders):
    model = load(folders[True])
    for start in (0, 1):
        half = tiny_requests()[start::2]
        host.call("tied", "add", half, SAMPLING, bool(start))
    rollouts = []
    while host.call("tied", "has_unfinished"):
        rollouts += host.call("tied", "step")
    recorded = [rollout for rollout in rollouts if rollout.sample == 1]
    assert len(recorded) == len(rollouts) // 2
    for rollout in recorded:
        assert_scores_match(model, rollout)


def test_recorded_rows_are_given_back(host, rollouts):
    assert host.rows_in_use("tied") == 0


def test_requests_that_are_given_up_leave_nothing_behind(host, rollouts):
    """Some of them are being written, others wait; the same ones come again."""
    host.call("tied", "add", tiny_requests(), SAMPLING, True)
    for _ in range(3):
        host.call("tied", "step")
    assert host.rows_in_use("tied") > 0
    host.call("tied", "abort")
    assert not host.call("tied", "has_unfinished")
    assert host.rows_in_use("tied") == 0
    host.call("tied", "abort")  # nothing is left
    assert responses(generate(host, "tied", tiny_requests())) == responses(rollouts)
    assert host.rows_in_use("tied") == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_ids": np.ones(CONTEXT_LENGTH, np.int32)}, "prompt 'p0' has 128 tokens"),
        ({"prompt_ids": np.ones(0, np.int32)}, "prompt 'p0' has 0 tokens"),
        ({"rollout_id": "p1-0"}, "rollout id 'p1-0' is asked for twice"),
    ],
)
def test_a_bad_request_is_refused_and_takes_no_other_with_it(host, change, message):
    good, bad = tiny_requests(prompts=2, samples=1)[::-1]
    with pytest.raises(ValueError, match=message):
        generate(host, "tied", [good, replace(bad, **change)])
    assert not host.call("tied", "has_unfinished")


def test_the_kv_cache_must_hold_one_text(host, folders):
    needed = read_shape(folders[True]).kv_cache_bytes(CONTEXT_LENGTH, element_bytes=4)
    host.start("least", folders[True], {}, kv_cache_bytes=needed)
    request = tiny_requests(prompts=1, samples=1)[0]
    request = replace(request, prompt_ids=np.full(CONTEXT_LENGTH - 1, 7, np.int32))
    assert len(generate(host, "least", [request])) == 1
    for too_few in (needed - 1, 1):
        message = f"rollout.kv_cache_bytes = {too_few}: .* student.context_length = 128 tokens"
        with pytest.raises(ValueError, match=message):
            host.start("less", folders[True], {}, kv_cache_bytes=too_few)


def test_more_recorded_tokens_than_the_vocabulary_has_are_refused(host, folders):
    with pytest.raises(ValueError, match=r"record_topk is 97, .* has 96 tokens"):
        host.start("never", folders[True], {}, record_topk=97)


def test_weights_that_vllm_would_start_at_random_are_refused(host, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    folder = change_weights(make_tiny_qwen3(tmp_path), without(name))
    with pytest.raises(WeightsError, match=re.escape(f"1 missing ({name})")):
        host.start("random", str(folder), {})


def test_limits_are_written_down_as_vllm_has_them(host):
    head_sizes, architectures = host.limits()
    assert head_sizes == list(CPU_HEAD_SIZES)
    assert architectures == vllm_architectures()
    assert "Qwen3ForCausalLM" in architectures


def test_padding_rows_are_neither_sampled_nor_scored(host, folders):
    model = load(folders[True])
    for rollout in generate(host, "padded", tiny_requests(prompts=3)):
        assert rollout.response_ids.max() < REAL_TOKENS
        assert rollout.topk.ids.max() < REAL_TOKENS
        assert_scores_match(model, rollout, vocab_size=REAL_TOKENS)


@pytest.mark.parametrize(("name", "folder"), [("tied", True), ("untied", False), ("mixture",) * 2])
def test_new_weights_replace_every_old_one(host, folders, name, folder):
    """Prompts longer than a cache block, asked before too: old keys and values must be gone."""
    requests = tiny_requests(shortest=70, step=5)
    generate(host, name, requests)
    model = load(folders[folder])
    for version in (1, 2):
        change_all_weights(model, seed=version)
        chunks = list(pack(stored_weights(model), chunk_bytes=1 << 14))
        assert len(chunks) > 5
        host.load_weights(name, version, chunks)
        for rollout in generate(host, name, requests):
            assert rollout.weights_version == version
            assert_scores_match(model, rollout)


@pytest.mark.parametrize(("name", "folder"), [("tied", True), ("untied", False), ("mixture",) * 2])
@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_an_update_that_broke_off_is_mended_by_the_next(host, folders, name, folder, share):
    """Whatever part of it has come: none, layers half and whole, or all but its end."""
    model, other = load(folders[folder]), load(folders[folder])
    change_all_weights(model, seed=7)
    change_all_weights(other, seed=8)
    broken = list(pack(stored_weights(model), chunk_bytes=1 << 12))
    host.call(name, "start_weight_update")
    for chunk in broken[: int(share * len(broken))]:
        host.call(name, "receive_weights", {"chunk": chunk})
    with pytest.raises(RuntimeError, match="weights are incomplete until another one is whole"):
        generate(host, name, tiny_requests())
    host.load_weights(name, 5, list(pack(stored_weights(other), chunk_bytes=1 << 14)))
    for rollout in generate(host, name, tiny_requests()):
        assert rollout.weights_version == 5
        assert_scores_match(other, rollout)


def test_new_weights_wait_until_all_responses_are_written(host, folders):
    chunks = list(pack(named_weights(load(folders[False])), 1 << 20))
    host.call("untied", "add", tiny_requests(), SAMPLING, True)
    with pytest.raises(RuntimeError, match="while 12 requests are unfinished"):
        host.load_weights("untied", 3, chunks)
    while host.call("untied", "has_unfinished"):
        host.call("untied", "step")
    host.load_weights("untied", 3, chunks)


def test_an_update_without_the_tied_head_is_refused(host, folders):
    """vLLM alone would only warn, and go on with the old head.

    Last: engines of one process share a module, which an unfinished update leaves empty.
    """
    weights = dict(named_weights(load(folders[True])))
    del weights["lm_head.weight"]
    with pytest.raises(RuntimeError, match="without weights for lm_head"):
        host.load_weights("cramped", 1, list(pack(weights.items(), 1 << 20)))
    with pytest.raises(RuntimeError, match="weights are incomplete"):
        generate(host, "cramped", tiny_requests())
    model = load(folders[True])
    host.load_weights("cramped", 2, list(pack(named_weights(model), 1 << 20)))
    for rollout in generate(host, "cramped", tiny_requests()):
        assert_scores_match(model, rollout)
