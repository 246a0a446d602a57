"""Which trainer rank reads which texts in which micro-batch: equal work, little padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from opd_ray.config.choices import Dtype
from opd_ray.config.schema import TrainerSettings

# Share of a plan's padded tokens that may be padding. Not less: every round of micro-batches has a
# cost of its own (ZeRO-3 gathers the weights in each).
MOST_PADDING = 0.10
_WIDTHS_PER_DOUBLING = 16

# Tokens that the texts of a micro-batch are padded to, by the tokens of the longest.
Width = Callable[[int], int]


def exact_width(longest: int) -> int:
    """No more than the longest text has."""
    return longest


def recurring_width(longest: int) -> int:
    """One of 16 widths between a number and its double, at most a sixteenth more than needed."""
    step = 1 << max(0, longest.bit_length() - _WIDTHS_PER_DOUBLING.bit_length())
    return -(-longest // step) * step


def width_of(trainer: TrainerSettings) -> Width:
    """How wide a trainer's micro-batches are.

    In bfloat16 on a CPU, oneDNN compiles a kernel for every number of rows and keeps it: with new
    widths all the time the process grows. Elsewhere more padding would bring nothing.
    """
    on_cpu = not trainer.gpus_per_rank
    return recurring_width if on_cpu and trainer.dtype is Dtype.bfloat16 else exact_width


def plan_micro_batches(
    lengths: Sequence[int], ranks: int, micro_batch_tokens: int, width: Width = exact_width
) -> list[list[list[int]]]:
    """Distribute texts over ranks and micro-batches.

    Texts are sorted by length and cut into consecutive groups, so that a group holds texts of
    similar length. A group costs its padded tokens (texts x width of the longest). The number of
    groups is a multiple of ``ranks`` and the groups are as equal as that allows. Groups of similar
    cost form one round (the ranks work through a round together), the dearest going to the rank
    that has had least: the ranks' totals never differ by more than the dearest group.

    There are as few rounds as the budget allows, and then one more at a time until at most
    ``MOST_PADDING`` of the padded tokens are padding: smaller groups hold more alike texts.

    Args:
        lengths: tokens of each text, prompt and response together.
        ranks: trainer ranks.
        micro_batch_tokens: padded tokens a micro-batch may hold; a longer text goes alone.
        width: of a micro-batch, at most 1 / (1 - ``MOST_PADDING``) of its longest text.

    Returns:
        ``plan[rank][micro]``: indices into ``lengths``. Every index occurs once; every rank has the
        same number of micro-batches, some of them empty when there are too few texts. The same
        input always gives the same plan.

    Raises:
        ValueError: a text has no tokens, or there is no rank or no budget.
    """
    if ranks < 1:
        raise ValueError(f"ranks must be at least 1, not {ranks}")
    if micro_batch_tokens < 1:
        raise ValueError(f"micro_batch_tokens must be at least 1, not {micro_batch_tokens}")
    if len(lengths) == 0:
        return [[] for _ in range(ranks)]
    size = np.asarray(lengths, dtype=np.int64)
    if size.min() < 1:
        raise ValueError(f"text {int(size.argmin())} has {int(size.min())} tokens; 1 is the least")

    order = np.argsort(-size, kind="stable")
    sorted_size = np.array([width(tokens) for tokens in size[order].tolist()])
    fewest = len(_cut(sorted_size, micro_batch_tokens))
    rounds = -(-fewest // ranks)
    while True:
        cuts = _cut(sorted_size, _smallest_cap(sorted_size, rounds * ranks, micro_batch_tokens))
        costs = [int(sorted_size[start]) * (stop - start) for start, stop in cuts]
        # Texts alone have no more padding than that, so this comes to an end.
        if sum(costs) * (1 - MOST_PADDING) <= size.sum():
            break
        rounds += 1
    groups = [order[start:stop] for start, stop in cuts]
    missing = rounds * ranks - len(groups)
    groups += [order[:0]] * missing
    costs += [0] * missing

    plan: list[list[list[int]]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    dearest_first = sorted(range(len(groups)), key=lambda group: -costs[group])
    for first in range(0, len(groups), ranks):
        receivers = sorted(range(ranks), key=load.__getitem__)
        for rank, group in zip(receivers, dearest_first[first : first + ranks], strict=True):
            plan[rank].append(sorted(groups[group].tolist()))
            load[rank] += costs[group]
    return plan


def _cut(sorted_size: np.ndarray, cap: int) -> list[tuple[int, int]]:
    """Consecutive (start, stop) groups of descending lengths, padded tokens within ``cap``."""
    cuts, start = [], 0
    while start < len(sorted_size):
        stop = start + max(1, cap // int(sorted_size[start]))
        cuts.append((start, min(stop, len(sorted_size))))
        start = stop
    return cuts


def _smallest_cap(sorted_size: np.ndarray, groups: int, cap: int) -> int:
    """The smallest cap, at most ``cap``, with which no more than ``groups`` groups are needed."""
    low, high = 1, cap
    while low < high:
        middle = (low + high) // 2
        if len(_cut(sorted_size, middle)) <= groups:
            high = middle
        else:
            low = middle + 1
    return low
