"""Every way in which a teacher can break its contract, one case each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from actors.teacher.contract.answers import (
    answers_problems,
    check_answers,
    check_info,
    check_request,
)
from actors.teacher.protocol import TeacherError
from opd_ray.config.choices import SignalChoice
from opd_ray.config.teacher import TeacherSettings
from opd_ray.types import (
    HiddenSignal,
    SampledSignal,
    ScoreRequest,
    TeacherAnswer,
    TeacherInfo,
    TopK,
    TopKSignal,
)

V, M, K, TOP, D = 20, 5, 3, 4, 6
INFO = TeacherInfo("big", V, context_length=16, signals=("topk", "hidden"), hidden_size=D)


def make(rollout_id: str = "r7", seed: int = 0) -> tuple[ScoreRequest, TeacherAnswer]:
    """A request and a valid answer, cut from one random distribution a row."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (M, V))
    logprobs = (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)
    student = np.stack([rng.choice(V, K, replace=False) for _ in range(M)]).astype(np.int32)
    response = rng.integers(0, V, M).astype(np.int32)
    top = np.argsort(-logprobs, axis=1)[:, :TOP].astype(np.int32)
    rows = np.arange(M)
    request = ScoreRequest(
        rollout_id,
        np.array([1, 2, 3], np.int32),
        response,
        TopK(student, np.full((M, K), -3.0, np.float32)),
    )
    answer = TeacherAnswer(
        rollout_id=rollout_id,
        logprob=logprobs[rows, response],
        at_student_topk=np.take_along_axis(logprobs, student, 1),
        signal=TopKSignal(top, np.take_along_axis(logprobs, top, 1)),
        entropy=-(np.exp(logprobs) * logprobs).sum(1),
        topk=TopK(top[:, :2], np.take_along_axis(logprobs, top[:, :2], 1)),
    )
    return request, answer


def at(values: np.ndarray, place: tuple[int, ...], value: float) -> np.ndarray:
    changed = values.copy()
    changed[place] = value
    return changed


def check(request, answer, signal="topk"):
    check_answers(INFO, [request], [answer], TeacherSettings(signal=SignalChoice(signal), topk=TOP))


@pytest.mark.parametrize("seed", range(5))
def test_valid_answers_pass(seed):
    request, answer = make(seed=seed)
    check(request, answer)
    check(request, replace(answer, entropy=None, topk=None))
    check(request, replace(answer, signal=SampledSignal(answer.logprob)), "sampled")
    hidden = np.ones((M, D), np.float32)
    check(request, replace(answer, signal=HiddenSignal(hidden)), "hidden")
    check(request, replace(answer, signal=HiddenSignal(hidden.astype(np.uint16))), "hidden")


def altered_signal(answer: TeacherAnswer, **changes) -> TeacherAnswer:
    return replace(answer, signal=replace(answer.signal, **changes))


def alter_logprob(value):
    return lambda r, a: replace(a, logprob=at(a.logprob, (2,), value))


def alter_at_topk(value):
    return lambda r, a: replace(a, at_student_topk=at(a.at_student_topk, (2, 1), value))


BROKEN = {
    "logprob too short": (
        lambda r, a: replace(a, logprob=a.logprob[1:]),
        r"logprob has shape \[4\]; expected \[5\]",
    ),
    "logprob a list": (lambda r, a: replace(a, logprob=a.logprob.tolist()), "logprob is a list"),
    "logprob in double": (
        lambda r, a: replace(a, logprob=a.logprob.astype(np.float64)),
        "logprob has dtype float64; expected float32",
    ),
    "logprob NaN": (alter_logprob(np.nan), "position 2: logprob is nan; expected finite"),
    "logprob -inf": (alter_logprob(-np.inf), "position 2: logprob is -inf; expected finite"),
    "logprob positive": (alter_logprob(0.5), "position 2: logprob is 0.5; expected .*at most 0"),
    "at_student_topk another K": (
        lambda r, a: replace(a, at_student_topk=a.at_student_topk[:, 1:]),
        r"at_student_topk has shape \[5, 2\]; expected \[5, 3\]",
    ),
    "at_student_topk NaN": (alter_at_topk(np.nan), "position 2: at_student_topk is nan"),
    "at_student_topk positive": (alter_at_topk(0.1), "position 2: at_student_topk is 0.1"),
    "mass above 1": (
        lambda r, a: replace(a, at_student_topk=np.full((M, K), -0.5, np.float32)),
        "position 0: mass of at_student_topk is 1.8.*expected at most 1",
    ),
    "entropy negative": (
        lambda r, a: replace(a, entropy=at(a.entropy, (3,), -0.2)),
        "position 3: entropy is -0.2.*expected 0 to ln",
    ),
    "entropy above ln V": (
        lambda r, a: replace(a, entropy=at(a.entropy, (3,), 3.5)),
        "position 3: entropy is 3.5.*expected 0 to ln",
    ),
    "another kind of signal": (
        lambda r, a: replace(a, signal=SampledSignal(a.logprob)),
        "signal is a SampledSignal; the run asks for a TopKSignal",
    ),
    "another k": (
        lambda r, a: altered_signal(a, ids=a.signal.ids[:, :2], logprobs=a.signal.logprobs[:, :2]),
        r"signal.logprobs has shape \[5, 2\]; expected \[5, 4\]",
    ),
    "ids of another k": (
        lambda r, a: altered_signal(a, ids=a.signal.ids[:, :2]),
        r"signal.ids has shape \[5, 2\]; expected \[5, 4\]",
    ),
    "signal that contradicts logprob": (
        lambda r, a: replace(
            a,
            logprob=a.signal.logprobs[:, 1] - 0.2,
            at_student_topk=np.full((M, K), -9.0, np.float32),
            topk=None,
        ),
        "signal.logprobs is .*; expected the sampled token's logprob",
    ),
    "ids in 64 bits": (
        lambda r, a: altered_signal(a, ids=a.signal.ids.astype(np.int64)),
        "signal.ids has dtype int64; expected int32",
    ),
    "id beyond the vocabulary": (
        lambda r, a: altered_signal(a, ids=at(a.signal.ids, (4, 3), V)),
        "position 4: signal.ids is 20; expected ids from 0 to 19",
    ),
    "id negative": (
        lambda r, a: altered_signal(a, ids=at(a.signal.ids, (4, 3), -1)),
        "position 4: signal.ids is -1",
    ),
    "id twice": (
        lambda r, a: altered_signal(a, ids=at(a.signal.ids, (1, 3), a.signal.ids[1, 0])),
        "position 1: signal.ids is .*; expected distinct ids",
    ),
    "ascending": (
        lambda r, a: altered_signal(
            a, ids=a.signal.ids[:, ::-1], logprobs=a.signal.logprobs[:, ::-1]
        ),
        "position 0: signal.logprobs is .*; expected descending order",
    ),
    "topk NaN": (
        lambda r, a: altered_signal(a, logprobs=at(a.signal.logprobs, (2, 3), np.nan)),
        "position 2: signal.logprobs is nan",
    ),
    "own topk broken": (
        lambda r, a: replace(a, topk=replace(a.topk, ids=at(a.topk.ids, (0, 0), 99))),
        "position 0: topk.ids is 99",
    ),
    "own topk of no token": (
        lambda r, a: replace(a, topk=TopK(a.topk.ids[:, :0], a.topk.logprobs[:, :0])),
        r"topk has shape \[5, 0\]; expected at least one token a row",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_violation_is_named(case):
    alter, message = BROKEN[case]
    request, answer = make()
    if case == "signal that contradicts logprob":  # every sampled token is the second likeliest
        request = replace(request, response_ids=answer.signal.ids[:, 1].copy())
    with pytest.raises(TeacherError, match=message) as error:
        check(request, alter(request, answer))
    assert "teacher 'big', rollout 'r7'" in str(error.value)


@pytest.mark.parametrize(
    "rounded",
    [
        lambda a: replace(a, logprob=np.full(M, 0.0009, np.float32)),
        lambda a: replace(a, at_student_topk=np.full((M, K), np.log(1.009 / K), np.float32)),
        lambda a: replace(a, entropy=np.full(M, -0.0009, np.float32)),
        lambda a: replace(a, entropy=np.full(M, np.log(V) + 0.0009, np.float32)),
        lambda a: replace(a, signal=SampledSignal(a.logprob - np.float32(0.09))),
    ],
)
def test_rounding_in_half_precision_is_no_violation(rounded):
    """A log-probability of 0, a mass of 1 and an entropy of 0 or ln V, each rounded beyond it."""
    request, answer = make()
    # No sampled token among the student's, whose values are made up here.
    ids = (request.response_ids[:, None] + np.arange(1, K + 1)) % V
    request = replace(request, student_topk=replace(request.student_topk, ids=ids.astype(np.int32)))
    answer = replace(answer, at_student_topk=np.full((M, K), -9.0, np.float32), topk=None)
    answer = replace(answer, signal=SampledSignal(answer.logprob))
    changed = rounded(answer)
    if not np.array_equal(changed.logprob, answer.logprob):
        changed = replace(changed, signal=SampledSignal(changed.logprob))
    check(request, changed, "sampled")


def test_a_text_as_long_as_the_context_is_read():
    request, _ = make()
    check_request(INFO, replace(request, prompt_ids=np.ones(11, np.int32)))


def test_rows_shifted_by_one_are_noticed():
    """The misalignment that is silent elsewhere: every row describes the token after its own."""
    request, answer = make()
    request = replace(
        request,
        student_topk=replace(
            request.student_topk,
            ids=np.column_stack([request.response_ids, (request.response_ids + 1) % V]),
        ),
    )
    shifted = np.roll(answer.logprob, 1)
    at_topk = np.column_stack([shifted, np.full(M, -9.0)]).astype(np.float32)
    with pytest.raises(TeacherError, match="expected the sampled token's logprob"):
        check(request, replace(answer, at_student_topk=at_topk))


def test_topk_that_misses_a_likelier_sampled_token_is_noticed():
    request, answer = make()
    best = answer.signal.ids[2, 0]
    request = replace(request, response_ids=at(request.response_ids, (2,), best))
    answer = replace(
        answer, logprob=at(answer.logprob, (2,), answer.signal.logprobs[2, 0]), topk=None
    )
    lesser = next(i for i in range(V) if i not in answer.signal.ids[2])
    wrong = altered_signal(answer, ids=at(answer.signal.ids, (2, 0), lesser))
    with pytest.raises(TeacherError, match=r"position 2: .*yet not among them"):
        check(request, wrong)


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        (np.ones((M, D + 1), np.float32), r"shape \[5, 7\]; expected \[5, 6\]"),
        (np.ones((M, D), np.float16), "dtype float16"),
        (at(np.ones((M, D), np.float32), (3, 1), np.inf), "position 3: signal.hidden is inf"),
        (at(np.ones((M, D), np.uint16), (3, 1), 0x7FC0), "position 3: signal.hidden"),
        (at(np.ones((M, D), np.uint16), (3, 1), 0xFF80), "position 3: signal.hidden"),
    ],
)
def test_hidden_violations(hidden, message):
    request, answer = make()
    with pytest.raises(TeacherError, match=message):
        check(request, replace(answer, signal=HiddenSignal(hidden)), "hidden")


def test_sampled_signal_must_repeat_logprob():
    request, answer = make()
    with pytest.raises(TeacherError, match="expected the values of logprob"):
        check(request, replace(answer, signal=SampledSignal(answer.logprob - 1)), "sampled")


def test_answers_one_a_request_in_order():
    (r1, a1), (r2, a2) = make("r1"), make("r2", seed=1)
    settings = TeacherSettings(topk=TOP)
    check_answers(INFO, [r1, r2], [a1, a2], settings)
    check_answers(INFO, [], [], settings)
    for answers, message in (
        ([a1], "returned 1 answers; expected a list of 2"),
        ((a1, a2), "returned tuple"),
        (None, "returned NoneType"),
        ([a2, a1], "answer 0 is for rollout 'r2' .*out of order.*expected rollout 'r1'"),
        ([a1, replace(a2, rollout_id="r9")], "answer 1 is for rollout 'r9' .*never asked for"),
        ([a1, {"rollout_id": "r2"}], "answer 1 is a dict"),
    ):
        with pytest.raises(TeacherError, match=message):
            check_answers(INFO, [r1, r2], answers, settings)


IDS = np.tile(np.array([4, 7], np.int32), (M, 1))
LOGPROBS = np.tile(np.log(np.array([0.5, 0.3], np.float32)), (M, 1))


def student(ids: np.ndarray, logprobs: np.ndarray) -> dict[str, TopK]:
    return {"student_topk": TopK(ids, logprobs)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_ids": np.zeros(0, np.int32)}, "the prompt is empty"),
        ({"prompt_ids": np.ones(12, np.int32)}, "12 prompt and 5 response tokens exceed .* 16"),
        ({"prompt_ids": np.array([20], np.int32)}, "position 0: prompt_ids is 20"),
        ({"prompt_ids": np.array([1])}, "prompt_ids has dtype int64"),
        ({"response_ids": np.array([0, 1, 2, 3, 20], np.int32)}, "position 4: response_ids is 20"),
        ({"response_ids": np.zeros(0, np.int32)}, "the response is empty"),
        (
            {"student_topk": TopK(np.full((M, 1), 20, np.int32), np.zeros((M, 1), np.float32))},
            "position 0: student_topk.ids is 20",
        ),
        (
            {"student_topk": TopK(np.zeros((2, 1), np.int32), np.zeros((2, 1), np.float32))},
            r"student_topk.logprobs has shape \[2, 1\]; expected \[5, any\]",
        ),
        (student(IDS, at(LOGPROBS, (2, 1), np.nan)), "position 2: student_topk.logprobs is nan"),
        (student(IDS, at(LOGPROBS, (2, 1), -np.inf)), "position 2: student_topk.logprobs is -inf"),
        (student(IDS, at(LOGPROBS, (1, 0), 0.3)), "position 1: student_topk.logprobs is 0.3"),
        (student(IDS, LOGPROBS.astype(np.float64)), "student_topk.logprobs has dtype float64"),
        (
            student(IDS, LOGPROBS + np.float32(0.5)),
            "position 0: mass of student_topk.logprobs is 1.3",
        ),
        (student(IDS, LOGPROBS[:, :1]), r"student_topk.ids has shape \[5, 2\]; expected \[5, 1\]"),
        (student(at(IDS, (3, 1), 4), LOGPROBS), "position 3: student_topk.ids is 4; .*distinct"),
        (student(IDS[:, :0], LOGPROBS[:, :0]), r"student_topk has shape \[5, 0\]; .*at least one"),
    ],
)
def test_requests_no_teacher_can_serve(changes, message):
    request, _ = make()
    check_request(INFO, request)
    with pytest.raises(TeacherError, match=message) as error:
        check_request(INFO, replace(request, **changes))
    assert "rollout 'r7'" in str(error.value)


def test_rounding_of_the_students_probabilities_is_no_reason_to_refuse_a_request():
    """A mass of 1 may be a hundredth above it."""
    request, _ = make()
    for last, refused in ((0.409, False), (0.411, True)):
        logprobs = np.tile(np.log(np.array([0.6, last], np.float32)), (M, 1))
        changed = replace(request, **student(IDS, logprobs))
        if refused:
            with pytest.raises(TeacherError, match=r"mass of student_topk.logprobs is 1.011"):
                check_request(INFO, changed)
        else:
            check_request(INFO, changed)


def test_info_must_cover_what_the_run_asks():
    check_info(INFO, TeacherSettings(topk=V))
    check_info(INFO, TeacherSettings(signal=SignalChoice.hidden, topk=V))
    check_info(replace(INFO, max_topk=5), TeacherSettings(topk=5))
    for info, signal, topk, message in (
        (INFO, "sampled", 1, r"no 'sampled' signal; set teacher.signal to one of \['topk'"),
        (INFO, "topk", V + 1, "teacher.topk is 21, it can give 1 to 20"),
        (INFO, "topk", 0, "teacher.topk is 0"),
        (replace(INFO, max_topk=5), "topk", 6, "it can give 1 to 5"),
        (replace(INFO, hidden_size=None), "hidden", 1, "no hidden_size"),
    ):
        with pytest.raises(TeacherError, match=message):
            check_info(info, TeacherSettings(signal=SignalChoice(signal), topk=topk))


def test_every_problem_is_listed_though_one_array_has_another_shape() -> None:
    """What a wrong array makes unknowable is left out; the rest is looked at."""
    request, answer = make()
    answer = replace(
        answer,
        logprob=answer.logprob[1:],
        entropy=answer.entropy + 9,
        signal=TopKSignal(answer.signal.ids.astype(np.int64), answer.signal.logprobs[:, ::-1]),
    )
    found = list(answers_problems(INFO, [request], [answer], TeacherSettings(topk=TOP)))
    assert [text.split("; expected")[0].split(": ", 1)[1].split(" is ")[0] for text in found] == [
        "logprob has shape [4]",
        "entropy",
        "signal.ids has dtype int64",
        "signal.logprobs",
    ]
