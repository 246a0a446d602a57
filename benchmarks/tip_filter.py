"""Time the TIP filter on 1 M and 10 M tokens, rule by rule; writes results/tip_filter.md.

    python benchmarks/tip_filter.py [--tokens 1000000 10000000] [--repeats 3]

One call of `TipFilter.select` each: normalise, score, choose, quadrant report; without the overlaps
with other rules, which have a row of their own. Best of the repeats, one thread. Target, for each
rule: 0.5 s and 6 s.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import time
from pathlib import Path

import numpy as np
from page import publish

from opd_ray.tip import TipFilter, TipSettings, TokenScores, rule_names
from opd_ray.tip.ragged import positions

RESULTS = Path(__file__).parent / "results" / "tip_filter.md"
VOCAB = 151_936
REACH_SECONDS = {1_000_000: 0.5, 10_000_000: 6.0}


def synthetic_batch(num_tokens: int) -> TokenScores:
    """Heavy-tailed scores of rollouts of 1 to 4000 tokens, 5 % of the tokens not the student's.

    A turn has 256 tokens.
    """
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 4000, num_tokens // 1000)
    lengths_R = lengths[: np.searchsorted(np.cumsum(lengths), num_tokens)]
    lengths_R = np.append(lengths_R, num_tokens - lengths_R.sum())

    def draw(shape: float, scale: float, greatest: float = np.inf) -> np.ndarray:
        return np.minimum(scale * rng.standard_gamma(shape, num_tokens, np.float32), greatest)

    return TokenScores(
        lengths_R=lengths_R,
        response_mask_N=rng.random(num_tokens, np.float32) < 0.95,
        vocab_size=VOCAB,
        entropy_N=draw(0.3, 1.0, math.log(VOCAB)),
        reverse_kl_N=draw(0.2, 1.0),
        forward_kl_N=draw(0.2, 1.5),
        jsd_N=draw(0.2, 0.1, math.log(2)),
        teacher_mass_N=rng.random(num_tokens, np.float32),
        union_forward_kl_N=draw(0.2, 1.0),
        turns_N=positions(lengths_R) // 256,
    )


def measure(settings: TipSettings, scores: TokenScores, repeats: int) -> tuple[float, float]:
    """Least wall and CPU seconds of one selection (a first step goes before a stream's)."""
    filter_ = TipFilter(settings)
    seeds_R = np.arange(len(scores.lengths_R))
    wall, cpu = [], []
    if settings.normalise_over == "stream":
        filter_.select(scores, seeds_R, step=0)
    for step in range(1, repeats + 1):
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        filter_.select(scores, seeds_R, step)
        wall.append(time.perf_counter() - wall_start)
        cpu.append(time.process_time() - cpu_start)
    return min(wall), min(cpu)


def cases() -> dict[str, TipSettings]:
    """What is timed: every rule at its paper setting, then variations of soft_or."""
    rows = {name: TipSettings(rule=name, overlap=False) for name in rule_names()}
    variations: dict[str, dict[str, object]] = {
        "share of the batch": {"share_of": "batch"},
        "share of each turn": {"share_of": "turn"},
        "normalised over each rollout": {"normalise_over": "rollout"},
        "normalised over each turn": {"normalise_over": "turn"},
        "normalised over the stream": {"normalise_over": "stream"},
        "normalised by rank": {"normalisation": "rank"},
        "with overlaps of all rules": {"overlap": True},
    }
    for label, changes in variations.items():
        rows[f"soft_or, {label}"] = TipSettings(**({"overlap": False} | changes))
    return rows


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=list(REACH_SECONDS))
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()

    header = ["case"]
    for tokens in arguments.tokens:
        header += [f"{tokens:,} tokens: wall, s", "CPU, s"]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    table = {label: [label] for label in cases()}
    for tokens in arguments.tokens:
        scores = synthetic_batch(tokens)
        for label, settings in cases().items():
            seconds = measure(settings, scores, arguments.repeats)
            table[label] += [f"{value:.2f}" for value in seconds]
            print(f"{tokens:>12,}  {label:45} {seconds[0]:7.2f} s wall  {seconds[1]:7.2f} s CPU")
    lines += [f"| {' | '.join(row)} |" for row in table.values()]
    reach = ", ".join(f"{s:g} s at {n:,} tokens" for n, s in REACH_SECONDS.items())
    text = "\n".join(
        [
            "# The TIP filter",
            "",
            "One call of `TipFilter.select`, quadrant report included, in one thread; best of "
            f"{arguments.repeats}. Made by",
            f"`python benchmarks/tip_filter.py`; NumPy {np.__version__}, {platform.machine()}, "
            f"{os.cpu_count()} cores under a load",
            f"of {os.getloadavg()[2]:.1f} in all. Beyond the number of cores, wall time "
            "tells of the load,",
            "and CPU time of the filter.",
            f"Target, for each rule: {reach}.",
            "",
            *lines,
            "",
        ]
    )
    publish(text, RESULTS)


if __name__ == "__main__":
    main()
