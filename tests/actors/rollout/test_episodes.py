"""Rollouts of several turns on real vLLM: tokens, scores of each turn, seeds, the prefix cache."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from acting import CHAT_TEMPLATE, LOOK
from rollout_checks import TOPK, load, reference_scores, start_host
from tiny_models import EOS, character_tokenizer, make_tiny_qwen3

from opd_ray.config.environment import EnvironmentSet, EnvironmentSettings
from opd_ray.types import EpisodeStart, RolloutRequest, Sampling

CONTEXT = 384
ENDS = [EOS, 20, 40, 60, 80]
SAMPLING = Sampling(temperature=1.7, max_tokens=300)
QUESTIONS = ["Where?", "Who is it, and why is it there at this hour?", "How many?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = make_tiny_qwen3(tmp_path_factory.mktemp("acting"))
    tokenizer = character_tokenizer(96)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ENDS}))
    return str(folder)


@pytest.fixture(scope="module")
def host(folder):
    manager, handle = start_host()
    handle.start("one", folder, {}, context_length=CONTEXT, max_num_batched_tokens=CONTEXT)
    yield handle
    manager.shutdown()


def settings(**changes):
    base = EnvironmentSettings(path="acting:Echo", parser="acting:EveryTurnCalls")
    return EnvironmentSet(replace(base, **changes), {"alone": EnvironmentSettings()})


def act(host, requests, sampling=SAMPLING, record=True, **changes):
    host.act("one", settings(**changes))
    return {r.rollout_id: r for r in host.generate("one+", requests, sampling, record)}


def requests(samples=2):
    tokenizer = character_tokenizer(96)
    tokenizer.chat_template = CHAT_TEMPLATE
    made = []
    for number, question in enumerate(QUESTIONS):
        prompt = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(
            prompt, tools=[LOOK], tokenize=False, add_generation_prompt=True
        )
        ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)
        start = EpisodeStart({"prompt": prompt}, {})
        made += [
            RolloutRequest(f"p{number}-{n}", f"p{number}", n, ids, 10 * number + n, episode=start)
            for n in range(samples)
        ]
    return made


@pytest.fixture(scope="module")
def rollouts(host):
    return act(host, requests())


def test_turns_alternate_and_scores_are_those_of_a_hugging_face_forward(rollouts, folder):
    model = load(folder)
    assert len(rollouts) == 6
    for rollout in rollouts.values():
        mask, turns = rollout.response_mask, rollout.turns
        assert len(mask) == len(turns) == len(rollout.response_ids)
        assert turns.tolist() == sorted(turns.tolist())
        if rollout.finish_reason == "stop":
            assert turns.max() == 2
            assert rollout.figures["environment/looks"] == rollout.figures["calls"] == 3
        expected = reference_scores(model, rollout)
        own = mask == 1
        np.testing.assert_allclose(rollout.entropy[own], expected.entropy_m[own], atol=1e-4)
        np.testing.assert_allclose(rollout.logprob[own], expected.logprob_m[own], atol=1e-4)
        assert not rollout.entropy[~own].any()
        assert not rollout.logprob[~own].any()
        assert rollout.topk.ids.shape == (own.sum(), TOPK)
        best = -np.sort(-expected.logprobs_mV[own])[:, :TOPK]
        np.testing.assert_allclose(rollout.topk.logprobs, best, atol=1e-4)
    assert {r.finish_reason for r in rollouts.values()} <= {"stop", "length", "context"}
    assert sum(r.finish_reason == "stop" for r in rollouts.values()) >= 2


def test_what_stands_between_turns_is_the_template_s(rollouts):
    tokenizer = character_tokenizer(96)
    for rollout in rollouts.values():
        text = tokenizer.decode(rollout.response_ids)
        between = "".join(
            character if not own else "|"
            for character, own in zip(
                tokenizer.convert_ids_to_tokens(rollout.response_ids),
                rollout.response_mask,
                strict=True,
            )
        )
        parts = [part for part in between.split("|") if part]
        assert len(parts) == rollout.turns.max()
        for part in parts:
            assert part[:3] == "\nt:"
            assert part[-3:] == "\nA:"
            assert len(part) == len("\nt:") + 8 + len("\nA:")
        assert text


def test_equal_seeds_give_equal_trajectories_whatever_runs_beside(host, rollouts):
    some = [requests()[n] for n in (3, 0)]
    # Slow tools: turns meet others in the engine than before.
    again = act(host, some, arguments={"seconds": 0.05})
    for rollout_id, rollout in again.items():
        assert np.array_equal(rollout.response_ids, rollouts[rollout_id].response_ids)
        assert np.array_equal(rollout.response_mask, rollouts[rollout_id].response_mask)


def test_the_prefix_cache_carries_a_rollout_from_turn_to_turn(host, rollouts):
    (long,) = act(host, requests(samples=1)[1:2], arguments={"width": 64}).values()
    turns = int(long.turns.max()) + 1
    assert turns > 1
    prompts, cached = long.figures["prompt_tokens"], long.figures["cached_tokens"]
    # Of every turn but the first, whole blocks of 32 tokens of what stood there before.
    first = len(long.prompt_ids)
    read_before = 0
    for turn in range(1, turns):
        begin = int(np.flatnonzero(long.turns == turn)[0])
        behind_the_last = int(
            np.flatnonzero((long.turns == turn - 1) & (long.response_mask == 1))[-1]
        )
        read_before += (first + behind_the_last) // 32 * 32
        assert begin > behind_the_last
    assert cached >= read_before > 0
    assert cached < prompts


def test_limits_end_a_rollout_and_keep_the_students_tokens(host):
    def only(sampling=SAMPLING, **changes):
        (found,) = act(host, requests(samples=1)[:1], sampling, **changes).values()
        assert found.response_mask[-1] == 1
        return found

    forever = {"looks": 1000}
    turns = only(arguments=forever, max_turns=2)
    assert turns.finish_reason == "turns"
    assert turns.turns.max() == 1
    calls = only(arguments=forever, max_calls=1)
    assert (calls.finish_reason, calls.figures["calls"]) == ("tool_limit", 1)
    length = only(replace(SAMPLING, max_tokens=60), arguments=forever)
    assert length.finish_reason == "length"
    assert len(length.response_ids) <= 60
    context = only(replace(SAMPLING, max_tokens=1000), arguments={"looks": 1000, "width": 64})
    assert context.finish_reason in ("context", "turns")
    assert len(context.prompt_ids) + len(context.response_ids) <= CONTEXT
    short = only(arguments=forever, max_turn_tokens=2, max_turns=4)
    assert max(np.bincount(short.turns[short.response_mask == 1])) <= 2


def test_prompts_without_an_environment_run_beside(host):
    one, other = requests(samples=1)[:2]
    alone = replace(other, rollout_id="alone", episode=None, source="alone")
    found = act(host, [one, alone], replace(SAMPLING, max_tokens=40))
    assert found["alone"].turns is None
    assert found["alone"].response_mask.all()
    assert found[one.rollout_id].turns is not None
    (same,) = act(host, [alone], replace(SAMPLING, max_tokens=40)).values()
    assert np.array_equal(same.response_ids, found["alone"].response_ids)


def test_without_scores_the_conversation_comes_along(host, rollouts):
    (found,) = act(host, requests(samples=1)[:1], record=False).values()
    assert np.array_equal(found.response_ids, rollouts["p0-0"].response_ids)
    assert found.messages[0] == {"role": "user", "content": QUESTIONS[0]}
    assert [m["role"] for m in found.messages[1:3]] == ["assistant", "tool"]
    assert rollouts["p0-0"].messages is None
