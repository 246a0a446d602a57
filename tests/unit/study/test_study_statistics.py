"""Intervals and paired differences of a study, against tables and hand-computed cases."""

from __future__ import annotations

import math

import pytest

from opd_ray.study.report import paired_difference, t_interval, t_quantile


@pytest.mark.parametrize(
    ("level", "degrees", "wanted"),
    # From printed tables of Student's t, two-sided.
    [
        (0.95, 1, 12.706),
        (0.95, 2, 4.303),
        (0.95, 4, 2.776),
        (0.95, 9, 2.262),
        (0.95, 30, 2.042),
        (0.90, 4, 2.132),
        (0.99, 4, 4.604),
        (0.95, 1000, 1.962),
    ],
)
def test_quantiles_are_those_of_the_tables(level: float, degrees: int, wanted: float) -> None:
    assert t_quantile(level, degrees) == pytest.approx(wanted, abs=6e-4)


def test_an_interval_by_hand() -> None:
    # Mean 3; squared deviations 4 + 1 + 0 + 1 + 4 = 10; s = sqrt(10 / 4); error = s / sqrt(5).
    found = t_interval([1, 2, 3, 4, 5])
    assert found.mean == 3.0
    assert found.half_width == pytest.approx(2.7764 * math.sqrt(2.5 / 5), abs=1e-3)


def test_one_value_has_no_spread_and_none_is_refused() -> None:
    one = t_interval([0.5])
    assert one.mean == 0.5
    assert math.isnan(one.half_width)
    with pytest.raises(ValueError, match="at least one"):
        t_interval([])


def test_differences_are_paired_by_seed() -> None:
    # Seeds 0 and 1 are common: differences 0.1 and 0.3, mean 0.2, s = 0.1 sqrt 2, error = 0.1.
    found = paired_difference({0: 1.1, 1: 5.3, 2: 9.0}, {1: 5.0, 0: 1.0, 7: 0.0})
    assert found is not None
    assert found.mean == pytest.approx(0.2)
    assert found.half_width == pytest.approx(12.706 * 0.1, abs=1e-3)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_pairing_removes_what_seeds_have_in_common() -> None:
    found = paired_difference({0: 10.5, 1: 20.5, 2: 70.5}, {0: 10.0, 1: 20.0, 2: 70.0})
    assert found is not None
    assert found.half_width == pytest.approx(0.0, abs=1e-9)
