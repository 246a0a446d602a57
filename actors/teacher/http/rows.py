"""The response rows of a server's prompt log-probabilities, as arrays."""

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


@dataclass(frozen=True)
class NamedRows:
    """What the server told of one response; row t belongs to response token t.

    E is the most tokens named in a row; shorter rows end in id -1 at -inf.
    """

    ids_mE: np.ndarray  # int32, the likeliest first
    logprobs_mE: np.ndarray  # float32, nats
    logprob_m: np.ndarray  # float32, nats, of the response token
    cap_m: np.ndarray  # float32, nats; no token that is not named is likelier
    mass_m: np.ndarray  # float64, probability of all that are named

    def require(self, k: int, key: str) -> None:
        """Whether every row names its k likeliest tokens.

        Raises:
            TeacherError: so many of the named ones were padding that fewer are left.
        """
        short_m = (self.ids_mE[:, :k] < 0).any(axis=1)
        if short_m.any():
            raise TeacherError(
                f"position {int(short_m.argmax())}: without ids that are no tokens of the student, "
                f"the server names fewer than {k} likeliest tokens; raise {key}.named_tokens"
            )

    def look_up(self, ids_mK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities of the given ids (0 where unknown), and which are known, [m, K]."""
        # Row and id as one number, so that one sorted search serves all rows.
        stride = 1 + int(max(self.ids_mE.max(initial=0), ids_mK.max(initial=0)))
        rows_m1 = np.arange(len(ids_mK), dtype=np.int64)[:, None] * stride
        real_mE = self.ids_mE >= 0
        keys = (self.ids_mE + rows_m1)[real_mE]
        order = np.argsort(keys)
        keys, values = keys[order], self.logprobs_mE[real_mE][order]
        wanted_mK = ids_mK + rows_m1
        place_mK = np.minimum(np.searchsorted(keys, wanted_mK), len(keys) - 1)
        known_mK = keys[place_mK] == wanted_mK
        return np.where(known_mK, values[place_mK], np.float32(0)), known_mK


def read_rows(who: str, body: Any, request: ScoreRequest, named: int, vocab_size: int) -> NamedRows:
    """The rows of a completion's ``prompt_logprobs`` that belong to the response.

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
    places = predicting_positions(len(request.prompt_ids), np.arange(len(request.response_ids))) + 1
    m = len(places)
    ids_mE: np.ndarray = np.full((m, named + 1), -1, np.int32)
    logprobs_mE: np.ndarray = np.full((m, named + 1), -np.inf, np.float32)
    for row, place in enumerate(places):
        ids, values = _tokens(f"{who}, position {row}", entries[place], named)
        ids_mE[row, : len(ids)] = ids
        logprobs_mE[row, : len(ids)] = values
    missing_m = ~(ids_mE == request.response_ids[:, None]).any(axis=1)
    if missing_m.any():
        row = int(np.argmax(missing_m))
        raise TeacherError(
            f"{who}, position {row}: the server says nothing of token "
            f"{request.response_ids[row]}, which stands there: it scored another text"
        )
    # The text's token comes beside the likeliest ones: the last by value, if it is none of them.
    cap_m = -np.sort(-logprobs_mE, axis=1)[:, named - 1]
    padding_mE = ids_mE >= vocab_size
    mass_mE = np.where(padding_mE, np.exp(logprobs_mE), 0)
    row = int(mass_mE.sum(axis=1).argmax())
    if (mass := mass_mE[row].sum()) > PADDING_MASS:
        raise TeacherError(
            f"{who}, position {row}: the server gives {mass:.3g} of the probability to ids that "
            f"are no tokens of the student (as {ids_mE[row, mass_mE[row].argmax()]}; it has "
            f"{vocab_size}): serve a model whose tokenizer has the student's size, or use kind "
            "vllm, which leaves them out"
        )
    ids_mE = np.where(padding_mE, np.int32(-1), ids_mE)
    logprobs_mE = np.where(padding_mE, np.float32(-np.inf), logprobs_mE)
    order_mE = np.argsort(-logprobs_mE, axis=1, kind="stable")
    ids_mE = np.take_along_axis(ids_mE, order_mE, 1)
    logprobs_mE = np.take_along_axis(logprobs_mE, order_mE, 1)
    own_m = (ids_mE == request.response_ids[:, None]).argmax(axis=1)
    return NamedRows(
        ids_mE=ids_mE,
        logprobs_mE=logprobs_mE,
        logprob_m=logprobs_mE[np.arange(m), own_m],
        cap_m=cap_m,
        mass_m=np.exp(logprobs_mE.astype(np.float64)).sum(axis=1),
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
    except (AttributeError, KeyError, TypeError, ValueError):
        raise TeacherError(
            f"{where}: the server's entry is {str(entry)[:80]}; expected token ids with a logprob"
        ) from None
    if not named <= len(ids) <= named + 1:
        raise TeacherError(f"{where}: the server names {len(ids)} tokens; asked were {named}")
    if not np.isfinite(values).all():
        bad = next(value for value in values if not math.isfinite(value))
        raise TeacherError(f"{where}: the server gives a logprob of {bad}; expected finite numbers")
    return ids, values
