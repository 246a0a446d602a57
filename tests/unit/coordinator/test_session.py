"""How a session wires its actors together, and what it says of its teachers; no actor is there."""

from __future__ import annotations

import signal
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from opd_ray.config.schema import Config, StudentSettings
from opd_ray.config.teacher import TeacherSettings
from opd_ray.coordinator import session as subject
from opd_ray.coordinator.session import Session
from opd_ray.pools.watch import ActorWatch, Interrupted
from opd_ray.preflight.pairing import Pairing

CONFIG = Config(
    student=StudentSettings(path="student", context_length=100),
    teacher=TeacherSettings(path="a", accept_mismatch=["eos"]),
    teachers={"coder": {"path": "b", "accept_mismatch": ["pad"]}},
    routes={"sums": "teacher", "code": "coder"},
)


class Recorded:
    """Stands in for a class: keeps its arguments, writes down calls of save and load."""

    calls: list[tuple[str, str, str]]

    def __init__(self, *args: Any) -> None:
        self.args = args

    watch = "watch"

    def save(self, folder: str) -> dict[str, str]:
        self.calls.append((type(self).__name__, "save", folder))
        return {"rank_0": "its sum"}

    def begin_save(self, folder: str) -> list[tuple[str, str]]:
        self.calls.append((type(self).__name__, "begin_save", folder))
        return [("reference", "trainer-0")]

    def load(self, folder: str) -> None:
        self.calls.append((type(self).__name__, "load", folder))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A session, the stand-ins that its launcher gives, and all calls."""
    calls: list[tuple[str, str, str]] = []

    def class_of(name: str) -> type[Recorded]:
        return type(name, (Recorded,), {"calls": calls})

    for name in ("TeacherRouter", "RolloutScorer", "TeacherWeights", "WeightSync"):
        monkeypatch.setattr(subject, name, class_of(name))
    order = SimpleNamespace(to=lambda role: calls.append(("order", "to", role)))
    monkeypatch.setattr(subject, "work_order", lambda *parts: parts_of.append(parts) or order)
    parts_of: list[Any] = []
    trainers = class_of("TrainerGroup")()
    pools = {"teacher": "the teacher's pool", "coder": "the coder's pool"}
    launcher: Any = SimpleNamespace(
        watch="watch",
        rollout_pool=lambda: "rollouts",
        teacher_pools=lambda: pools,
        trainer_group=lambda: trainers,
    )
    tokenizer: Any = None
    session: Any = Session(CONFIG, launcher, tokenizer, 22)
    return SimpleNamespace(
        session=session,
        trainers=trainers,
        pools=pools,
        calls=calls,
        order=order,
        parts_of_order=parts_of,
    )


def test_every_part_is_given_the_parts_it_works_with(made: SimpleNamespace) -> None:
    session = made.session
    assert session.teachers.args == (made.pools, {"sums": "teacher", "code": "coder"})
    assert session.trainers is made.trainers
    order = session.order
    assert order is made.order
    assert made.parts_of_order == [(CONFIG.cluster, "rollouts", session.teachers, session.trainers)]
    assert session.scorer.args == ("watch", "rollouts", session.teachers, order, False)
    config, trainers, rollouts, teacher_weights, turns = session.sync.args
    assert (config, trainers, rollouts, turns) == (CONFIG, made.trainers, "rollouts", order)
    watch, teachers, trainers, turns = teacher_weights.args
    assert (watch, trainers, turns) == ("watch", made.trainers, order)
    found = {name: (settings.path, pool) for name, (settings, pool) in teachers.items()}
    assert found == {"teacher": ("a", "the teacher's pool"), "coder": ("b", "the coder's pool")}


@pytest.mark.parametrize("method", ["save", "begin_save"])
def test_a_checkpoint_is_the_teachers_that_follow_and_then_the_trainers(
    made: SimpleNamespace, method: str
) -> None:
    """In this order: rank 0 sums all files that are there by then."""
    found = getattr(made.session, method)("step_3")
    assert (
        found == {"save": {"rank_0": "its sum"}, "begin_save": [("reference", "trainer-0")]}[method]
    )
    assert made.calls == [
        ("TeacherWeights", "save", "step_3/teachers"),
        ("order", "to", "trainer"),
        ("TrainerGroup", method, "step_3"),
    ]


def test_the_trainers_look_a_checkpoint_over_before_teachers_load(made: SimpleNamespace) -> None:
    made.session.load("step_3")
    assert made.calls == [
        ("order", "to", "trainer"),
        ("TrainerGroup", "load", "step_3"),
        ("TeacherWeights", "load", "step_3/teachers"),
    ]


def test_every_teacher_is_held_against_the_pair_with_its_own_allowances(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        subject,
        "check_teacher_info",
        lambda pairing, info, *, context_length, accept: checked.append(
            (info, context_length, accept)
        ),
    )
    monkeypatch.setattr(
        subject,
        "uncompared_tokenizer",
        lambda info, models: f"{info}: {models[0].path}" if info == "info b" else None,
    )
    pairing = Pairing(vocab_size=22, tokenizer_hash="x", accepted=("eos: 1 and 2",))
    infos: Any = {"teacher": "info a", "coder": "info b"}
    notes = subject._teacher_notes(CONFIG, pairing, infos, {"teacher": 140, "coder": 60})
    # The longest text that it may have to read, or the context, whichever is more.
    assert checked == [("info a", 140, {"eos"}), ("info b", 100, {"pad"})]
    assert notes == ["accepted difference of eos: 1 and 2", "info b: b"]


@pytest.mark.parametrize("owns_process", [True, False])
def test_a_stop_before_the_models_are_there_is_a_ctrl_c(
    monkeypatch: pytest.MonkeyPatch, owns_process: bool
) -> None:
    """Exit code 130 and one line, not a run that failed; the actors are ended."""
    ended: list[str] = []
    before = signal.getsignal(signal.SIGTERM)

    class Loading:
        watch = ActorWatch(1.0, "a key")

        def __init__(self, *_: Any, **named: Any) -> None:
            pass

        def __enter__(self) -> Loading:
            return self

        def __exit__(self, *_: object) -> None:
            ended.append("actors")

        def ready(self) -> None:
            heard = signal.getsignal(signal.SIGTERM) is not before
            assert heard is owns_process
            assert self.watch.interrupt_stops is not owns_process
            raise Interrupted("stopped while waiting for teacher-0")

    told: list[Any] = []
    ray_session = SimpleNamespace(cluster=lambda: None, when_dead=told.append)

    def session(cluster: object, *, ends_program: bool) -> Any:
        assert ends_program is owns_process
        return nullcontext(ray_session)

    monkeypatch.setattr(subject, "RaySession", session)
    placement = SimpleNamespace(settle=lambda config: config)
    monkeypatch.setattr(subject, "plan_placement", lambda config, cluster: placement)
    monkeypatch.setattr(subject, "ActorLauncher", Loading)
    with (
        pytest.raises(KeyboardInterrupt, match="stopped while waiting for teacher-0"),
        subject.open_session(CONFIG, Pairing(24, "hash"), 0, {}, owns_process=owns_process),
    ):
        raise AssertionError("not to be reached")
    assert ended == ["actors"]
    assert told == [Loading.watch.fail]  # of a Ray that dies
    assert signal.getsignal(signal.SIGTERM) is before


def test_new_trainers_are_given_what_the_old_ones_had_from_others(made: SimpleNamespace) -> None:
    session, calls = made.session, []

    def called(what: str, answer: object = None) -> Any:
        return lambda *args: calls.append((what, *args)) or answer

    session.scorer.abandon = called("what is under way is given up")
    session.launcher.end_trainers = called("all ranks are ended")
    made.order.make_way = called("others make way")
    session.launcher.restart_trainers = called("all ranks start again", "the new ranks")
    made.trainers.replace_by = called("the group has")
    session.launcher.ask_new_trainers = called("teachers ask them")
    session._teacher_weights.share_heads = called("heads are shared")
    session.sync.meet = called("the transport's ends meet")
    session._teacher_weights.begin_anew = called("followers begin anew")
    session.restart_trainers()
    assert calls == [
        ("what is under way is given up",),
        ("all ranks are ended",),
        ("others make way",),
        ("all ranks start again",),
        ("the group has", "the new ranks"),
        ("teachers ask them",),
        ("heads are shared",),
        ("the transport's ends meet",),
    ]
    session.begin_anew()
    assert calls[8:] == [("followers begin anew",)]
