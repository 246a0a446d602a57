"""Values of the fused divergence: hand-computed cases and the laws that divergences obey."""

import math

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from opd_ray.divergence import (
    MIN_TAIL_MASS,
    HiddenTarget,
    LogitsTarget,
    SampledTarget,
    TopKTarget,
    linear_divergence,
)

KINDS = ("reverse_kl", "forward_kl", "jsd")
LAW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def of_logits(student_NV, target, **options):
    """The divergence of given student logits: an identity head leaves them as they are."""
    return linear_divergence(
        student_NV, torch.eye(student_NV.shape[1], dtype=student_NV.dtype), target, **options
    )


def double(rows):
    return torch.tensor(rows, dtype=torch.float64)


@st.composite
def logits_pairs(draw, least_tokens=2):
    """Student and teacher logits [N, V], float64, from flat to peaked."""
    rows = draw(st.integers(1, 4))
    tokens = draw(st.integers(least_tokens, 9))
    made = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.01, 1.0, 5.0, 30.0]))
    return tuple(
        scale * torch.randn(rows, tokens, generator=made, dtype=torch.float64) for _ in range(2)
    )


# P = (1/2, 1/4, 1/4), Q = (1/4, 1/2, 1/4).
BY_HAND = {
    # 1/2 ln 2 - 1/4 ln 2
    "reverse_kl": math.log(2) / 4,
    "forward_kl": math.log(2) / 4,
    # M = (3/8, 3/8, 1/4): each half is 1/2 ln(4/3) + 1/4 ln(2/3)
    "jsd": 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3),
}


@pytest.mark.parametrize("kind", KINDS)
def test_by_hand(kind):
    student = double([[0.5, 0.25, 0.25]]).log() + 3.0
    teacher = LogitsTarget(double([[0.25, 0.5, 0.25]]).log() - 1.0)
    output = of_logits(student, teacher, kind=kind, sampled_ids_N=torch.tensor([2]))
    assert output.divergence_N.item() == pytest.approx(BY_HAND[kind], abs=1e-12)
    assert output.logprob_N.item() == pytest.approx(math.log(0.25), abs=1e-12)


def test_jsd_beta_by_hand():
    """P = (1/2, 1/2), Q = (1, 0), beta = 1/4: M = (5/8, 3/8)."""
    value = of_logits(
        double([[0.0, 0.0]]), LogitsTarget(double([[0.0, -math.inf]])), kind="jsd", beta=0.25
    ).divergence_N.item()
    teacher_half = math.log(8 / 5)
    student_half = 0.5 * math.log(4 / 5) + 0.5 * math.log(4 / 3)
    assert value == pytest.approx(0.25 * teacher_half + 0.75 * student_half, abs=1e-12)


def test_topk_with_tail_by_hand():
    """Support {2}: buckets (1/4, 3/4) of the student, (1/2, 1/2) of the teacher."""
    student = double([[0.5, 0.25, 0.25]]).log()
    target = TopKTarget(torch.tensor([[2]]), double([[math.log(0.5)]]))
    output = of_logits(student, target, sampled_ids_N=torch.tensor([0]))
    expected = 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2)
    assert output.divergence_N.item() == pytest.approx(expected, abs=1e-12)
    assert output.logprob_N.item() == pytest.approx(math.log(0.5), abs=1e-12)


def test_sampled_by_hand():
    """log(1/4) - log(1/2), and its gradient -ln 2 (onehot - P); negative values are kept."""
    student = double([[0.5, 0.25, 0.25]]).log().requires_grad_()
    target = SampledTarget(torch.tensor([1]), double([math.log(0.5)]))
    output = of_logits(student, target, weights_N=double([2.0]))
    assert output.divergence_N.item() == pytest.approx(-math.log(2), abs=1e-12)
    assert output.loss.item() == pytest.approx(-2 * math.log(2), abs=1e-12)
    output.loss.backward()
    expected = -2 * math.log(2) * double([[-0.5, 0.75, -0.25]])
    torch.testing.assert_close(student.grad, expected)


def test_gradient_by_hand():
    """P (log P/Q - KL) with P = (1/2, 1/4, 1/4), Q = (1/4, 1/2, 1/4), at temperature 2."""
    student = (2 * double([[0.5, 0.25, 0.25]]).log()).requires_grad_()
    teacher = LogitsTarget(2 * double([[0.25, 0.5, 0.25]]).log())
    of_logits(student, teacher, temperature=2.0).loss.backward()
    log2 = math.log(2)
    expected = double([[0.5 * (log2 - log2 / 4), 0.25 * (-log2 - log2 / 4), 0.25 * (-log2 / 4)]])
    torch.testing.assert_close(student.grad, expected / 2)


@LAW
@given(logits_pairs(), st.sampled_from(KINDS), st.floats(0.05, 0.95))
def test_never_negative_and_jsd_at_most_the_entropy_of_beta(pair, kind, beta):
    value_N = of_logits(pair[0], LogitsTarget(pair[1]), kind=kind, beta=beta).divergence_N
    assert (value_N >= 0).all()
    if kind == "jsd":
        bound = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
        assert (value_N <= bound + 1e-12).all()
    half_N = of_logits(pair[0], LogitsTarget(pair[1]), kind="jsd").divergence_N
    assert (half_N <= math.log(2) + 1e-12).all()


@LAW
@given(logits_pairs(), st.sampled_from(KINDS), st.sampled_from([torch.float32, torch.float64]))
def test_zero_if_equal(pair, kind, dtype):
    """To the last bit, gradient included, whatever the precision."""
    student = pair[0].to(dtype).requires_grad_()
    output = of_logits(student, LogitsTarget(student.detach().clone()), kind=kind)
    output.loss.backward()
    assert (output.divergence_N == 0).all()
    assert student.grad.abs().max() <= (0 if kind != "forward_kl" else torch.finfo(dtype).eps)


@LAW
@given(logits_pairs(), st.sampled_from(KINDS))
def test_above_zero_if_different(pair, kind):
    p, q = (logits.softmax(-1) for logits in pair)
    assume(((p - q).abs().amax(-1) > 1e-4).all())
    # Pinsker: each KL is at least half the squared L1 distance; JSD at least an eighth of it.
    least = (p - q).abs().sum(-1) ** 2 / (2 if kind != "jsd" else 8)
    value_N = of_logits(pair[0], LogitsTarget(pair[1]), kind=kind).divergence_N
    assert (value_N >= least * (1 - 1e-9) - 1e-15).all()


@LAW
@given(logits_pairs(), st.sampled_from(KINDS), st.floats(-1e3, 1e3), st.floats(-1e3, 1e3))
def test_a_constant_added_to_the_logits_changes_nothing(pair, kind, to_student, to_teacher):
    plain = of_logits(pair[0], LogitsTarget(pair[1]), kind=kind)
    moved = of_logits(pair[0] + to_student, LogitsTarget(pair[1] + to_teacher), kind=kind)
    torch.testing.assert_close(moved.divergence_N, plain.divergence_N, rtol=1e-8, atol=1e-10)


@LAW
@given(logits_pairs(least_tokens=4), st.sampled_from(KINDS), st.data())
def test_a_coarser_support_never_raises_the_divergence(pair, kind, data):
    """Full >= teacher's top-K >= a part of it, and K = V is the full divergence."""
    tokens = pair[0].shape[1]
    wide = data.draw(st.integers(2, tokens))
    narrow = data.draw(st.integers(1, wide - 1))
    log_q = pair[1].log_softmax(-1)

    def top(k):
        found = log_q.topk(k)
        target = TopKTarget(found.indices, found.values)
        return of_logits(pair[0], target, kind=kind).divergence_N

    full_N = of_logits(pair[0], LogitsTarget(pair[1]), kind=kind).divergence_N
    # A teacher's tail below MIN_TAIL_MASS counts as that much, at the student's price of a tail.
    slack = MIN_TAIL_MASS * (1 - pair[0].log_softmax(-1).amin(-1))
    assert (top(wide) <= full_N + slack).all()
    # The least tail also caps what the student's tail can cost: below it, only that bound holds.
    above = 1 - log_q.topk(wide).values.exp().sum(-1) > MIN_TAIL_MASS
    assert (top(narrow) <= top(wide) + slack)[above | (wide == tokens)].all()
    torch.testing.assert_close(top(tokens), full_N, rtol=1e-9, atol=1e-12)


@LAW
@given(logits_pairs(), st.sampled_from(KINDS), st.integers(1, 5), st.booleans())
def test_chunk_size_changes_neither_value_nor_gradient(pair, kind, chunk_size, topk):
    log_q = pair[1].log_softmax(-1)
    target = TopKTarget(*reversed(log_q.topk(1))) if topk else LogitsTarget(pair[1])

    def run(size):
        student = pair[0].clone().requires_grad_()
        output = of_logits(student, target, kind=kind, chunk_size=size)
        output.loss.backward()
        return output.divergence_N, student.grad

    for found, expected in zip(run(chunk_size), run(None), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@LAW
@given(logits_pairs(), st.sampled_from(KINDS))
def test_weights_are_linear(pair, kind):
    weights = torch.linspace(0, 2, len(pair[0]), dtype=torch.float64)
    output = of_logits(pair[0], LogitsTarget(pair[1]), kind=kind, weights_N=weights)
    torch.testing.assert_close(output.loss, (weights * output.divergence_N).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_student_equal_to_teacher_is_zero_at_a_real_width(kind, dtype):
    """Hidden states, head and several chunks of a model compared with itself."""
    torch.manual_seed(0)
    hidden, head = torch.randn(37, 32, dtype=dtype), torch.randn(5000, 32, dtype=dtype)
    output = linear_divergence(hidden, head, HiddenTarget(hidden, head), kind=kind, chunk_size=16)
    assert output.loss.item() == 0.0
    top = (hidden @ head.T).float().log_softmax(-1).topk(20)
    target = TopKTarget(top.indices, top.values)
    assert linear_divergence(hidden, head, target, kind=kind).divergence_N.max() < 1e-6
