"""Recorded answers: the same as the teacher's, replayed without it, by several writers at once."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from costly_teacher import REQUESTS, TOP, Cache, Costly, D, V, cached_teacher, request, same

from actors.teacher.cache.teacher import CachedTeacher
from actors.teacher.contract.answers import check_answers
from actors.teacher.protocol import TeacherError
from actors.teacher.service import TeacherServer
from opd_ray.config.choices import Dtype, SignalChoice
from opd_ray.config.teacher import TeacherSettings
from opd_ray.types import ScoreRequest, TopK


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return partial(cached_teacher, tmp_path)


@pytest.mark.parametrize("signal", list(SignalChoice))
def test_what_is_recorded_is_replayed_to_the_bit_without_the_teacher(
    cache: Cache, signal: SignalChoice
) -> None:
    recorder = cache("record", Costly, signal=signal)
    answers = recorder.score(REQUESTS[:4])
    answers += recorder.score(REQUESTS[4:])
    player = cache("replay", signal=signal)
    shuffled = [REQUESTS[i] for i in (5, 0, 3, 3)]
    for got, expected in zip(
        player.score(shuffled), (answers[i] for i in (5, 0, 3, 3)), strict=True
    ):
        same(got, expected)
    assert player.score([]) == []
    info = player.info()
    assert (info.name, info.vocab_size, info.context_length) == ("costly", V, 64)
    assert info.signals == (signal.value,)
    check_answers(info, shuffled, player.score(shuffled), TeacherSettings(signal=signal, topk=TOP))
    player.close()


def test_other_ids_for_the_rollout_do_not_matter_but_every_token_does(cache: Cache) -> None:
    cache("record", Costly).score(REQUESTS)
    player = cache("replay")
    known = REQUESTS[0]
    [answer] = player.score([replace(known, rollout_id="another run's")])
    assert answer.rollout_id == "another run's"
    student = known.student_topk
    for changed in (
        replace(known, prompt_ids=(known.prompt_ids + 1) % V),
        replace(known, response_ids=(known.response_ids + 1) % V),
        replace(known, student_topk=TopK(student.ids[:, ::-1], student.logprobs)),
        # The same tokens, cut elsewhere.
        ScoreRequest(
            "r0",
            np.append(known.prompt_ids, known.response_ids[:1]),
            known.response_ids[1:],
            TopK(student.ids[1:], student.logprobs[1:]),
        ),
    ):
        with pytest.raises(TeacherError, match="'r0': its answer is not among the 6 recorded"):
            player.score([changed])


def test_other_questions_about_the_same_tokens_are_missing(cache: Cache) -> None:
    cache("record", Costly).score(REQUESTS)
    with pytest.raises(TeacherError, match="not among"):
        cache("replay", signal=SignalChoice.sampled).score(REQUESTS)


def test_a_miss_names_rollout_folder_and_remedy(cache: Cache, tmp_path: Path) -> None:
    cache("record", Costly).score(REQUESTS[:2])
    with pytest.raises(TeacherError) as raised:
        cache("replay").score(REQUESTS[:4])
    said = str(raised.value)
    assert "rollout 'r2'" in said
    assert f"teacher.cache_dir = '{tmp_path}'" in said
    assert "2 of 4 rollouts of the batch are missing" in said
    assert "teacher.cache=replay_or_ask" in said


def test_replay_or_ask_loads_the_teacher_on_the_first_miss_and_records(cache: Cache) -> None:
    cache("record", Costly).score(REQUESTS[:2])
    loaded: list[Costly] = []

    def load() -> Costly:
        loaded.append(Costly(TeacherSettings()))
        return loaded[-1]

    mixed = cache("replay_or_ask", load)
    mixed.score(REQUESTS[:2])
    assert loaded == []
    answers = mixed.score(REQUESTS)
    assert loaded[0].asked == ["r2", "r3", "r4", "r5"]
    for got, expected in zip(answers, Costly(TeacherSettings()).score(REQUESTS), strict=True):
        same(got, expected)
    mixed.score(REQUESTS)
    assert len(loaded[0].asked) == 4
    cache("replay").score(REQUESTS)
    mixed.close()
    assert loaded[0].closed


def test_a_rollout_asked_twice_in_a_batch_is_asked_once(cache: Cache) -> None:
    live = Costly(TeacherSettings())
    twin = replace(REQUESTS[0], rollout_id="twin")
    answers = cache("record", lambda: live).score([REQUESTS[0], twin])
    assert len(live.asked) == 1
    assert [answer.rollout_id for answer in answers] == ["r0", "twin"]


def test_several_writers_of_one_folder(cache: Cache) -> None:
    reader = cache("replay_or_ask", Costly)
    writers = [
        threading.Thread(target=lambda n=n: cache("record", Costly).score([request(n, n)]))
        for n in range(8)
    ]
    for stream in writers:
        stream.start()
    for stream in writers:
        stream.join()
    live = reader._teacher()
    assert len(reader.score([request(n, n) for n in range(8)])) == 8
    assert live.asked == []  # what was written after it started is found


def test_a_folder_of_another_teacher_is_refused(cache: Cache) -> None:
    cache("record", Costly).score(REQUESTS)
    with pytest.raises(TeacherError, match="dtype 'float32'; this one's is 'bfloat16'"):
        cache("replay", dtype=Dtype.bfloat16)
    other = Costly(TeacherSettings())
    other.name = "other"
    with pytest.raises(TeacherError, match="name 'costly'; this one's is 'other': use another"):
        cache("record", lambda: other)


def test_other_weights_under_the_same_name_are_refused(cache: Cache, tmp_path: Path) -> None:
    model = tmp_path / "costly"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"1" * 100)
    path = {"path": str(model)}
    cache("record", Costly, **path).score(REQUESTS)
    cache("record", Costly, **path)
    (model / "model.safetensors").write_bytes(b"2" * 100)
    with pytest.raises(TeacherError, match="holds answers of a teacher with weights"):
        cache("record", Costly, **path)
    (model / "model.safetensors").unlink()
    cache("replay", **path).score(REQUESTS)


def test_an_empty_folder_cannot_be_replayed(cache: Cache) -> None:
    with pytest.raises(TeacherError, match="nothing was recorded there"):
        cache("replay")


def test_wrong_answers_are_not_recorded(cache: Cache) -> None:
    live = Costly(TeacherSettings())
    recorder = cache("record", lambda: live)
    live.nan = True
    with pytest.raises(TeacherError, match="'r0', position 0: logprob is nan"):
        recorder.score(REQUESTS)
    with pytest.raises(TeacherError, match="not among the 0 recorded"):
        cache("replay").score(REQUESTS)


def test_the_output_head_is_recorded_when_it_is_asked_for(cache: Cache) -> None:
    chosen = {"signal": SignalChoice.hidden}
    recorder = cache("record", Costly, **chosen)
    with pytest.raises(TeacherError, match="no output head was recorded"):
        cache("replay", **chosen).output_head()
    weight, bias = recorder.output_head()
    again, _ = cache("replay", **chosen).output_head()
    np.testing.assert_array_equal(weight, again)
    assert bias is None


def test_an_output_head_of_another_shape_is_not_recorded(cache: Cache, tmp_path: Path) -> None:
    recorder = cache("record", Costly, signal=SignalChoice.hidden)
    live = recorder._teacher()
    live.output_head = lambda: (np.ones((V, D + 1), np.float32), None)
    with pytest.raises(TeacherError, match=r"output_head\(\) has shape"):
        recorder.output_head()
    assert not (tmp_path / "output_head.safetensors").exists()


def test_probabilities_of_the_student_are_part_of_the_key_where_answers_depend_on_them(
    cache: Cache,
) -> None:
    live = Costly(TeacherSettings(), {"reads_student_logprobs": True})
    cache("record", lambda: live).score(REQUESTS)
    cache("replay").score(REQUESTS)
    student = REQUESTS[0].student_topk
    other = replace(REQUESTS[0], student_topk=TopK(student.ids, student.logprobs - 1))
    with pytest.raises(TeacherError, match="not among"):
        cache("replay").score([other])


def test_a_server_of_recorded_answers_scores_as_the_teacher(cache: Cache) -> None:
    settings = TeacherSettings(topk=TOP)
    expected = TeacherServer(Costly(settings), settings).score(REQUESTS)
    cache("record", Costly).score(REQUESTS)
    got = TeacherServer(cache("replay"), settings).score(REQUESTS)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one.columns["reverse_kl"], other.columns["reverse_kl"])


def test_errors_name_the_teachers_own_folder(cache: Cache, tmp_path: Path) -> None:
    folder = f"teachers.b.cache_dir = '{tmp_path}'"
    with pytest.raises(TeacherError) as error:
        cache("replay", name="b")
    assert str(error.value).startswith(f"{folder}: nothing was recorded there")
    assert str(error.value).endswith("record first with teachers.b.cache=record")
    cache("record", Costly).score(REQUESTS[:1])
    with pytest.raises(TeacherError) as error:
        cache("replay", name="b").score(REQUESTS)
    assert f"recorded in {folder}" in str(error.value)
    with pytest.raises(TeacherError) as error:
        cache("replay", name="b", dtype=Dtype.bfloat16)
    assert str(error.value).startswith(f"{folder} holds answers of a teacher with dtype 'float32'")


def some_rows(whole: ScoreRequest, *rows: int) -> ScoreRequest:
    index = np.array(rows, np.int32)
    topk = whole.student_topk
    return replace(whole, rows=index, student_topk=TopK(topk.ids[index], topk.logprobs[index]))


def test_an_answer_is_found_by_the_rows_that_were_asked_about(cache: Cache) -> None:
    whole = max(REQUESTS, key=lambda one: len(one.response_ids))
    wanted = [some_rows(whole, 0, 2), some_rows(whole, 0, 3)]
    # Two equal rows of the student's: the rows alone tell the requests apart.
    wanted[1] = replace(wanted[1], student_topk=wanted[0].student_topk)
    recorder = cache("record", Costly)
    assert recorder.info().answers_rows
    [every] = recorder.score([whole])
    some = [recorder.score([one])[0] for one in wanted]
    for answer, rows in zip(some, ([0, 2], [0, 3]), strict=True):
        np.testing.assert_array_equal(answer.logprob, every.logprob[rows])
        np.testing.assert_array_equal(answer.signal.ids, every.signal.ids[rows])
    player = cache("replay")
    for one, answer in zip((whole, *wanted), (every, *some), strict=True):
        same(player.score([one])[0], answer)
    with pytest.raises(TeacherError, match="its answer is not among the 3"):
        player.score([some_rows(whole, 1, 2)])


def test_answers_about_whole_responses_are_found_by_the_key_that_they_always_had(
    cache: Cache,
) -> None:
    ids = np.arange(8, dtype=np.int32).reshape(2, 4)
    whole = ScoreRequest("r", ids[0], ids[1, :2], TopK(ids, np.full(ids.shape, -3, np.float32)))
    recorder = cache("record", Costly)
    recorder.score([whole])
    [name] = {key.partition(".")[0] for key in recorder._files._place}
    assert name == "4ac3637caef4f366cd9f8ef4192786763560ed87"


@pytest.mark.parametrize("mode", ["record", "replay_or_ask"])
def test_a_rank_that_began_anew_is_asked_also_by_one_that_loads_later(
    cache: Cache, mode: str
) -> None:
    """Answers that a trainer rank computes, behind a record of them."""
    asked: list[tuple[str, str]] = []

    class Asking(Costly):
        def ask(self, trainer: str) -> None:
            asked.append(("told of", trainer))

    def load(trainer: str = "rank of old") -> Asking:
        asked.append(("loaded from", trainer))
        return Asking(teacher._settings if asked[1:] else TeacherSettings(topk=TOP))

    teacher: CachedTeacher
    if mode == "replay_or_ask":
        cache("record", Costly).score(REQUESTS[:1])
    teacher = cache(mode, load)
    teacher.ask("rank anew")
    teacher.score(REQUESTS[:2])
    expected = {
        "record": [("loaded from", "rank of old"), ("told of", "rank anew")],
        "replay_or_ask": [("loaded from", "rank anew")],
    }
    assert asked == expected[mode]
