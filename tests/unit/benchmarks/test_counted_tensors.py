"""Counted tensors: by hand, and the same on a device without contents."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from counted_tensors import CountedTensors

KIB = 1024


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_case_worked_out_by_hand(device):
    outside = torch.ones(256, device=device)  # 1 KiB of float32, from before
    with CountedTensors() as counted:
        outside.add_(1)
        outside.view(2, 128)
        assert (counted.live, counted.peak) == (0, 0)
        doubled = outside * 2
        piece = doubled[:3]
        del doubled  # its storage lives in the piece
        assert counted.live == KIB
        torch.mul(outside, 3, out=outside)
        halves = outside.to(torch.float16)
        assert counted.live == KIB + KIB // 2
        del piece, halves
        assert (counted.live, counted.peak) == (0, KIB + KIB // 2)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_autograd_keeps_lives_until_the_backward_pass(device):
    weight = torch.ones(256, device=device, requires_grad=True)
    with CountedTensors() as counted:
        loss = weight.exp().sum()  # the exponentials are kept, 1 KiB, and the scalar
        assert counted.live == KIB + 4
        loss.backward()
        del loss
        assert counted.live == KIB  # the gradient
        # Both exponentials and gradient, the scalar, and the one that backward begins with.
        assert counted.peak == 2 * KIB + 8


def test_views_and_results_in_tuples_are_counted_once():
    rows = torch.rand(4, 64)
    with CountedTensors() as counted:
        values, ids = rows.topk(2)
        both = (values.T, ids.T, values)
        assert counted.live == 4 * 2 * 4 + 4 * 2 * 8
        del both
        assert F.pad(values, (0, 1)).shape == (4, 3)
        assert counted.live == 4 * 2 * 4 + 4 * 2 * 8
