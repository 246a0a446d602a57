"""Ctrl-C, SIGTERM and SIGHUP in a run: the first asks for a stop, a second ends it at once."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from types import FrameType

import pytest

from opd_ray.coordinator.session import _stop_on_signal
from opd_ray.pools.watch import ActorWatch

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def outside() -> Iterator[list[int]]:
    """Signals that handlers from before the run got; else they would end the tests."""
    got: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        got.append(number)

    old = {number: signal.signal(number, note) for number in STOPS}
    yield got
    for number, handler in old.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("first", "second"), itertools.product(STOPS, STOPS))
def test_the_first_signal_asks_for_a_stop_and_a_second_ends_the_run(
    outside: list[int], first: signal.Signals, second: signal.Signals
) -> None:
    watch = ActorWatch(1.0, "a key")
    with _stop_on_signal(watch):
        assert not watch.stop_requested
        signal.raise_signal(first)
        assert watch.stop_requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(second)
    assert outside == []


def test_afterwards_signals_go_where_they_went_before(outside: list[int]) -> None:
    before = [signal.getsignal(number) for number in STOPS]
    with _stop_on_signal(ActorWatch(1.0, "a key")):
        assert all(signal.getsignal(number) not in before for number in STOPS)
    assert [signal.getsignal(number) for number in STOPS] == before
    with (
        pytest.raises(RuntimeError, match="a run that failed"),
        _stop_on_signal(ActorWatch(1.0, "a")),
    ):
        raise RuntimeError("a run that failed")
    assert [signal.getsignal(number) for number in STOPS] == before
    assert outside == []
