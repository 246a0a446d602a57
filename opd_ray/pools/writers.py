"""The rollout actors one by one: what each has been given, and whether it has the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from opd_ray.errors import ActorDied
from opd_ray.pools.members import Member, Members, RestartPolicy
from opd_ray.pools.watch import ActorWatch
from opd_ray.types import RolloutRequest

# Has an actor, (name, handle), take in the weights that the others write with. The next argument is
# called once they are on their way to it, the last one once it has them, or with False if they do
# not come. Returns whether they can come before the next push.
CatchUp = Callable[[str, Any, Callable[[], object], Callable[[bool], object]], bool]


@dataclass(eq=False)
class Writer(Member):
    """One rollout actor; another that is started in its place is another writer."""

    current: bool = True  # whether it has the weights that the others write with
    catching_up: bool = False  # these are asked for
    loading: bool = False  # and have been sent to it
    streaming: bool = False  # a stream of its rollouts is open
    closed: bool = False  # it has heard that no more requests come in this stream
    unfinished: dict[str, RolloutRequest] = field(default_factory=dict)  # by rollout id
    since: float = 0.0  # when it was given the first of them, seconds
    # The rollouts of the batch that it wrote: it holds their top-Ks, which end with it.
    written: list[str] = field(default_factory=list)

    @property
    def can_take(self) -> bool:
        """Whether it can be given requests now."""
        return self.up and self.current and not self.closed


class Writers(Members[Writer]):
    """All rollout actors; those that are started again get the weights that the others have.

    Args:
        actors: (name, Ray actor handle) pairs; they have loaded.
        watch: in which they are watched.
        policy: of those that die or hang.
        lost: see :class:`opd_ray.pools.members.Members`.
        more: called when there is another one to write.

    Attributes:
        catch_up: how one that is started again gets its weights; None: those that it loads are
            those of the others.
    """

    def __init__(
        self,
        actors: Sequence[tuple[str, Any]],
        watch: ActorWatch,
        policy: RestartPolicy,
        lost: Callable[[Writer, ActorDied], object],
        more: Callable[[], object],
    ) -> None:
        super().__init__(Writer, watch, policy, lost, self._admit)
        self.catch_up: CatchUp | None = None
        self._more = more
        for name, handle in actors:
            self.join(name, handle)

    def up(self) -> list[Writer]:
        """Those that have loaded, as far as is known."""
        return [writer for writer in self.all() if writer.up]

    def any_will_write(self) -> bool:
        """Whether one can write, or may before new weights come to all."""
        return any(one.current or one.catching_up or not one.up for one in self.all())

    def catch_up_all(self) -> None:
        """Bring the weights to those that were started again.

        Only once something waits to be written: the trainers' weights are then still those that all
        others have, and who has nothing to write gets the next ones with all.
        """
        if self.catch_up is None:
            return
        for writer in self.up():
            if not writer.current and not writer.catching_up:
                writer.catching_up = self.catch_up(
                    writer.name,
                    writer.handle,
                    partial(self._is_loading, writer),
                    partial(self._caught_up, writer),
                )

    def _admit(self, writer: Writer) -> None:
        writer.current = self.catch_up is None
        self._more()

    def _is_loading(self, writer: Writer) -> None:
        writer.loading = True
        self.expect(writer)

    def _caught_up(self, writer: Writer, done: bool) -> None:
        if writer.dead:
            return
        if writer.loading:
            self.answered(writer)
        writer.catching_up = writer.loading = False
        if done:
            writer.current = True
            self._more()
