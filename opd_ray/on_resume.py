"""What becomes of a run that goes on with another value of a key, said in the key's field.

Every single key of a configuration says it; a list or mapping says it for all that is in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

_KEY = "on_resume"


class OnResume(StrEnum):
    """What another value means for a run that goes on."""

    free = "free"  # nothing that anyone would have to know
    told = "told"  # it takes effect from the next step on, and a line says so
    same_prompts = "same_prompts"  # as told where the prompts stay the same, else refused
    fixed = "fixed"  # another run: refused


# Metadata of a field.
FREE: dict[str, Any] = {_KEY: OnResume.free}
TOLD: dict[str, Any] = {_KEY: OnResume.told}
SAME_PROMPTS: dict[str, Any] = {_KEY: OnResume.same_prompts}
FIXED: dict[str, Any] = {_KEY: OnResume.fixed}


def declared(metadata: Mapping[str, Any]) -> OnResume | None:
    """What a field with this metadata says."""
    return metadata.get(_KEY)
