"""The folder of an evaluation: its settings, its records, its lock; evaluating goes on in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from opd_ray.appended_file import AppendedFile, whole_lines
from opd_ray.borders import border
from opd_ray.errors import OutputFolderError
from opd_ray.output.folder import LockedFolder
from opd_ray.output.resume import flat
from opd_ray.typed_json import check, made_of
from opd_ray.whole_file import write_whole

_NONE = "(none)"  # of an environment's key that is not there


class EvaluationFolder(LockedFolder):
    """The folder of an evaluation, locked inside a ``with`` block.

    ``settings.json`` holds what decides the figures; ``<task>/greedy.jsonl`` and
    ``<task>/sampled.jsonl`` hold a record a problem, in the order in which problems were finished.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "--out")
        self.results_json = path / "results.json"
        self.results_md = path / "results.md"
        self.tensorboard = path / "tensorboard"
        self._settings_path = path / "settings.json"

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of everything that was ever asked here; {} before the first time."""
        if not self._settings_path.is_file():
            return {}
        with self._reading(self._settings_path):
            settings: dict[str, Any] = json.loads(self._settings_path.read_text(encoding="utf-8"))
            _check_settings(settings)
        return settings

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Add the settings of what is to be asked to those of what was.

        A further task, or a task's other way of being asked, is welcome.

        Raises:
            OutputFolderError: the folder's records were made with other settings, which it lists:
                another model, other prompts, other sampling.
        """
        old, new = self.settings, dict(settings)
        before, now = flat(old), flat(new)
        compared = {*(before.keys() & now.keys()), *_of_environments(old, new)}
        differences = [
            f"{name}: {before.get(name, _NONE)} -> {now.get(name, _NONE)}"
            for name in sorted(compared)
            if before.get(name, _NONE) != now.get(name, _NONE)
        ]
        if differences:
            raise OutputFolderError(
                f"{self._named}: holds an evaluation with other settings "
                f"({'; '.join(differences)}); choose another folder, or delete it"
            )
        write_whole(self._settings_path, json.dumps(_merged(old, new), indent=1) + "\n")

    def records(self, task: str, mode: str) -> dict[str, ProblemRecord]:
        """The records of one way of asking a task, by problem id.

        A last line that a kill cut off does not count.

        Raises:
            OutputFolderError: one of them cannot be read, or has not as many responses as asked.
        """
        path = self._records_path(task, mode)
        if not path.is_file():
            return {}
        with self._reading(path):
            found = [ProblemRecord.from_line(line) for line in whole_lines(path)]
            settings = self.settings.get("tasks", {}).get(task, {})
            asked = settings.get(mode, {}).get("samples", 1)
            if wrong := [one.id for one in found if mode in settings and len(one.correct) != asked]:
                raise ValueError(f"problem {wrong[0]!r:.80} has not {asked} responses")
            return {record.id: record for record in found}

    @contextmanager
    def appending(self, task: str, mode: str) -> Iterator[Callable[[ProblemRecord], None]]:
        """Adds records to those of a task, while it is open; a cut-off last line is removed.

        Raises:
            WriteError: the file cannot be written; records that are there stay.
        """
        with closing(AppendedFile(self._records_path(task, mode), lines=True)) as file:
            yield lambda record: file.write(record.to_line().encode())

    def _reading(self, path: Path) -> AbstractContextManager[None]:
        return border(str(path), f"mend it, or delete {self.path}", OutputFolderError)

    def _records_path(self, task: str, mode: str) -> Path:
        return self.path / task / f"{mode}.jsonl"


def _check_settings(settings: Any) -> None:
    """Refuse what is no tree of settings.

    Raises:
        ValueError: names what is wrong.
    """
    check(settings, dict[str, Any], "settings")
    tasks = settings.get("tasks", {})
    check(tasks, dict[str, dict[str, Any]], "tasks")
    for name, task in tasks.items():
        _check_count(task.get("problems"), f"tasks.{name}.problems")
        check(task.get("environments", {}), dict[str, dict[str, Any]], f"tasks.{name}.environments")
        check(task.get("greedy", {}), dict[str, Any], f"tasks.{name}.greedy")
        sampled = task.get("sampled", {})
        check(sampled, dict[str, int | float], f"tasks.{name}.sampled")
        if sampled and not {"samples", "temperature", "top_p"} <= sampled.keys():
            raise ValueError(f"tasks.{name}.sampled lacks samples, temperature or top_p")
        _check_count(sampled.get("samples", 1), f"tasks.{name}.sampled.samples")


def _check_count(value: Any, name: str) -> None:
    check(value, int, name)
    if value < 1:
        raise ValueError(f"{name} is {value}, expected at least 1")


def _of_environments(old: Mapping[str, Any], new: Mapping[str, Any]) -> set[str]:
    """Keys of the environments of tasks that both have: one more or less is another world."""
    return {
        key
        for name in old.get("tasks", {}).keys() & new.get("tasks", {}).keys()
        for tree in (old, new)
        for key, value in flat(
            tree["tasks"][name].get("environments", {}), f"tasks.{name}.environments"
        ).items()
        if value != {}  # what is in it, if anything, has its own keys
    }


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Both trees together, ``new`` where they meet."""
    both = {
        key: _merged(old[key], value)
        if isinstance(value, Mapping) and isinstance(old.get(key), Mapping)
        else value
        for key, value in new.items()
    }
    return {**old, **both}


@dataclass(frozen=True)
class ProblemRecord:
    """Everything that was answered to one problem; the lists have one entry a response."""

    id: str
    answer: str  # the gold answer
    responses: list[str]
    extracted: list[str | None]  # the answer each response gives; None: it gives none
    correct: list[bool]
    tokens: list[int]  # of each response, those that the student wrote
    finish_reasons: list[str]  # "stop", or the limit that cut a response off: see Rollout
    # Of responses of several turns: what the environment says of each, by name, and the messages.
    # ``responses`` then holds the last turn.
    figures: list[dict[str, float]] = field(default_factory=list)
    messages: list[list[dict[str, Any]]] = field(default_factory=list)

    def to_line(self) -> str:
        """The record as a line of JSON, with its line break."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> ProblemRecord:
        """The record that :meth:`to_line` wrote.

        Raises:
            ValueError: it is none.
        """
        record = made_of(cls, json.loads(line))
        counts = {len(record.responses), len(record.correct), len(record.tokens)}
        if counts != {len(record.extracted)} or counts != {len(record.finish_reasons)}:
            raise ValueError(f"problem {record.id!r:.80} has lists of different lengths")
        return record
