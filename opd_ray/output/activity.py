"""What a run is doing at this moment: told in words, and kept for others in ``status.json``.

The file is for programs and for ``opd-ray status``; a run never reads it. It is there as long as a
run is at work, and where one has died. How a run ended says ``history.jsonl``.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from opd_ray.borders import border, writing
from opd_ray.errors import RunError, WriteError
from opd_ray.typed_json import made_of

# What a person reads for the stages of a step and for what comes between steps.
_WORDS = {
    "rollout_and_teacher": "writing and scoring",
    "exact_scores": "scoring exactly",
    "filter": "choosing tokens",
    "train": "training",
    "sync": "handing over weights",
    "evaluation": "evaluating",
    "checkpoint": "writing a checkpoint",
    "export": "exporting the student",
    "report": "writing the report",
}


@dataclass
class Activity:
    """A moment of a run. Times are seconds since 1970."""

    total: int  # steps in all
    step: int  # steps taken
    stage: str = "starting"
    since: float = field(default_factory=time.time)  # when the stage began
    written: int = 0  # of the rollouts of the batch under way
    scored: int = 0
    rollouts: int = 0  # 0: no batch is under way
    seconds_a_step: float | None = None  # with evaluations and checkpoints; None: not known yet
    updated: float = field(default_factory=time.time)
    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=socket.gethostname)
    cell: str = ""  # of a study, which of how many: "cell 3 of 6 (half, seed 1)"
    figures: str = "metrics.jsonl"  # where they are written, in the folder

    @property
    def doing(self) -> str:
        """The stage in words, with how many rollouts are done where they are being written."""
        words = _WORDS.get(self.stage, self.stage)
        if not self.rollouts:
            return words
        return f"{words} {self.written} and {self.scored} of {self.rollouts} rollouts"

    @property
    def seconds_left(self) -> float | None:
        """Until the last step, as steps have gone lately; None: nobody knows."""
        if self.seconds_a_step is None:
            return None
        return (self.total - self.step) * self.seconds_a_step

    def write(self, path: Path) -> None:
        """Replace the file; a run goes on where it cannot be written."""
        self.updated = time.time()
        draft = path.with_name(f".{path.name}.{self.pid}.part")
        # Not as other files are written: no wait for the disk, several times a minute.
        with suppress(WriteError), writing(path):
            draft.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
            draft.replace(path)


def read_activity(path: Path) -> Activity | None:
    """What :meth:`Activity.write` wrote last; None where there is nothing.

    Raises:
        RunError: it cannot be read.
    """
    if not path.is_file():
        return None
    with border(str(path), "delete it: a run writes it anew", RunError):
        return made_of(Activity, json.loads(path.read_text(encoding="utf-8")))


def in_words(seconds: float) -> str:
    """A duration as a person says it: "40 s", "3 min", "2 h 5 min", "3 days 4 h"."""
    whole = max(0, round(seconds))  # the clock may have been set back
    if whole < 60:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h" if hours else f"{days} days"
