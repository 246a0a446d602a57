"""Files that are there in full or not at all, a crash in the middle of writing included."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` when the block ends, and goes when the block fails.

    It is written beside it under a hidden name of its own, so several processes may write at once:
    the last to finish stays. Folders that are missing are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with draft.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8), replacing one that is there."""
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
