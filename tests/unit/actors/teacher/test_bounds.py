"""Filled-in teacher log-probabilities: by hand, against every possible truth, and against all."""

from __future__ import annotations

import math

import numpy as np
import pytest

from actors.teacher.http.bounds import least_divergent
from opd_ray.tip.streamed import streamed_scores
from opd_ray.types import TopK

NAMES = ("reverse_kl_m", "forward_kl_m", "jsd_m")
V, K, NAMED = 40, 6, 4


def pair(rng: np.random.Generator, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Two distributions over V tokens, [V] each."""
    student, teacher = np.exp(rng.normal(0, scale, (2, V)))
    if rng.random() < 0.5:  # alike but for one token
        teacher = student.copy()
        teacher[rng.integers(V)] *= 50
    return student / student.sum(), teacher / teacher.sum()


def told(student_V: np.ndarray, teacher_V: np.ndarray) -> dict[str, np.ndarray]:
    """What a server that names its likeliest tokens tells of one row, as arguments."""
    ids = np.argsort(-student_V)[:K]
    named = np.argsort(-teacher_V)[:NAMED]
    return {
        "student_logprobs_mK": np.log(student_V[ids])[None].astype(np.float32),
        "teacher_logprobs_mK": np.log(teacher_V[ids])[None].astype(np.float32),
        "known_mK": np.isin(ids, named)[None],
        "cap_m": np.log(teacher_V[named].min(keepdims=True)),
        "named_mass_m": teacher_V[named].sum(keepdims=True),
    }


def scores(known: dict[str, np.ndarray], teacher_mK: np.ndarray) -> list[float]:
    student = known["student_logprobs_mK"]
    ids = np.arange(K, dtype=np.int32)[None].repeat(len(student), 0)
    topk = TopK(ids[:, : student.shape[1]], student)
    found = streamed_scores(topk, teacher_mK.astype(np.float32))
    return [float(getattr(found, name)[0]) for name in NAMES]


def filled(known: dict[str, np.ndarray]) -> np.ndarray:
    return least_divergent(**known)


def exact(p: np.ndarray, q: np.ndarray) -> list[float]:
    def kl(a: np.ndarray, b: np.ndarray) -> float:
        return float((a * np.log(a / b)).sum())

    return [kl(p, q), kl(q, p), (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2]


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_scores_are_lower_bounds_of_the_exact_and_of_the_fully_told_ones(scale: float) -> None:
    rng = np.random.default_rng(int(scale * 10))
    loose = []
    for _ in range(300):
        student, teacher = pair(rng, scale)
        known = told(student, teacher)
        bound = scores(known, filled(known))
        everything = scores(known, known["teacher_logprobs_mK"])
        loose.append(everything[0] - bound[0])
        for low, middle, high in zip(bound, everything, exact(student, teacher), strict=True):
            assert -1e-7 <= low <= middle + 2e-6
            assert low <= high + 2e-6
    assert max(loose) > 1e-3  # something was unknown


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_no_truth_within_the_limits_gives_less(scale: float) -> None:
    """Random values that the server's words allow, drawn near the chosen ones and far away."""
    rng = np.random.default_rng(7)
    for _ in range(40):
        student, teacher = pair(rng, scale)
        known = told(student, teacher)
        unknown = ~known["known_mK"][0]
        if not unknown.any():
            continue
        cap, free = np.exp(known["cap_m"][0]), 1 - known["named_mass_m"][0]
        best = filled(known)
        least = scores(known, best)
        chosen = np.exp(best[0, unknown].astype(np.float64))
        assert (chosen <= cap * (1 + 1e-6)).all()
        assert chosen.sum() <= free + 2e-6
        for _ in range(50):
            other = known["teacher_logprobs_mK"].astype(np.float64)
            drawn = chosen * np.exp(rng.normal(0, rng.choice([0.02, 0.5, 3]), len(chosen)))
            drawn = np.minimum(drawn, cap)
            drawn *= min(1.0, free / drawn.sum())
            other[0, unknown] = np.log(np.maximum(drawn, 1e-30))
            for low, value in zip(least, scores(known, other), strict=True):
                assert low <= value + 3e-6


def test_by_hand() -> None:
    """Student 0.5, 0.3, tail 0.2; the teacher names 0.6 for the first token and 0.1 elsewhere.

    0.4 is left for the second token and the tail. In the student's ratio 3 : 2 they would get 0.24
    and 0.16, but a token that was not named is at most 0.1: so it takes 0.1, the tail 0.3.
    Were 0.25 named elsewhere, the tail would hold it, and 0.4 - 0.25 = 0.15 would be left.
    """
    student = np.log([[0.5, 0.3]]).astype(np.float32)
    teacher = np.array([[np.log(0.6), 0.0]], np.float32)
    known = np.array([[True, False]])
    for cap, mass, expected in (
        (0.1, 0.7, 0.1),  # at its limit
        (0.3, 0.7, 0.24),  # the common ratio
        (0.3, 0.85, 0.15),  # what the named tokens leave
    ):
        found = least_divergent(student, teacher, known, np.log([cap]), np.array([mass]))
        assert found[0, 0] == teacher[0, 0]
        assert math.exp(found[0, 1]) == pytest.approx(expected, abs=1e-5)


def test_a_confident_student_whose_token_the_teacher_did_not_name_is_far_off() -> None:
    """Lumped into one tail with the teacher's choice, the pair would look alike."""
    student = np.log([[0.98, 0.01]]).astype(np.float32)
    found = least_divergent(
        student,
        np.zeros((1, 2), np.float32),
        np.zeros((1, 2), bool),
        np.log([1e-4]),
        np.array([0.999]),
    )
    topk = TopK(np.array([[0, 1]], np.int32), student)
    assert streamed_scores(topk, found).reverse_kl_m[0] > 0.98 * math.log(0.98 / 1e-4) - 0.1


def test_whatever_is_known_stays_and_nothing_becomes_infinite() -> None:
    rng = np.random.default_rng(0)
    student = np.log(rng.dirichlet(np.ones(K + 1), 5)[:, :K]).astype(np.float32)
    student[0] = [-1e-7, -60, -80, -90, -95, -100]  # as peaked as float32 shows
    teacher = np.log(rng.dirichlet(np.ones(K + 1), 5)[:, :K]).astype(np.float32)
    known = rng.random((5, K)) < 0.5
    known[4] = True
    mass = np.where(known, np.exp(teacher), 0).sum(1)
    mass[0] = 1.0  # nothing is left
    found = least_divergent(student, teacher, known, np.full(5, -3.0), mass)
    assert np.isfinite(found).all()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[known], teacher[known])
    assert (np.exp(found).sum(1) <= 1 + 1e-5).all()
