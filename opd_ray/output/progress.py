"""What a person sees while a run goes on: a live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol, Self, TextIO

from opd_ray.borders import writing
from opd_ray.errors import WriteError
from opd_ray.output.activity import Activity, in_words

# What is said of rollouts that act, each a rollout.
_OF_ENVIRONMENTS = {"turns": "rollout/turns_mean", "calls": "tools/calls_per_rollout"}
# Steps over which the time of a step is taken, evaluations and checkpoints between them included.
_RECENT = 20
_REDRAW_SECONDS = 0.2
_STATUS_SECONDS = 2.0
# How often a log hears of a step that takes long.
_LOG_SECONDS = 60.0
# Figures of the last evaluation in the live line.
_MOST_FIGURES = 3

# Of the batch under way: rollouts written, scored, and asked for; None: there is none.
Counts = Callable[[], tuple[int, int, int] | None]


class StageListener(Protocol):
    """Is told of every stage that begins, and every few seconds that it lasts."""

    def stage(self, name: str) -> None: ...

    def still_at_work(self) -> None: ...


class Progress:
    """Steps, stages, evaluations and messages.

    In a terminal the last line is live, and all else stands above it. In a file or a job's log
    there is a line every ``every`` steps, and one a minute where a step takes longer.

    Args:
        total: steps in all.
        done: steps taken before.
        stream: where it is written; None: standard error.
        every: steps between two lines of a log.
        status: the file that tells other programs; None: there is none.
        listeners: who is told of stages too.
        cell, figures: of a study, see :class:`Activity`.
    """

    def __init__(
        self,
        total: int,
        done: int,
        stream: TextIO | None = None,
        every: int = 10,
        status: Path | None = None,
        listeners: Sequence[StageListener] = (),
        cell: str = "",
        figures: str = "metrics.jsonl",
    ) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._every = every
        self._status = status
        self._listeners = listeners
        self._activity = Activity(total, done, cell=cell, figures=figures)
        self._line = ""  # of the last step's figures
        self._held_out = ""  # those of the last evaluation
        self._ends: deque[tuple[int, float]] = deque(maxlen=_RECENT + 1)  # (step, when it ended)
        now = time.monotonic()
        self._drawn, self._kept, self._said = -_REDRAW_SECONDS, -_STATUS_SECONDS, now
        self._width = 0  # of what is drawn
        self.counts: Counts = lambda: None
        self._keep()

    def stage(self, name: str) -> None:
        """A stage begins, of a step or between steps."""
        activity = self._activity
        if name != activity.stage:
            activity.stage, activity.since = name, time.time()
            for listener in self._listeners:
                listener.stage(name)
        self.tick()

    def tick(self) -> None:
        """Time has passed: draw, keep and say what there is to be seen, each now and then."""
        now = time.monotonic()
        activity = self._activity
        found = self.counts() if activity.stage == "rollout_and_teacher" else None
        activity.written, activity.scored, activity.rollouts = found or (0, 0, 0)
        if now - self._kept >= _STATUS_SECONDS:
            self._keep()
        if self._live:
            if now - self._drawn >= _REDRAW_SECONDS:
                self._draw()
        elif now - self._said >= _LOG_SECONDS:
            waited = in_words(time.time() - activity.since)
            # The one that is taken now; behind the last of them the run ends, and begins none.
            step = min(activity.step + 1, activity.total)
            parts = (f"step {step}/{activity.total}", activity.doing, waited)
            self.say("  ".join([*parts, *self._time_left()]))

    def step(self, step: int, values: dict[str, float]) -> None:
        """One finished step."""
        activity = self._activity
        activity.step = step
        self._ends.append((step, time.monotonic()))
        (first, began), (last, ended) = self._ends[0], self._ends[-1]
        activity.seconds_a_step = (
            (ended - began) / (last - first) if last > first else values["seconds/step"]
        )
        line = {
            "loss": f"{values['train/loss']:.4f}",
            "kept": f"{values['tip/kept_fraction']:.2f}",
            "tok/s": f"{values['tokens_per_second/step']:.0f}",
            **{
                name: f"{values[figure]:.1f}"
                for name, figure in _OF_ENVIRONMENTS.items()
                if figure in values
            },
        }
        self._line = "  ".join(f"{name} {value}" for name, value in line.items())
        if self._live:
            self._draw()
        elif step % self._every == 0 or step == activity.total:
            took = f"{values['seconds/step']:.2f} s"
            parts = (f"step {step}/{activity.total}", self._line, took)
            self.say("  ".join([*parts, *self._time_left()]))

    def back_to(self, step: int) -> None:
        """The steps after this one are taken again."""
        self._activity.step = step
        self._ends.clear()
        self.tick()

    def evaluation(self, step: int, values: dict[str, float]) -> None:
        """The figures of an evaluation; says nothing where none are asked for."""
        shown = {
            name.removeprefix("eval/"): f"{name.removeprefix('eval/')} {value:.4f}"
            for name, value in values.items()
            if not name.startswith("seconds/") and is_told(name)
        }
        if shown:
            self.say(f"evaluation at step {step}:  {'  '.join(shown.values())}")
            first = sorted(shown, key=lambda name: ("/accuracy" not in name, "/mean@" not in name))
            self._held_out = "  ".join(
                [f"step {step}:", *(shown[name] for name in first[:_MOST_FIGURES])]
            )

    def say(self, text: str) -> None:
        """A line above the live one."""
        self._said = time.monotonic()
        # A run goes on whoever has stopped to read its words (`| head`), and if the disk that
        # they go to is full: its files have all.
        with suppress(OSError):
            self._clear()
            print(text, file=self._stream, flush=True)
            if self._live:
                self._draw()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        """Nothing goes on any more."""
        self.close()
        if self._status is not None:
            with suppress(WriteError), writing(self._status):
                self._status.unlink(missing_ok=True)

    def close(self) -> None:
        """Leave the live line as it stands; nothing is drawn any more."""
        if self._live:
            with suppress(OSError):
                self._draw()
                print(file=self._stream, flush=True)
        self._live = False
        self._width = 0

    def _draw(self) -> None:
        """The live line, as much of it as the terminal is wide."""
        activity = self._activity
        pace = activity.seconds_a_step
        parts = [
            f"step {activity.step}/{activity.total}",
            activity.doing,
            *([] if pace is None else [f"{pace:.1f} s/step"]),
            *self._time_left(),
            self._line,
            self._held_out,
        ]
        width = shutil.get_terminal_size().columns - 1
        text = "  ".join(part for part in parts if part)[:width]
        with suppress(OSError):
            self._clear()
            print(text, end="", file=self._stream, flush=True)
            self._width = len(text)
        self._drawn = time.monotonic()

    def _clear(self) -> None:
        """Take the live line away."""
        if self._width:
            print(f"\r{' ' * self._width}\r", end="", file=self._stream)
            self._width = 0

    def _time_left(self) -> list[str]:
        left = self._activity.seconds_left
        return [f"{in_words(left)} left"] if left else []

    def _keep(self) -> None:
        """Tell other programs."""
        self._kept = time.monotonic()
        if self._status is not None:
            self._activity.write(self._status)
        for listener in self._listeners:
            listener.still_at_work()


def is_told(name: str) -> bool:
    """Whether a figure of an evaluation is shown to a person; files have all of them.

    Standard errors are not, nor the account of tool calls beside their number.
    """
    if "/tools/" in name:
        return "/tools/calls" in name and not name.endswith("_se")
    return not name.endswith("_se")
