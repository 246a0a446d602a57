"""Files that are there in full or not at all, a crash in the middle of writing included."""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from opd_ray.borders import writing


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` when the block ends, and goes when the block fails.

    It is written beside it under a hidden name of its own, so several processes may write at once:
    the last to finish stays. Folders that are missing are made.

    Raises:
        WriteError: it cannot be written; what stands at ``path`` is as it was.
    """
    draft = path.with_name(f".{uuid.uuid4().hex}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = draft.open("xb", buffering=0)
    try:
        # The block's own errors pass as they are; those of its writes come from the draft.
        with raw, io.BufferedWriter(_Named(raw, path)) as file:
            yield file
            with writing(path):
                file.flush()
                os.fsync(file.fileno())
        with writing(path):
            draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8), replacing one that is there.

    Raises:
        WriteError: it cannot be written; what stands there is as it was.
    """
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


class _Named(io.RawIOBase):
    """A file whose errors name the file that it is to be."""

    def __init__(self, raw: io.FileIO, path: Path) -> None:
        self._raw, self._path = raw, path

    def write(self, content: Any) -> int | None:
        with writing(self._path):
            return self._raw.write(content)

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._raw.seek(offset, whence)

    def fileno(self) -> int:
        return self._raw.fileno()
