"""What libraries raise over a user's input becomes a message with place and remedy."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from opd_ray.borders import border, first_line, writing
from opd_ray.errors import ConfigError, InputError, WriteError, exit_code


def test_what_a_library_raises_becomes_bad_input_with_place_cause_and_remedy() -> None:
    with pytest.raises(InputError) as raised, border("a.json", "write an object"):
        json.loads("{")
    assert str(raised.value).startswith("a.json: JSONDecodeError: Expecting property name")
    assert str(raised.value).endswith("; write an object")
    assert isinstance(raised.value.__cause__, json.JSONDecodeError)
    assert exit_code(raised.value) == 2


def test_a_known_error_passes_a_border_as_it_is() -> None:
    known = ConfigError("run.steps = 0: at least 1")
    with pytest.raises(ConfigError) as raised, border("a.json", "write an object"):
        raise known
    assert raised.value is known


def test_the_class_of_a_border_is_the_class_that_is_raised() -> None:
    with pytest.raises(ConfigError), border("run.yaml", "mend it", ConfigError):
        raise TypeError


def test_the_first_line_that_says_something_without_its_full_stop() -> None:
    assert first_line(OSError("\n\n  no such folder.\nmore")) == "OSError: no such folder"
    assert first_line(KeyError()) == "KeyError"


def test_what_cannot_be_written_is_named_with_the_room_that_is_left_and_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = SimpleNamespace(f_files=9, f_favail=9, f_bavail=3 << 10, f_frsize=1 << 10)
    monkeypatch.setattr(os, "statvfs", lambda path: room)
    path = tmp_path / "gone" / "a.txt"
    with pytest.raises(WriteError) as raised, writing(path):
        raise OSError(errno.ENOSPC, "whatever")
    assert str(raised.value) == (
        f"{path}: cannot be written: No space left on device (3 MiB free); make room there, then "
        "give the same command again: what was written before is whole"
    )
    assert exit_code(raised.value) == 1
    room.f_favail = 0
    with pytest.raises(WriteError, match=r"no inodes are left"), writing(path):
        raise OSError(errno.ENOSPC, "whatever")


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (OSError(errno.EROFS, ""), "Read-only file system; name a folder that can be written to"),
        (OSError(errno.EFBIG, ""), r"File too large; raise the limit .* \(ulimit -f\)"),
        (OSError(errno.EMFILE, ""), r"Too many open files; raise the limit .* \(ulimit -n\)"),
        (OSError(errno.EIO, ""), "Input/output error; see to its disk"),
        # As safetensors and torch say it.
        (RuntimeError("I/O error: whatever (os error 30)"), "Read-only file system; name a folder"),
        (RuntimeError("unexpected pos 64 vs 0"), "RuntimeError: unexpected pos 64 vs 0; see to"),
        (OSError("no number"), "OSError: no number; see to its disk"),
    ],
)
def test_every_way_in_which_writing_fails_has_its_remedy(
    tmp_path: Path, raised: Exception, told: str
) -> None:
    with pytest.raises(WriteError, match=told), writing(tmp_path / "a.txt"):
        raise raised


def test_a_known_error_passes_writing_as_it_is(tmp_path: Path) -> None:
    known = ConfigError("run.steps = 0: at least 1")
    with pytest.raises(ConfigError) as raised, writing(tmp_path):
        raise known
    assert raised.value is known
