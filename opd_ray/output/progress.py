"""What a person sees while a run goes on: a live bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any, TextIO

from tqdm import tqdm

# What is said of rollouts that act, each a rollout.
_OF_ENVIRONMENTS = {"turns": "rollout/turns_mean", "calls": "tools/calls_per_rollout"}


class Progress:
    """A bar over the steps; evaluations and messages are lines above it.

    In a file or a job's log a line is printed every ``every`` steps instead of a moving bar.
    """

    def __init__(
        self, total: int, done: int, stream: TextIO | None = None, every: int = 10
    ) -> None:
        stream = stream or sys.stderr
        self._live = stream.isatty()
        self._stream = stream
        self._every = every
        self._total = total
        self._bar = tqdm(
            total=total, initial=done, file=stream, disable=not self._live, unit="step", ncols=100
        )

    def step(self, step: int, values: dict[str, float]) -> None:
        """One finished step."""
        line: dict[str, Any] = {
            "loss": f"{values['train/loss']:.4f}",
            "kept": f"{values['tip/kept_fraction']:.2f}",
            "tok/s": f"{values['tokens_per_second/step']:.0f}",
            **{
                name: f"{values[figure]:.1f}"
                for name, figure in _OF_ENVIRONMENTS.items()
                if figure in values
            },
        }
        self._bar.set_postfix(line, refresh=False)
        self._bar.update(1)
        if not self._live and (step % self._every == 0 or step == self._total):
            figures = "  ".join(f"{name} {value}" for name, value in line.items())
            self.say(f"step {step}/{self._total}  {figures}  {values['seconds/step']:.2f} s")

    def back_to(self, step: int) -> None:
        """The steps after this one are taken again."""
        self._bar.n = step
        self._bar.refresh()

    def evaluation(self, step: int, values: dict[str, float]) -> None:
        """The figures of an evaluation; says nothing where none are asked for."""
        shown = "  ".join(
            f"{name.removeprefix('eval/')} {value:.4f}"
            for name, value in values.items()
            if not name.startswith("seconds/") and is_told(name)
        )
        if shown:
            self.say(f"evaluation at step {step}:  {shown}")

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self._live:
            self._bar.write(text, file=self._stream)
        else:
            # A run goes on whoever has stopped to read its words (`| head`), and if the disk that
            # they go to is full: its files have all.
            with suppress(OSError):
                print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


def is_told(name: str) -> bool:
    """Whether a figure of an evaluation is shown to a person; files have all of them.

    Standard errors are not, nor the account of tool calls beside their number.
    """
    if "/tools/" in name:
        return "/tools/calls" in name and not name.endswith("_se")
    return not name.endswith("_se")
