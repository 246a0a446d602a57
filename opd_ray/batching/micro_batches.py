"""Which trainer rank reads which texts in which micro-batch: equal work, beginnings shared."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from opd_ray.batching.packing import Width, by_beginning, exact_width

_WIDTHS_PER_DOUBLING = 32


def recurring_width(tokens: int) -> int:
    """One of 32 widths between a number and its double, at most a 32nd more than needed."""
    step = 1 << max(0, tokens.bit_length() - _WIDTHS_PER_DOUBLING.bit_length())
    return -(-tokens // step) * step


def width_of(*, on_gpu: bool, bfloat16: bool) -> Width:
    """How wide a trainer's micro-batches are.

    In bfloat16 on a CPU, oneDNN compiles a kernel for every number of rows and keeps it: with new
    widths all the time the process grows. Elsewhere padding would bring nothing.
    """
    return recurring_width if bfloat16 and not on_gpu else exact_width


def plan_micro_batches(
    texts: Sequence[np.ndarray], ranks: int, micro_batch_tokens: int, width: Width = exact_width
) -> list[list[list[int]]]:
    """Distribute texts over ranks and micro-batches, each to be packed into one row.

    Texts are sorted by their tokens, so that those with a beginning in common are neighbours, and
    cut into consecutive groups. A group costs the tokens of its row, shared ones counted once. The
    number of groups is the smallest multiple of ``ranks`` that the budget allows, and the groups
    are as equal as that allows. Groups of similar cost form one round (the ranks work through a
    round together), the dearest going to the rank that has had least: the ranks' totals never
    differ by more than the dearest group.

    Args:
        texts: token ids.
        ranks: trainer ranks.
        micro_batch_tokens: tokens a row may hold; a longer text goes alone.
        width: of a row.

    Returns:
        ``plan[rank][micro]``: indices into ``texts``. Every index occurs once; every rank has the
        same number of micro-batches, some of them empty when there are too few texts. The same
        input always gives the same plan.

    Raises:
        ValueError: a text has no tokens, or there is no rank or no budget.
    """
    if ranks < 1:
        raise ValueError(f"ranks must be at least 1, not {ranks}")
    if micro_batch_tokens < 1:
        raise ValueError(f"micro_batch_tokens must be at least 1, not {micro_batch_tokens}")
    if not texts:
        return [[] for _ in range(ranks)]
    empty = [number for number, text in enumerate(texts) if len(text) == 0]
    if empty:
        raise ValueError(f"text {empty[0]} has 0 tokens; 1 is the least")

    order, shared = by_beginning(texts)
    costs = _Costs([len(texts[index]) for index in order], shared, width)
    fewest = len(costs.cut(micro_batch_tokens))
    rounds = -(-fewest // ranks)
    cuts = costs.cut(costs.smallest_cap(rounds * ranks, micro_batch_tokens))
    groups = [order[start:stop] for start, stop in cuts]
    cost = [costs.of(start, stop) for start, stop in cuts]
    missing = rounds * ranks - len(groups)
    groups += [[]] * missing
    cost += [0] * missing

    plan: list[list[list[int]]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    dearest_first = sorted(range(len(groups)), key=lambda group: -cost[group])
    for first in range(0, len(groups), ranks):
        receivers = sorted(range(ranks), key=load.__getitem__)
        for rank, group in zip(receivers, dearest_first[first : first + ranks], strict=True):
            plan[rank].append(sorted(groups[group]))
            load[rank] += cost[group]
    return plan


@dataclass
class _Costs:
    """Tokens of rows that hold consecutive texts of an order."""

    lengths: Sequence[int]  # of the texts, in this order
    shared: Sequence[int]  # tokens that each shares with the one before
    width: Width  # of a row

    def __post_init__(self) -> None:
        own = np.array(self.lengths) - np.array(self.shared)
        # What texts 0 to i - 1 need in one row.
        self._until = np.concatenate([[0], np.cumsum(own)]).tolist()

    def of(self, start: int, stop: int) -> int:
        """Tokens of the row with texts ``start`` to ``stop - 1``."""
        rest = self._until[stop] - self._until[start + 1]
        return self.width(self.lengths[start] + rest)

    def cut(self, cap: int) -> list[tuple[int, int]]:
        """Groups, each as long as ``cap`` tokens allow."""
        # The most tokens in use that such a row takes.
        room = bisect_right(range(cap + 1), cap, key=self.width) - 1
        edges = [0]
        while (start := edges[-1]) < len(self.lengths):
            until = self._until[start + 1] + room - self.lengths[start]
            edges.append(max(start + 1, bisect_right(self._until, until) - 1))
        return list(pairwise(edges))

    def smallest_cap(self, groups: int, cap: int) -> int:
        """The smallest cap, at most ``cap``, with which no more than ``groups`` are needed."""
        low, high = 1, cap
        while low < high:
            middle = (low + high) // 2
            if len(self.cut(middle)) <= groups:
                high = middle
            else:
                low = middle + 1
        return low
