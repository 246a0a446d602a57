"""Streamed scores: hand-computed, against naive sums, and against the full vocabulary."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_ray.tip import streamed_scores
from opd_ray.tip.streamed import TAIL_SLACK
from opd_ray.types import TopK

# Float32 and renormalising may add this share to a value that is otherwise a lower bound.
ROUNDING = 2e-6


def log_softmax(logits):
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def top(logprobs, k):
    ids = np.argsort(-logprobs, axis=1, kind="stable")[:, :k]
    return TopK(ids, np.take_along_axis(logprobs, ids, axis=1).astype(np.float32))


def streamed(student, teacher, k, teacher_k=None):
    """Streamed scores of full log-probabilities [m, V], passed on as float32."""
    of_student = top(student, k)
    at_student = np.take_along_axis(teacher, of_student.ids, axis=1).astype(np.float32)
    of_teacher = None if teacher_k is None else top(teacher, teacher_k)
    return streamed_scores(of_student, at_student, of_teacher)


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def jsd(p, q):
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return (kl(p, middle) + kl(q, middle)) / 2


def pairs(rng, rows=20, vocab=30, scale=3.0):
    return (log_softmax(rng.normal(0, scale, (rows, vocab))) for _ in range(2))


def test_by_hand():
    student = np.log([[0.5, 0.25, 0.125, 0.125]])
    teacher = np.log([[0.25, 0.5, 0.125, 0.125]])
    scores = streamed(student, teacher, k=2, teacher_k=2)
    # Buckets: student (1/2, 1/4, 1/4), teacher (1/4, 1/2, 1/4).
    assert scores.reverse_kl_m[0] == pytest.approx(0.25 * math.log(2), rel=1e-5)
    assert scores.forward_kl_m[0] == pytest.approx(0.25 * math.log(2), rel=1e-5)
    middle = 0.5 * math.log(0.5 / 0.375) + 0.25 * math.log(0.25 / 0.375)
    assert scores.jsd_m[0] == pytest.approx(middle, rel=1e-5)
    assert scores.teacher_mass_m[0] == pytest.approx(0.75, rel=1e-6)
    # Both top-2 are the same ids: renormalised (2/3, 1/3) and (1/3, 2/3).
    assert scores.union_forward_kl_m[0] == pytest.approx(math.log(2) / 3, rel=1e-5)


def test_equals_naive_sums_over_buckets():
    rng = np.random.default_rng(0)
    student, teacher = pairs(rng, scale=1.0)
    scores = streamed(student, teacher, k=6)
    for row in range(len(student)):
        ids = sorted(range(30), key=lambda v: -student[row, v])[:6]
        p = [math.exp(student[row, v]) for v in ids]
        q = [math.exp(teacher[row, v]) for v in ids]
        p.append(1 - sum(p))
        q.append(1 - sum(q))
        assert scores.reverse_kl_m[row] == pytest.approx(kl(p, q), abs=1e-5)
        assert scores.forward_kl_m[row] == pytest.approx(kl(q, p), abs=1e-5)
        assert scores.jsd_m[row] == pytest.approx(jsd(p, q), abs=1e-5)
        assert scores.teacher_mass_m[row] == pytest.approx(1 - q[-1], abs=1e-5)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    vocab=st.integers(2, 40),
    scale=st.sampled_from([0.0, 0.1, 1.0, 5.0, 20.0]),
    data=st.data(),
)
def test_lower_bounds_that_tighten_to_the_exact_value(seed, vocab, scale, data):
    rng = np.random.default_rng(seed)
    student, teacher = pairs(rng, rows=4, vocab=vocab, scale=scale)
    k, more = sorted(data.draw(st.lists(st.integers(1, vocab), min_size=2, max_size=2)))
    coarse, finer, full = (streamed(student, teacher, size) for size in (k, more, vocab))
    for row in range(4):
        p, q = np.exp(student[row]), np.exp(teacher[row])
        rest = np.argsort(-p)[more:]
        # Slack in the finer tail lowers its value by up to this, which matters for tiny tails.
        slack = (
            TAIL_SLACK * (p[rest].sum() / q[rest].sum() + q[rest].sum() / p[rest].sum())
            if len(rest)
            else 0.0
        )
        for name, exact in (
            ("reverse_kl_m", kl(p, q)),
            ("forward_kl_m", kl(q, p)),
            ("jsd_m", jsd(p, q)),
        ):
            low, high, last = (getattr(scores, name)[row] for scores in (coarse, finer, full))
            room = ROUNDING * (1 + exact)
            assert 0 <= low <= exact + room
            assert 0 <= high <= exact + room
            assert low <= high + slack + room
            assert last == pytest.approx(exact, abs=room)


def test_same_distributions_score_zero():
    rng = np.random.default_rng(1)
    student, _ = pairs(rng, scale=8.0)
    scores = streamed(student, student, k=5, teacher_k=5)
    for name in ("reverse_kl_m", "forward_kl_m", "jsd_m", "union_forward_kl_m"):
        assert np.all(getattr(scores, name) == 0.0)


def test_one_hot_distributions_are_finite():
    """Mass entirely on different tokens: tails round to 0, every value stays finite and large."""
    student = np.full((2, 50), -120.0)
    teacher = student.copy()
    student[:, 3], teacher[:, 7] = 0.0, 0.0
    scores = streamed(student, teacher, k=4, teacher_k=4)
    assert np.all(scores.reverse_kl_m > 100)  # 120 nats exactly; the student's token counts fully
    # The teacher's token is in the student's tail, of which only "at most 1e-6" is known.
    assert scores.forward_kl_m == pytest.approx(-math.log(TAIL_SLACK), rel=1e-3)
    assert scores.jsd_m == pytest.approx(math.log(2), rel=1e-4)
    assert np.all(np.isfinite(scores.union_forward_kl_m))
    assert scores.teacher_mass_m == pytest.approx(0.0, abs=1e-30)


def test_top_k_sums_above_one_by_rounding():
    """Float32 probabilities of all K = V tokens add up to a little more than 1."""
    student = np.log(np.array([[0.5 + 3e-7, 0.5 + 3e-7]]))
    scores = streamed(student, student, k=2)
    assert scores.reverse_kl_m[0] == 0.0
    assert scores.teacher_mass_m[0] == 1.0


def naive_union(student, teacher, k, teacher_k):
    """The paper's D with both distributions known everywhere."""
    union = set(np.argsort(-student, kind="stable")[:k]) | set(
        np.argsort(-teacher, kind="stable")[:teacher_k]
    )
    p = [math.exp(student[v]) for v in union]
    q = [math.exp(teacher[v]) for v in union]
    return kl([a / sum(q) for a in q], [a / sum(p) for a in p])


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), k=st.integers(1, 12), scale=st.sampled_from([0.5, 2.0, 6.0]))
def test_union_is_a_lower_bound_exact_where_the_students_ids_hold_the_teachers(seed, k, scale):
    rng = np.random.default_rng(seed)
    student, teacher = pairs(rng, rows=4, vocab=12, scale=scale)
    scores = streamed(student, teacher, k=k, teacher_k=4)
    for row in range(4):
        exact = naive_union(student[row], teacher[row], k, 4)
        assert 0 <= scores.union_forward_kl_m[row] <= exact + ROUNDING * (1 + exact)
        if set(top(teacher[row : row + 1], 4).ids[0]) <= set(top(student[row : row + 1], k).ids[0]):
            assert scores.union_forward_kl_m[row] == pytest.approx(exact, abs=1e-5)


def test_union_is_the_least_value_a_student_can_have():
    """Against a search over everything the student's mass outside its top-K can be."""
    rng = np.random.default_rng(3)
    student, teacher = pairs(rng, rows=30, vocab=12, scale=2.0)
    scores = streamed(student, teacher, k=3, teacher_k=4)
    for row in range(len(student)):
        mine = list(top(student[row : row + 1], 3).ids[0])
        beyond = [v for v in top(teacher[row : row + 1], 4).ids[0] if v not in mine]
        p = [math.exp(student[row, v]) for v in mine]
        q = [math.exp(teacher[row, v]) for v in mine] + [
            sum(math.exp(teacher[row, v]) for v in beyond)
        ]
        limit = min(1 - sum(p), len(beyond) * min(p))
        q = [a / sum(q) for a in q]
        least = min(
            kl(q, [a / (sum(p) + outside) for a in [*p, outside]])
            for outside in (np.linspace(1e-9, limit, 2000) if beyond else [0.0])
        )
        assert scores.union_forward_kl_m[row] == pytest.approx(least, rel=1e-4)


def test_half_precision_may_round_beyond_the_bounds():
    """Up to a hundredth: a log-probability of 0 and a mass of 1."""
    ids = np.array([[4, 7]])
    near = np.log(np.array([[0.6, 0.409]]))
    assert streamed_scores(TopK(ids, near), near).reverse_kl_m[0] == 0.0
    sure = np.array([[0.009, -9.0]])
    assert streamed_scores(TopK(ids, sure), sure).teacher_mass_m[0] == 1.0


def test_empty_rollout():
    nothing = np.zeros((0, 4))
    topk = TopK(nothing.astype(int), nothing)
    scores = streamed_scores(topk, nothing, topk)
    assert scores.reverse_kl_m.shape == scores.union_forward_kl_m.shape == (0,)
