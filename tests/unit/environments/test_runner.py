"""Calls into environments: at once, in time, whatever they do."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from opd_ray.environments.runner import (
    Busy,
    CallTimeout,
    EnvironmentRunner,
    StillBusy,
    TooManyHang,
    bounded,
)

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="none")


@pytest.fixture
def runner() -> Iterator[EnvironmentRunner]:
    found = EnvironmentRunner(workers=4, call_seconds=20)
    yield found
    found.close()


@pytest.fixture
def quick() -> Iterator[EnvironmentRunner]:
    """A runner that soon gives up."""
    found = EnvironmentRunner(workers=4, call_seconds=0.2)
    yield found
    found.close()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What hanging calls wait for; it opens at the end of the test."""
    found = threading.Event()
    yield found
    found.set()


def all_of(runner: EnvironmentRunner, *calls: Callable[..., Any]) -> list[Any]:
    """What each call, by an owner of its own, returns or raises, all begun at once."""
    for n, function in enumerate(calls):
        runner.start(f"{n:02}", lambda function=function: runner.call(Busy(), function))
    return [outcome for _, outcome in sorted(runner.ended.get(timeout=20) for _ in calls)]


def one(runner: EnvironmentRunner, owner: Busy, function: Callable[..., Any], *args: Any) -> Any:
    """What a call returns or raises."""
    runner.start("one", lambda: runner.call(owner, function, *args))
    return runner.ended.get(timeout=20)[1]


class Mute(Exception):
    def __str__(self) -> str:
        raise KeyError("no words")


def raising(error: BaseException) -> Callable[[], None]:
    def function() -> None:
        raise error

    return function


def raising_later(error: BaseException) -> Callable[[], Any]:
    async def function() -> None:
        await asyncio.sleep(0)
        raise error

    return function


async def soon() -> str:
    await asyncio.sleep(0.01)
    return "soon"


@pytest.mark.parametrize("kind", [raising, raising_later])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("x"), "KeyError: 'x'"),
        (SystemExit(3), "RuntimeError: SystemExit: 3"),
        (SystemExit(), "RuntimeError: SystemExit"),
        (KeyboardInterrupt(), "RuntimeError: KeyboardInterrupt"),
        (GeneratorExit(), "RuntimeError: GeneratorExit"),
        (asyncio.CancelledError(), "RuntimeError: CancelledError"),
        (TimeoutError("its own"), "TimeoutError: its own"),
        (Mute(), "RuntimeError: Mute: (its text cannot be had: KeyError)"),
    ],
)
def test_whatever_is_raised_comes_back_as_an_error(
    runner: EnvironmentRunner,
    kind: Callable[[BaseException], Callable[..., Any]],
    error: BaseException,
    said: str,
) -> None:
    owner = Busy()
    raised = one(runner, owner, kind(error))
    assert isinstance(raised, Exception)
    assert f"{type(raised).__name__}: {raised}" == said
    assert one(runner, owner, soon) == "soon"


def test_a_tool_that_runs_out_of_an_iterator_says_so(runner: EnvironmentRunner) -> None:
    (raised,) = all_of(runner, lambda: next(iter([])))
    assert repr(raised) == "RuntimeError('StopIteration')"


def test_what_hangs_gives_its_place_to_the_next(
    quick: EnvironmentRunner, gate: threading.Event
) -> None:
    *hung, last = all_of(quick, *[gate.wait] * 8, lambda: "here")
    assert [type(error) for error in hung] == [CallTimeout] * 8
    assert str(hung[0]) == "it took longer than environment.call_timeout_s = 0.2"
    assert last == "here"
    assert quick.hanging == 8
    gate.set()
    end = time.monotonic() + 5
    while quick.hanging and time.monotonic() < end:
        time.sleep(0.01)
    assert quick.hanging == 0


def test_too_many_that_hang_end_the_run_with_a_remedy(gate: threading.Event) -> None:
    runner = EnvironmentRunner(workers=2, call_seconds=0.02)
    hung = all_of(runner, *[gate.wait] * 8)
    (last,) = all_of(runner, soon)
    runner.close()
    assert [type(error) for error in hung] == [CallTimeout] * 8
    assert isinstance(last, TooManyHang)
    assert str(last) == (
        "8 calls into environments hang, each for longer than environment.call_timeout_s = 0.02, "
        "and a thread cannot be ended: give such tools a time limit of their own, or set "
        "environment.own_process=true"
    )


def test_an_owner_that_hangs_is_not_called_until_it_has_come_back(
    quick: EnvironmentRunner, gate: threading.Event
) -> None:
    owner = Busy()
    assert isinstance(one(quick, owner, gate.wait), CallTimeout)
    assert isinstance(one(quick, owner, lambda: "here"), StillBusy)
    gate.set()
    end = time.monotonic() + 5
    while isinstance(one(quick, owner, lambda: "here"), StillBusy):
        assert time.monotonic() < end


def test_a_coroutine_that_blocks_stalls_no_other(
    runner: EnvironmentRunner, gate: threading.Event
) -> None:
    async def blocks() -> str:
        gate.wait()
        return "at last"

    runner.start("blocks", lambda: runner.call(Busy(), blocks))
    for n in range(10):
        runner.start(f"{n}", lambda: runner.call(Busy(), soon))
    assert {runner.ended.get(timeout=20)[1] for _ in range(10)} == {"soon"}
    gate.set()
    assert runner.ended.get(timeout=20) == ("blocks", "at last")


def test_a_coroutine_that_takes_too_long_is_stopped(quick: EnvironmentRunner) -> None:
    stopped = []

    async def late() -> None:
        try:
            await asyncio.sleep(20)
        finally:
            stopped.append(True)

    owner = Busy()
    assert isinstance(one(quick, owner, late), CallTimeout)
    assert stopped == [True]
    assert quick.hanging == 0
    assert one(quick, owner, soon) == "soon"


def test_a_coroutine_that_will_not_stop_counts_as_hanging(
    quick: EnvironmentRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opd_ray.environments.runner._TO_STOP_SECONDS", 0.05)

    async def stubborn() -> None:
        end = time.monotonic() + 0.6
        while time.monotonic() < end:
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                continue

    owner = Busy()
    assert isinstance(one(quick, owner, stubborn), CallTimeout)
    assert quick.hanging == 1
    assert isinstance(one(quick, owner, soon), StillBusy)


def test_as_many_at_once_as_there_are_workers(runner: EnvironmentRunner) -> None:
    now, most, lock = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.05)
        with lock:
            now -= 1

    before = threading.active_count()
    all_of(runner, *[work] * 12)
    assert most == 4
    assert threading.active_count() - before <= 4


def test_what_waits_for_another_process_takes_no_worker(
    runner: EnvironmentRunner, gate: threading.Event
) -> None:
    for _ in range(4):
        runner.start("hangs", lambda: runner.call(Busy(), gate.wait))

    @bounded
    async def waits() -> int:
        await asyncio.sleep(0.01)
        return threading.get_ident()

    assert len(set(all_of(runner, *[waits] * 40))) == 1


def test_context_and_loop_stay_with_their_owner(runner: EnvironmentRunner) -> None:
    def plain(value: str) -> str:
        before = VARIABLE.get()
        VARIABLE.set(value)
        return before

    async def later(value: str) -> tuple[str, int]:
        before = VARIABLE.get()
        VARIABLE.set(value)
        return before, id(asyncio.get_running_loop())

    first, second = Busy(), Busy()
    assert one(runner, first, plain, "a") == "none"
    assert one(runner, second, plain, "b") == "none"
    before, loop = one(runner, first, later, "c")
    assert before == "a"
    assert one(runner, first, later, "d") == ("c", loop)
    other = one(runner, second, later, "e")
    assert other[0] == "b"
    assert other[1] != loop


def test_what_a_plain_function_returns_is_awaited(runner: EnvironmentRunner) -> None:
    assert all_of(runner, lambda: soon()) == ["soon"]


def test_what_is_made_of_an_outcome_is_made_beside_the_loop(runner: EnvironmentRunner) -> None:
    async def run() -> Any:
        return await runner.call(Busy(), lambda: 3, read=lambda n: (n, threading.get_ident()))

    runner.start("one", run)
    number, thread = runner.ended.get(timeout=20)[1]
    assert number == 3
    assert thread not in (None, threading.get_ident())
    (name,) = [t.name for t in threading.enumerate() if t.ident == thread]
    assert name == "environment call"


def test_a_closed_runner_cancels_what_waits_and_forgets_what_hangs(
    runner: EnvironmentRunner, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    threads: list[threading.Thread] = []
    begun, cancelled = threading.Event(), threading.Event()

    @bounded
    async def waits() -> None:
        begun.set()
        try:
            await asyncio.sleep(20)
        finally:
            cancelled.set()

    def hangs() -> None:
        threads.append(threading.current_thread())
        gate.wait()

    runner.start("hangs", lambda: runner.call(Busy(), hangs))
    runner.start("waits", lambda: runner.call(Busy(), waits))
    assert begun.wait(10)
    while not threads:
        time.sleep(0.01)
    runner.close()
    assert cancelled.wait(10)
    gate.set()
    threads[0].join(10)
    assert not threads[0].is_alive()
    assert told == []


HANGS_AT_THE_END = """
import asyncio, sys, time
from opd_ray.environments.runner import Busy, EnvironmentRunner

async def in_a_thread():
    await asyncio.to_thread(time.sleep, 60)

async def blocks():
    time.sleep(60)

runner = EnvironmentRunner(3, 0.1)
for n, tool in enumerate([lambda: time.sleep(60), in_a_thread, blocks]):
    runner.start(str(n), lambda tool=tool: runner.call(Busy(), tool))
for _ in range(3):
    print(type(runner.ended.get(timeout=20)[1]).__name__)
if "close" in sys.argv:
    runner.close()
"""


@pytest.mark.parametrize("how", ["close", "leave"])
def test_no_thread_holds_up_the_end_of_the_process(how: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", HANGS_AT_THE_END, how],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "CallTimeout\n" * 3, "")
