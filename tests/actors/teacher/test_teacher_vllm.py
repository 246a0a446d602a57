"""The vLLM teacher against the Hugging Face teacher, on real engines in a process of their own."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.managers import BaseManager
from typing import Any

import numpy as np
import pytest
from broken_models import change_weights, without
from test_teacher_hf import assert_rows, ragged, request, settings, turns
from tiny_models import make_tiny_qwen3, set_positions

from actors.teacher.contract.answers import check_answers
from actors.teacher.kinds.hf import HfTeacher
from actors.teacher.kinds.vllm import VllmTeacher
from actors.teacher.protocol import TeacherError, Wanted
from opd_ray.config.choices import Dtype, SignalChoice
from opd_ray.config.teacher import TeacherSettings
from opd_ray.models.tokenizer import describe_model
from opd_ray.models.weight_files import WeightsError
from opd_ray.preflight.pairing import PairingError, check_pairing, check_teacher_info
from opd_ray.types import ScoreRequest, TeacherAnswer, TeacherInfo, TopK

VOCAB = 96
REAL = 80
OWN_TOPK = 3
TOLERANCE = 1e-4
BUDGET = 64  # tokens of one pass
KV_BYTES = 1 << 18  # 512 tokens of the tiny model: fewer than its context of 1024


class TeacherHost:
    """Holds one vLLM teacher and counts what meets its output head."""

    def start(self, chosen: TeacherSettings, vocab_size: int) -> None:
        """Load it."""
        self._teacher = VllmTeacher(chosen, vocab_size=vocab_size, own_topk=OWN_TOPK)
        self._projected: list[int] = []
        projected = self._projected

        def count_rows(worker: Any) -> None:
            model = worker.model_runner.model
            compute_logits = model.compute_logits

            def counted(hidden: Any) -> Any:
                projected.append(len(hidden))
                return compute_logits(hidden)

            model.compute_logits = counted

        self._teacher._engine.collective_rpc(count_rows)

    def info(self) -> TeacherInfo:
        """What the teacher says of itself."""
        return self._teacher.info()

    def score(
        self, requests: list[ScoreRequest], wanted: Wanted | None = None
    ) -> list[TeacherAnswer]:
        """Its answers, in the shape that a run wants."""
        self._projected.clear()
        teacher = self._teacher if wanted is None else self._teacher.adapted(wanted)
        return teacher.score(requests)

    def projected(self) -> list[int]:
        """Rows of every call of the output head in the last :meth:`score`."""
        return list(self._projected)


class _HostManager(BaseManager):
    """Runs a TeacherHost in a process of its own."""


_HostManager.register("TeacherHost", TeacherHost)


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory):
    return str(make_tiny_qwen3(tmp_path_factory.mktemp("teacher"), vocab=VOCAB, tied=False))


@pytest.fixture(scope="module")
def folder(plain_folder, tmp_path_factory):
    """Of 256 positions, which YaRN makes 1024."""
    made = tmp_path_factory.mktemp("lengthened") / "teacher"
    shutil.copytree(plain_folder, made)
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}
    set_positions(made, max_position_embeddings=256, rope_parameters=yarn)
    return str(made)


@pytest.fixture(scope="module")
def process():
    """Of both teachers, so that vLLM is imported once."""
    manager = _HostManager(ctx=get_context("spawn"))
    manager.start()
    try:
        yield manager
    finally:
        manager.shutdown()


@pytest.fixture(scope="module")
def host(process, folder):
    made = process.TeacherHost()
    chosen = settings(folder, kind="vllm", threads=1, batch_tokens=BUDGET, kv_cache_bytes=KV_BYTES)
    made.start(chosen, REAL)
    return made


def assert_same(host, folder: str, requests: list[ScoreRequest]) -> list[TeacherAnswer]:
    answers = host.score(requests)
    check_answers(host.info(), requests, answers, TeacherSettings(topk=8))
    expected = HfTeacher(settings(folder), vocab_size=REAL, own_topk=OWN_TOPK).score(requests)
    for got, want in zip(answers, expected, strict=True):
        assert got.rollout_id == want.rollout_id
        for name, a, b in (
            ("logprob", got.logprob, want.logprob),
            ("at_student_topk", got.at_student_topk, want.at_student_topk),
            ("entropy", got.entropy, want.entropy),
            ("signal", got.signal.logprobs, want.signal.logprobs),
            ("own top-k", got.topk.logprobs, want.topk.logprobs),
        ):
            np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE, err_msg=name)
        # Ties may come in either order.
        clear = np.abs(np.diff(want.signal.logprobs, axis=1)).min(axis=1) > TOLERANCE
        np.testing.assert_array_equal(got.signal.ids[clear], want.signal.ids[clear])
    return answers


def test_ragged_requests_equal_hf(host, folder):
    assert_same(host, folder, ragged(seed=1, count=24))


def test_shortest_sequences(host, folder):
    assert_same(host, folder, [request("a", [5], [7]), request("b", [5, 6, 9], [7])])


def test_a_response_of_many_passes(host, folder):
    """Prompt and response both end in the middle of a pass, beside others that fit into one."""
    rng = np.random.default_rng(2)
    long = request("long", rng.integers(0, REAL, 150).tolist(), rng.integers(0, REAL, 301).tolist())
    others = ragged(seed=3, count=6)
    assert_same(host, folder, [*others[:3], long, *others[3:]])


def test_the_longest_sequence_that_info_allows(host, folder):
    rng = np.random.default_rng(7)
    ids = rng.integers(0, REAL, host.info().context_length).tolist()
    assert_same(host, folder, [request("longest", ids[:200], ids[200:])])


def test_more_requests_than_the_kv_cache_holds(host, folder):
    rng = np.random.default_rng(5)
    tokens = [rng.integers(0, REAL, 120).tolist() for _ in range(12)]
    requests = [request(f"r{i}", ids[:60], ids[60:], seed=i) for i, ids in enumerate(tokens)]
    assert_same(host, folder, requests)


def test_repeated_and_prefix_sharing_requests_are_computed_anew(host, folder):
    rng = np.random.default_rng(6)
    ids = rng.integers(0, REAL, 200).tolist()
    requests = [request("a", ids[:100], ids[100:]), request("b", ids[:40], ids[40:150])]
    first = assert_same(host, folder, requests)
    again = host.score(requests)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_allclose(a.logprob, b.logprob, atol=TOLERANCE)


def test_only_response_rows_meet_the_vocabulary_within_the_token_budget(host):
    requests = [request(f"r{i}", [3] * 50, [4] * 5, seed=i) for i in range(8)]
    host.score(requests)
    rows = host.projected()
    assert max(rows) <= BUDGET
    # vLLM samples a token after each pass, from one more row a sequence.
    passes = -(-8 * 54 // BUDGET)
    assert 8 * 5 <= sum(rows) <= 8 * 5 + 8 + 2 * passes


def test_asked_rows_are_those_rows_of_the_whole_answer(host):
    """One response takes many passes, some of them without a row that is asked about."""
    rng = np.random.default_rng(10)
    ids = rng.integers(0, REAL, 450).tolist()
    long = request("long", ids[:150], ids[150:])
    rows = np.r_[3:9, 130:133, 290:299].astype(np.int32)
    topk = TopK(long.student_topk.ids[rows], long.student_topk.logprobs[rows])
    whole = [*ragged(seed=9, count=12), long]
    some = [*map(turns, whole[:-1]), replace(long, rows=rows, student_topk=topk)]
    answers = host.score(some)
    read = sum(len(r.prompt_ids) + len(r.response_ids) for r in some)
    asked = sum(len(r.rows) for r in some)
    # vLLM samples a token after each pass, from one more row a sequence.
    assert asked <= sum(host.projected()) <= asked + len(some) + 4 * -(-read // BUDGET)
    assert asked < sum(len(r.response_ids) for r in some) / 4
    check_answers(host.info(), some, answers, TeacherSettings(topk=8))
    for r, answer, expected in zip(some, answers, host.score(whole), strict=True):
        assert_rows(r, answer, expected, atol=TOLERANCE)


def test_one_engine_answers_each_run_as_it_wants(host):
    requests = ragged(seed=4, count=6)
    whole = host.score(requests)
    narrow = host.score(requests, Wanted(SignalChoice.topk, topk=3, own_topk=2))
    sampled = host.score(requests, Wanted(SignalChoice.sampled, topk=1))
    bare = host.score(requests, Wanted(SignalChoice.topk, topk=0))
    check_answers(host.info(), requests, bare, TeacherSettings(topk=0))
    for full, none in zip(whole, bare, strict=True):
        assert none.signal is none.topk is None
        np.testing.assert_allclose(none.at_student_topk, full.at_student_topk, atol=TOLERANCE)
    check_answers(host.info(), requests, narrow, TeacherSettings(topk=3))
    check_answers(
        host.info(), requests, sampled, TeacherSettings(signal=SignalChoice.sampled, topk=1)
    )
    for full, few, one in zip(whole, narrow, sampled, strict=True):
        expected = full.signal.logprobs
        np.testing.assert_allclose(few.signal.logprobs, expected[:, :3], atol=TOLERANCE)
        np.testing.assert_allclose(few.topk.logprobs, expected[:, :2], atol=TOLERANCE)
        np.testing.assert_allclose(one.signal.logprobs, full.logprob, atol=TOLERANCE)
        assert one.topk is None
    for more in (Wanted(SignalChoice.topk, topk=9), Wanted(SignalChoice.hidden, topk=8)):
        with pytest.raises(TeacherError, match="this vllm teacher gives topk up to 8, or sampled"):
            host.score(requests, more)
    assert host.score(requests)[0].signal.ids.shape[1] == 8  # what others want changes nothing


def test_weights_that_vllm_would_start_at_random_are_refused(host, tmp_path):
    name = "model.layers.1.self_attn.q_proj.weight"
    broken = change_weights(make_tiny_qwen3(tmp_path, vocab=VOCAB, tied=False), without(name))
    chosen = settings(str(broken), kind="vllm", threads=1, kv_cache_bytes=KV_BYTES)
    with pytest.raises(WeightsError, match=re.escape(f"1 missing ({name})")):
        host.start(chosen, REAL)


def test_no_requests_no_answers(host):
    assert host.score([]) == []


def test_info_names_what_fits_into_the_kv_cache(host):
    info = host.info()
    assert info.vocab_size == REAL
    assert info.context_length == 512 - 32  # vLLM keeps one block of 32 tokens for itself
    assert info.signals == ("topk",)
    assert info.tokenizer_hash


def test_a_run_with_longer_sequences_is_told_which_key_to_raise(host, folder):
    facts = describe_model(folder)
    pairing = check_pairing(facts, facts, context_length=500)
    info = host.info()
    with pytest.raises(PairingError, match="teacher.kv_cache_bytes = 262144.* raise .* to 288768"):
        check_teacher_info(pairing, replace(info, vocab_size=VOCAB), context_length=500)
    check_teacher_info(pairing, replace(info, vocab_size=VOCAB), context_length=480)


@pytest.fixture(scope="module")
def half(process, plain_folder):
    """In bfloat16 and with the sampled signal; the process first fails to start another one."""
    chosen = settings(
        plain_folder,
        kind="vllm",
        threads=1,
        dtype=Dtype.bfloat16,
        signal=SignalChoice.sampled,
        kv_cache_bytes=1 << 18,
    )
    made = process.TeacherHost()
    with pytest.raises(TeacherError, match="teacher.kv_cache_bytes = 1000.* raise it"):
        made.start(replace(chosen, kv_cache_bytes=1000), REAL)
    made.start(chosen, REAL)
    return made, chosen


def test_the_sampled_signal_in_bfloat16(half, plain_folder):
    host, chosen = half
    requests = ragged(seed=8, count=16)
    answers = host.score(requests)
    check_answers(host.info(), requests, answers, chosen)
    expected = HfTeacher(replace(chosen, kind="hf"), vocab_size=REAL).score(requests)
    exact = HfTeacher(settings(plain_folder), vocab_size=REAL).score(requests)
    for got, want, true in zip(answers, expected, exact, strict=True):
        assert got.signal.logprobs.dtype == np.float32
        np.testing.assert_array_equal(got.signal.logprobs, got.logprob)
        for name in ("logprob", "entropy", "at_student_topk"):
            mine, theirs, best = (getattr(answer, name) for answer in (got, want, true))
            # No further from the truth than another engine's rounding is.
            assert np.abs(mine - best).mean() <= 2 * np.abs(theirs - best).mean() + 0.01, name
            np.testing.assert_allclose(mine, best, atol=0.3, err_msg=name)
