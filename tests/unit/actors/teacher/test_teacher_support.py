"""Which tokens reach the loss, from an answer to the gradient; what a teacher is asked for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.teacher.cache.teacher import CachedTeacher
from actors.teacher.protocol import TeacherError, Wanted
from actors.teacher.registry import make_teacher
from actors.teacher.service import TeacherServer
from actors.teacher.shared import TeacherHost
from actors.teacher.support import asked_of_teacher, signal_of
from actors.trainer.batch import BatchError, build_micro_batch, check_items
from actors.trainer.objective import Objective
from opd_ray.config.choices import CacheMode, SignalChoice, Support
from opd_ray.config.resolved_teachers import Member
from opd_ray.config.schema import LossSettings
from opd_ray.config.teacher import TeacherSettings
from opd_ray.models.pairs.demo import pair_folder
from opd_ray.preflight.contract.probes import contract_violations
from opd_ray.types import (
    HiddenSignal,
    ScoreRequest,
    Signal,
    TeacherAnswer,
    TeacherInfo,
    TopK,
    TopKSignal,
    TrainItem,
)

V, TOP = 12, 3
INF = math.inf


def array(values: Any, dtype: type = np.float32) -> np.ndarray:
    return np.array(values, dtype)


REQUEST = ScoreRequest(
    "r",
    array([1, 2], np.int32),
    array([5, 7], np.int32),
    TopK(array([[5, 9, 4], [0, 7, 3]], np.int32), array([[-0.5, -2, -3], [-1, -1.5, -4]])),
)
ANSWER = TeacherAnswer(
    "r",
    logprob=array([-1.0, -6.0]),
    at_student_topk=array([[-1, -5, -2], [-4, -6, -0.75]]),
    signal=TopKSignal(
        array([[5, 4, 8], [3, 1, 2]], np.int32), array([[-1, -2, -2.5], [-0.75, -1.5, -3]])
    ),
)


def made(support: Support, answer: TeacherAnswer = ANSWER) -> TopKSignal:
    signal = signal_of("teacher 't'", REQUEST, answer, support)
    assert isinstance(signal, TopKSignal)
    assert (signal.ids.dtype, signal.logprobs.dtype) == (np.int32, np.float32)
    return signal


def test_the_tokens_of_each_support() -> None:
    assert signal_of("t", REQUEST, ANSWER, Support.teacher) is ANSWER.signal
    student = made(Support.student)
    assert student.ids.tolist() == [[5, 9, 4], [0, 7, 3]]
    assert student.logprobs.tolist() == [[-1, -5, -2], [-4, -6, -0.75]]
    # Of the second row's, 3 stands in another place on each side.
    union = made(Support.union)
    assert union.ids.tolist() == [[5, 4, 8, -1, 9, -1], [3, 1, 2, 0, 7, -1]]
    assert union.logprobs.tolist() == [
        [-1, -2, -2.5, -INF, -5, -INF],
        [-0.75, -1.5, -3, -4, -6, -INF],
    ]


def test_with_the_students_tokens_no_signal_of_the_teacher_is_needed() -> None:
    for signal in (None, TopKSignal(array([[1], [1]], np.int32), array([[-9], [-9]]))):
        found = made(Support.student, replace(ANSWER, signal=signal))
        assert found.ids.tolist() == [[5, 9, 4], [0, 7, 3]]
    # What came through an object store is not held back there.
    assert not np.shares_memory(found.ids, REQUEST.student_topk.ids)


def test_two_statements_about_one_token_are_refused() -> None:
    wrong = ANSWER.at_student_topk.copy()
    wrong[1, 2] = -0.9
    said = r"teacher 't', rollout 'r', position 1: at_student_topk is -0.899.*same token"
    with pytest.raises(TeacherError, match=said):
        made(Support.union, replace(ANSWER, at_student_topk=wrong))
    wrong[1, 2] = -0.8  # rounding, as of a second pass in half precision
    assert made(Support.union, replace(ANSWER, at_student_topk=wrong)).logprobs[1, 0] == -0.75
    wrong[1, 0] = -1.0  # 0.47 + 0.22 + 0.05 + 0.37
    with pytest.raises(TeacherError, match="position 1: the mass of the teacher's top-k and the s"):
        made(Support.union, replace(ANSWER, at_student_topk=wrong))


class Known:
    """A teacher whose distribution of V tokens before each response token is known."""

    signals: Any = ("topk",)

    def __init__(self, topk: int | None, **meta: Any) -> None:
        self.topk, self.meta = topk, meta

    def info(self) -> TeacherInfo:
        return TeacherInfo("known", V, 64, self.signals, meta=self.meta)

    def logprobs(self, request: ScoreRequest) -> np.ndarray:
        rng = np.random.default_rng([7, *request.prompt_ids])
        shape = (len(request.response_ids), V)
        return np.log(rng.dirichlet(np.ones(V), shape[0])).astype(np.float32)

    def score(self, requests: Sequence[ScoreRequest]) -> list[TeacherAnswer]:
        return [self.answer(request) for request in requests]

    def answer(self, request: ScoreRequest) -> TeacherAnswer:
        logprobs_mV = self.logprobs(request)
        signal: Signal | None = None
        if self.topk:
            ids = np.argsort(-logprobs_mV, axis=1)[:, : self.topk].astype(np.int32)
            signal = TopKSignal(ids, np.take_along_axis(logprobs_mV, ids, 1))
        return TeacherAnswer(
            request.rollout_id,
            np.take_along_axis(logprobs_mV, request.response_ids[:, None], 1)[:, 0],
            np.take_along_axis(logprobs_mV, request.student_topk.ids, 1),
            signal,
        )

    def close(self) -> None: ...


def student_rows(rows: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(rows, V, generator=generator, dtype=torch.float64)


def request_of(name: str, seed: int, rows: int, students: int) -> tuple[ScoreRequest, torch.Tensor]:
    """A rollout of a known student, whose top-K comes in no order; and its logits [m, V]."""
    logits = student_rows(rows, seed)
    rng = np.random.default_rng(seed)
    log_p = logits.log_softmax(-1)
    ids = log_p.topk(students).indices.numpy()
    ids = np.take_along_axis(ids, rng.permuted(np.tile(np.arange(students), (rows, 1)), axis=1), 1)
    top = TopK(ids.astype(np.int32), np.take_along_axis(log_p.numpy(), ids, 1).astype(np.float32))
    prompt = array([seed, 3], np.int32)
    return ScoreRequest(name, prompt, rng.integers(0, V, rows).astype(np.int32), top), logits


@pytest.mark.parametrize("support", Support)
@pytest.mark.parametrize("students", [1, 5, V])
def test_from_answers_to_the_gradient_of_kept_rows(support: Support, students: int) -> None:
    """The loss of the kept rows of two rollouts is the KL of both sides' sums over the support."""
    teacher = Known(None if support is Support.student else TOP)
    server = TeacherServer(teacher, TeacherSettings(topk=TOP), support)
    asked = [request_of("a", 1, 6, students), request_of("b", 2, 4, students)]
    server.score([request for request, _ in asked])
    keep = {"a": array([1, 2, 5], np.int32), "b": array([0, 3], np.int32)}
    signals = server.signals.take(keep)
    width = {"teacher": TOP, "student": students, "union": TOP + students}[support.value]
    assert [signals[name].nbytes for name in "ab"] == [3 * 8 * width, 2 * 8 * width]
    items = [
        TrainItem(
            request.rollout_id,
            request.prompt_ids,
            request.response_ids,
            keep[request.rollout_id],
            np.ones(len(keep[request.rollout_id]), np.float32),
            np.zeros(len(keep[request.rollout_id]), np.float32),
        )
        for request, _ in asked
    ]
    check_items(items, signals, vocab_size=V, heads={})
    batch = build_micro_batch(items, signals, vocab_size=V, heads={}, device=torch.device("cpu"))
    hidden = torch.cat([logits[keep[r.rollout_id]] for r, logits in asked]).requires_grad_()
    loss, divergence_N, _ = Objective(LossSettings(), V).divergence(
        batch, 1.0, hidden, torch.eye(V, dtype=torch.float64), None
    )
    log_q = np.concatenate([teacher.logprobs(r)[keep[r.rollout_id]] for r, _ in asked])
    students_ids = np.concatenate([r.student_topk.ids[keep[r.rollout_id]] for r, _ in asked])
    expected = []
    for row, logits_V in enumerate(hidden):
        own = set(np.argsort(-log_q[row])[:TOP].tolist())
        named = {
            "teacher": own,
            "student": set(students_ids[row].tolist()),
            "union": own | set(students_ids[row].tolist()),
        }[support.value]
        p_V, q_V = logits_V.softmax(-1), torch.from_numpy(log_q[row]).double().exp()
        parts = [[v] for v in sorted(named)] + [[v for v in range(V) if v not in named]]
        pairs = [(p_V[part].sum(), q_V[part].sum()) for part in parts if part]
        expected.append(sum(p * (p / q).log() for p, q in pairs))
    wanted = torch.stack(expected)
    torch.testing.assert_close(divergence_N, wanted.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        torch.autograd.grad(loss, hidden)[0],
        torch.autograd.grad(wanted.sum(), hidden)[0],
        rtol=1e-4,
        atol=1e-6,
    )


def test_only_the_students_support_asks_the_teacher_for_nothing() -> None:
    settings = TeacherSettings(topk=TOP)
    assert [asked_of_teacher(settings, support).topk for support in Support] == [TOP, 0, TOP]
    hidden = replace(settings, signal=SignalChoice.hidden)
    assert asked_of_teacher(hidden, Support.student) is hidden


class WithoutTopk(Known):
    """Offers the sampled token's signal alone."""

    signals = ("sampled",)


def test_who_can_give_the_students_tokens() -> None:
    settings = TeacherSettings(topk=TOP)
    TeacherServer(WithoutTopk(None), settings, Support.student)
    for support in (Support.teacher, Support.union):
        with pytest.raises(TeacherError, match="'known' has no 'topk' signal"):
            TeacherServer(WithoutTopk(None), settings, support)
    bounded = Known(TOP, reads_student_logprobs=True)
    TeacherServer(bounded, settings, Support.teacher)
    for support in (Support.student, Support.union):
        with pytest.raises(TeacherError, match=rf"bounds.*loss.support = {support}: use loss.supp"):
            TeacherServer(bounded, settings, support)


def demo(topk: int = TOP, name: str = "teacher", **more: Any) -> TeacherSettings:
    return TeacherSettings(path=str(pair_folder() / name), topk=topk, batch_tokens=256, **more)


def test_a_model_is_not_asked_for_its_own_top_k() -> None:
    """Its other answers are the same; a rule's own top-k still comes."""
    requests = [request_of(name, seed, 5, 4)[0] for seed, name in enumerate("ab", 1)]
    whole = make_teacher(demo(), vocab_size=24, own_topk=2)
    bare = make_teacher(demo(), vocab_size=24, own_topk=2, support=Support.student)
    none = make_teacher(demo(), vocab_size=24, support=Support.student)
    for one, other, third in zip(*(t.score(requests) for t in (whole, bare, none)), strict=True):
        assert isinstance(one.signal, TopKSignal)
        assert other.signal is third.signal is third.topk is None
        assert other.topk is not None
        assert other.topk.ids.shape[1] == 2
        np.testing.assert_allclose(one.at_student_topk, third.at_student_topk, atol=1e-6)
    assert (
        contract_violations(
            bare,
            asked_of_teacher(demo(), Support.student),
            24,
            context_length=64,
            record_topk=4,
            own_topk=2,
            support=Support.student,
        )
        == []
    )


def test_an_ensemble_is_exact_on_the_students_tokens() -> None:
    """Its own top-k is a lower bound; the student's tokens have the mixture's probabilities."""
    members = [
        Member(name, weight, demo(name=name))
        for name, weight in (("teacher", 0.25), ("student", 0.75))
    ]
    settings = TeacherSettings(kind="ensemble", topk=TOP)
    request = request_of("a", 1, 5, 4)[0]
    found = {}
    for support in (Support.student, Support.union):
        server = TeacherServer(
            make_teacher(settings, vocab_size=24, members=members, support=support),
            settings,
            support,
        )
        server.score([request])
        found[support] = server.signals.take({"a": np.arange(5)})["a"]
    student, union = found[Support.student], found[Support.union]
    assert isinstance(student, TopKSignal)
    assert isinstance(union, TopKSignal)
    parts = [
        make_teacher(m.settings, vocab_size=24).score([request])[0].at_student_topk for m in members
    ]
    mixture = np.log(0.25 * np.exp(parts[0]) + 0.75 * np.exp(parts[1]))
    assert student.ids.tolist() == request.student_topk.ids.tolist()
    np.testing.assert_allclose(student.logprobs, mixture, atol=1e-5)
    # The same values in the union, wherever the token stands there.
    for row, ids in enumerate(student.ids):
        for column, token in enumerate(ids):
            (place,) = np.flatnonzero(union.ids[row] == token)
            assert union.logprobs[row, place] == pytest.approx(mixture[row, column], abs=1e-5)


def test_answers_without_a_signal_are_recorded_and_replayed(tmp_path: Path) -> None:
    settings = TeacherSettings(topk=0, cache=CacheMode.record, cache_dir=str(tmp_path))
    request = request_of("a", 1, 5, 4)[0]
    recorder = CachedTeacher(settings, lambda: Known(None))
    (first,) = recorder.score([request])
    replaying = replace(settings, cache=CacheMode.replay)
    server = TeacherServer(
        make_teacher(replace(replaying, topk=TOP), support=Support.student),
        replace(replaying, topk=TOP),
        Support.student,
    )
    server.score([request])
    signal = server.signals.take({"a": np.arange(5)})["a"]
    assert isinstance(signal, TopKSignal)
    np.testing.assert_array_equal(signal.logprobs, first.at_student_topk)


def test_recorded_bounds_stay_bounds(tmp_path: Path) -> None:
    settings = TeacherSettings(topk=TOP, cache=CacheMode.record, cache_dir=str(tmp_path))
    CachedTeacher(settings, lambda: Known(TOP, reads_student_logprobs=True))
    replaying = replace(settings, cache=CacheMode.replay)
    with pytest.raises(TeacherError, match="knows only bounds of some of the student's tokens"):
        TeacherServer(make_teacher(replaying), replaying, Support.union)


def test_a_served_teacher_serves_runs_that_want_no_top_k() -> None:
    host = TeacherHost(replace(demo(), threads=1), 24, 0)
    request = request_of("a", 1, 5, 4)[0]
    (answer,) = host.score([request], Wanted(SignalChoice.topk, 0))
    assert answer.signal is None
    # One that cannot adapt answers as it was started, and the run does not look at its top-k.
    host._teachers = {host._own: Known(TOP)}
    assert host.info(Wanted(SignalChoice.topk, 0)).name == "known"
    with pytest.raises(TeacherError, match="is served for teacher.signal = topk"):
        host.info(Wanted(SignalChoice.topk, TOP + 1))


def test_check_teacher_names_what_the_union_could_not_take() -> None:
    class TwoTongues(Known):
        def answer(self, request: ScoreRequest) -> TeacherAnswer:
            found = super().answer(request)
            at = found.at_student_topk.copy()
            at[request.student_topk.ids != request.response_ids[:, None]] -= 0.5
            return replace(found, at_student_topk=at)

    def violations(support: Support) -> list[str]:
        settings = asked_of_teacher(TeacherSettings(topk=TOP), support)
        limits = {"context_length": 40, "record_topk": 5, "support": support}
        return contract_violations(TwoTongues(TOP), settings, V, **limits)  # type: ignore[arg-type]

    assert not [text for text in violations(Support.teacher) if "same token" in text]
    assert [text for text in violations(Support.union) if "same token" in text]


@pytest.mark.parametrize(
    ("ids", "logprobs", "wrong"),
    [
        ([[4, -1]], [[-1, -INF]], None),
        ([[4, -1]], [[-1, -2]], "id -1"),
        ([[-1, 4]], [[-INF, -1]], "id -1"),
        ([[4, -2]], [[-1, -INF]], "id -2"),
        ([[4, V]], [[-1, -2]], f"id {V}"),
    ],
)
def test_padding_of_a_signal_is_told_from_a_wrong_id(
    ids: list[Any], logprobs: list[Any], wrong: str | None
) -> None:
    item = TrainItem(
        "r",
        array([1], np.int32),
        array([2], np.int32),
        array([0], np.int32),
        array([1]),
        array([0]),
    )
    signals = {"r": TopKSignal(array(ids, np.int32), array(logprobs))}
    if wrong is None:
        check_items([item], signals, vocab_size=V, heads={})
        return
    with pytest.raises(
        BatchError, match=f"rollout r, row 0: the top-k signal has {wrong}, outside"
    ):
        check_items([item], signals, vocab_size=V, heads={})


def test_other_signals_are_passed_on_under_the_teachers_name() -> None:
    hidden = HiddenSignal(np.zeros((2, 4), np.float32))
    answer = replace(ANSWER, signal=hidden)
    assert signal_of("t", REQUEST, answer, Support.teacher) is hidden


@pytest.mark.parametrize("support", Support)
def test_a_support_says_nothing_of_other_signals(support: Support) -> None:
    settings = demo(signal=SignalChoice.hidden)
    server = TeacherServer(
        make_teacher(settings, vocab_size=24, support=support), settings, support
    )
    server.score([request_of("a", 1, 5, 4)[0]])
    assert isinstance(server.signals.take({"a": np.arange(5)})["a"], HiddenSignal)
