"""What rollout actors are given in a deterministic run: whole shares of a batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence

from opd_ray.types import Rollout, RolloutRequest


class FixedShares:
    """A batch cut into shares of requests that follow one another; true if any waits.

    A share that is written again brings every rollout of it once more; those that are not missing
    were delivered before, and came out the same.

    Args:
        places: for actors, and so of shares.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._share_of: dict[str, Sequence[RolloutRequest]] = {}  # by rollout
        self._waiting: deque[Sequence[RolloutRequest]] = deque()
        self._missing: set[str] = set()  # rollouts that have not been delivered, or were lost since

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def cut(self, requests: Sequence[RolloutRequest]) -> None:
        """Begin a batch."""
        size = max(1, -(-len(requests) // self._places))
        shares = [requests[first : first + size] for first in range(0, len(requests), size)]
        self._share_of = {request.rollout_id: share for share in shares for request in share}
        self._waiting = deque(shares)
        self._missing = set(self._share_of)

    def next(self) -> Sequence[RolloutRequest]:
        """The share that is to be written next; one waits."""
        return self._waiting.popleft()

    def missing(self, written: Sequence[Rollout]) -> list[Rollout]:
        """Those of these rollouts that are missing, and are so no more."""
        found = [rollout for rollout in written if rollout.rollout_id in self._missing]
        self._missing.difference_update(rollout.rollout_id for rollout in found)
        return found

    def missing_ids(self, rollout_ids: Iterable[str]) -> list[str]:
        """Those of these that are missing."""
        return [key for key in rollout_ids if key in self._missing]

    def put_back(
        self, rollout_ids: Sequence[str], being_written: Sequence[Mapping[str, object]]
    ) -> None:
        """Have rollouts written again, each with the whole of its share.

        Args:
            rollout_ids: of the batch, in its order.
            being_written: by every actor that lives, rollouts that it will bring.
        """
        self._missing.update(rollout_ids)
        again = [key for key in rollout_ids if not any(key in one for one in being_written)]
        waiting: Collection[int] = {id(share) for share in self._waiting}
        shares = {id(self._share_of[key]): self._share_of[key] for key in again}
        self._waiting.extendleft(
            reversed([share for number, share in shares.items() if number not in waiting])
        )
