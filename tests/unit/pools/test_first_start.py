"""Actors that die or hang while all come up for the first time; they are plain objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from fake_replicas import Remote

from opd_ray.errors import ActorFailure, ActorLost, Unanswered
from opd_ray.pools.first_start import FirstStart
from opd_ray.pools.watch import AnswerLimit

ALLOWED = {"trainer": 2, "rollout": 1, "teacher": 1}


@dataclass
class Hang:
    """A wait that ended for its limit: these have not answered."""

    after: float
    names: list[str]


class Cluster:
    """Actors, and a watch in whose waits some die or hang: ``deaths`` has one for every wait."""

    def __init__(self, *deaths: ActorLost | Hang | None) -> None:
        self.deaths = list(deaths)
        self.now = self.seconds_to_death = 0.0
        self.limits: list[float] = []  # of the waits
        self.starts: list[str] = []
        roles = {"trainer": 2, "rollout": 2, "teacher": 1}
        self.actors: Any = {
            role: [(f"{role}-{n}", self.handle(f"{role}-{n}")) for n in range(count)]
            for role, count in roles.items()
        }
        self.asked: list[Any] = []

    def handle(self, name: str) -> SimpleNamespace:
        self.starts.append(name)
        number = self.starts.count(name)

        def answer(method: str) -> Remote:
            return Remote(lambda *args: self.asked.append((name, number, method)) or number)

        address = Remote(lambda: ("here", 7000 + number))
        return SimpleNamespace(ready=answer("ready"), setup=answer("setup"), address=address)

    def again(self, name: str) -> None:
        actors = self.actors[name.split("-")[0]]
        for place, (other, _) in enumerate(actors):
            if other == name or name.startswith("trainer"):
                actors[place] = other, self.handle(other)

    def get(self, ref: Any, owner: str, *, interruptible: bool, limit: AnswerLimit) -> Any:
        return self.get_all([(ref, owner)], interruptible=interruptible, limit=limit)[0]

    def get_all(
        self, pairs: Iterable[tuple[Any, str]], *, interruptible: bool, limit: AnswerLimit
    ) -> list[Any]:
        assert interruptible
        self.limits.append(limit.seconds)
        if self.deaths and (death := self.deaths.pop(0)):
            self.now += death.after if isinstance(death, Hang) else self.seconds_to_death
            raise Unanswered(death.names, "no answer") if isinstance(death, Hang) else death
        return [ref for ref, _ in pairs]

    def wait(self, *after_trainers: str) -> dict[str, Any]:
        def allowed(name: str) -> tuple[str, int]:
            role = name.split("-")[0]
            return f"{role}.max_restarts", ALLOWED[role]

        watch: Any = self
        return FirstStart(
            watch,
            self.actors,
            allowed,
            self.again,
            AnswerLimit(600.0, "cluster.start_timeout_s"),
            after_trainers,
            clock=lambda: self.now,
        ).wait()


def lost(name: str, **others: bool) -> ActorLost:
    return ActorLost(name, name, "its process is gone", **others)


EVERYONE = ["trainer-0", "trainer-1", "rollout-0", "rollout-1", "teacher-0"]


def test_all_are_asked_once_and_ranks_meet_at_the_first() -> None:
    cluster = Cluster()
    assert cluster.wait() == dict.fromkeys(EVERYONE, 1)
    methods = {name: "setup" if name.startswith("trainer") else "ready" for name in EVERYONE}
    assert sorted(cluster.asked) == sorted((name, 1, methods[name]) for name in EVERYONE)


@pytest.mark.parametrize("name", ["rollout-1", "teacher-0"])
def test_the_others_go_on_loading_while_one_is_started_again(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(None, lost(name))
    assert cluster.wait() == dict.fromkeys(EVERYONE, 1) | {name: 2}
    assert len(cluster.asked) == 6  # every other once
    key = f"{name.split('-')[0]}.max_restarts"
    assert capsys.readouterr().err == (
        f"opd-ray: {name} died while it came up (its process is gone); starting it again "
        f"(1 of {key} = 1)\n"
    )


@pytest.mark.parametrize("deaths", [[None], []])
def test_with_a_rank_all_ranks_start_again(
    deaths: list[None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Once they have been asked to meet, or while the place to meet is asked for."""
    cluster = Cluster(*deaths, lost("trainer-1"))
    ranks = {"trainer-0": 2, "trainer-1": 2}
    assert cluster.wait() == dict.fromkeys(EVERYONE, 1) | ranks
    assert "starting all ranks again (1 of trainer.max_restarts = 2)" in capsys.readouterr().err


def test_a_replica_whose_answers_trainers_compute_loads_after_them_and_anew_with_them() -> None:
    cluster = Cluster()
    assert cluster.wait("teacher-0") == dict.fromkeys(EVERYONE, 1)
    assert cluster.asked[-1] == ("teacher-0", 1, "ready")
    # A rank dies while the replica asks it.
    cluster = Cluster(None, None, lost("trainer-1"))
    again = {"trainer-0": 2, "trainer-1": 2, "teacher-0": 2}
    assert cluster.wait("teacher-0") == dict.fromkeys(EVERYONE, 1) | again
    assert cluster.asked[-3:] == [
        ("trainer-0", 2, "setup"),
        ("trainer-1", 2, "setup"),
        ("teacher-0", 2, "ready"),
    ]


@pytest.mark.parametrize(
    ("deaths", "said"),
    [
        (["rollout-0", "rollout-0"], "rollout.max_restarts = 1 allows no further start"),
        # Ranks are counted together.
        (["trainer-0", "trainer-1", "trainer-0"], "trainer.max_restarts = 2 allows no further"),
    ],
)
def test_after_as_many_starts_as_allowed_the_run_ends(deaths: list[str], said: str) -> None:
    # Before each death of a rank the place to meet has been asked for.
    moments = [one for name in deaths for one in (None, lost(name))]
    cluster = Cluster(*(moments if "trainer-0" in deaths else [None, *map(lost, deaths)]))
    with pytest.raises(
        ActorFailure, match=f"its process is gone; it died while it came up, .*{said}"
    ):
        cluster.wait()


def test_every_rollout_actor_has_its_own_count() -> None:
    cluster = Cluster(None, lost("rollout-0"), lost("rollout-1"))
    assert cluster.wait() == dict.fromkeys(EVERYONE, 1) | {"rollout-0": 2, "rollout-1": 2}


def test_one_that_never_ran_takes_no_start() -> None:
    never: Callable[[], ActorLost] = lambda: lost("rollout-0", never_ran=True)  # noqa: E731
    cluster = Cluster(None, never(), never(), lost("rollout-0"))
    assert cluster.wait()["rollout-0"] == 4


def test_what_a_constructor_raises_ends_the_run_at_once() -> None:
    cluster = Cluster(None, lost("rollout-0", in_constructor=True))
    with pytest.raises(ActorLost, match="rollout-0 failed: its process is gone"):
        cluster.wait()
    assert cluster.starts.count("rollout-0") == 1


def test_one_that_hangs_is_started_again_while_the_others_keep_their_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # rollout-0 dies after 400 s: at 600 s only rollout-1 has had its time.
    cluster = Cluster(None, lost("rollout-0"), Hang(200.0, ["rollout-0", "rollout-1"]))
    cluster.seconds_to_death = 400.0
    assert cluster.wait() == dict.fromkeys(EVERYONE, 1) | {"rollout-0": 2, "rollout-1": 2}
    assert cluster.limits[1:] == [600.0, 200.0, 400.0]
    assert capsys.readouterr().err.splitlines()[-1] == (
        "opd-ray: rollout-1 hangs while it came up (it was not up within cluster.start_timeout_s "
        "= 600 s; raise that if models take longer to load); starting it again "
        "(1 of rollout.max_restarts = 1)"
    )


@pytest.mark.parametrize("moments", [[], [None]])
def test_with_ranks_that_hang_all_start_again_once(moments: list[None]) -> None:
    """Before they are to meet, or as they load; with them the replicas that ask them."""
    hang = ["trainer-0", "trainer-1"] if moments else ["trainer-0"]
    cluster = Cluster(*moments, Hang(600.0, hang))
    ranks = {"trainer-0": 2, "trainer-1": 2, "teacher-0": 2}
    assert cluster.wait("teacher-0") == dict.fromkeys(EVERYONE, 1) | ranks
    assert cluster.starts.count("trainer-0") == 2


def test_a_replica_that_waits_in_vain_for_its_rank_is_the_ranks_fault() -> None:
    cluster = Cluster(None, None, Hang(600.0, ["teacher-0"]))
    again = {"trainer-0": 2, "trainer-1": 2, "teacher-0": 2}
    assert cluster.wait("teacher-0") == dict.fromkeys(EVERYONE, 1) | again


def test_one_that_hangs_too_often_ends_the_run() -> None:
    cluster = Cluster(None, *[Hang(600.0, ["rollout-1"])] * 2)
    said = (
        r"rollout-1 failed: it was not up within cluster.start_timeout_s = 600 s; .*; "
        "rollout.max_restarts = 1 allows no further start"
    )
    with pytest.raises(ActorFailure, match=said):
        cluster.wait()
