"""A run's session without actors, and the part of a run that works in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from opd_ray.config.schema import Config, EvalSettings, RunSettings
from opd_ray.coordinator import run
from opd_ray.data.prompt_set import PromptsIdentity
from opd_ray.data.prompts import HeldOutTask, Prompt
from opd_ray.errors import DamagedCheckpoint
from opd_ray.models.pairs.demo import character_tokenizer
from opd_ray.output.checkpoint import CheckpointStore
from opd_ray.output.folder import OutputFolder
from opd_ray.output.resume import Start
from opd_ray.pools.watch import Interrupted
from opd_ray.tip import TipFilter

TOKENIZER = character_tokenizer()


class Coordinator:
    """Remembers its filter and how it was run; ``then`` ends the run, or interrupts it."""

    last_step = None
    done = 0

    def __init__(self, tip: TipFilter, then: Callable[[], None]) -> None:
        self.tip = tip
        self.ran: list[tuple[int, bool]] = []
        self.batches: Any = SimpleNamespace(load=self._load)
        self.read: list[tuple[Path, int]] = []  # where rollouts of the next step were looked for
        self._then = then

    def _load(self, folder: Path, step: int) -> bool:
        self.read.append((folder, step))
        return True

    def run(self, done: int, *, evaluated: bool) -> None:
        self.ran.append((done, evaluated))
        self._then()


class Session:
    """Has no actors; ``made`` is the coordinator, ``events`` all that it was asked for besides.

    ``damaged``: folders that :meth:`load` refuses.
    """

    def __init__(self, config: Config, then: Callable[[], None]) -> None:
        self.config = config
        self.tokenizer = TOKENIZER
        self.scorer = self.teachers = None
        self.events: list[str] = []
        self.damaged: Sequence[Path] = ()
        self.trainers = None
        self.order = SimpleNamespace(to=lambda role: None)
        self.launcher: Any = SimpleNamespace(peak_memory=dict, end_trainers=lambda: None, nodes=())
        self._then = then
        self.made: Coordinator
        self.exit_code: int

    def export(self, folder: str) -> None:
        self.events.append(f"export {folder}")

    def load(self, folder: str) -> None:
        self.events.append(f"load {folder}")
        if Path(folder).parent in self.damaged:
            raise DamagedCheckpoint(f"{folder} is not what was written")

    def coordinator(
        self, config: Config, session: Session, prompts: object, tip: TipFilter, *others: object
    ) -> Coordinator:
        assert (config, session) == (self.config, self)
        self.prompts = prompts
        self.made = Coordinator(tip, self._then)
        return self.made


class Prompts:
    """So many of every task's problems are among them."""

    notes: Sequence[str] = ()

    def __init__(self, repeated: int) -> None:
        self._repeated = repeated
        self.earlier: Sequence[tuple[int, int]] = ()

    def going_on_after(self, earlier: Sequence[tuple[int, int]]) -> Prompts:
        self.earlier = earlier
        return self

    identity = PromptsIdentity(3, "00ff")

    def shared_with(self, others: Sequence[Prompt]) -> int:
        return self._repeated


def interrupted() -> None:
    raise Interrupted


def config_of(resume: str = "auto", **sections: Any) -> Config:
    run = RunSettings(seed=7, steps=10, resume=resume)
    return Config(run=run, **{"eval": EvalSettings(kl_prompts=0), **sections})


def go(
    folder: Path,
    config: Config,
    start: Start | None = None,
    *,
    then: Callable[[], None] = interrupted,
    tasks: Sequence[HeldOutTask] = (),
    launcher: object = None,
    repeated: int = 0,
    changed: Sequence[str] = (),
    damaged: Sequence[Path] = (),
) -> Session:
    """The part of a run with actors; one that is interrupted leaves out the report."""
    session: Any = Session(config, then)
    session.launcher = launcher or session.launcher
    session.damaged = damaged
    prompts: Any = Prompts(repeated)
    with OutputFolder(folder) as output, pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "Coordinator", session.coordinator)
        checkpoints = CheckpointStore(output.checkpoints, keep=2)
        part = run.Part(config, start, changed)
        session.exit_code = run._steer(session, prompts, list(tasks), output, checkpoints, part)
    return session
