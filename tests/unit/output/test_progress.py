"""What a run says while it goes on."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from opd_ray.output.activity import in_words, read_activity
from opd_ray.output.progress import Progress

VALUES = {
    "train/loss": 0.5,
    "tip/kept_fraction": 0.25,
    "tokens_per_second/step": 100.0,
    "seconds/step": 2.0,
}


class Left(io.StringIO):
    """A pipe whose reader left (``| head``)."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_lines_in_a_log() -> None:
    log = io.StringIO()
    progress = Progress(total=11, done=9, stream=log)
    progress.step(10, VALUES)
    progress.step(11, VALUES)
    assert log.getvalue() == (
        "step 10/11  loss 0.5000  kept 0.25  tok/s 100  2.00 s  2 s left\n"
        "step 11/11  loss 0.5000  kept 0.25  tok/s 100  2.00 s\n"
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Both of Python's clocks, which stand still until they are told otherwise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        monkeypatch.setattr("time.time", lambda: self.now)
        size = os.terminal_size((200, 24))
        monkeypatch.setattr("shutil.get_terminal_size", lambda: size)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def seen(screen: io.StringIO) -> list[str]:
    """What stands on a terminal, line by line."""
    lines = []
    for line in screen.getvalue().split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


def test_the_live_line_has_stage_rollouts_time_left_and_held_out_figures(clock: Clock) -> None:
    screen = Terminal()
    progress = Progress(total=8, done=0, stream=screen)
    progress.stage("rollout_and_teacher")
    assert seen(screen) == ["step 0/8  writing and scoring"]
    progress.counts = lambda: (40, 32, 128)
    progress.tick()  # not so soon
    assert "40" not in screen.getvalue()
    clock.now += 1
    progress.tick()
    assert seen(screen) == ["step 0/8  writing and scoring 40 and 32 of 128 rollouts"]
    progress.evaluation(
        0, {"eval/kl": 0.5, "eval/sums/accuracy": 0.75, "eval/sums/accuracy_se": 0.1}
    )
    progress.step(1, VALUES)
    clock.now += 10
    progress.step(2, VALUES)
    progress.stage("train")
    clock.now += 1
    progress.tick()
    assert seen(screen) == [
        "evaluation at step 0:  kl 0.5000  sums/accuracy 0.7500",
        # No rollouts while it trains. Six steps of 10 s are left.
        "step 2/8  training  10.0 s/step  1 min left  loss 0.5000  kept 0.25  tok/s 100  "
        "step 0:  sums/accuracy 0.7500  kl 0.5000",
    ]


def test_the_live_line_goes_back_with_the_run_and_stays_when_it_ends(clock: Clock) -> None:
    screen = Terminal()
    progress = Progress(total=8, done=0, stream=screen)
    for step in (1, 2, 3):
        clock.now += 2
        progress.step(step, VALUES)
    clock.now += 100  # of new trainers
    progress.back_to(2)
    clock.now += 2
    progress.step(3, VALUES)
    clock.now += 2
    progress.step(4, VALUES)
    progress.close()
    progress.say("over")
    assert seen(screen) == [
        "step 4/8  starting  2.0 s/step  8 s left  loss 0.5000  kept 0.25  tok/s 100",
        "over",
        "",
    ]


def test_a_narrow_terminal_shows_what_fits(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((20, 24)))
    screen = Terminal()
    progress = Progress(total=8, done=0, stream=screen)
    progress.stage("rollout_and_teacher")
    clock.now += 1
    progress.tick()
    assert seen(screen) == ["step 0/8  writing a"]  # no second line


def test_a_log_hears_once_a_minute_of_a_step_that_takes_long(clock: Clock) -> None:
    log = io.StringIO()
    progress = Progress(total=8, done=0, stream=log)
    progress.step(1, VALUES | {"seconds/step": 240.0})
    progress.stage("rollout_and_teacher")
    progress.counts = lambda: (3, 2, 16)
    for _ in range(200):
        clock.now += 1
        progress.tick()
    # Once a minute, after which it counts anew.
    assert log.getvalue().splitlines() == [
        f"step 2/8  writing and scoring 3 and 2 of 16 rollouts  {minutes} min  28 min left"
        for minutes in (1, 2, 3)
    ]


def test_behind_the_last_step_none_is_begun(clock: Clock) -> None:
    log = io.StringIO()
    progress = Progress(total=8, done=8, stream=log)
    progress.stage("report")
    clock.now += 61
    progress.tick()
    assert log.getvalue().startswith("step 8/8  writing the report  1 min")


class Heard:
    def __init__(self) -> None:
        self.stages: list[str] = []
        self.times = 0

    def still_at_work(self) -> None:
        self.times += 1

    def stage(self, name: str) -> None:
        self.stages.append(name)


def test_others_are_told_of_stages_and_of_what_a_run_does(tmp_path: Path, clock: Clock) -> None:
    heard, status = Heard(), tmp_path / "status.json"
    progress = Progress(4, 1, io.StringIO(), status=status, listeners=[heard])
    first = read_activity(status)
    assert first is not None
    assert (first.step, first.total, first.stage, first.pid) == (1, 4, "starting", os.getpid())
    progress.stage("rollout_and_teacher")
    progress.counts = lambda: (5, 4, 8)
    assert read_activity(status) == first  # not several times a second
    clock.now += 3
    progress.tick()
    found = read_activity(status)
    assert found is not None
    assert (found.stage, found.since, found.updated) == ("rollout_and_teacher", 1000.0, 1003.0)
    assert (found.written, found.scored, found.rollouts) == (5, 4, 8)
    progress.stage("train")
    progress.stage("train")
    clock.now += 3
    with progress:
        progress.tick()
        last = read_activity(status)
        assert last is not None
        assert (last.stage, last.rollouts) == ("train", 0)
        assert [*tmp_path.iterdir()] == [status]
        progress.close()
        progress.stage("report")  # goes on to be told when the line is closed
        assert status.is_file()
    assert heard.stages == ["rollout_and_teacher", "train", "report"]
    assert heard.times == 3  # as often as the file is written
    assert [*tmp_path.iterdir()] == []  # it is over


def test_a_run_goes_on_where_its_status_cannot_be_written(tmp_path: Path) -> None:
    with Progress(4, 1, io.StringIO(), status=tmp_path / "gone" / "status.json") as progress:
        progress.stage("train")
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3600 - 31, "59 min"),
        (3600, "1 h"),
        (2 * 3600 + 5 * 60, "2 h 5 min"),
        (47 * 3600, "47 h"),
        (76 * 3600, "3 days 4 h"),
        (96 * 3600, "4 days"),
    ],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_turns_and_calls_of_rollouts_that_act() -> None:
    log = io.StringIO()
    progress = Progress(total=10, done=9, stream=log)
    progress.step(10, VALUES | {"rollout/turns_mean": 3.25, "tools/calls_per_rollout": 2.0})
    assert log.getvalue() == (
        "step 10/10  loss 0.5000  kept 0.25  tok/s 100  turns 3.2  calls 2.0  2.00 s\n"
    )


def test_an_evaluation_without_figures_says_nothing() -> None:
    log = io.StringIO()
    progress = Progress(total=1, done=0, stream=log)
    progress.evaluation(0, {"seconds/eval": 0.0})
    progress.evaluation(1, {"seconds/eval": 0.0, "eval/kl": 0.5})
    assert log.getvalue() == "evaluation at step 1:  kl 0.5000\n"


def test_a_run_goes_on_when_nobody_reads_its_words_any_more() -> None:
    progress = Progress(total=10, done=9, stream=Left())
    progress.say("resumed")
    progress.step(10, VALUES)
    progress.evaluation(10, {"eval/kl": 0.5})
    progress.close()
