"""Memory of tensors, given back while their process sleeps, and their values brought back after.

A tensor stays the same object, and so does every view of it: what it holds goes elsewhere, and
comes back. So nobody who holds one need know of it, and DeepSpeed's optimizers can sleep in every
ZeRO stage. (Its own ``offload_states`` knows stages 1 to 3 alone, of stage 3 only its own
FusedAdam, which has to be compiled; on CPUs it moves nothing.)

Values go from a GPU to main memory, and from main memory to a file without a name in the folder for
temporary files: from where they are at work to where there is more room. Meanwhile a tensor must
not be read: on a GPU there is no memory behind it, on a CPU it is zeros, or what the file holds
that it was loaded from.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

import torch
from torch import Tensor, nn

from opd_ray.borders import writing


class Parking:
    """Where the values of some tensors are meanwhile.

    Args:
        device: only what is there is parked; what lies elsewhere stays as it is.

    Attributes:
        taken: whether anything was parked and not brought back.
        nbytes: of what is parked.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.taken = False
        self._parked: list[tuple[torch.UntypedStorage, int]] = []  # with their sizes
        self._values: list[Tensor] = []  # uint8, in main memory, of storages on a GPU
        self._file: IO[bytes] | None = None  # of storages in main memory
        self.nbytes = 0

    def park(self, tensors: Iterable[Tensor]) -> None:
        """Keep what these hold, and give their memory back.

        Raises:
            OSError: no room for the file; then nothing is parked.
        """
        if self.taken:
            raise RuntimeError("something is parked here already")
        storages = _storages(tensors, self._device)
        if self._device.type == "cuda":
            self._values = [_bytes_of(storage).to("cpu", copy=True) for storage in storages]
        else:
            self._file = _file_of(storages)
        self._parked = [(storage, storage.nbytes()) for storage in storages]
        self.taken, self.nbytes = True, sum(size for _, size in self._parked)
        for storage in storages:
            _empty(storage)
        give_back_free_memory(self._device)

    def bring_back(self) -> None:
        """Let the tensors hold what they held; their values are kept here no longer."""
        for storage, size in self._parked:
            _have_room(storage, size)
        if self._file is not None:
            self._file.seek(0)
            for storage, size in self._parked:
                _read(self._file, _memory_of(storage, size))
            self._file.close()
        for (storage, _), values in zip(self._parked, self._values, strict=False):
            _bytes_of(storage).copy_(values)
        self._parked, self._values, self._file = [], [], None
        self.taken, self.nbytes = False, 0


class Dropped:
    """Memory of tensors whose values nobody needs any more, given back until :meth:`take_anew`.

    Args: as :meth:`Parking.park` and :class:`Parking`.
    """

    def __init__(self, tensors: Iterable[Tensor], device: torch.device) -> None:
        storages = _storages(tensors, device)
        self._dropped = [(storage, storage.nbytes()) for storage in storages]
        for storage in storages:
            _empty(storage)

    def take_anew(self, fill: int) -> None:
        """Have the memory again; every byte of it is ``fill``."""
        for storage, size in self._dropped:
            _have_room(storage, size)
            _bytes_of(storage).fill_(fill)


def tensors_within(*roots: object) -> Iterator[Tensor]:
    """Every tensor that these objects hold, with gradients, through whatever holds what.

    Goes into containers and into objects of DeepSpeed and of torch's optimizers, not into modules.
    """
    seen: set[int] = set()
    waiting = list(roots)
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Tensor):
            yield one
            waiting += [one.grad if one.is_leaf else None, *vars(one).values()]
        elif isinstance(one, Mapping):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | frozenset):
            waiting += one
        elif _is_engines(one):
            waiting += vars(one).values()


def give_back_free_memory(device: torch.device) -> None:
    """Return what the allocators keep of freed memory to the GPU, or to the machine."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        # Also what is free between blocks in use: trainers keep freed memory (actors.process).
        ctypes.CDLL(None).malloc_trim(0)


def _is_engines(one: object) -> bool:
    """Whether it is an object of DeepSpeed's or of torch's optimizers that may hold tensors."""
    home = type(one).__module__.startswith(("deepspeed.", "torch.optim."))
    return home and hasattr(one, "__dict__") and not isinstance(one, nn.Module | type)


def _storages(tensors: Iterable[Tensor], device: torch.device) -> list[torch.UntypedStorage]:
    """Of these, on the device, each once, that hold anything."""
    found = {}
    for tensor in tensors:
        if tensor.device.type == device.type:
            storage = tensor.untyped_storage()
            if storage.nbytes():
                found[storage.data_ptr()] = storage
    return list(found.values())


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    """All of a storage, [bytes] uint8."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _memory_of(storage: torch.UntypedStorage, size: int) -> memoryview:
    """All of a storage in main memory; Tensor.numpy() would fix its size for ever."""
    return memoryview((ctypes.c_char * size).from_address(storage.data_ptr())).cast("B")


def _empty(storage: torch.UntypedStorage) -> None:
    """Give its memory back.

    In main memory its addresses stay its own: others may have them, as numpy arrays do, so that
    torch could not resize it. The system takes whole pages, and gives zeros when they are read; of
    a file that is mapped, its own bytes.
    """
    if storage.device.type == "cuda":
        storage.resize_(0)
        return
    begin = -(-storage.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (storage.data_ptr() + storage.nbytes()) // mmap.PAGESIZE * mmap.PAGESIZE
    if end <= begin:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    address, length = ctypes.c_void_p(begin), ctypes.c_size_t(end - begin)
    if libc.madvise(address, length, mmap.MADV_DONTNEED):
        raise OSError(ctypes.get_errno(), "the system does not take memory back (madvise)")


def _have_room(storage: torch.UntypedStorage, size: int) -> None:
    if storage.device.type == "cuda":
        storage.resize_(size)


def _file_of(storages: Iterable[torch.UntypedStorage]) -> IO[bytes]:
    """A file with what these hold, one after another; gone once it is closed.

    Raises:
        WriteError: it cannot be written.
    """
    place = Path(tempfile.gettempdir())
    with writing(place):
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  (outlives this function)
    try:
        for storage in storages:
            rest = _memory_of(storage, storage.nbytes())
            with writing(place):
                while rest:
                    rest = rest[file.write(rest) :]
    except BaseException:
        file.close()
        raise
    return file


def _read(file: IO[bytes], into: memoryview) -> None:
    while into:
        count = file.readinto(into)  # type: ignore[attr-defined]
        if not count:
            raise RuntimeError("the file of parked memory has become shorter")
        into = into[count:]
