"""Which figures the page draws as curves, and which of them together."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from opd_ray.report.alarms import is_accuracy

_OVERLAP = "tip/overlap/"


@dataclass(frozen=True)
class Curve:
    """One figure over the steps."""

    name: str  # in metrics.jsonl
    label: str
    error: str | None = None  # the figure that is its standard error


@dataclass(frozen=True)
class Chart:
    """Figures that are drawn in one frame."""

    title: str
    unit: str
    curves: Sequence[Curve]
    # [label, value] of horizontal lines.
    lines: Sequence[tuple[str, float]] = ()
    log: bool = False  # whether its axis may be logarithmic
    stacked: bool = False
    group: str = "training"

    @property
    def names(self) -> Iterator[str]:
        """The figures that it reads."""
        for curve in self.curves:
            yield curve.name
            if curve.error:
                yield curve.error


@dataclass(frozen=True)
class _Known:
    """What a run has to be drawn from."""

    names: Collection[str]
    config: Mapping[str, Any] = field(default_factory=dict)
    teacher: Mapping[str, float] = field(default_factory=dict)


def charts(
    names: Collection[str], config: Mapping[str, Any], teacher: Mapping[str, float]
) -> list[Chart]:
    """Those for which the run has figures.

    Args:
        names: of its figures.
        config: by full key.
        teacher: its own figures, drawn as lines.
    """
    known = _Known(names, config, teacher)
    every = (*_held_out(known), *_choice(known), *_training(known), *_time(known))
    return [chart for chart in every if chart.curves]


def _held_out(known: _Known) -> Iterator[Chart]:
    for name in sorted(filter(is_accuracy, known.names)):
        error = f"{name}_se" if f"{name}_se" in known.names else None
        lines = [("teacher", known.teacher[name])] if name in known.teacher else []
        title = name.removeprefix("eval/").replace("/", ", ")
        yield Chart(title, "", [Curve(name, "student", error)], lines, group="held-out")
    kls = {"eval/kl": "KL(teacher ‖ student)", "eval/reverse_kl": "KL(student ‖ teacher)"}
    yield Chart(
        "held-out divergence", "nats a token", _curves(known, kls), log=True, group="held-out"
    )
    yield Chart(
        "same likeliest token", "share", _curves(known, {"eval/top1": "held-out"}), group="held-out"
    )


def _choice(known: _Known) -> Iterator[Chart]:
    overlaps = {name: name.rpartition("/")[2] for name in sorted(known.names) if _OVERLAP in name}
    title = "overlap with what other rules would keep"
    yield Chart(title, "Jaccard", _curves(known, overlaps), group="choice")


def _training(known: _Known) -> Iterator[Chart]:
    yield Chart(
        "training loss", "nats a kept token", _curves(known, {"train/loss": "loss"}), log=True
    )
    limit = known.config.get("trainer.max_grad_norm")
    yield Chart(
        "gradient norm",
        "before clipping",
        _curves(known, {"train/grad_norm": "norm"}),
        [("clipped at", float(limit))] if limit else [],
        log=True,
    )
    yield Chart("learning rate", "", _curves(known, {"train/learning_rate": "rate"}))
    yield Chart(
        "entropy of what the student writes",
        "nats a token",
        _curves(known, {"scores/entropy_mean": "mean", "scores/entropy_q90": "90th percentile"}),
    )
    yield Chart(
        "divergence of what it writes",
        "nats a token",
        _curves(
            known,
            {
                "scores/reverse_kl_mean": "KL(student ‖ teacher)",
                "scores/forward_kl_mean": "KL(teacher ‖ student)",
            },
        ),
        log=True,
    )
    yield Chart(
        "kept share",
        "of the tokens",
        _curves(known, {"tip/kept_fraction": "kept", "tip/rho": "asked for"}),
    )
    yield Chart(
        "length of a response",
        "tokens",
        _curves(known, {"rollout/length_mean": "mean", "rollout/length_max": "longest"}),
    )
    yield Chart("cut off", "of the responses", _curves(known, {"rollout/truncated": "share"}))
    yield Chart(
        "turns and tool calls",
        "a rollout",
        _curves(
            known,
            {"rollout/turns_mean": "turns", "tools/calls_per_rollout": "calls that were answered"},
        ),
    )
    yield Chart(
        "tool calls with an error",
        "a rollout",
        _curves(
            known,
            {
                f"tools/{kind}_per_rollout": label
                for kind, label in {
                    "parse_error": "could not be read",
                    "unknown": "no such tool",
                    "failed": "raised",
                    "timeout": "no answer",
                }.items()
            },
        ),
    )
    yield Chart(
        "trainer against rollout engine",
        "nats a token",
        _curves(known, {"sync/gap_mean": "mean gap", "eval/sync_gap": "held-out"}),
        log=True,
    )


def _time(known: _Known) -> Iterator[Chart]:
    stages = {
        "seconds/rollout_and_teacher": "rollouts and teacher",
        "seconds/exact_scores": "exact scores",
        "seconds/filter": "filter",
        "seconds/train": "training",
        "seconds/sync": "weights",
        "seconds/idle": "nobody",
    }
    yield Chart("seconds of a step", "s", _curves(known, stages), stacked=True, group="time")
    yield Chart(
        "tokens written",
        "a second",
        _curves(known, {"tokens_per_second/step": "over the step"}),
        group="time",
    )
    tails = {
        "rollout/tail_half_seconds": "from half of the rollouts",
        "rollout/tail_tenth_seconds": "from nine tenths",
    }
    yield Chart("waiting for the last rollout", "s", _curves(known, tails), group="time")


def _curves(known: _Known, wanted: Mapping[str, str]) -> list[Curve]:
    return [Curve(name, label) for name, label in wanted.items() if name in known.names]
