"""Records that are added to a file are there in full or not at all."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from opd_ray.appended_file import AppendedFile, whole_lines
from opd_ray.errors import WriteError


@contextmanager
def files_of_at_most(nbytes: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_records_are_added_to_those_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.jsonl"
    for records in ([b"1\n", b"2\n"], [b"3\n"]):
        file = AppendedFile(path, lines=True)
        for record in records:
            file.write(record)
        # Nothing is held back: another process sees it at once.
        assert path.read_bytes().endswith(records[-1])
        file.close()
    assert path.read_bytes() == b"1\n2\n3\n"


@pytest.mark.parametrize("room", range(4, 12))
def test_a_record_that_does_not_fit_leaves_nothing_behind(tmp_path: Path, room: int) -> None:
    path = tmp_path / "a.jsonl"
    file = AppendedFile(path, lines=True)
    file.write(b"123\n")
    with (
        files_of_at_most(room),
        pytest.raises(WriteError, match=r"a\.jsonl: cannot be written: File too large; raise"),
    ):
        file.write(b"45678901\n")
    assert path.read_bytes() == b"123\n"
    file.write(b"4\n")  # once there is room again
    file.close()
    assert path.read_bytes() == b"123\n4\n"


def test_a_line_that_a_kill_cut_off_goes_before_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for content, kept in ((b"1\n2", b"1\n"), (b"1", b""), (b"1\n", b"1\n")):
        path.write_bytes(content)
        assert whole_lines(path) == kept.decode().split("\n")[:-1]
        file = AppendedFile(path, lines=True)
        file.write(b"9\n")
        file.close()
        assert path.read_bytes() == kept + b"9\n"


def test_bytes_that_are_no_lines_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_bytes(b"a\nb")
    file = AppendedFile(path, lines=False)
    file.write(b"c")
    file.close()
    assert path.read_bytes() == b"a\nbc"


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    with pytest.raises(WriteError, match=r"b: cannot be written: .*; a file stands where a folder"):
        AppendedFile(tmp_path / "a" / "b", lines=True)
