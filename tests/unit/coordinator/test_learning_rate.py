"""The learning rate against values worked out by hand."""

import pytest

from opd_ray.config.choices import LrSchedule
from opd_ray.config.schema import TrainerSettings
from opd_ray.coordinator.learning_rate import learning_rate


def settings(schedule: LrSchedule, warmup: int = 0, floor: float = 0.0) -> TrainerSettings:
    return TrainerSettings(
        learning_rate=2.0, lr_schedule=schedule, warmup_steps=warmup, min_lr_ratio=floor
    )


@pytest.mark.parametrize(
    ("schedule", "warmup", "floor", "expected"),
    [
        (LrSchedule.constant, 0, 0.0, [2.0, 2.0, 2.0, 2.0]),
        (LrSchedule.constant, 2, 0.0, [1.0, 2.0, 2.0, 2.0]),
        (LrSchedule.linear, 0, 0.0, [2.0, 1.5, 1.0, 0.5]),
        (LrSchedule.linear, 0, 0.5, [2.0, 1.75, 1.5, 1.25]),
        (LrSchedule.linear, 2, 0.0, [1.0, 2.0, 2.0, 1.0]),
        # cos 0, cos 45, cos 90, cos 135 degrees
        (LrSchedule.cosine, 0, 0.0, [2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5]),
        (
            LrSchedule.cosine,
            0,
            0.1,
            [2.0, 0.2 + 0.9 * (1 + 0.5**0.5), 1.1, 0.2 + 0.9 * (1 - 0.5**0.5)],
        ),
        (LrSchedule.cosine, 4, 0.0, [0.5, 1.0, 1.5, 2.0]),
    ],
)
def test_hand_computed(schedule, warmup, floor, expected):
    rates = [learning_rate(step, 4, settings(schedule, warmup, floor)) for step in range(4)]
    assert rates == pytest.approx(expected, rel=1e-12)


def test_warmup_longer_than_the_run_never_reaches_the_peak():
    rates = [learning_rate(step, 2, settings(LrSchedule.cosine, warmup=4)) for step in range(2)]
    assert rates == pytest.approx([0.5, 1.0])


@pytest.mark.parametrize("step", [-1, 4])
def test_a_step_outside_the_run_is_refused(step):
    with pytest.raises(ValueError, match=f"step {step} lies outside a run of 4 steps"):
        learning_rate(step, 4, settings(LrSchedule.cosine))
