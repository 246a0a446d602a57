"""The trainer's files in a checkpoint, of no ZeRO stage and no number of ranks in particular.

Every rank writes its fragments of the parameters (:mod:`actors.trainer.fragments`) into files of
its own, ``rank_RRRRR_NNNNN.safetensors``. Their tensors are named ``KIND:START:PARAMETER``: the
float32 weight (``master``) and AdamW's moments from ``START`` on in the flattened parameter, or a
whole ``buffer`` of the model's. A file's metadata hold how many optimizer steps its parameters have
seen. ``layout.json`` has the shape of every parameter; together the files hold each exactly once.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from actors.trainer.fragments import KINDS, MASTER, Partition
from opd_ray.borders import border
from opd_ray.checksums import FileSum, SummedFile
from opd_ray.errors import RunError

BUFFER = "buffer"
LAYOUT_FILE = "layout.json"
RANK_FILES = "rank_"  # how their names begin
_FORMAT = 2  # 1 was DeepSpeed's own
_STEPS = "steps"  # in a file's metadata
# A larger tensor is a file alone.
_FILE_BYTES = 4 << 30
_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class CheckpointMismatch(RunError):
    """A trainer's checkpoint that cannot be gone on from."""


@dataclass(frozen=True)
class Entry:
    """A tensor that is to be written."""

    key: str
    tensor: Tensor  # on any device

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.tensor.numel() * self.tensor.element_size()


def entries_of(partition: Partition, buffers: Mapping[str, Tensor]) -> list[Entry]:
    """What a rank writes: its fragments, and buffers of the model's by name. Nothing is copied."""
    of_buffers = [Entry(f"{BUFFER}:0:{name}", tensor) for name, tensor in buffers.items()]
    parts = (
        Entry(f"{kind}:{one.start}:{one.name}", tensor) for one, kind, tensor in iter(partition)
    )
    return [*of_buffers, *parts]


class Snapshot:
    """A copy of entries in host memory, which goes back to the system with it.

    One block of memory: small ones would stay with the process.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        sizes = [-(-entry.nbytes // 16) * 16 for entry in entries]
        block = np.frombuffer(mmap.mmap(-1, max(1, sum(sizes))), np.uint8)
        self.entries: list[Entry] = []
        start = 0
        for entry, size in zip(entries, sizes, strict=True):
            raw = torch.from_numpy(block[start : start + entry.nbytes])
            copy = raw.view(entry.tensor.dtype).view(entry.tensor.shape)
            copy.copy_(entry.tensor.detach())
            self.entries.append(Entry(entry.key, copy))
            start += size


def write_entries(
    folder: Path, rank: int, entries: Sequence[Entry], steps: Mapping[str, int]
) -> dict[str, FileSum]:
    """Write a rank's files; at most one tensor is copied at a time.

    Args:
        folder: where to.
        rank: of the writer.
        entries: what to write.
        steps: optimizer steps by parameter.

    Returns:
        the sums of the files by name.

    Raises:
        WriteError: they cannot be written.
    """
    sums = {}
    for number, group in enumerate(_groups(entries)):
        name = f"{RANK_FILES}{rank:05d}_{number:05d}.safetensors"
        with SummedFile(folder / name) as file:
            file.write(_header(group, steps))
            for entry in group:
                file.write(_bytes(entry.tensor))
        sums[name] = file.sum
    return sums


def write_layout(
    folder: Path, shapes: Mapping[str, Sequence[int]], of: Mapping[str, Any]
) -> dict[str, FileSum]:
    """Write what all ranks' files have in common; ``of`` says of whom they are."""
    layout = {"format": _FORMAT, **of, "parameters": {n: list(s) for n, s in shapes.items()}}
    with SummedFile(folder / LAYOUT_FILE) as file:
        file.write(json.dumps(layout, indent=1).encode())
    return {LAYOUT_FILE: file.sum}


@dataclass(frozen=True)
class _Piece:
    """A tensor in a file."""

    key: str
    kind: str
    start: int
    name: str
    length: int


class TrainerCheckpoint:
    """What the ranks have written, checked to be of one piece.

    Args:
        folder: where they did.

    Raises:
        CheckpointMismatch: there is none, it is DeepSpeed's own, or it is not whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        file = folder / LAYOUT_FILE
        if not file.is_file():
            raise CheckpointMismatch(f"{folder} holds no checkpoint of a trainer")
        with self._border(file):
            layout = json.loads(file.read_text(encoding="utf-8"))
            found = layout.get("format", 1)
        if found != _FORMAT:
            raise CheckpointMismatch(
                f"{folder} holds a trainer's checkpoint of format {found}, this version reads "
                f"{_FORMAT}"
            )
        with self._border(file):
            self.shapes: dict[str, list[int]] = {
                name: [int(size) for size in shape] for name, shape in layout["parameters"].items()
            }
        self.steps: dict[str, int] = dict.fromkeys(self.shapes, 0)
        self._pieces: dict[Path, list[_Piece]] = {}
        for file in sorted(folder.glob(f"{RANK_FILES}*.safetensors")):
            self._pieces[file] = self._read_index(file)
        self._check_coverage()

    def read(
        self, wanted: Callable[[str, str, int, int], tuple[int, int] | None]
    ) -> Iterator[tuple[str, str, int, Tensor]]:
        """Values as (kind, name, start, values), one after another; one file is open at a time.

        Args:
            wanted: of kind, name, start and length, from where to where in the flattened parameter
                to read; None: nothing. Buffers are read whole.
        """
        for file, pieces in self._pieces.items():
            parts = [(p, wanted(p.kind, p.name, p.start, p.length)) for p in pieces]
            chosen = [(piece, part) for piece, part in parts if part is not None]
            if not chosen:
                continue
            with self._border(file), safe_open(file, "pt") as content:
                for piece, (first, last) in chosen:
                    if piece.kind == BUFFER:
                        values = content.get_tensor(piece.key)
                    else:
                        found = content.get_slice(piece.key)
                        values = found[first - piece.start : last - piece.start]
                    yield piece.kind, piece.name, first, values

    def weights(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Every weight whole and rounded to ``dtype``, and every buffer as it is, by name."""
        whole = {name: torch.empty(prod(s), dtype=dtype) for name, s in self.shapes.items()}
        buffers = {}

        def wanted(kind: str, name: str, start: int, length: int) -> tuple[int, int] | None:
            return (start, start + length) if kind in (MASTER, BUFFER) else None

        for kind, name, start, values in self.read(wanted):
            if kind == BUFFER:
                buffers[name] = values
            else:
                whole[name][start : start + len(values)] = values
        return buffers | {name: flat.view(self.shapes[name]) for name, flat in whole.items()}

    def _read_index(self, file: Path) -> list[_Piece]:
        pieces = []
        with self._border(file), safe_open(file, "pt") as content:
            for name, steps in json.loads(content.metadata()[_STEPS]).items():
                if name in self.steps:
                    self.steps[name] = max(self.steps[name], int(steps))
            for key in content.keys():  # noqa: SIM118 (no dictionary)
                kind, start, name = key.split(":", 2)
                length = prod(content.get_slice(key).get_shape())
                pieces.append(_Piece(key, kind, int(start), name, length))
        return pieces

    def _check_coverage(self) -> None:
        """Every parameter once from its beginning to its end, moments where it has seen a step."""
        stretches: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for piece in (piece for pieces in self._pieces.values() for piece in pieces):
            if piece.kind != BUFFER:
                stretch = (piece.start, piece.length)
                stretches.setdefault((piece.name, piece.kind), []).append(stretch)
        for name, shape in self.shapes.items():
            for kind in KINDS if self.steps[name] else (MASTER,):
                end = 0
                for start, length in [*sorted(stretches.get((name, kind), [])), (prod(shape), 0)]:
                    if start != end:
                        raise CheckpointMismatch(
                            f"the trainer's checkpoint in {self.folder} is not whole: of {kind} of "
                            f"{name} {start} follows on {end}; use an older checkpoint"
                        )
                    end += length

    def _border(self, file: Path) -> AbstractContextManager[None]:
        return border(str(file), "use an older checkpoint", CheckpointMismatch)


def load(
    checkpoint: TrainerCheckpoint, partition: Partition, buffers: Mapping[str, Tensor]
) -> None:
    """Put a checkpoint into an engine (a collective).

    Args:
        checkpoint: of any stage, number of ranks and number format.
        partition: of the engine's parameters.
        buffers: of the model.

    Raises:
        CheckpointMismatch: it is of another model; nothing has changed then.
    """
    for name in sorted(partition.shapes.keys() | checkpoint.shapes.keys()):
        here, there = (of.get(name, "none") for of in (partition.shapes, checkpoint.shapes))
        if here != there:
            raise CheckpointMismatch(
                f"{checkpoint.folder} holds the weights of another model: {name} has shape "
                f"{there} there, {here} in this run's student"
            )
    partition.begin_loading(checkpoint.steps)

    def wanted(kind: str, name: str, start: int, length: int) -> tuple[int, int] | None:
        if kind == BUFFER:
            return (0, length) if name in buffers else None
        known = kind == MASTER or checkpoint.steps[name] > 0
        return partition.overlap(name, start, length) if known else None

    for kind, name, start, values in checkpoint.read(wanted):
        if kind == BUFFER:
            buffers[name].copy_(values)
        else:
            partition.fill(name, kind, start, values)
    partition.end_loading()


def _groups(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """So many as go into one file; one group at least. Wide types first: so all are aligned."""
    group: list[Entry] = []
    size = 0
    for entry in sorted(entries, key=lambda entry: -entry.tensor.element_size()):
        if group and size + entry.nbytes > _FILE_BYTES:
            yield group
            group, size = [], 0
        group.append(entry)
        size += entry.nbytes
    yield group


def _header(entries: Sequence[Entry], steps: Mapping[str, int]) -> bytes:
    """The beginning of a safetensors file: where each tensor lies in what follows."""
    names = {entry.key.split(":", 2)[2] for entry in entries}
    counts = {name: count for name, count in steps.items() if name in names}
    header: dict[str, Any] = {"__metadata__": {_STEPS: json.dumps(counts)}}
    start = 0
    for entry in entries:
        header[entry.key] = {
            "dtype": _TYPES[entry.tensor.dtype],
            "shape": list(entry.tensor.shape),
            "data_offsets": [start, start + entry.nbytes],
        }
        start += entry.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data)
