"""The plots of a study: learning curves by share kept, and how far rules choose alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from opd_ray.output.figure_file import write_figure
from opd_ray.study.report import ArmFigures

# Rows of a cell's metrics, by arm and seed.
Histories = Mapping[tuple[str, int], Sequence[Mapping[str, float]]]


def plot_learning_curves(
    arms: Sequence[ArmFigures], histories: Histories, accuracy: str, path: Path
) -> None:
    """Accuracy and held-out KL over the steps as a PNG, one column for each share kept.

    A line is the mean over the seeds, its band reaches from the least to the greatest. The arm of
    the rule ``all`` is in every column, in black.
    """
    from matplotlib.figure import Figure

    everything = [arm for arm in arms if arm.rule == "all"]
    shares = sorted({arm.rho for arm in arms if arm.rule != "all"}, reverse=True) or [1.0]
    figure = Figure(figsize=(4.5 * len(shares), 7), layout="constrained")
    axes = figure.subplots(2, len(shares), squeeze=False, sharex=True, sharey="row")
    for column, share in enumerate(shares):
        chosen = [arm for arm in arms if arm.rule != "all" and arm.rho == share]
        for row, (name, label) in enumerate(
            ((accuracy, "held-out accuracy"), ("eval/kl", "held-out KL, nats"))
        ):
            axis = axes[row, column]
            for number, arm in enumerate(everything + chosen):
                steps, values = curve(arm, histories, name)
                colour = "black" if arm.rule == "all" else f"C{number}"
                axis.plot(steps, values.mean(axis=0), ".-", color=colour, label=arm.arm)
                axis.fill_between(
                    steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.12
                )
            axis.grid(alpha=0.3)
            if column == 0:
                axis.set_ylabel(label)
        axes[0, column].set_title(f"{share:.0%} of the tokens kept")
        axes[0, column].legend(fontsize=8)
        axes[1, column].set_xlabel("step")
        # One arm that unlearns must not flatten the others.
        axes[1, column].set_yscale("log")
    write_figure(figure, path)


def curve(arm: ArmFigures, histories: Histories, name: str) -> tuple[list[int], np.ndarray]:
    """The steps at which a figure was measured, and its values, [seeds, steps]."""
    by_seed = [
        {int(row["step"]): row[name] for row in histories[arm.arm, seed] if name in row}
        for seed in arm.results
    ]
    steps = sorted(set.intersection(*map(set, by_seed)))
    return steps, np.array([[values[step] for step in steps] for values in by_seed])


def plot_overlaps(arms: Sequence[ArmFigures], path: Path) -> None:
    """Mean Jaccard overlap of each arm's choice with each rule's at equal numbers, as a PNG.

    Arms of the rule ``all`` are left out: at equal numbers every rule then keeps everything.
    """
    from matplotlib.figure import Figure

    arms = [arm for arm in arms if arm.rule != "all"]
    names, overlaps = overlap_matrix(arms)
    size = (2.5 + 0.8 * len(names), 1.8 + 0.4 * len(arms))
    figure = Figure(figsize=size, layout="constrained")
    axis = figure.subplots()
    if overlaps.size:
        image = axis.imshow(overlaps, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        figure.colorbar(image, label="Jaccard overlap")
    for row, column in np.argwhere(np.isfinite(overlaps)):
        value = overlaps[row, column]
        label = axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8)
        label.set_color("white" if value < 0.6 else "black")
    axis.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8)
    axis.set_yticks(range(len(arms)), [arm.arm for arm in arms], fontsize=8)
    axis.set_title("the arm's choice (row) and each rule's (column)", fontsize=10)
    write_figure(figure, path)


def overlap_matrix(arms: Sequence[ArmFigures]) -> tuple[list[str], np.ndarray]:
    """Rules (without ``all``) and mean overlaps over the seeds, [arms, rules].

    An arm's own rule has no entry of its own in the metrics: it overlaps with itself wholly. NaN
    where a rule's scores were missing.
    """
    found = {
        (arm.arm, rule): float(np.mean([r.overlaps[rule] for r in arm.results.values()]))
        for arm in arms
        for rule in set.intersection(*(set(r.overlaps) for r in arm.results.values()))
    }
    found |= {(arm.arm, arm.rule): 1.0 for arm in arms}
    names = sorted({rule for _, rule in found} - {"all"})
    values = [[found.get((arm.arm, name), np.nan) for name in names] for arm in arms]
    return names, np.array(values, dtype=np.float64).reshape(len(arms), len(names))
