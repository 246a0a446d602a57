"""The Hugging Face teacher against log-probabilities straight from the definition."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from broken_models import change_weights, without
from tiny_models import make_tiny_qwen3
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from actors.teacher.contract.answers import check_answers
from actors.teacher.contract.rows import rows_of
from actors.teacher.kinds import hf
from actors.teacher.kinds.hf import HfTeacher
from actors.teacher.kinds.self_student import Follower
from actors.teacher.protocol import TeacherError
from actors.teacher.service import TeacherServer
from opd_ray.config.choices import Dtype, SignalChoice
from opd_ray.config.teacher import TeacherSettings
from opd_ray.models.weight_files import WeightsError
from opd_ray.types import ScoreRequest, TeacherAnswer, TopK, to_tensor

VOCAB = 96
REAL = 80


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(make_tiny_qwen3(tmp_path_factory.mktemp("teacher"), vocab=VOCAB, tied=False))


def settings(path, **changes) -> TeacherSettings:
    return TeacherSettings(path=path, **{"topk": 8, "batch_tokens": 64, **changes})


def request(name: str, prompt: list[int], response: list[int], k: int = 4, seed: int = 0):
    rng = np.random.default_rng(seed + len(response))
    ids = np.stack([rng.choice(REAL, k, replace=False) for _ in response])
    return ScoreRequest(
        rollout_id=name,
        prompt_ids=np.array(prompt, np.int32),
        response_ids=np.array(response, np.int32),
        student_topk=TopK(ids.astype(np.int32), np.full(ids.shape, -3.0, np.float32)),
    )


def ragged(seed: int = 0, count: int = 7, longest: int = 23) -> list[ScoreRequest]:
    """Requests of many lengths, so that a budget of 64 tokens takes several passes."""
    rng = np.random.default_rng(seed)
    return [
        request(
            f"r{i}",
            rng.integers(0, REAL, rng.integers(1, longest)).tolist(),
            rng.integers(0, REAL, rng.integers(1, longest)).tolist(),
            seed=i,
        )
        for i in range(count)
    ]


def turns(whole: ScoreRequest, seed: int = 0) -> ScoreRequest:
    """About some rows of a response, with gaps between and before them; at least one."""
    m = len(whole.response_ids)
    rng = np.random.default_rng([seed, m])
    rows = np.flatnonzero(rng.random(m) < 0.4).astype(np.int32)
    rows = rows if len(rows) else np.array([m - 1], np.int32)
    topk = whole.student_topk
    return replace(whole, rows=rows, student_topk=TopK(topk.ids[rows], topk.logprobs[rows]))


def assert_rows(some: ScoreRequest, answer: TeacherAnswer, whole: TeacherAnswer, atol: float):
    """The answer is what the whole one says of the rows, in every array of it."""
    expected = rows_of(whole, some.rows)
    assert answer.rollout_id == some.rollout_id
    for name in ("logprob", "at_student_topk", "entropy"):
        mine, theirs = getattr(answer, name), getattr(expected, name)
        assert len(mine) == len(some.rows)
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=atol, err_msg=name)
    for name in ("hidden", "logprobs"):
        if hasattr(expected.signal, name):
            mine, theirs = getattr(answer.signal, name), getattr(expected.signal, name)
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=atol, err_msg=name)


def naive(path: str, r: ScoreRequest, real: int, dtype=torch.float32) -> torch.Tensor:
    """Log-probabilities [m, real] by way of all logits of one unpadded sequence."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    text = np.concatenate((r.prompt_ids, r.response_ids))
    with torch.no_grad():
        logits = model(torch.from_numpy(text).long()[None]).logits[0]
    rows = []
    for t in range(len(r.response_ids)):
        before = len(r.prompt_ids) + t  # tokens read when response token t is predicted
        rows.append(torch.log_softmax(logits[before - 1, :real].double(), dim=-1))
    return torch.stack(rows)


@pytest.mark.parametrize("real", [VOCAB, REAL])
def test_values_equal_whole_logits(folder, real):
    requests = ragged()
    teacher = HfTeacher(settings(folder), vocab_size=real, own_topk=3)
    answers = teacher.score(requests)
    check_answers(teacher.info(), requests, answers, TeacherSettings(topk=8))
    for r, answer in zip(requests, answers, strict=True):
        expected = naive(folder, r, real)
        sampled = torch.from_numpy(r.response_ids).long()[:, None]
        at_student = expected.gather(1, torch.from_numpy(r.student_topk.ids).long())
        np.testing.assert_allclose(answer.logprob, expected.gather(1, sampled)[:, 0], atol=1e-5)
        np.testing.assert_allclose(answer.at_student_topk, at_student, atol=1e-5)
        np.testing.assert_allclose(answer.entropy, -(expected.exp() * expected).sum(-1), atol=1e-5)
        top = expected.topk(8, dim=-1)
        np.testing.assert_allclose(answer.signal.logprobs, top.values, atol=1e-5)
        np.testing.assert_array_equal(answer.signal.ids, top.indices)
        np.testing.assert_array_equal(answer.topk.ids, answer.signal.ids[:, :3])
        tail = 1 - np.exp(answer.signal.logprobs.astype(np.float64)).sum(-1)
        left = expected.exp().scatter(1, top.indices, 0.0).sum(-1)
        np.testing.assert_allclose(tail, left, atol=1e-5)


def test_whole_vocabulary_as_topk_sums_to_one_without_padding_rows(folder):
    r = request("r", [5, 6], [7, 8, 9])
    [answer] = HfTeacher(settings(folder, topk=REAL), vocab_size=REAL).score([r])
    assert answer.signal.ids.max() < REAL
    np.testing.assert_allclose(np.exp(answer.signal.logprobs).sum(-1), 1.0, atol=1e-5)


def test_three_tokens_by_hand(tmp_path):
    """A model whose next-token distribution is known on paper: it depends on the last token alone.

    With every layer's output set to zero, the last hidden state is the normed embedding of the
    last token, and the untied head maps token a to logit 4 for token a + 1.
    """
    vocab, size = 6, 64
    path = make_tiny_qwen3(tmp_path, vocab=vocab, hidden=size, layers=1, tied=False)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1.0)
        model.model.embed_tokens.weight.copy_(100 * torch.eye(vocab, size))
        # The norm makes any multiple of a unit vector sqrt(size) = 8 long.
        head = torch.zeros(vocab, size)
        for token in range(vocab - 1):
            head[token + 1, token] = 4.0 / 8.0
        model.lm_head.weight.copy_(head)
    model.save_pretrained(path)

    r = request("r", [5, 1], [2, 4, 5], k=2)
    ids = np.array([[2, 0], [3, 2], [5, 1]], np.int32)
    r = ScoreRequest(r.rollout_id, r.prompt_ids, r.response_ids, TopK(ids, r.student_topk.logprobs))
    [answer] = HfTeacher(settings(str(path), topk=1)).score([r])
    # After 1 comes 2 (logit 4 against five zeros); after 2 comes 3, not 4; after 4 comes 5.
    high = 4 - np.log(np.exp(4) + 5)
    low = -np.log(np.exp(4) + 5)
    np.testing.assert_allclose(answer.logprob, [high, low, high], atol=1e-5)
    np.testing.assert_allclose(
        answer.at_student_topk, [[high, low], [high, low], [high, low]], atol=1e-5
    )
    np.testing.assert_array_equal(answer.signal.ids[:, 0], [2, 3, 5])


def test_batch_composition_does_not_change_values(folder):
    requests = ragged(seed=1, count=9)
    teacher = HfTeacher(settings(folder, batch_tokens=200))
    together = teacher.score(requests)
    backwards = teacher.score(requests[::-1])[::-1]
    for i, r in enumerate(requests):
        [alone] = teacher.score([r])
        for other in (together[i], backwards[i]):
            np.testing.assert_allclose(other.logprob, alone.logprob, atol=1e-4)
            np.testing.assert_allclose(other.at_student_topk, alone.at_student_topk, atol=1e-4)
            np.testing.assert_allclose(other.entropy, alone.entropy, atol=1e-4)
            np.testing.assert_allclose(other.signal.logprobs, alone.signal.logprobs, atol=1e-4)


@pytest.mark.parametrize("dtype", [Dtype.float32, Dtype.bfloat16])
def test_hidden_signal_times_head_is_the_distribution(folder, dtype):
    requests = ragged(seed=2)
    chosen = settings(folder, signal=SignalChoice.hidden, dtype=dtype)
    teacher = HfTeacher(chosen, vocab_size=REAL)
    answers = teacher.score(requests)
    check_answers(
        teacher.info(), requests, answers, TeacherSettings(signal=SignalChoice.hidden, topk=8)
    )
    weight, bias = teacher.output_head()
    assert weight.shape == (REAL, 64)
    assert bias is None
    expected_dtype = np.float32 if dtype is Dtype.float32 else np.uint16
    tolerance = 1e-5 if dtype is Dtype.float32 else 0.15
    for r, answer in zip(requests, answers, strict=True):
        assert answer.signal.hidden.dtype == expected_dtype
        logits = to_tensor(answer.signal.hidden).float() @ to_tensor(weight).float().T
        logprobs = torch.log_softmax(logits, dim=-1)
        sampled = torch.from_numpy(r.response_ids).long()[:, None]
        np.testing.assert_allclose(
            logprobs.gather(1, sampled)[:, 0], answer.logprob, atol=tolerance
        )


def test_bfloat16_stays_near_float32(folder):
    requests = ragged(seed=3)
    exact = HfTeacher(settings(folder)).score(requests)
    half = HfTeacher(settings(folder, dtype=Dtype.bfloat16)).score(requests)
    apart = np.concatenate(
        [np.abs(a.logprob - b.logprob) for a, b in zip(exact, half, strict=True)]
    )
    assert apart.max() > 0  # else the format was ignored
    assert apart.mean() < 0.1


def test_sampled_signal(folder):
    requests = ragged(seed=4)
    teacher = HfTeacher(settings(folder, signal=SignalChoice.sampled))
    answers = teacher.score(requests)
    check_answers(
        teacher.info(), requests, answers, TeacherSettings(signal=SignalChoice.sampled, topk=8)
    )
    for r, answer in zip(requests, answers, strict=True):
        expected = naive(folder, r, VOCAB)
        sampled = torch.from_numpy(r.response_ids).long()[:, None]
        np.testing.assert_allclose(
            answer.signal.logprobs, expected.gather(1, sampled)[:, 0], atol=1e-5
        )


def test_only_response_rows_meet_the_vocabulary_a_chunk_at_a_time(folder, monkeypatch):
    requests = ragged(seed=5, count=12)
    teacher = HfTeacher(settings(folder, batch_tokens=4096))
    five_rows = partial(hf.project, chunk_bytes=4 * VOCAB * 5)
    projected = []
    handle = teacher._head.register_forward_hook(
        lambda module, inputs, output: projected.append(output.shape)
    )
    with monkeypatch.context() as changed:
        changed.setattr(hf, "project", five_rows)
        chunked = teacher.score(requests)
    handle.remove()
    assert max(rows for rows, _ in projected) == 5
    assert sum(rows for rows, _ in projected) == sum(len(r.response_ids) for r in requests)
    whole = HfTeacher(settings(folder, batch_tokens=4096)).score(requests)
    for a, b in zip(chunked, whole, strict=True):
        np.testing.assert_allclose(a.logprob, b.logprob, atol=1e-5)
        np.testing.assert_array_equal(a.signal.ids, b.signal.ids)


@pytest.mark.parametrize("signal", list(SignalChoice))
def test_asked_rows_are_those_rows_of_the_whole_answer(folder, signal):
    whole = ragged(seed=9, count=12)
    some = [turns(r) for r in whole]
    teacher = HfTeacher(settings(folder, signal=signal), vocab_size=REAL)
    projected = []
    handle = teacher._head.register_forward_hook(
        lambda module, inputs, output: projected.append(len(output))
    )
    answers = teacher.score(some)
    handle.remove()
    # What lies between them is read, and never meets the vocabulary.
    assert sum(projected) == sum(len(r.rows) for r in some) < sum(len(r.response_ids) for r in some)
    chosen = TeacherSettings(signal=signal, topk=8)
    check_answers(teacher.info(), some, answers, chosen)
    for r, answer, expected in zip(some, answers, teacher.score(whole), strict=True):
        assert_rows(r, answer, expected, atol=1e-4)
    # Beside whole responses, and the same.
    mixed = teacher.score([*whole[:3], *some[3:]])
    for r, answer, expected in zip(some[3:], mixed[3:], answers[3:], strict=True):
        np.testing.assert_allclose(answer.logprob, expected.logprob, atol=1e-4)
        assert len(answer.logprob) == len(r.rows)


def test_passes_stay_within_the_token_budget(folder):
    requests = ragged(seed=6, count=20)
    teacher = HfTeacher(settings(folder, batch_tokens=64))
    seen = []
    handle = teacher._trunk.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(kwargs["input_ids"].shape),
        with_kwargs=True,
    )
    teacher.score(requests)
    handle.remove()
    assert max(rows * length for rows, length in seen) <= 64
    assert len(seen) < len(requests)


def test_no_requests_no_answers(folder):
    assert HfTeacher(settings(folder)).score([]) == []


def test_info(folder):
    info = HfTeacher(settings(folder), vocab_size=REAL).info()
    assert (info.vocab_size, info.context_length, info.hidden_size) == (REAL, 1024, 64)
    assert info.signals == ("topk",)
    assert info.tokenizer_hash


@pytest.mark.parametrize(
    ("config_class", "model_class"),
    [(LlamaConfig, LlamaForCausalLM), (Qwen2Config, Qwen2ForCausalLM)],
)
def test_other_architectures(tmp_path, config_class, model_class):
    path = make_tiny_qwen3(tmp_path, vocab=VOCAB)
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.4,
    }
    model_class(config_class(**shape)).save_pretrained(path)
    requests = ragged(seed=7, count=3)
    for r, answer in zip(requests, HfTeacher(settings(str(path))).score(requests), strict=True):
        sampled = torch.from_numpy(r.response_ids).long()[:, None]
        expected = naive(str(path), r, VOCAB).gather(1, sampled)[:, 0]
        np.testing.assert_allclose(answer.logprob, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("attention_cap", "message"),
    [(None, "the model scales or caps them"), (50.0, "attention of Gemma2Attention has softcap")],
)
def test_soft_capped_logits_are_refused(tmp_path, attention_cap, message):
    path = make_tiny_qwen3(tmp_path, vocab=VOCAB)
    config = Gemma2Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        final_logit_softcapping=0.5,
        attn_logit_softcapping=attention_cap,
        initializer_range=0.4,
    )
    Gemma2ForCausalLM(config).save_pretrained(path)
    with pytest.raises(TeacherError, match=message):
        HfTeacher(settings(str(path)))


def test_weights_that_are_no_numbers_are_refused(folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight[3] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(TeacherError, match="its logits are NaN or infinite in float32"):
        HfTeacher(settings(str(tmp_path)))


@pytest.mark.parametrize("kind", [HfTeacher, Follower])
def test_weights_that_would_be_random_are_refused(tmp_path, kind):
    broken = change_weights(make_tiny_qwen3(tmp_path, tied=False), without("lm_head.weight"))
    with pytest.raises(WeightsError, match=r"1 missing \(lm_head.weight\)"):
        kind(settings(str(broken)))


def test_more_tokens_than_the_output_head_has_are_refused(folder):
    with pytest.raises(TeacherError, match="96 rows for 97 tokens"):
        HfTeacher(settings(folder), vocab_size=97)


def test_server_hands_out_the_head_of_a_hidden_teacher(folder):
    chosen = settings(folder, signal=SignalChoice.hidden)
    teacher = HfTeacher(chosen, vocab_size=REAL)
    server = TeacherServer(teacher, chosen)
    (part,) = server.output_head()
    assert (part.weight.shape, part.bias, part.share) == ((REAL, 64), None, 1.0)
    teacher.output_head = lambda: (part.weight[1:], None)
    with pytest.raises(TeacherError, match=r"output_head\(\) has shape \(79, 64\)"):
        server.output_head()


def test_server_refuses_a_topk_above_the_vocabulary(folder):
    chosen = settings(folder, topk=97)
    with pytest.raises(TeacherError, match=r"teacher\.topk is 97, it can give 1 to 96"):
        TeacherServer(HfTeacher(chosen), chosen)
