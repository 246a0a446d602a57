"""Normalisation against definitions in plain NumPy, and the running quantiles of the stream."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_ray.tip.normalise import Normalisation, normalise
from opd_ray.tip.running_quantiles import RunningQuantiles

LENGTHS = np.array([7, 0, 1, 20, 0])


def naive(values, method, clip=1.0):
    """One group of values, by definition."""
    values = np.asarray(values, dtype=np.float64)
    if method == "rank":
        return [np.sum(values < z) / max(len(values) - 1, 1) for z in values]
    if method == "min_max":
        clipped = np.minimum(values, np.quantile(values, clip))
        low, high = clipped.min(), clipped.max()
    else:
        low, high = np.quantile(values, [0.05, 0.95])
        clipped = np.clip(values, low, high)
    return (clipped - low) / (high - low) if high > low else np.zeros(len(values))


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 15), min_size=1, max_size=6),
    method=st.sampled_from(Normalisation),
    scope=st.sampled_from(["batch", "rollout"]),
    clip=st.sampled_from([1.0, 0.98, 0.5, 0.0]),
    few_values=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_equals_definition(lengths, method, scope, clip, few_values, seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(-2, 3, sum(lengths)) if few_values else rng.normal(0, 5, sum(lengths))
    values = values.astype(np.float32)
    groups = np.split(values, np.cumsum(lengths)[:-1]) if scope == "rollout" else [values]
    expected = [naive(group, method, clip) for group in groups if len(group)]
    found = normalise(values, np.array(lengths), method=method, scope=scope, clip=clip)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.concatenate([np.zeros(0), *expected]), atol=2e-6)


@pytest.mark.parametrize("method", Normalisation)
@pytest.mark.parametrize("scope", ["batch", "rollout", "stream"])
def test_constant_input_is_zero(method, scope):
    earlier = RunningQuantiles(decay=0.9)
    values = np.full(28, 3.7, dtype=np.float32)
    earlier.begin_step(0)
    earlier.observe("x", values)
    earlier.begin_step(1)
    found = normalise(values, LENGTHS, method=method, scope=scope, earlier=earlier, name="x")
    np.testing.assert_array_equal(found, np.zeros(28))


def observed(*steps, decay=0.9):
    running = RunningQuantiles(decay)
    for step, values in enumerate(steps):
        running.begin_step(step)
        running.observe("x", np.asarray(values, dtype=np.float32))
    running.begin_step(len(steps))
    return running


@pytest.mark.parametrize("method", Normalisation)
def test_stream_uses_the_step_before(method):
    rng = np.random.default_rng(0)
    before = rng.gamma(0.5, 2.0, 5000)
    now = rng.gamma(0.5, 3.0, 28).astype(np.float32)
    running = observed(before)
    found = normalise(
        now, LENGTHS, method=method, scope="stream", clip=0.9, earlier=running, name="x"
    )
    if method == "rank":
        expected = [np.mean(before < z) for z in now]
    else:
        low, high = np.quantile(before, (0.05, 0.95) if method == "q05_q95" else (0.0, 0.9))
        expected = np.clip((now - low) / (high - low), 0, 1)
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_stream_starts_with_the_tokens_at_hand():
    values = np.arange(28, dtype=np.float32)
    running = RunningQuantiles(decay=0.9)
    running.begin_step(0)
    found = normalise(values, LENGTHS, method="min_max", scope="stream", earlier=running, name="x")
    np.testing.assert_allclose(found, values / 27, atol=1e-6)
    running.observe("x", values * 100)  # this step's own values do not count yet
    again = normalise(values, LENGTHS, method="min_max", scope="stream", earlier=running, name="x")
    np.testing.assert_array_equal(found, again)


def test_running_quantiles_do_not_depend_on_arrival_order():
    rng = np.random.default_rng(1)
    parts = [rng.normal(0, 3, n) for n in (10, 200, 3)]
    states = []
    for order in ([0, 1, 2], [2, 1, 0]):
        running = RunningQuantiles(decay=0.5)
        for step in range(3):
            running.begin_step(step)
            for index in order:
                running.observe("x", parts[index] * (step + 1))
        states.append(running.state_dict())
    assert states[0] == states[1]


def test_running_quantiles_weigh_recent_steps_more_and_forget():
    running = observed(np.full(100, 1.0), np.full(100, 2.0), decay=0.5)
    # Weights 50 and 100: a third lies at 1.
    assert running.quantile("x", 0.3) == pytest.approx(1.0, rel=0.004)
    assert running.quantile("x", 0.4) == pytest.approx(2.0, rel=0.004)
    outlier = [np.concatenate((np.ones(50), [1000.0]))] + [np.ones(50)] * 8
    assert observed(*outlier[:6]).quantile("x", 1.0) == pytest.approx(1000.0, rel=0.004)
    assert observed(*outlier).quantile("x", 1.0) == pytest.approx(1.0, rel=0.004)


def test_running_quantiles_keep_sign_and_tiny_values():
    running = observed([-40.0, -1e-3, 0.0, 1e-6, 3e38])
    for q, value in ((0.2, -40.0), (0.4, -1e-3), (0.6, 0.0), (0.8, 1e-6), (1.0, 3e38)):
        assert running.quantile("x", q) == pytest.approx(value, rel=0.005)


def test_running_quantiles_come_back_from_json():
    running = observed(np.arange(100), np.arange(50))
    running.observe("y", np.ones(3))
    restored = RunningQuantiles(decay=0.9)
    restored.load_state_dict(json.loads(json.dumps(running.state_dict())))
    assert restored.state_dict() == running.state_dict()
    for state in (running, restored):
        state.begin_step(9)
    assert restored.knows("y")
    assert restored.quantile("x", 0.7) == running.quantile("x", 0.7)
