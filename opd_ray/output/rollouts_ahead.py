"""Rollouts that were written a step ahead, in a checkpoint.

The weights that wrote them are gone when the run goes on, so they are kept as they are. Layout:
``rollouts.jsonl`` (a rollout a line, without its arrays) and ``arrays.npz`` (the arrays, named
``<line>.<field>``).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import ray
from ray.exceptions import ObjectLostError

from opd_ray.borders import writing
from opd_ray.types import Rollout, TopK
from opd_ray.whole_file import whole_file

_FOLDER = "rollouts_ahead"
_TOPK = ("topk_ids", "topk_logprobs")


def write_rollouts(folder: Path, rollouts: Sequence[Rollout]) -> bool:
    """Write rollouts below ``folder``; their top-Ks are fetched one after another.

    Returns:
        False where one of these is lost, with the actor that recorded it: then nothing is written.

    Raises:
        WriteError: they cannot be written.
    """
    target = folder / _FOLDER
    try:
        _write(target, rollouts)
    except ObjectLostError:
        with writing(target):
            shutil.rmtree(target)
        return False
    return True


def _write(target: Path, rollouts: Sequence[Rollout]) -> None:
    with whole_file(target / "rollouts.jsonl") as lines:
        for rollout in rollouts:
            plain = {name: part for name, part in _parts(rollout) if isinstance(part, str | int)}
            lines.write(f"{json.dumps(plain | {'figures': dict(rollout.figures)})}\n".encode())
    # Not by numpy's savez, which wants all arrays at once: the top-Ks are not held together here.
    with whole_file(target / "arrays.npz") as whole, ZipFile(whole, "w") as archive:
        for number, rollout in enumerate(rollouts):
            for name, array in _arrays(rollout):
                with (
                    writing(target / "arrays.npz"),
                    archive.open(f"{number}.{name}.npy", "w", force_zip64=True) as file,
                ):
                    np.lib.format.write_array(file, array, allow_pickle=False)


def read_rollouts(folder: Path) -> list[Rollout]:
    """What :func:`write_rollouts` wrote below ``folder``; nothing if it did not.

    In a run each top-K goes into the object store as it is read, where rollout actors put theirs.
    """
    source = folder / _FOLDER
    if not source.is_dir():
        return []
    lines = (source / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()
    with np.load(source / "arrays.npz", allow_pickle=False) as arrays:
        names: dict[int, list[str]] = {}  # by line
        for name in arrays.files:
            number, field = name.split(".")
            names.setdefault(int(number), []).append(field)
        return [
            _rollout(json.loads(line), {name: arrays[f"{number}.{name}"] for name in names[number]})
            for number, line in enumerate(lines)
        ]


def _arrays(rollout: Rollout) -> Iterator[tuple[str, np.ndarray]]:
    yield from ((name, part) for name, part in _parts(rollout) if isinstance(part, np.ndarray))
    topk = ray.get(rollout.topk) if isinstance(rollout.topk, ray.ObjectRef) else rollout.topk
    if topk is not None:
        yield from zip(_TOPK, (topk.ids, topk.logprobs), strict=True)


def _parts(rollout: Rollout) -> Iterator[tuple[str, Any]]:
    for field in fields(rollout):
        yield field.name, getattr(rollout, field.name)


def _rollout(plain: dict[str, Any], arrays: dict[str, Any]) -> Rollout:
    ids, logprobs = (arrays.pop(name, None) for name in _TOPK)
    if ids is None or logprobs is None:
        return Rollout(**plain, **arrays)
    topk = TopK(ids, logprobs)
    return Rollout(**plain, **arrays, topk=ray.put(topk) if ray.is_initialized() else topk)
