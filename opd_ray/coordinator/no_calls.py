"""A step in which nobody called a tool although there are some: most likely a wrong parser."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from opd_ray.environments.calls import ToolCall
from opd_ray.environments.parsers.registry import get_parser, parser_names
from opd_ray.errors import RunError
from opd_ray.types import Rollout, RolloutFigure

_SHOWN = 3  # responses
_LONGEST = 2000  # characters of one of them that are shown


class NoCallsError(RunError):
    """There are tools, and not one call was read in all rollouts of a step."""


def check_calls(
    rollouts: Sequence[Rollout],
    parsers: Mapping[str, tuple[str, str]],
    decode: Callable[[Sequence[int]], str],
) -> None:
    """Refuse to go on where no call was read in any rollout that has tools.

    Args:
        rollouts: of a step.
        parsers: of every source whose environment has tools, the key that names its parser
            ("environment.parser") and the name.
        decode: token ids to text, special tokens included.

    Raises:
        NoCallsError: shows three responses as they are, and says what to check.
    """
    silent = [rollout for rollout in rollouts if rollout.source in parsers]
    if not silent or any(_called(rollout) for rollout in silent):
        return
    used = {parsers[rollout.source]: None for rollout in silent}
    told = ", ".join(f"{key} = {name!r}" for key, name in used)
    unread = int(sum(rollout.figures.get(RolloutFigure.calls, 0.0) for rollout in silent))
    lines = [
        f"there are tools, and not one call was read in the {len(silent)} rollouts of this step, "
        f"with {told}; {unread} were written that it could not read",
        "check:",
        *(f"- {text}" for text in _what_to_check(silent, list(used), decode)),
        f"{min(_SHOWN, len(silent))} of the responses as they are:",
    ]
    for rollout in _different(silent)[:_SHOWN]:
        size = len(rollout.response_ids)
        lines.append(f"--- {rollout.rollout_id}: {size} tokens, ended with {rollout.finish_reason}")
        lines.append(_shown(decode(rollout.response_ids.tolist())))
    raise NoCallsError("\n".join(lines))


def _called(rollout: Rollout) -> bool:
    """Whether a call was read, or may have been where a limit kept it from being counted."""
    figures = rollout.figures
    read = figures.get(RolloutFigure.calls, 0.0) - figures.get(RolloutFigure.parse_error, 0.0)
    # The last turn's calls are not counted, and where one turn is all, none are.
    one_turn = rollout.turns is None or not rollout.turns.any()
    return (
        read > 0
        or rollout.finish_reason == "tool_limit"
        or (rollout.finish_reason == "turns" and one_turn)
    )


def _what_to_check(
    silent: Sequence[Rollout],
    used: Sequence[tuple[str, str]],
    decode: Callable[[Sequence[int]], str],
) -> list[str]:
    keys = " and ".join(key for key, _ in used)
    found = []
    for name in parser_names():
        count = sum(_reads(name, rollout, decode) for rollout in silent)
        if count and name not in [own for _, own in used]:
            found.append(f"{name} reads calls in {count} of {len(silent)} rollouts: set {keys}")
    if not found:
        others = ", ".join(parser_names())
        found.append(
            f"{keys}: is it the format that the student writes? There are {others}, and a class "
            "of your own"
        )
    found.append(
        "the prompt: does the chat template show the student its tools, and is it asked to use "
        "them?"
    )
    cut = sum(rollout.finish_reason in ("length", "context") for rollout in silent)
    if cut:
        found.append(
            f"{cut} of {len(silent)} rollouts were cut before they ended: raise "
            "environment.max_turn_tokens, rollout.max_new_tokens or student.context_length"
        )
    found.append("student.path: was the student trained to call tools?")
    return found


def _reads(name: str, rollout: Rollout, decode: Callable[[Sequence[int]], str]) -> bool:
    """Whether the parser of that name reads a call in one of the student's turns."""
    parser = get_parser(name, "parser")
    written_m = rollout.response_mask.astype(np.bool_)
    if not written_m.any():  # one that is left out keeps its tokens, not its mask
        written_m[:] = True
    turns_m = np.zeros(len(written_m)) if rollout.turns is None else rollout.turns
    for turn in np.unique(turns_m[written_m]).tolist():
        # The token that ended the turn stands behind its calls and hides none of them.
        text = decode(rollout.response_ids[written_m & (turns_m == turn)].tolist())
        if any(isinstance(call, ToolCall) for call in parser.parse(text, ()).calls):
            return True
    return False


def _different(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """One of each prompt first, then the rest."""
    first: dict[str, Rollout] = {}
    rest = [one for one in rollouts if first.setdefault(one.prompt_id, one) is not one]
    return [*first.values(), *rest]


def _shown(text: str) -> str:
    """A response as it is, without what would move a terminal's cursor, and not without end."""
    plain = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
    if len(plain) <= _LONGEST:
        return plain
    half = _LONGEST // 2
    return f"{plain[:half]}\n[... {len(plain) - 2 * half} characters ...]\n{plain[-half:]}"
