"""What of a run should worry somebody, each with what to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Level = Literal["bad", "warn", "note"]
Row = Mapping[str, float]

# The last steps of a run: a quarter of them.
_LAST = 0.25
CLIPPED, TRUNCATED, COLLAPSED, TEACHER_ALONE, WRITING, ERRORS, OFF_TARGET, SAMPLE = (
    0.5,  # of the steps in which the gradient is clipped
    0.1,  # of the responses of the last steps that come to a limit
    0.25,  # of the first steps' entropy that is left in the last
    0.25,  # of the time in which teachers alone are waited for
    0.75,  # of the time in which rollouts are written
    0.5,  # of the tool calls that fail
    0.2,  # by which the kept share is off, as a share of rho
    0.5,  # effective sample share of a run that lags
)


@dataclass(frozen=True)
class Alarm:
    """One of them."""

    level: Level
    title: str
    found: str  # with its figures
    remedy: str  # an imperative


@dataclass(frozen=True)
class _Run:
    """What alarms are raised from."""

    config: Mapping[str, Any]  # by full key
    steps: Sequence[Row]
    evaluations: Sequence[Row]

    @property
    def last(self) -> Sequence[Row]:
        """The last quarter of the steps."""
        return self.steps[-max(1, math.ceil(_LAST * len(self.steps))) :]

    @property
    def first(self) -> Sequence[Row]:
        """The first tenth."""
        return self.steps[: max(1, len(self.steps) // 10)]


def alarms(
    config: Mapping[str, Any], steps: Sequence[Row], evaluations: Sequence[Row]
) -> list[Alarm]:
    """All of a run, the worst first.

    Args:
        config: by full key.
        steps: the rows of ``metrics.jsonl`` of steps that were taken.
        evaluations: those in which the student was measured.
    """
    if not steps:
        return []
    run = _Run(config, steps, evaluations)
    found = [alarm for check in _CHECKS for alarm in check(run)]
    return sorted(found, key=lambda alarm: ("bad", "warn", "note").index(alarm.level))


def _not_finite(run: _Run) -> Iterator[Alarm]:
    wrong = [row for row in run.steps if not math.isfinite(row["train/loss"])]
    if wrong:
        yield Alarm(
            "bad",
            "The loss is no number",
            f"In {len(wrong)} of {len(run.steps)} steps, first at step {int(wrong[0]['step'])}.",
            "Lower trainer.learning_rate, keep trainer.max_grad_norm at 1, and train in float32 "
            "or bfloat16.",
        )


def _nothing_learned(run: _Run) -> Iterator[Alarm]:
    idle = [row for row in run.steps if row.get("train/skipped", 0)]
    if idle:
        yield Alarm(
            "bad" if len(idle) > len(run.steps) / 2 else "warn",
            "Steps that learned nothing",
            f"No token was kept in {len(idle)} of {len(run.steps)} steps.",
            "Raise tip.rho or lower tip.threshold; of a turn or rollout of fewer than 1 / rho "
            "tokens none is kept.",
        )


def _sync_gap(run: _Run) -> Iterator[Alarm]:
    gaps = _values(run.steps, "sync/gap_mean") + _values(run.evaluations, "eval/sync_gap")
    limit = run.config.get("sync.max_gap", 0.05)
    if gaps and max(gaps) > limit / 2:
        yield Alarm(
            "bad" if max(gaps) > limit else "warn",
            "Trainer and rollout engine disagree",
            f"Log-probabilities of the same tokens differ by up to {max(gaps):.3g} nats on average "
            f"in a step; the limit is sync.max_gap = {limit:g}.",
            "Use float32 in both (rollout.dtype, trainer.dtype), or find out which weights the "
            "engine holds: opd-ray doctor.",
        )


def _off_target(run: _Run) -> Iterator[Alarm]:
    if run.config.get("tip.rule") == "all" or run.config.get("tip.selection") != "top_share":
        return
    pairs = [(row["tip/kept_fraction"], row["tip/rho"]) for row in run.last if row.get("tip/rho")]
    if not pairs:
        return
    kept, rho = (float(np.mean(one)) for one in zip(*pairs, strict=True))
    if abs(kept - rho) > OFF_TARGET * rho:
        yield Alarm(
            "warn",
            "The kept share is off its target",
            f"Of the last steps' tokens {kept:.1%} are kept; tip.rho asks for {rho:.1%}.",
            "Shares are rounded down in each rollout or turn: take them of more with "
            "tip.share_of=rollout or batch, or see whether the rule leaves tokens out.",
        )


def _clipped(run: _Run) -> Iterator[Alarm]:
    limit = run.config.get("trainer.max_grad_norm", 1.0)
    norms = _values(run.steps, "train/grad_norm")
    if not norms or not limit:
        return
    share = float(np.mean([norm > limit for norm in norms]))
    if share > CLIPPED:
        yield Alarm(
            "warn",
            "The gradient is clipped in most steps",
            f"In {share:.0%} of the steps its norm is above trainer.max_grad_norm = {limit:g} "
            f"(median {np.median(norms):.3g}).",
            "Then the clip sets the size of a step, not the learning rate. Lower "
            "trainer.learning_rate, take more rollouts a step, or raise trainer.max_grad_norm to "
            "the median on purpose.",
        )


def _truncated(run: _Run) -> Iterator[Alarm]:
    share = _mean(run.last, "rollout/truncated")
    if share is not None and share > TRUNCATED:
        yield Alarm(
            "bad" if share > 0.5 else "warn",
            "Responses are cut off",
            f"{share:.0%} of the last steps' responses came to a limit.",
            "Raise rollout.max_new_tokens, or the limits of the environment; if lengths have grown "
            "over the run, the student has stopped ending its answers.",
        )


def _collapsed(run: _Run) -> Iterator[Alarm]:
    before, after = _mean(run.first, "scores/entropy_mean"), _mean(run.last, "scores/entropy_mean")
    if before and after is not None and after < COLLAPSED * before:
        yield Alarm(
            "warn",
            "The student's entropy has collapsed",
            f"From {before:.3g} to {after:.3g} nats a token.",
            "Where the teacher is as sure, this is the aim. Where held-out figures do not rise, "
            "lower trainer.learning_rate, or use loss.divergence=jsd or forward_kl.",
        )


def _bottleneck(run: _Run) -> Iterator[Alarm]:
    seconds = sum(_values(run.steps, "seconds/step"))
    if not seconds:
        return
    alone = sum(
        row.get("teacher/bottleneck_share", 0.0) * row.get("seconds/step", 0.0) for row in run.steps
    )
    written = sum(_values(run.steps, "seconds/rollout_and_teacher")) - alone
    if alone / seconds > TEACHER_ALONE:
        yield Alarm(
            "warn",
            "The teacher is the bottleneck",
            f"{alone / seconds:.0%} of the time is spent waiting for the teacher alone.",
            "Add teacher.replicas, raise teacher.batch_tokens, or use the topk signal.",
        )
    elif written / seconds > WRITING:
        yield Alarm(
            "note",
            "Writing rollouts takes most of the time",
            f"{written / seconds:.0%} of the time.",
            "Add rollout.actors, raise rollout.max_num_seqs, or train meanwhile with "
            "run.overlap=true or run.lag=1.",
        )


def _calls(run: _Run) -> Iterator[Alarm]:
    calls = _mean(run.last, "tools/calls_per_rollout")
    if calls is None and any("rollout/turns_mean" in row for row in run.steps):
        calls = 0.0
    if calls is None:
        return
    if not calls:
        yield Alarm(
            "bad",
            "Nobody calls the tools",
            "In the last steps not one tool call was answered.",
            "See whether environment.parser reads what the student's chat template writes: "
            "opd-ray check-environment.",
        )
        return
    kinds = ("parse_error", "unknown", "failed", "timeout")
    wrong = sum(_mean(run.last, f"tools/{kind}_per_rollout") or 0.0 for kind in kinds)
    if wrong / calls > ERRORS:
        yield Alarm(
            "warn",
            "Most tool calls fail",
            f"{wrong / calls:.0%} of {calls:.1f} calls a rollout.",
            "Look at the calls in the token view; the figures tools/..._per_rollout tell the kinds "
            "apart.",
        )


def _getting_worse(run: _Run) -> Iterator[Alarm]:
    if len(run.evaluations) < 2:
        return
    before, after = run.evaluations[0], run.evaluations[-1]
    for name, value in after.items():
        if not is_accuracy(name) or name not in before:
            continue
        # Of a figure without a standard error, or of a single problem, nobody can tell.
        error = math.hypot(*(row.get(f"{name}_se", math.nan) for row in (before, after)))
        if before[name] - value > 2 * error:
            yield Alarm(
                "bad",
                f"{name.removeprefix('eval/')} has become worse",
                f"From {before[name]:.3g} to {value:.3g}, by more than two standard errors.",
                "Lower trainer.learning_rate; see whether the teacher is better on these problems "
                "(eval.teacher_accuracy=true), and look at the answers before and after.",
            )
    if before.get("eval/kl", math.nan) * 1.1 < after.get("eval/kl", math.nan):
        yield Alarm(
            "bad",
            "The student moves away from the teacher",
            f"Held-out KL(teacher || student) from {before['eval/kl']:.3g} to "
            f"{after['eval/kl']:.3g} nats a token.",
            "Lower trainer.learning_rate; with a small tip.rho see which tokens are never kept.",
        )


def _lag(run: _Run) -> Iterator[Alarm]:
    share = _mean(run.last, "lag/effective_sample_share")
    if share is not None and share < SAMPLE:
        yield Alarm(
            "warn",
            "The student runs ahead of its rollouts",
            f"Tokens that it wrote a step ago are worth {share:.0%} of their number now.",
            "Lower trainer.learning_rate, or set run.lag=0.",
        )


def _restarts(run: _Run) -> Iterator[Alarm]:
    last = run.steps[-1]
    counts = {
        "trainer ranks": last.get("train/restarts", 0.0),
        "rollout actors": sum(_values(run.steps, "rollout/restarts")),
        "teacher replicas": sum(_values(run.steps, "teacher/restarts")),
    }
    died = [f"{name} {int(count)} times" for name, count in counts.items() if count]
    if died:
        yield Alarm(
            "note",
            "Actors died and were started again",
            f"{', '.join(died)}.",
            "Their last words are in the run's output; where it is memory, opd-ray doctor says "
            "what needs how much.",
        )


_CHECKS: tuple[Callable[[_Run], Iterator[Alarm]], ...] = (
    _not_finite,
    _nothing_learned,
    _sync_gap,
    _getting_worse,
    _calls,
    _truncated,
    _off_target,
    _clipped,
    _collapsed,
    _bottleneck,
    _lag,
    _restarts,
)


def is_accuracy(name: str) -> bool:
    """Whether a figure of an evaluation is one of how many problems are solved."""
    figure = name.rpartition("/")[2]
    return (
        name.startswith("eval/")
        and not name.endswith("_se")
        and (figure == "accuracy" or figure.startswith(("mean@", "pass@", "maj@")))
    )


def _values(rows: Sequence[Row], name: str) -> list[float]:
    return [row[name] for row in rows if math.isfinite(row.get(name, math.nan))]


def _mean(rows: Sequence[Row], name: str) -> float | None:
    found = _values(rows, name)
    return float(np.mean(found)) if found else None
