"""Files that are there in full or not at all."""

from __future__ import annotations

import io
import itertools
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opd_ray.errors import WriteError
from opd_ray.whole_file import whole_file, write_whole


def test_text_and_bytes_are_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.json"
    write_whole(path, "größer")
    assert path.read_bytes() == b"gr\xc3\xb6\xc3\x9fer"
    write_whole(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert os.listdir(path.parent) == ["a.json"]


def test_nobody_sees_the_file_before_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with whole_file(path) as file:
        file.write(b"half")
        file.flush()
        assert path.read_text() == "old"
        # Another writer of the same file is not in the way; the last to finish stays.
        write_whole(path, "another's")
    assert path.read_text() == "half"


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted() -> None:
        with whole_file(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Beyond what is buffered and within it, where the last write comes as the file is closed.
    for nbytes in (200_000, 200):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        try:
            with pytest.raises(WriteError, match=r"a\.txt: cannot be written: File too large"):
                write_whole(path, b"x" * nbytes)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["a.txt"]


def test_an_error_of_the_block_itself_is_not_one_of_writing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "a.txt"):
        (tmp_path / "gone").read_bytes()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    with pytest.raises(WriteError, match=r"b\.txt: cannot be written: .*; a file stands where"):
        write_whole(tmp_path / "a" / "b.txt", "x")


def test_it_may_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        write_whole(tmp_path / "a.txt", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("old", [None, "old"])
def test_a_crash_at_any_moment_leaves_the_old_file_or_the_new_one(
    tmp_path: Path, old: str | None
) -> None:
    path = tmp_path / "a.txt"

    class Crash(BaseException):
        """The process is gone: from then on, no call reaches the disk."""

    for number in itertools.count():
        path.unlink(missing_ok=True)
        if old is not None:
            path.write_text(old)
        calls = itertools.count()
        made: list[str] = []

        def dying(
            name: str,
            call: Callable[..., Any],
            calls: Any = calls,
            number: int = number,
            made: list[str] = made,
        ) -> Callable[..., Any]:
            def act(*args: Any, **named: Any) -> Any:
                if next(calls) >= number:
                    raise Crash
                made.append(name)
                return call(*args, **named)

            return act

        with pytest.MonkeyPatch.context() as patch:
            for module, name in ((io, "open"), (os, "fsync"), (os, "replace"), (os, "unlink")):
                patch.setattr(module, name, dying(name, getattr(module, name)))
            try:
                write_whole(path, "new")
                crashed = False
            except Crash:
                crashed = True
        found = path.read_text() if path.exists() else None
        assert found == (old if crashed else "new")
        if not crashed:
            break
    assert made == ["open", "fsync", "replace"]  # on disk before it takes the other's place
