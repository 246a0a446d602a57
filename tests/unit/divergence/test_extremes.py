"""Extreme logits, one-hot teachers, -inf, empty tails: finite and right, or NaN and loud."""

import math

import pytest
import torch

from opd_ray.divergence import (
    LOGPROB_FLOOR,
    MIN_TAIL_MASS,
    LogitsTarget,
    SampledTarget,
    TopKTarget,
    linear_divergence,
)

KINDS = ("reverse_kl", "forward_kl", "jsd")
DTYPES = (torch.float32, torch.float64)
INF = math.inf


def run(student_rows, target, dtype=torch.float64, **options):
    """Divergences and student-logit gradients of given logits."""
    student = torch.tensor(student_rows, dtype=dtype).requires_grad_()
    head = torch.eye(student.shape[1], dtype=dtype)
    bias = None
    if torch.isinf(student).any():  # inf x 0 in the product would be NaN: -inf comes by the bias
        bias, student = student.detach()[0], torch.zeros_like(student, requires_grad=True)
    output = linear_divergence(student, head, target, bias_V=bias, **options)
    output.loss.backward()
    return output.divergence_N, student.grad


def logits(rows, dtype=torch.float64):
    return LogitsTarget(torch.tensor(rows, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e2, 1e3, 9e3])
def test_far_apart_logits(scale, dtype):
    """P all on token 0, Q all on token 1: both KLs are the gap, JSD is ln 2."""
    student, teacher = [[scale, 0.0, 0.0]], logits([[0.0, scale, 0.0]], dtype)
    for kind, expected in (("reverse_kl", scale), ("forward_kl", scale), ("jsd", math.log(2))):
        value, gradient = run(student, teacher, dtype, kind=kind)
        assert value.item() == pytest.approx(expected, rel=2e-6)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_probabilities_below_the_floor_count_as_the_floor(dtype):
    student, teacher = [[1e6, 0.0]], logits([[0.0, 1e6]], dtype)
    for kind, expected in (("reverse_kl", -LOGPROB_FLOOR), ("forward_kl", -LOGPROB_FLOOR)):
        value, gradient = run(student, teacher, dtype, kind=kind)
        assert value.item() == pytest.approx(expected)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_hot_teacher(dtype):
    """P = (1/2, 1/4, 1/4), Q = (1, 0, 0)."""
    student = [[math.log(2.0), 0.0, 0.0]]
    teacher = logits([[0.0, -INF, -INF]], dtype)
    value, gradient = run(student, teacher, dtype, kind="forward_kl")
    assert value.item() == pytest.approx(math.log(2))
    torch.testing.assert_close(gradient, torch.tensor([[-0.5, 0.25, 0.25]], dtype=dtype))
    # Truly infinite: half the student's mass costs the floor.
    value, gradient = run(student, teacher, dtype, kind="reverse_kl")
    entropy = 1.5 * math.log(2)
    assert value.item() == pytest.approx(-0.5 * LOGPROB_FLOOR - entropy)
    assert gradient[0, 0] < 0 < gradient[0, 1]
    assert gradient.isfinite().all()
    # M = (3/4, 1/8, 1/8)
    value, gradient = run(student, teacher, dtype, kind="jsd")
    expected = 0.5 * math.log(4 / 3) + 0.5 * (0.5 * math.log(2 / 3) + 0.5 * math.log(2))
    assert value.item() == pytest.approx(expected, abs=1e-6)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_masked_in_both_is_as_if_it_were_not_there(kind, dtype):
    student, teacher = [[0.3, -INF, 1.0, -0.5]], [[1.0, -INF, 0.0, 0.7]]
    value, gradient = run(student, logits(teacher, dtype), dtype, kind=kind)
    rest = [0, 2, 3]
    expected, expected_gradient = run(
        [[student[0][v] for v in rest]],
        logits([[teacher[0][v] for v in rest]], dtype),
        dtype,
        kind=kind,
    )
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient[:, rest], expected_gradient)
    assert gradient[0, 1] == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_student_that_gives_no_probability_where_the_teacher_does(dtype):
    """P = (1, 0), Q = (1/2, 1/2): reverse KL and JSD are finite, forward KL costs the floor."""
    student, teacher = [[0.0, -INF]], logits([[0.0, 0.0]], dtype)
    value, _ = run(student, teacher, dtype, kind="reverse_kl")
    assert value.item() == pytest.approx(math.log(2))
    value, gradient = run(student, teacher, dtype, kind="forward_kl")
    assert value.item() == pytest.approx(-0.5 * LOGPROB_FLOOR - math.log(2))
    torch.testing.assert_close(gradient, torch.tensor([[0.5, -0.5]], dtype=dtype))
    value, gradient = run(student, teacher, dtype, kind="jsd")
    expected = 0.5 * math.log(4 / 3) + 0.5 * (0.5 * math.log(2 / 3) + 0.5 * math.log(2))
    assert value.item() == pytest.approx(expected, abs=1e-6)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_topk_whose_tail_is_rounded_below_zero(kind, dtype):
    """Probabilities that sum to 1 + 1e-6 leave no tail; it counts as the least one."""
    probabilities = torch.tensor([[0.75 + 1e-6, 0.25]], dtype=torch.float64)
    target = TopKTarget(torch.tensor([[0, 1]]), probabilities.log().to(dtype))
    value, gradient = run([[math.log(3.0), 0.0, -40.0, -40.0]], target, dtype, kind=kind)
    assert 0 <= value.item() < 1e-5
    assert gradient.abs().max() < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_topk_one_hot_teacher_prices_the_students_tail_at_the_least_tail(dtype):
    """All of the teacher on token 0; half of the student elsewhere."""
    target = TopKTarget(torch.tensor([[0, 2]]), torch.tensor([[0.0, -INF]], dtype=dtype))
    value, gradient = run([[math.log(2.0), 0.0, -INF, 0.0]], target, dtype)
    expected = -math.log(2) - 0.5 * math.log(MIN_TAIL_MASS)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_topk_of_the_whole_vocabulary_has_no_tail(kind, dtype):
    student, teacher = [[0.3, -80.0, 1.0]], torch.tensor([[0.1, -2.0, 0.4]], dtype=dtype)
    ids = torch.tensor([[2, 0, 1]])
    target = TopKTarget(ids, teacher.log_softmax(-1).gather(1, ids))
    value, gradient = run(student, target, dtype, kind=kind)
    expected, expected_gradient = run(student, LogitsTarget(teacher), dtype, kind=kind)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_topk_with_a_student_tail_below_the_smallest_float(kind, dtype):
    """P(tail) = 2 exp(-300); its logarithm is right, and so is the pull of each token in it."""
    target = TopKTarget(torch.tensor([[0]]), torch.tensor([[math.log(0.9)]], dtype=dtype))
    value, gradient = run([[300.0, 0.0, 0.0]], target, dtype, kind=kind)
    log_tail = math.log(2) - 300
    if kind == "reverse_kl":
        assert value.item() == pytest.approx(-math.log(0.9), rel=1e-5)
    if kind == "forward_kl":
        expected = 0.9 * math.log(0.9) + 0.1 * (math.log(0.1) - log_tail)
        assert value.item() == pytest.approx(expected, rel=1e-5)
        torch.testing.assert_close(gradient, torch.tensor([[0.1, -0.05, -0.05]], dtype=dtype))
    assert value.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_topk_with_an_empty_student_tail(kind, dtype):
    """-inf everywhere outside the support: the shares of the tail are 0, not 0 / 0."""
    target = TopKTarget(torch.tensor([[0, 1]]), torch.tensor([[-1.0, -1.0]], dtype=dtype))
    value, gradient = run([[0.0, 0.0, -INF, -INF]], target, dtype, kind=kind)
    assert value.isfinite().all()
    assert (gradient[0, 2:] == 0).all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("student", [[[0.0, -INF]], [[1e5, 0.0]]])
def test_sampled_token_of_no_probability(student):
    target = SampledTarget(torch.tensor([1]), torch.tensor([-1.0], dtype=torch.float64))
    value, gradient = run(student, target)
    assert value.item() == pytest.approx(LOGPROB_FLOOR + 1)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, INF])
def test_nan_and_plus_infinity_are_not_hidden(bad):
    student = torch.zeros(3, 4, dtype=torch.float64)
    teacher = torch.zeros(3, 4, dtype=torch.float64)
    teacher[1, 2] = bad
    head = torch.eye(4, dtype=torch.float64)
    for kind in KINDS:
        value = linear_divergence(student, head, LogitsTarget(teacher), kind=kind).divergence_N
        assert value.isnan().tolist() == [False, True, False]
