"""What a field of the schema says of itself, besides its range, in its metadata."""

from __future__ import annotations

from typing import Any

_PATH = "path"
_READ_AS = "read_as"

# Metadata of a field that holds a path, or a name where a path may stand: "~" is expanded there.
PATH: dict[str, Any] = {_PATH: True}


def read_as(hint: Any) -> dict[str, Any]:
    """Metadata of a free mapping whose words are read as those of ``hint``, a type with keys."""
    return {_READ_AS: hint}


def is_path(metadata: Any) -> bool:
    """Whether a field with this metadata holds a path."""
    return bool(metadata.get(_PATH))


def reading_hint(metadata: Any, hint: Any) -> Any:
    """The type by which the words of a field are read, which has the type ``hint``."""
    return metadata.get(_READ_AS, hint)
