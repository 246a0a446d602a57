"""The range that derived seeds are spread over."""

from __future__ import annotations

from opd_ray.seeds import derive_seed


def test_seeds_use_all_of_their_63_bits() -> None:
    seeds = [derive_seed(0, step, "prompt", 0) for step in range(100)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**40
    # Each bit is set in some and not in others: 63 fair coins thrown 100 times each.
    ever, always = 0, 2**63 - 1
    for seed in seeds:
        ever, always = ever | seed, always & seed
    assert (ever, always) == (2**63 - 1, 0)
