"""Rollouts token by token, and the steps that they are of, as many as a page has room for."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np

from opd_ray.output.close_ups import RolloutView, StepView, packed, unpacked
from opd_ray.report.run_folder import RunFolder

MOST_BYTES = 10_000_000  # of a page
# Columns of a rollout that the page does not read, and those that need few bytes.
_UNREAD = ("teacher_mass", "union_forward_kl")
_CHANCES = {"rollout_logprob": "student", "teacher_logprob": "teacher"}


def add_close_ups(data: dict[str, Any], run: RunFolder, room: int) -> None:
    """Add them to a page's data, and say what is left out.

    The last step's rollouts come first, then the first's, then the others from the end; where
    there is little room left they come without their likeliest tokens.

    Args:
        data: of the page, without them.
        run: whose they are.
        room: bytes for all data together.
    """
    steps = [(step, view) for step, view in run.views if isinstance(view, StepView)]
    rollouts = [(step, view) for step, view in run.views if isinstance(view, RolloutView)]
    rules = {step: str(view.tip["rule"]) for step, view in steps}
    numbers = [step for step, _ in steps]
    order = [*numbers[-1:], *numbers[:1], *reversed(numbers[1:-1])]
    data["steps"] = [{"step": step, **asdict(view)} for step, view in steps]
    left = room - size(data)
    vocabulary: dict[int, str] = {}
    whole: list[dict[str, Any]] = []
    for step, view in sorted(rollouts, key=lambda one: order.index(one[0])):
        added = {int(token): text for token, text in view.texts.items()}
        grown = vocabulary | added
        shown = {"step": step, **_compact(view, rules[step], grown)}
        needed = size(shown) + size([*grown.items()][len(vocabulary) :])
        if needed > left:
            needed -= size(shown["likeliest"])
            shown["likeliest"] = {}
        if needed > left:
            break
        left, vocabulary = left - needed, grown
        whole.append(shown)
    data["rollouts"] = sorted(whole, key=lambda one: int(one["step"]))
    data["vocabulary"], data["token_ids"] = [*vocabulary.values()], [*vocabulary]
    data["left_out"] += _left_out(rollouts, whole)


def _left_out(rollouts: list[tuple[int, RolloutView]], whole: list[dict[str, Any]]) -> list[str]:
    """What a person should know of what is not shown."""
    told = []
    if missing := len(rollouts) - len(whole):
        told.append(
            f"{missing} of {len(rollouts)} rollouts, to keep the page below "
            f"{MOST_BYTES / 1e6:.0f} MB; they are in close_ups.jsonl"
        )
    recorded = {(step, view.rollout_id) for step, view in rollouts if view.likeliest}
    bare = [
        one
        for one in whole
        if not one["likeliest"] and (one["step"], one["rollout_id"]) in recorded
    ]
    if bare:
        told.append(f"the likeliest tokens of {len(bare)} rollouts, for the same reason")
    if cut := sum(view.tokens > len(unpacked(view.mask, "<u1")) for _, view in rollouts):
        told.append(f"the ends of {cut} rollouts of more than report.tokens tokens")
    return told


def _compact(view: RolloutView, rule: str, vocabulary: dict[int, str]) -> dict[str, Any]:
    """A rollout with its texts as numbers, and what the page does not read gone.

    Args:
        view: the rollout.
        rule: of its step; the page works out the scores of all but a user's own.
        vocabulary: texts by token id, its own and those of others, in the order of their numbers.
    """
    number = {token: index for index, token in enumerate(vocabulary)}

    def numbers(ids: str) -> list[str]:
        """Kind, and for each id the number of its text; the greatest for no token."""
        found = np.array([number.get(token, -1) for token in unpacked(ids, "<i4").tolist()])
        kind = "<u2" if found.max(initial=0) < 0xFFFF else "<u4"
        return [kind, packed(found.astype(kind), kind)]

    columns = {
        name: text
        for name, text in view.columns.items()
        if name not in _UNREAD and (name != "score" or ":" in rule) and name not in _CHANCES
    }
    return {
        **{name: value for name, value in asdict(view).items() if name != "texts"},
        "tokens_shown": len(unpacked(view.mask, "<u1")),
        "ids": numbers(view.ids),
        "columns": columns,
        "chances": {
            whose: packed(unpacked(view.columns[name], "<f4"), "<f2")
            for name, whose in _CHANCES.items()
            if name in view.columns
        },
        "likeliest": {
            whose: [*numbers(ids), packed(unpacked(logprobs, "<f4"), "<f2")]
            for whose, (ids, logprobs) in view.likeliest.items()
        },
    }


def size(value: Any) -> int:
    """Bytes of a value in the page."""
    return len(json.dumps(value))
