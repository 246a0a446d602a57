"""The signals a teacher holds between scoring a rollout and being told which rows are kept."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

import numpy as np

from actors.teacher.protocol import TeacherError
from opd_ray.types import Signal


class SignalStore:
    """Signals by rollout id, bounded in bytes. Safe to use from several threads.

    Args:
        max_bytes: what all signals together may take; more is an error, not an eviction.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._signals: dict[str, Signal] = {}
        self._nbytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._signals)

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._nbytes

    def put(self, rollout_id: str, signal: Signal) -> None:
        """Hold a signal (all m rows); a second one for the same rollout replaces the first.

        Raises:
            TeacherError: the store is full.
        """
        with self._lock:
            replaced = self._signals.get(rollout_id)
            total = self._nbytes + signal.nbytes - (replaced.nbytes if replaced else 0)
            if total > self._max_bytes:
                raise TeacherError(
                    f"rollout {rollout_id!r}: its signal of {signal.nbytes} bytes does not fit; "
                    f"{len(self._signals)} rollouts hold {self._nbytes} of {self._max_bytes} bytes "
                    "(raise teacher.store_bytes, add replicas, ask fewer rollouts a step, or use "
                    "the topk signal)"
                )
            self._signals[rollout_id] = signal
            self._nbytes = total

    def rows(self, keep: Mapping[str, np.ndarray]) -> dict[str, Signal]:
        """Copies of the named rows ([n] int, each within the response); the store keeps everything.

        Raises:
            TeacherError: a rollout whose signal is not held, or a row outside its response.
        """
        with self._lock:
            self._require(keep)
            return {key: _rows(key, self._signals[key], index) for key, index in keep.items()}

    def take(self, keep: Mapping[str, np.ndarray]) -> dict[str, Signal]:
        """As :meth:`rows`; then those rollouts are forgotten."""
        taken = self.rows(keep)
        self.forget(keep)
        return taken

    def forget(self, rollout_ids: Iterable[str]) -> None:
        """Free the signals of these rollouts.

        Raises:
            TeacherError: one of them is not held; then none is freed.
        """
        ids = list(rollout_ids)
        with self._lock:
            self._require(ids)
            for rollout_id in ids:
                self._nbytes -= self._signals.pop(rollout_id).nbytes

    def _require(self, rollout_ids: Iterable[str]) -> None:
        missing = [key for key in rollout_ids if key not in self._signals]
        if missing:
            raise TeacherError(
                f"no signal is held for rollout {missing[0]!r} (and {len(missing) - 1} more): "
                "never scored here, or already taken or forgotten"
            )


def _rows(rollout_id: str, signal: Signal, index: np.ndarray) -> Signal:
    try:
        return signal.rows(index)
    except IndexError as error:
        raise TeacherError(f"rollout {rollout_id!r}: {error} (rows of its signal)") from error
