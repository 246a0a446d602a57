"""Files are known again by size and checksum, however they change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from opd_ray.checksums import FileSum, SummedFile, files_below, first_difference, sum_of

# The check value of CRC-32: of the nine digits "123456789".
DIGITS = FileSum(9, 0xCBF43926)


def test_a_sum_is_the_same_written_in_pieces_and_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with SummedFile(path) as file:
        for piece in (b"1234", b"", memoryview(b"56789")):
            file.write(piece)
    assert file.sum == sum_of(path) == sum_of(path, sync=True) == DIGITS
    assert path.read_bytes() == b"123456789"


def test_large_files_are_summed_piece_by_piece(tmp_path: Path) -> None:
    content = os.urandom((1 << 20) + 3)
    with SummedFile(tmp_path / "file") as file:
        file.write(content)
    assert file.sum == sum_of(tmp_path / "file")
    assert file.sum.size == (1 << 20) + 3
    assert (tmp_path / "file").read_bytes() == content


def test_a_file_is_on_disk_when_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    with SummedFile(tmp_path / "file") as file:
        file.write(b"123456789")
        assert not synced
    assert synced == [9]


def test_files_are_named_by_their_path_below_the_folder(tmp_path: Path) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "b" / "c" / "d").touch()
    (tmp_path / "a").touch()
    assert files_below(tmp_path) == ["a", "b/c/d"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"123456789", None),
        (b"12345678", "file should have 9 bytes, has 8"),
        (b"1234567890", "file should have 9 bytes, has 10"),
        (b"123456788", "file has the right size, but not the bytes that were written"),
        (b"\0" * 9, "file has the right size, but not the bytes that were written"),
        (None, "file should have 9 bytes, is missing"),
    ],
)
def test_the_first_difference_is_told(tmp_path: Path, content: bytes | None, said: str) -> None:
    (tmp_path / "whole").write_bytes(b"123456789")
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    assert first_difference(tmp_path, {"whole": DIGITS, "file": DIGITS}) == said
