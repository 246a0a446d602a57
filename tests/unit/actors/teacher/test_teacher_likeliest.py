"""The likeliest tokens of both that a person is shown, against a search in plain Python."""

from __future__ import annotations

import numpy as np

from actors.teacher.likeliest import likeliest_tokens
from opd_ray.types import NO_TOKEN, ScoreRequest, TeacherAnswer, TopK, TopKSignal


def asked(student: TopK, count: int) -> ScoreRequest:
    ids = np.zeros(len(student.ids), np.int32)
    return ScoreRequest("r", ids[:1], ids, student, likeliest=count)


def test_a_teacher_of_hidden_states_is_heard_of_the_students_tokens_alone() -> None:
    student = TopK(np.array([[4, 2, 9]], np.int32), np.log([[0.7, 0.2, 0.1]]).astype(np.float32))
    at_student = np.log([[0.1, 0.3, 0.5]]).astype(np.float32)
    answer = TeacherAnswer("r", np.zeros(1, np.float32), at_student, None)
    found = likeliest_tokens(asked(student, 2), answer)
    assert found.student.ids.tolist() == [[4, 2]]
    assert found.teacher.ids.tolist() == [[9, 2]]
    np.testing.assert_allclose(np.exp(found.teacher.logprobs), [[0.5, 0.3]], rtol=1e-6)


def test_its_own_tokens_join_them_each_once_and_in_order() -> None:
    draw = np.random.default_rng(0)
    rows, vocabulary, count = 50, 12, 5
    all_mV = np.log(draw.dirichlet(np.ones(vocabulary), rows)).astype(np.float32)
    of_student = np.array([draw.permutation(vocabulary)[:4] for _ in range(rows)], np.int32)
    of_teacher = np.argsort(-all_mV, axis=1)[:, :6].astype(np.int32)
    student = TopK(of_student, np.sort(draw.normal(-2, 1, (rows, 4)).astype(np.float32))[:, ::-1])
    at_student = np.take_along_axis(all_mV, of_student, axis=1)
    signal = TopKSignal(of_teacher, np.take_along_axis(all_mV, of_teacher, axis=1))
    answer = TeacherAnswer("r", np.zeros(rows, np.float32), at_student, signal)
    found = likeliest_tokens(asked(student, count), answer)
    for row in range(rows):
        known = {*of_student[row].tolist(), *of_teacher[row].tolist()}
        best = sorted(known, key=lambda token: -all_mV[row, token])[:count]
        assert found.teacher.ids[row].tolist() == best
        assert found.teacher.logprobs[row].tolist() == [all_mV[row, token] for token in best]
    assert found.student.ids.tolist() == of_student.tolist()


def test_a_place_without_a_token_says_so() -> None:
    student = TopK(np.array([[3]], np.int32), np.zeros((1, 1), np.float32))
    signal = TopKSignal(np.array([[3, NO_TOKEN]], np.int32), np.array([[-1, -np.inf]], np.float32))
    answer = TeacherAnswer("r", np.zeros(1, np.float32), np.full((1, 1), -1, np.float32), signal)
    found = likeliest_tokens(asked(student, 5), answer)
    assert found.teacher.ids.tolist() == [[3, NO_TOKEN, NO_TOKEN]]
