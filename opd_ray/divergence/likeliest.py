"""The k likeliest tokens of every row of logits."""

from __future__ import annotations

import torch

# Columns of one group.
_GROUPED = 16


def likeliest(logits_BV: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and ids [B, k] of the k greatest of each row, in descending order.

    As ``torch.topk``, which is three times as slow on a CPU: columns are put into groups, the k
    groups with the greatest maxima hold the k greatest values, and only their columns are sorted.
    """
    groups = logits_BV.shape[1] // _GROUPED
    if groups <= k:
        top = logits_BV.topk(k, dim=-1)
        return top.values, top.indices
    # Column j is in group j modulo the number of groups: the maximum runs over contiguous rows.
    grouped_BgG = logits_BV[:, : groups * _GROUPED].unflatten(1, (_GROUPED, groups))
    group_Bk = grouped_BgG.amax(dim=1).topk(k, dim=-1).indices
    steps_g = torch.arange(0, groups * _GROUPED, groups, device=logits_BV.device)
    ids_BC = (group_Bk[:, None, :] + steps_g[:, None]).flatten(1)
    last_R = torch.arange(groups * _GROUPED, logits_BV.shape[1], device=logits_BV.device)
    ids_BC = torch.cat((ids_BC, last_R.expand(len(logits_BV), -1)), dim=1)
    top = logits_BV.gather(1, ids_BC).topk(k, dim=-1)
    return top.values, ids_BC.gather(1, top.indices)
