"""The asked rows of a server's prompt log-probabilities, as arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.teacher.protocol import TeacherError
from opd_ray.batching.alignment import predicting_positions
from opd_ray.types import ScoreRequest

# Probability that rows beyond the student's tokens may have together: the distribution counts them.
PADDING_MASS = 1e-3
_MOST_IDS = 1 << 31  # ids are int32 here


@dataclass(frozen=True)
class NamedRows:
    """What the server told of one response, a row for each of the n tokens asked about.

    E is the most tokens named in a row; shorter rows end in id -1 at -inf.
    """

    asked_n: np.ndarray  # int32, their response positions
    ids_nE: np.ndarray  # int32, the likeliest first
    logprobs_nE: np.ndarray  # float32, nats
    logprob_n: np.ndarray  # float32, nats, of the response token
    cap_n: np.ndarray  # float32, nats; no token that is not named is likelier
    mass_n: np.ndarray  # float64, probability of all that are named

    def require(self, k: int, key: str) -> None:
        """Whether every row names its k likeliest tokens.

        Raises:
            TeacherError: so many of the named ones were padding that fewer are left.
        """
        short_n = (self.ids_nE[:, :k] < 0).any(axis=1)
        if short_n.any():
            raise TeacherError(
                f"position {self.asked_n[short_n.argmax()]}: without ids that are no tokens of the "
                f"student, the server names fewer than {k} likeliest tokens; raise "
                f"{key}.named_tokens"
            )

    def look_up(self, ids_nK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities of the given ids (0 where unknown), and which are known, [n, K]."""
        # Row and id as one number, so that one sorted search serves all rows.
        stride = 1 + int(max(self.ids_nE.max(initial=0), ids_nK.max(initial=0)))
        rows_n1 = np.arange(len(ids_nK), dtype=np.int64)[:, None] * stride
        real_nE = self.ids_nE >= 0
        keys = (self.ids_nE + rows_n1)[real_nE]
        order = np.argsort(keys)
        keys, values = keys[order], self.logprobs_nE[real_nE][order]
        wanted_nK = ids_nK + rows_n1
        place_nK = np.minimum(np.searchsorted(keys, wanted_nK), len(keys) - 1)
        known_nK = keys[place_nK] == wanted_nK
        return np.where(known_nK, values[place_nK], np.float32(0)), known_nK


def read_rows(who: str, body: Any, request: ScoreRequest, named: int, vocab_size: int) -> NamedRows:
    """The rows of a completion's ``prompt_logprobs`` that are asked about.

    Args:
        who: teacher and rollout, for messages.
        body: the parsed reply.
        request: what was asked.
        named: how many likeliest tokens were asked for.
        vocab_size: ids from here on are padding and are left out.

    Raises:
        TeacherError: another text was scored, rows or tokens are missing, a log-probability is no
            finite number, or padding has more than PADDING_MASS.
    """
    entries = _entries(who, body, request)
    # Entry i describes token i, which the output at the position before it predicted.
    asked_n = request.asked
    sampled_n = request.response_ids[asked_n]
    places = predicting_positions(len(request.prompt_ids), asked_n) + 1
    n = len(places)
    ids_nE: np.ndarray = np.full((n, named + 1), -1, np.int32)
    logprobs_nE: np.ndarray = np.full((n, named + 1), -np.inf, np.float32)
    for row, place in enumerate(places):
        ids, values = _tokens(f"{who}, position {asked_n[row]}", entries[place], named)
        ids_nE[row, : len(ids)] = ids
        logprobs_nE[row, : len(ids)] = values
    missing_n = ~(ids_nE == sampled_n[:, None]).any(axis=1)
    if missing_n.any():
        row = int(np.argmax(missing_n))
        raise TeacherError(
            f"{who}, position {asked_n[row]}: the server says nothing of token "
            f"{sampled_n[row]}, which stands there: it scored another text"
        )
    # The text's token comes beside the likeliest ones: the last by value, if it is none of them.
    cap_n = -np.sort(-logprobs_nE, axis=1)[:, named - 1]
    padding_nE = ids_nE >= vocab_size
    mass_nE = np.where(padding_nE, np.exp(logprobs_nE), 0)
    row = int(mass_nE.sum(axis=1).argmax())
    if (mass := mass_nE[row].sum()) > PADDING_MASS:
        raise TeacherError(
            f"{who}, position {asked_n[row]}: the server gives {mass:.3g} of the probability to "
            f"ids that are no tokens of the student (as {ids_nE[row, mass_nE[row].argmax()]}; it "
            f"has {vocab_size}): serve a model whose tokenizer has the student's size, or use kind "
            "vllm, which leaves them out"
        )
    ids_nE = np.where(padding_nE, np.int32(-1), ids_nE)
    logprobs_nE = np.where(padding_nE, np.float32(-np.inf), logprobs_nE)
    order_nE = np.argsort(-logprobs_nE, axis=1, kind="stable")
    ids_nE = np.take_along_axis(ids_nE, order_nE, 1)
    logprobs_nE = np.take_along_axis(logprobs_nE, order_nE, 1)
    own_n = (ids_nE == sampled_n[:, None]).argmax(axis=1)
    return NamedRows(
        asked_n=asked_n,
        ids_nE=ids_nE,
        logprobs_nE=logprobs_nE,
        logprob_n=logprobs_nE[np.arange(n), own_n],
        cap_n=cap_n,
        mass_n=np.exp(logprobs_nE.astype(np.float64)).sum(axis=1),
    )


def _entries(who: str, body: Any, request: ScoreRequest) -> list[Any]:
    """One entry a token of prompt and response, the first None."""
    tokens = len(request.prompt_ids) + len(request.response_ids)
    try:
        choice = body["choices"][0]
        entries = choice["prompt_logprobs"]
    except (KeyError, IndexError, TypeError):
        raise TeacherError(f"{who}: the server's answer has no prompt_logprobs") from None
    if not isinstance(entries, list) or len(entries) != tokens:
        got = f"{len(entries)} entries" if isinstance(entries, list) else type(entries).__name__
        raise TeacherError(f"{who}: prompt_logprobs has {got}; expected one for {tokens} tokens")
    read = choice.get("prompt_token_ids")
    sent = np.concatenate((request.prompt_ids, request.response_ids)).tolist()
    if read is not None and not isinstance(read, list):
        raise TeacherError(f"{who}: prompt_token_ids is {str(read)[:80]}; expected a list of ids")
    if read is not None and read != sent:
        raise TeacherError(
            f"{who}: the server read {len(read)} tokens beginning with {read[:5]}; sent were "
            f"{len(sent)} beginning with {sent[:5]}"
        )
    return entries


def _tokens(where: str, entry: Any, named: int) -> tuple[list[int], list[float]]:
    """Ids and log-probabilities of one entry."""
    try:
        ids = [int(key) for key in entry]
        values = [float(token["logprob"]) for token in entry.values()]
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        raise TeacherError(
            f"{where}: the server's entry is {str(entry)[:80]}; expected token ids with a logprob"
        ) from None
    if bad_ids := [token for token in ids if not 0 <= token < _MOST_IDS]:
        raise TeacherError(f"{where}: the server names token {bad_ids[0]}, which is no token id")
    if not named <= len(ids) <= named + 1:
        raise TeacherError(f"{where}: the server names {len(ids)} tokens; asked were {named}")
    if not np.isfinite(values).all():
        bad = next(value for value in values if not math.isfinite(value))
        raise TeacherError(f"{where}: the server gives a logprob of {bad}; expected finite numbers")
    return ids, values
