"""Whether a run may go on in a folder, and what has changed since: nothing is written here.

Every key of the configuration says what another value means (:mod:`opd_ray.on_resume`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from opd_ray.config.files import read_yaml
from opd_ray.config.keys import key_parts, reading_hints, shown, without_none
from opd_ray.config.load import config_from, to_yaml
from opd_ray.config.marks import is_path, reading_hint
from opd_ray.config.schema import Config
from opd_ray.config.words import read_document
from opd_ray.data.prompt_set import PromptsIdentity
from opd_ray.errors import ConfigError, OutputFolderError
from opd_ray.on_resume import OnResume, declared
from opd_ray.output.checkpoint import CONFIG, CheckpointError, CheckpointStore, RunState, read_state

_NONE = "(none)"  # of a mapping's key that is not there
_LISTED = re.compile(r"(.*?)\[\d+\]")
# Whose keys say how rollouts are written, beside those that are free.
_OF_ROLLOUTS = ("rollout.", "environment.", "environments", "student.context_length")


@dataclass(frozen=True)
class Change:
    """A key that has another value than before."""

    key: str
    old: str
    new: str
    rule: OnResume

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}"


@dataclass(frozen=True)
class Start:
    """From where a run goes on."""

    checkpoint: Path
    state: RunState

    @property
    def config_file(self) -> Path:
        """The configuration that the checkpoint was written with."""
        return self.checkpoint / CONFIG

    @property
    def prompts(self) -> PromptsIdentity:
        """The prompts that the run has had so far."""
        return PromptsIdentity(**self.state.prompts)

    def batches(self) -> list[tuple[int, int]]:
        """(steps, prompts of each) of the parts of the run up to here."""
        return [(steps, prompts) for steps, prompts in self.state.batches]


def find_start(config: Config, checkpoints: CheckpointStore) -> Start | None:
    """Where to go on, or None for a run from the start.

    Raises:
        CheckpointError, ConfigError: the checkpoint asked for is broken, or all of them are; it
            has another seed, or more steps than the run is to have.
    """
    resume = config.run.resume
    if resume == "never":
        return None
    if resume == "auto":
        found = checkpoints.newest()
        if found is None:
            if broken := checkpoints.broken():
                raise CheckpointError(
                    f"no checkpoint in {checkpoints.folder} can be read ({broken[-1]}); start over "
                    "with run.resume=never or in another run.output_dir"
                )
            return None
    else:
        found = Path(resume), read_state(Path(resume))
    folder, state = found
    if state.seed != config.run.seed:
        raise ConfigError(
            f"run.seed = {config.run.seed}, but the checkpoint {folder} was written with seed "
            f"{state.seed}: use that seed, or another run.output_dir for another run"
        )
    if state.step > config.run.steps:
        raise ConfigError(
            f"run.steps = {config.run.steps}, but {folder} has {state.step} steps behind it: use "
            "at least that many, or go on from an older checkpoint with run.resume=FOLDER"
        )
    return Start(folder, state)


def check_changes(
    found: Sequence[Change],
    before: PromptsIdentity | None,
    now: PromptsIdentity | None,
    where: str,
) -> None:
    """Refuse to go on as another run.

    Args:
        found: what has changed.
        before: the prompts so far; None if that is not known.
        now: the prompts as they are; None if they were not read, which refuses nothing for them.
        where: the folder that holds the run so far, for messages.

    Raises:
        OutputFolderError: lists every key, both values and what to do.
    """
    refused = [change for change in found if change.rule is OnResume.fixed]
    of_prompts = [change for change in found if change.rule is OnResume.same_prompts]
    if now is not None and before is None:
        refused += of_prompts  # nobody can tell whether they are the same
    problems = [str(change) for change in refused]
    if now is not None and before is not None and before != now:
        # A day alone is no other prompt: few templates read the clock.
        causes = of_prompts + [change for change in found if change.key == "run.date"]
        keys = f" ({'; '.join(map(str, causes))})" if causes else ""
        cause = "" if causes else ": the data has changed, or what the chat template makes of it"
        problems.append(
            f"other prompts than the run has had so far{keys}: {before.count} of fingerprint "
            f"{before.fingerprint}, now {now.count} of {now.fingerprint}{cause}"
        )
    if problems:
        raise OutputFolderError(
            f"{where} holds a run that cannot go on with other values: {'; '.join(problems)}; put "
            "back what it was, or choose another run.output_dir for another run"
        )


def told(found: Sequence[Change]) -> list[str]:
    """The changes that a user should hear of."""
    return [str(change) for change in found if change.rule is not OnResume.free]


def changes(old_file: Path, config: Config) -> list[Change]:
    """Every key in which ``config`` differs from a run's written configuration.

    Keys that the file does not know, because it is older, had their default.
    """
    raw = read_yaml(old_file)
    try:
        old = flat(_plain(config_from(raw, (), str(old_file))))
    except ConfigError:
        old = _filled_up(flat(raw))  # it has keys or values that are gone by now
    new = flat(_plain(config))
    found: list[Change] = []
    lists: set[str] = set()
    for key in sorted(old.keys() | new.keys()):
        if key in old and key in new:
            if not _same(key, old[key], new[key]):
                found.append(Change(key, shown(old[key]), shown(new[key]), rule_of(key)))
        elif listed := _LISTED.match(key):
            lists.add(listed[1])
        # An empty list has a key of its own; what is in it on the other side says more.
        elif [] not in (old.get(key), new.get(key)):
            texts = [shown(side[key]) if key in side else _NONE for side in (old, new)]
            found.append(Change(key, texts[0], texts[1], rule_of(key)))
    for key in sorted(lists):  # whole entries that came or went, in one line
        before, now = (f"{_entries(side, key)} entries" for side in (old, new))
        found.append(Change(key, before, now, rule_of(key)))
    return found


def writes_otherwise(config: Config, old_file: Path) -> bool:
    """Whether ``config`` has rollouts written in another way than a run's written configuration."""
    return any(
        change.key.startswith(_OF_ROLLOUTS) and change.rule is not OnResume.free
        for change in changes(old_file, config)
    )


def rule_of(key: str) -> OnResume:
    """What another value of a full key means; a key that no longer exists is only told of."""
    return _declaration(key)[0]


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as ``a.b[0].c`` -> value."""
    if isinstance(tree, dict) and tree:
        parts = ((f"{prefix}.{key}" if prefix else str(key), value) for key, value in tree.items())
    elif isinstance(tree, list) and tree:
        parts = ((f"{prefix}[{number}]", value) for number, value in enumerate(tree))
    else:
        return {prefix: tree}
    return {key: leaf for name, value in parts for key, leaf in flat(value, name).items()}


def _declaration(key: str) -> tuple[OnResume, bool]:
    """What the field of a full key says of another value, and whether it is a path.

    A list or mapping speaks for what is in it, unless it is read as a section.
    """
    rule, path = OnResume.told, False
    hint: Any = Config
    for part in key_parts(key):
        hint = without_none(hint)
        if isinstance(hint, type) and is_dataclass(hint):
            field = next((field for field in fields(hint) if field.name == part), None)
            if field is None:
                return OnResume.told, False
            rule, path = declared(field.metadata) or rule, is_path(field.metadata)
            section = reading_hint(field.metadata, None)
            if declared(field.metadata) and section is None:
                break
            hint = section or reading_hints(hint)[field.name]
        elif get_origin(hint) is dict:
            hint = get_args(hint)[1]
    return rule, path


def _plain(config: Config) -> Any:
    """As :func:`read_yaml` has it: one that is no Config any more is compared with it."""
    return read_document(to_yaml(config), Config, "the configuration")


def _filled_up(old: dict[str, Any]) -> dict[str, Any]:
    """With the default of every key that is not there, nor anything below it."""
    defaults = flat(_plain(Config()))
    given = "\n".join(["", *old])
    missing = {k: v for k, v in defaults.items() if not re.search(rf"\n{re.escape(k)}[.\[]", given)}
    return {**missing, **old}


def _entries(side: dict[str, Any], name: str) -> int:
    return len({key.removeprefix(name).split("]")[0] for key in side if key.startswith(f"{name}[")})


def _same(key: str, old: Any, new: Any) -> bool:
    """Equal, or two ways to write one path."""
    if old == new or not (isinstance(old, str) and isinstance(new, str)):
        return bool(old == new)
    path = _declaration(key)[1]
    return path and os.path.realpath(Path(old).expanduser()) == os.path.realpath(new)
