"""Runs one after another with the same actors, in the process of the tests.

Starting actors takes twenty times as long as a step of such a run. All else is as in any run: the
command line, the checks, the folder, the loop, the report.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from launching import SMALL

from opd_ray.cli import main
from opd_ray.config.load import load_config
from opd_ray.config.schema import Config
from opd_ray.coordinator import run as training
from opd_ray.coordinator.session import Session, open_session
from opd_ray.pools.launch import ActorLauncher
from opd_ray.preflight.models import check_models, own_topk


class SharedActors:
    """A session, and the runs that are given it in place of one of their own.

    A run begins with the weights of the start, and one that goes on with what its checkpoint says:
    what the run before left in the actors is neither.
    """

    def __init__(
        self, session: Session, config: Config, overrides: Sequence[str], folder: Path
    ) -> None:
        self.session, self._config, self._overrides = session, config, overrides
        self._start = str(folder / "start")
        session.save(self._start)
        self._launcher: Any = _Kept(session.launcher)

    def run(self, output: Path, *overrides: str) -> None:
        """A run to its end; ``overrides`` are of what no actor was told when it started."""
        assert self.exit_code(output, *overrides) == 0

    def exit_code(self, output: Path, *overrides: str) -> int:
        """The same for a run that may fail."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "open_session", self._opened)
            return main(["demo", *self._overrides, f"run.output_dir={output}", *overrides])

    @contextmanager
    def _opened(self, config: Config, *_: object, owns_process: bool) -> Iterator[Session]:
        assert owns_process  # the command line's
        own = {"run": config.run, "tip": config.tip, "eval": config.eval}
        own |= {"scoring": config.scoring}
        assert replace(self._config, **own) == config, "the actors were started with other settings"
        assert config.run.lag <= self._config.run.lag
        assert config.run.deterministic == self._config.run.deterministic
        session = self.session
        session.load(self._start)
        session.config = replace(session.config, **own)
        session.launcher = self._launcher
        yield session


@contextmanager
def shared_actors(folder: Path, address: str, *overrides: str) -> Iterator[SharedActors]:
    """The actors of the demo at its smallest with these overrides, in the Ray of this address.

    A run that lags or trains early needs actors that were started so.
    """
    given = (*SMALL, f"cluster.address={address}", *overrides)
    config = load_config("demo", [*given, f"run.output_dir={folder}"])
    pairing = check_models(config)
    longest = dict.fromkeys(config.teacher_set.working, config.student.context_length)
    with open_session(config, pairing, own_topk(config), longest) as session:
        yield SharedActors(session, config, given, folder)


class _Kept:
    """A launcher whose trainers stay when a run is done with them."""

    def __init__(self, launcher: ActorLauncher) -> None:
        self._launcher = launcher

    def __getattr__(self, name: str) -> Any:
        return getattr(self._launcher, name)

    def end_trainers(self) -> None:
        """Not yet."""
