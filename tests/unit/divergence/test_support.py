"""The divergence on any support: the teacher's tokens, the student's, both; rows with padding."""

import math

import divergence_by_definition as definition
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opd_ray.divergence import (
    LogitsTarget,
    TopKTarget,
    exact_scores,
    linear_divergence,
)

KINDS = ("reverse_kl", "forward_kl", "jsd")
LAW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
LN2 = math.log(2)


def double(rows):
    return torch.tensor(rows, dtype=torch.float64)


def of_logits(student_NV, target, **options):
    """The divergence of given student logits: an identity head leaves them as they are."""
    return linear_divergence(
        student_NV, torch.eye(student_NV.shape[1], dtype=student_NV.dtype), target, **options
    )


# The student is sure of a token that is none of the teacher's likeliest.
STUDENT = double([[1 / 2, 1 / 4, 1 / 8, 1 / 8]]).log()
TEACHER = double([[1 / 8, 1 / 8, 1 / 4, 1 / 2]]).log()


def target_of(*rows):
    """What the teacher gives these ids; -1 is padding."""
    ids = torch.tensor(rows)
    log_q = TEACHER.expand(len(rows), -1).gather(1, ids.clamp(min=0))
    return TopKTarget(ids, log_q.masked_fill(ids == -1, -math.inf))


@pytest.mark.parametrize(
    ("ids", "reverse", "forward"),
    [
        # P = (1/8, 7/8), Q = (1/2, 1/2)
        ([3], 1 / 8 * -2 * LN2 + 7 / 8 * math.log(7 / 4), 1 / 2 * 2 * LN2 + math.log(4 / 7) / 2),
        # P = (1/2, 1/2), Q = (1/8, 7/8)
        ([0], 1 / 2 * 2 * LN2 + math.log(4 / 7) / 2, 1 / 8 * -2 * LN2 + 7 / 8 * math.log(7 / 4)),
        # P = (1/8, 1/2, 3/8), Q = (1/2, 1/8, 3/8)
        ([3, 0], 3 / 4 * LN2, 3 / 4 * LN2),
        ([0, 3], 3 / 4 * LN2, 3 / 4 * LN2),
        ([3, -1, 0], 3 / 4 * LN2, 3 / 4 * LN2),
        # All tokens: 1/2 ln 4 + 1/4 ln 2 - 1/8 ln 2 - 1/8 ln 4, and the same the other way round.
        ([0, 1, 2, 3], 7 / 8 * LN2, 7 / 8 * LN2),
        ([2, -1, 3, 0, -1, 1, -1], 7 / 8 * LN2, 7 / 8 * LN2),
    ],
)
def test_by_hand(ids, reverse, forward):
    for kind, expected in (("reverse_kl", reverse), ("forward_kl", forward)):
        value = of_logits(STUDENT, target_of(ids), kind=kind).divergence_N.item()
        assert value == pytest.approx(expected, abs=1e-12)


def test_gradient_by_hand():
    """Reverse KL with support {3, 0}: P_W (ln P_W / Q_W - KL), the tail's by its tokens' share."""
    student = STUDENT.clone().requires_grad_()
    of_logits(student, target_of([3, -1, 0])).loss.backward()
    tail = 3 / 8 * (0 - 3 / 4 * LN2)  # of which token 1 has 1/4 of 3/8
    expected = double(
        [[1 / 2 * (2 - 3 / 4) * LN2, tail * 2 / 3, tail / 3, 1 / 8 * (-2 - 3 / 4) * LN2]]
    )
    torch.testing.assert_close(student.grad, expected)


@st.composite
def problems(draw):
    """Student and teacher logits [N, V], float64, and two top-ks of each row: k and K ids."""
    rows, tokens = draw(st.integers(1, 5)), draw(st.integers(2, 9))
    made = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.1, 1.0, 5.0]))
    student, teacher = (
        scale * torch.randn(rows, tokens, generator=made, dtype=torch.float64) for _ in range(2)
    )
    return student, teacher, draw(st.integers(1, tokens)), draw(st.integers(1, tokens)), made


def union_of(student, teacher, k, students, made=None):
    """Both top-ks, shared ids once, then padding; ``made`` mixes the columns after the first."""
    own, other = teacher.topk(k).indices, student.topk(students).indices
    twice = (other[:, :, None] == own[:, None, :]).any(2)
    ids = torch.cat((own, other.masked_fill(twice, -1)), dim=1)
    if made is not None:
        order = torch.cat(
            (torch.zeros(1, dtype=int), 1 + torch.randperm(ids.shape[1] - 1, generator=made))
        )
        ids = ids[:, order]
    log_q = teacher.log_softmax(-1).gather(1, ids.clamp(min=0))
    return TopKTarget(ids, log_q.masked_fill(ids == -1, -math.inf))


@LAW
@given(problems(), st.sampled_from(KINDS), st.booleans())
def test_values_and_gradients_of_a_union_are_those_of_the_definition(problem, kind, biased):
    student, teacher, k, students, made = problem
    student, teacher = student.clamp(-3, 3), teacher.clamp(-3, 3)  # tails above MIN_TAIL_MASS
    rows, tokens = student.shape
    hidden = student.clone().requires_grad_()
    # Two rows of the head are padding, with logits that would win everywhere.
    head = torch.cat((torch.eye(tokens, dtype=torch.float64), 50 * torch.ones(2, tokens))).double()
    head = head.requires_grad_()
    bias = torch.randn(tokens + 2, generator=made, dtype=torch.float64) if biased else None
    options = {
        "kind": kind,
        "beta": 0.3,
        "weights_N": torch.rand(rows, generator=made, dtype=torch.float64),
        "bias_V": bias,
        "vocab_size": tokens,
    }
    target = union_of(student, teacher, k, students, made)
    expected, values = definition.loss(hidden, head, target, **options)
    output = linear_divergence(hidden, head, target, chunk_size=2, **options)
    torch.testing.assert_close(output.divergence_N, values, rtol=1e-7, atol=1e-9)
    for found, wanted in zip(
        torch.autograd.grad(output.loss, (hidden, head)),
        torch.autograd.grad(expected, (hidden, head)),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


@LAW
@given(problems(), st.sampled_from(KINDS))
def test_never_negative_never_above_exact_and_no_less_with_more_tokens(problem, kind):
    student, teacher, k, students, made = problem
    student, teacher = student.clamp(-6, 6), teacher.clamp(-6, 6)  # tails above MIN_TAIL_MASS

    def value(target):
        return of_logits(student, target, kind=kind).divergence_N

    def top(logits, count):
        ids = logits.topk(count).indices
        return value(TopKTarget(ids, teacher.log_softmax(-1).gather(1, ids)))

    own, other = top(teacher, k), top(student, students)
    union_N = value(union_of(student, teacher, k, students, made))
    exact_N = value(LogitsTarget(teacher))
    assert (torch.minimum(own, other) >= 0).all()
    assert (torch.maximum(own, other) <= union_N + 1e-8).all()
    assert (union_N <= exact_N + 1e-8).all()
    # However wide, a support of all tokens is exact.
    tokens = student.shape[1]
    whole = value(union_of(student, teacher, tokens, students, made))
    torch.testing.assert_close(whole, exact_N, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing_in_float32_either(kind):
    torch.manual_seed(0)
    hidden, head = torch.randn(6, 8), torch.randn(50, 8)
    ids = torch.stack([torch.randperm(50)[:5] for _ in range(6)])
    log_q = torch.randn(6, 50).log_softmax(-1).gather(1, ids)
    padding = torch.full((6, 3), -1), torch.full((6, 3), -math.inf)
    wide = TopKTarget(torch.cat((ids, padding[0]), 1), torch.cat((log_q, padding[1]), 1))
    found = []
    for target in (TopKTarget(ids, log_q), wide):
        x, w = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        output = linear_divergence(x, w, target, kind=kind)
        output.loss.backward()
        found.append((output.divergence_N, x.grad, w.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_scores_count_the_tokens_outside_row_by_row():
    """Two tokens named in the first row, four in the second: the tail is of two and of none."""
    target = target_of([3, 0, -1, -1], [3, 0, 1, 2])
    student = STUDENT.expand(2, -1)
    scores = exact_scores(
        student, torch.eye(4, dtype=torch.float64), target, sampled_ids_N=torch.tensor([1, 1])
    )
    # A tail of 3/8 lies evenly on tokens 1 and 2.
    expected = double([math.log(3 / 16), math.log(1 / 8)])
    torch.testing.assert_close(scores.teacher_logprob_N, expected)
    entropy = LN2 / 2 + 3 * LN2 / 8 + 3 / 8 * math.log(16 / 3)
    torch.testing.assert_close(scores.teacher_entropy_N, double([entropy, 7 / 4 * LN2]))
    torch.testing.assert_close(scores.reverse_kl_N, double([3 / 4 * LN2, 7 / 8 * LN2]))
    assert scores.top1_agree_N.tolist() == [False, False]


@pytest.mark.parametrize(
    ("ids", "logprobs", "where"),
    [
        ([[-1, 0]], [[-math.inf, -1.0]], r"ids_Nk\[0, 0\] is -1"),
        ([[0, -1]], [[-1.0, -2.0]], r"ids_Nk\[0, 1\] is -1"),
        ([[0, -2]], [[-1.0, -math.inf]], r"ids_Nk\[0, 1\] is -2"),
        ([[0, 1, 1, -1]], [[-2.0, -2.0, -2.0, -math.inf]], "holds id 1 more than once"),
    ],
)
def test_what_is_no_padding_is_refused(ids, logprobs, where):
    with pytest.raises(ValueError, match=where):
        of_logits(STUDENT, TopKTarget(torch.tensor(ids), double(logprobs)))
