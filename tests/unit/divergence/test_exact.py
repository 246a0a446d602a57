"""Exact scores against definitions written out, and against the fused divergence."""

import math
from types import SimpleNamespace

import divergence_by_definition as definition
import pytest
import torch

from opd_ray.divergence import (
    HiddenTarget,
    LogitsTarget,
    SampledTarget,
    TopKTarget,
    exact_scores,
    linear_divergence,
)

N, D, V, K = 9, 5, 12, 3


@pytest.fixture(name="case")
def _case():
    made = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=made, dtype=torch.float64)

    hidden, head, bias = normal(N, D), normal(V + 2, D), normal(V + 2)
    teacher = HiddenTarget(normal(N, 4), normal(V + 4, 4), normal(V + 4))
    sampled = torch.randint(0, V, (N,), generator=made)
    return SimpleNamespace(
        hidden=hidden,
        head=head,
        bias=bias,
        teacher=teacher,
        sampled=sampled,
        logits=teacher.hidden_ND @ teacher.head_VD.T + teacher.bias_V,
        options={"vocab_size": V, "bias_V": bias, "sampled_ids_N": sampled},
    )


@pytest.mark.parametrize("chunk_size", [1, 4, None])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", ["hidden", "logits"])
def test_every_score_is_its_definition(case, kind, temperature, chunk_size):
    target = case.teacher if kind == "hidden" else LogitsTarget(case.logits)
    scores = exact_scores(
        case.hidden,
        case.head,
        target,
        temperature=temperature,
        chunk_size=chunk_size,
        **case.options,
    )
    student = definition.student_logits(case.hidden, case.head, case.bias, V, temperature)
    for row in range(N):
        p = definition.probabilities(student[row])
        q = definition.probabilities(case.logits[row, :V] / temperature)
        expected = {
            "entropy_N": -(p * p.log()).sum(),
            "teacher_entropy_N": -(q * q.log()).sum(),
            "logprob_N": p[case.sampled[row]].log(),
            "teacher_logprob_N": q[case.sampled[row]].log(),
            "reverse_kl_N": definition.divergence("reverse_kl", p, q),
            "forward_kl_N": definition.divergence("forward_kl", p, q),
            "jsd_N": definition.divergence("jsd", p, q),
            "top1_agree_N": p.argmax() == q.argmax(),
        }
        for name, value in expected.items():
            torch.testing.assert_close(getattr(scores, name)[row], value)
    assert 0 < scores.top1_agree_N.sum() < N


def test_by_hand():
    """P = (1/2, 1/4, 1/4), Q = (1/4, 1/2, 1/4); token 1 was sampled."""
    p = torch.tensor([[0.5, 0.25, 0.25]])
    q = torch.tensor([[0.25, 0.5, 0.25]])
    scores = exact_scores(
        p.log(), torch.eye(3), LogitsTarget(q.log()), sampled_ids_N=torch.tensor([1])
    )
    expected = {
        "entropy_N": 1.5 * math.log(2),
        "teacher_entropy_N": 1.5 * math.log(2),
        "reverse_kl_N": math.log(2) / 4,
        "forward_kl_N": math.log(2) / 4,
        "jsd_N": 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3),
        "logprob_N": math.log(0.25),
        "teacher_logprob_N": math.log(0.5),
        "top1_agree_N": False,
    }
    for name, value in expected.items():
        assert getattr(scores, name).item() == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("k", [1, K, V])
def test_topk_scores(case, k):
    """Divergences of the coarser pair; the teacher's tail spread evenly where it is not known."""
    log_q = case.logits[:, :V].log_softmax(-1)
    top = log_q.topk(k)
    target = TopKTarget(top.indices, top.values)
    scores = exact_scores(case.hidden, case.head, target, chunk_size=4, **case.options)
    exact = exact_scores(case.hidden, case.head, case.teacher, **case.options)
    for name in ("entropy_N", "logprob_N", "top1_agree_N"):  # known exactly all the same
        torch.testing.assert_close(getattr(scores, name), getattr(exact, name))
    student = definition.student_logits(case.hidden, case.head, case.bias, V, 1.0)
    for row in range(N):
        q = log_q[row].exp()
        ids = top.indices[row].tolist()
        spread = torch.full((V,), 0.0, dtype=torch.float64)
        if k < V:
            spread += (1 - q[ids].sum()) / (V - k)
        spread[ids] = q[ids]
        p = definition.probabilities(student[row])
        pair = definition.coarse(p, ids), definition.coarse(q, ids)
        expected = {
            "teacher_logprob_N": spread[case.sampled[row]].log(),
            "teacher_entropy_N": -(spread * spread.log()).sum(),
            "reverse_kl_N": definition.divergence("reverse_kl", *pair),
            "forward_kl_N": definition.divergence("forward_kl", *pair),
            "jsd_N": definition.divergence("jsd", *pair),
        }
        for name, value in expected.items():
            torch.testing.assert_close(getattr(scores, name)[row], value)
    assert (scores.teacher_entropy_N >= exact.teacher_entropy_N - 1e-12).all()
    for name in ("reverse_kl_N", "forward_kl_N", "jsd_N"):
        assert (getattr(scores, name) <= getattr(exact, name) + 1e-12).all()


@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "jsd"])
@pytest.mark.parametrize("topk", [False, True])
def test_agrees_with_the_fused_divergence(case, kind, topk):
    target = case.teacher
    if topk:
        top = case.logits[:, :V].log_softmax(-1).topk(K)
        target = TopKTarget(top.indices, top.values)
    scores = exact_scores(case.hidden, case.head, target, **case.options)
    fused = linear_divergence(case.hidden, case.head, target, kind=kind, **case.options)
    torch.testing.assert_close(getattr(scores, f"{kind}_N"), fused.divergence_N)
    torch.testing.assert_close(scores.logprob_N, fused.logprob_N)


def test_a_tie_for_the_students_top_counts_as_agreement():
    student = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.9, 0.0]])
    teacher = LogitsTarget(torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]))
    sampled = torch.tensor([0, 0])
    scores = exact_scores(student, torch.eye(3), teacher, sampled_ids_N=sampled)
    assert scores.top1_agree_N.tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_against_itself_scores_zero(dtype):
    torch.manual_seed(0)
    hidden, head = torch.randn(20, 16, dtype=dtype), torch.randn(3000, 16, dtype=dtype)
    scores = exact_scores(
        hidden, head, HiddenTarget(hidden, head), sampled_ids_N=torch.arange(20), chunk_size=8
    )
    for name in ("reverse_kl_N", "forward_kl_N", "jsd_N"):
        assert (getattr(scores, name) == 0).all()
    assert scores.top1_agree_N.all()
    assert torch.equal(scores.entropy_N, scores.teacher_entropy_N)
    assert torch.equal(scores.logprob_N, scores.teacher_logprob_N)
    assert scores.entropy_N.dtype == torch.float32


def test_nothing_is_nan_with_one_hot_sides():
    student = torch.tensor([[1e4, 0.0, 0.0], [0.0, 0.0, 0.0]])
    one_hot = torch.tensor([[0.0, -math.inf, -math.inf]]).expand(2, 3)
    top = TopKTarget(torch.tensor([[1], [1]]), torch.tensor([[0.0], [0.0]]))
    for target in (LogitsTarget(one_hot), top):
        scores = exact_scores(student, torch.eye(3), target, sampled_ids_N=torch.tensor([2, 2]))
        for name, value in vars(scores).items():
            assert value.isfinite().all(), name


def test_no_rows():
    scores = exact_scores(
        torch.zeros(0, 4),
        torch.randn(7, 4),
        LogitsTarget(torch.zeros(0, 7)),
        sampled_ids_N=torch.zeros(0, dtype=torch.int64),
    )
    assert all(value.shape == (0,) for value in vars(scores).values())


def test_needs_no_gradient_and_gives_none():
    student = torch.randn(2, 3, requires_grad=True)
    scores = exact_scores(
        student, torch.eye(3), LogitsTarget(torch.zeros(2, 3)), sampled_ids_N=torch.tensor([0, 1])
    )
    assert not any(value.requires_grad for value in vars(scores).values())


def test_a_sampled_target_is_refused():
    target = SampledTarget(torch.tensor([0]), torch.tensor([-1.0]))
    with pytest.raises(ValueError, match="need the teacher's distribution"):
        exact_scores(torch.zeros(1, 3), torch.eye(3), target, sampled_ids_N=torch.tensor([0]))
