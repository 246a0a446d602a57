"""Sequences of similar length side by side, within a budget of padded tokens."""

from __future__ import annotations

from collections.abc import Sequence


def batches_by_length(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices into ``lengths``, longest first, cut so that longest x count stays within ``budget``.

    A sequence longer than the budget goes alone. Equal lengths keep their order.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
