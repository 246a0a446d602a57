"""The kinds of error a user can act on, and the exit code of each.

Every error class of opd-ray derives from OpdError, and from ValueError (bad input, found before or
without a run) or RuntimeError (a run that failed). Plain Python errors are faults in the code.
"""

from __future__ import annotations

from collections.abc import Sequence

BAD_INPUT = 2
RUN_FAILED = 1
INTERRUPTED = 130
READER_LEFT = 141  # nobody reads the output any more


class OpdError(Exception):
    """Base of the errors whose message alone tells the user what to do."""


class ConfigError(OpdError, ValueError):
    """A key, a value or a combination of values that no run can have."""


class InputError(OpdError, ValueError):
    """A file, row, model or value of the user's that a library could not read."""


class OutputFolderError(OpdError, ValueError):
    """An output folder that cannot be written, is in use, or holds another run."""


class PlacementError(OpdError, ValueError):
    """Actors that do not fit the cluster."""


class RunError(OpdError, RuntimeError):
    """A run that started and could not go on; the message names what failed and its last error."""


class DamagedCheckpoint(RunError):
    """A checkpoint whose large files are not what was written; an older one may be whole."""


class WriteError(RunError):
    """A file that could not be written: its disk is full, read-only or gone."""


class ActorFailure(RunError):
    """A process of the run died or raised; names it and gives its last error.

    ``never_ran``: it was given to a node that was dead already, so none of this is its own doing.
    """

    def __init__(self, owner: str, cause: str, *, never_ran: bool = False) -> None:
        super().__init__(f"{owner} failed: {cause}")
        self.owner = owner
        self.cause = cause
        self.never_ran = never_ran


class ActorDied(ActorFailure):
    """The process of an actor is gone whose supervisor may put another in its place."""


class ActorLost(ActorFailure):
    """An actor is gone, or of no use any more, without whose answers the run cannot go on.

    Args:
        name: of the actor.
        owner: what of it failed, for the message.
        cause: why.
        never_ran: see :class:`ActorFailure`.
        in_constructor: its class could not be made; nothing has befallen the process.
    """

    def __init__(
        self,
        name: str,
        owner: str,
        cause: str,
        *,
        never_ran: bool = False,
        in_constructor: bool = False,
    ) -> None:
        super().__init__(owner, cause, never_ran=never_ran)
        self.name = name
        self.in_constructor = in_constructor


class Asleep(RunError):
    """A role was to work although its turn is over, and its memory given back; names it."""

    def __init__(self, role: str, what: str) -> None:
        super().__init__(f"{role}: asleep, as it is not their turn, and asked for {what}")


class PeerFailure(RunError):
    """A process gave up because another one in the same collective call did, which knows why."""


class ConnectionLost(PeerFailure):
    """A process no longer reaches a trainer rank that it needs; that has died, or hangs."""


class Unanswered(RunError):
    """Calls took longer than they may; ``owners`` has not answered them."""

    def __init__(self, owners: Sequence[str], what: str) -> None:
        super().__init__(f"{', '.join(owners)}: {what}")
        self.owners = owners
        self.what = what


def is_known(error: BaseException) -> bool:
    """Whether the message is meant for the user; also if Ray brought it from another process."""
    return isinstance(error, OpdError)


def exit_code(error: BaseException) -> int:
    """130 for Ctrl-C, 2 for a known error of bad input, 1 for everything else."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return BAD_INPUT if is_known(error) and isinstance(error, ValueError) else RUN_FAILED
