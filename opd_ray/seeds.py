"""Seeds of every random draw, derived from names and numbers, not from who did the work."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and its place: (run seed, step, prompt id, sample).

    Equal parts give equal seeds in any process; int 1 and str "1" differ.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return digest64(text.encode()) >> 1


def digest64(content: bytes) -> int:
    """64 bits by which contents compare, the same in any process."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
