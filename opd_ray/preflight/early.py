"""What does not go with training early (``run.overlap``) or writing ahead (``run.lag``)."""

from __future__ import annotations

from collections.abc import Iterator

from opd_ray.config.choices import SignalChoice, TeacherTiming
from opd_ray.config.schema import Config
from opd_ray.tip.normalise import NormaliseOver
from opd_ray.tip.select import SelectBy, ShareOf


def early_problems(config: Config) -> Iterator[str]:
    """Every such combination."""
    if config.run.overlap:
        yield from _overlap_problems(config)
    if config.run.lag:
        yield from _lag_problems(config)
        yield from _sampled_problems(config)


def _overlap_problems(config: Config) -> Iterator[str]:
    tip = config.tip
    before = "a rollout's tokens are to be chosen before the others are written"
    if tip.normalise_over == NormaliseOver.batch:
        yield (
            f"run.overlap = true with tip.normalise_over = batch: {before}, and scores are "
            "normalised over all of them; use tip.normalise_over=rollout, turn or stream, or "
            "run.overlap=false"
        )
    if tip.share_of == ShareOf.batch and tip.selection == SelectBy.top_share:
        yield (
            f"run.overlap = true with tip.share_of = batch: {before}, and the share is taken of "
            "all of them; use tip.share_of=rollout or turn, or run.overlap=false"
        )
    for teacher in config.teacher_set.working.values():
        if teacher.settings.when is TeacherTiming.after_writing:
            yield (
                f"run.overlap = true with {teacher.settings.key}.when = after_writing: nothing is "
                "scored before all is written, so there is nothing to train on early; use "
                f"{teacher.settings.key}.when=null, or run.overlap=false"
            )
    if config.run.lag:
        yield (
            f"run.overlap = true with run.lag = {config.run.lag}: with lag trainers never wait for "
            "the last rollouts of a step; choose one of the two"
        )


def _lag_problems(config: Config) -> Iterator[str]:
    for name, teacher in config.teacher_set.working.items():
        if teacher.settings.follow_decay is not None:
            yield (
                f"run.lag = {config.run.lag} with the teacher {name!r}, whose follow_decay is "
                f"{teacher.settings.follow_decay:g}: rollouts would be judged by other weights "
                "when a run goes on from a checkpoint; set it to null, or run.lag=0"
            )


def _sampled_problems(config: Config) -> Iterator[str]:
    """Why tokens of an older student cannot be weighed, where the loss is that of these alone.

    Each needs the ratio of its probabilities under the current student and under the distribution
    that it was drawn from. Engines tell the probability at temperature 1 over the whole vocabulary,
    and tokens that could not be drawn would be missing from the mean.
    """
    rollout = config.rollout
    if config.teacher_set.first.signal is not SignalChoice.sampled:
        return
    for name, needed in (("temperature", 1), ("top_p", 1), ("top_k", 0)):
        value = getattr(rollout, name)
        if value != needed:
            yield (
                f"run.lag = {config.run.lag} with teacher.signal = sampled and rollout.{name} = "
                f"{value:g}: what an older student drew is weighed by its probability, which is "
                f"known of plain sampling alone; use rollout.{name}={needed}, run.lag=0, or the "
                "topk signal"
            )
