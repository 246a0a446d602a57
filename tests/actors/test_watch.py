"""Waiting for actors: whose failure is told, and what ends a wait. Real actors of Ray."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import ray

from actors.lifeline import LIFELINE_GROUP, Lifeline
from opd_ray.errors import ActorDied, ActorFailure, PeerFailure
from opd_ray.pools.watch import ActorWatch, Interrupted, StallError

pytestmark = pytest.mark.usefixtures("joined_ray")


@ray.remote(num_cpus=0, concurrency_groups=LIFELINE_GROUP)
class Worker(Lifeline):
    """Answers, complains, or never ends."""

    def answer(self, value: int, seconds: float = 0.0) -> int:
        time.sleep(seconds)
        return value

    def complain(self, of_a_peer: bool, seconds: float = 0.0) -> None:
        time.sleep(seconds)
        raise PeerFailure("another rank refused") if of_a_peer else ValueError("token 7 is wrong")

    def count(self, to: int, then_fail: bool = False) -> Iterator[int]:
        for number in range(to):
            time.sleep(0.02)
            yield number
        if then_fail:
            raise ValueError("no further")

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def watch() -> Iterator[ActorWatch]:
    watch = ActorWatch(30.0, "the.key")
    yield watch
    watch.shutdown()


@pytest.fixture
def two(watch: ActorWatch) -> list[ray.actor.ActorHandle]:
    handles = [Worker.remote() for _ in range(2)]
    for number, handle in enumerate(handles):
        watch.add(f"worker-{number}", handle)
    return handles


def test_values_come_in_the_order_of_the_calls(watch, two):
    refs = [(two[0].answer.remote(1, 0.5), "worker-0"), (two[1].answer.remote(2), "worker-1")]
    assert watch.get_all(refs) == [1, 2]


@pytest.mark.parametrize("cause_first", [True, False])
def test_the_cause_is_told_and_not_the_complaint_of_a_peer(watch, two, cause_first):
    refs = [
        (two[0].complain.remote(True, 0.5 * cause_first), "worker-0 (step)"),
        (two[1].complain.remote(False, 0.5 * (not cause_first)), "worker-1 (step)"),
    ]
    with pytest.raises(ActorFailure, match=r"(?s)worker-1 \(step\) failed.*token 7 is wrong"):
        watch.get_all(refs)


def test_complaints_of_peers_alone_are_told(watch, two):
    refs = [(handle.complain.remote(True), "all") for handle in two]
    with pytest.raises(ActorFailure, match="another rank refused"):
        watch.get_all(refs)


def test_a_death_ends_the_wait_for_others(watch, two):
    two[1].die.remote()
    with pytest.raises(ActorFailure, match="worker-1 failed"):
        watch.get(two[0].answer.remote(1, 60.0), "worker-0")


def test_a_dead_process_is_the_cause_of_a_living_ones_error(watch, two):
    ray.get(two[1].answer.remote(0))
    two[1].die.remote()
    with pytest.raises(ActorFailure, match="worker-1 failed"):
        watch.get(two[0].complain.remote(False), "worker-0")


def test_the_death_of_an_entrusted_actor_is_its_keepers_matter(watch, two):
    ended: list[ray.ObjectRef] = []
    watch.when_ready(watch.hand_over("worker-1"), ended.append)
    two[1].die.remote()
    watch.wait_until(lambda: bool(ended), "its end")
    assert watch.get(two[0].answer.remote(5), "worker-0") == 5
    with pytest.raises(ActorDied, match="worker-1"):
        watch.get(two[1].answer.remote(5), "worker-1")


def test_streams_are_read_while_the_run_waits_for_something_else(watch, two):
    found: dict[int, list[int]] = {0: [], 1: []}
    ended: list[int] = []
    for index, stream in enumerate(
        handle.count.options(num_returns="streaming").remote(4) for handle in two
    ):
        watch.read(
            stream,
            lambda ref, index=index: found[index].append(watch.get(ref, f"worker-{index}")),
            lambda index=index: ended.append(index),
        )
    answer = two[0].answer.remote(7)  # behind the stream
    assert watch.get(answer, "worker-0") == 7
    watch.wait_until(lambda: len(ended) == 2, "the end")
    assert found == {0: [0, 1, 2, 3], 1: [0, 1, 2, 3]}


def test_what_a_stream_raises_is_its_last_item(watch, two):
    found: list[int] = []
    stream = two[0].count.options(num_returns="streaming").remote(2, True)
    watch.read(stream, lambda ref: found.append(watch.get(ref, "worker-0")), lambda: None)
    with pytest.raises(ActorFailure, match=r"(?s)worker-0 failed.*no further"):
        watch.wait_until(lambda: False, "numbers")
    assert found == [0, 1]


def test_a_death_ends_the_reading_of_a_stream(watch, two):
    found: list[int] = []
    stream = two[0].count.options(num_returns="streaming").remote(10_000)
    watch.read(stream, lambda ref: found.append(watch.get(ref, "worker-0")), lambda: None)
    watch.wait_until(lambda: bool(found), "a number")
    watch.remove("worker-1")  # on purpose: no death
    ray.kill(two[0])
    with pytest.raises(ActorFailure, match="worker-0 failed"):
        watch.wait_until(lambda: False, "numbers")


def test_a_stall_ends_and_names_its_key(watch, two):
    watch.set_stall_timeout(0.1, "the.other.key")
    with pytest.raises(StallError, match=r"waiting for worker-0 \(the.other.key sets this limit"):
        watch.get(two[0].answer.remote(1, 60.0), "worker-0")


def test_a_stop_leaves_only_the_waits_that_may_be_left(watch, two):
    threading.Timer(0.3, lambda: setattr(watch, "stop_requested", True)).start()
    with pytest.raises(Interrupted, match="stopped while waiting for scores"):
        watch.wait_until(lambda: False, "scores", interruptible=True)
    assert watch.get(two[1].answer.remote(2), "worker-1") == 2


def test_names_are_used_once(watch, two):
    with pytest.raises(ValueError, match="'worker-0' is watched already"):
        watch.add("worker-0", two[1])
