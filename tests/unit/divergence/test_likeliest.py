"""The search for the k likeliest tokens, against a full sort."""

from __future__ import annotations

import pytest
import torch

from opd_ray.divergence.blocks import likeliest


@pytest.mark.parametrize("columns", [40, 512, 513, 1023, 4096])
@pytest.mark.parametrize("tied", [False, True])
def test_the_likeliest_are_those_of_a_full_sort(columns: int, tied: bool) -> None:
    torch.manual_seed(columns)
    logits_BV = torch.randn(9, columns)
    if tied:
        logits_BV = (logits_BV * 2).round()  # few distinct values
    k = 32
    values_Bk, ids_Bk = likeliest(logits_BV, k)
    assert torch.equal(values_Bk, logits_BV.sort(dim=1, descending=True).values[:, :k])
    assert torch.equal(values_Bk, logits_BV.gather(1, ids_Bk))
    assert all(len(set(row.tolist())) == k for row in ids_Bk)


def test_the_likeliest_among_the_last_columns_of_no_group_are_found() -> None:
    logits_BV = torch.zeros(1, 1000)
    logits_BV[0, 999], logits_BV[0, 5] = 2.0, 1.0
    _, ids_Bk = likeliest(logits_BV, 2)
    assert ids_Bk.tolist() == [[999, 5]]
