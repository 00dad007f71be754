"""Borders of all samples together against trying them all on the values themselves."""

from __future__ import annotations

import numpy as np
import pytest

from stages.quantization.solution.least_error import (
    UNKNOWN,
    Body,
    best_magnitude,
    least_divergence,
    least_error,
    read_tail,
    rounding_error,
    share_border,
    weight_share,
)
from stages.quantization.solution.ranges import Range, asymmetric_range, fake_quantize, signed_range, symmetric_weight_range
from stages.quantization.statistics.distribution import counted, representatives, sparse
from stages.quantization.statistics.tails import Array, tail_length


def tails_of(values: np.ndarray, probability: float = 1e-4) -> Array:
    """The upper tails [N, k] of samples [N, n]."""
    length = tail_length(values.shape[1], [probability])
    return -np.sort(-values, axis=1)[:, :length].astype(np.float32)


def sizes_of(values: np.ndarray) -> np.ndarray:
    return np.full(len(values), values.shape[1])


def body_of(values: np.ndarray) -> Body:
    return Body(*representatives(sparse(counted(values))))


def error(values: np.ndarray, borders: Range, levels: int = 256) -> float:
    return float(np.mean((fake_quantize(values, borders, levels) - values) ** 2))


DRAWS = {
    "normal, many values": lambda draw: draw.normal(size=(10, 40_000)),
    "normal, few values": lambda draw: draw.normal(size=(300, 64)),
    "Laplace": lambda draw: draw.laplace(size=(20, 20_000)),
    "loud and quiet samples": lambda draw: draw.normal(size=(40, 5000)) * draw.lognormal(size=(40, 1)),
    "one outlier": lambda draw: np.concatenate([draw.normal(size=(1, 300_000)), np.full((1, 1), 30.0)], axis=1),
    "bounded": lambda draw: np.clip(draw.normal(size=(20, 3000)), -1, 1),
}


@pytest.mark.parametrize("name", DRAWS)
def test_symmetric_ranges_have_nearly_the_least_error(name: str) -> None:
    values = DRAWS[name](np.random.default_rng(1)).astype(np.float32)
    magnitudes = np.abs(values)
    found = best_magnitude(least_error, read_tail(tails_of(magnitudes), sizes_of(values)), body_of(values), 256, signed=True)
    tried = [error(values, signed_range(np.asarray(high), 256)) for high in np.linspace(0.05, 1, 60) * magnitudes.max()]
    assert error(values, signed_range(np.asarray(found), 256)) < 1.06 * min(tried)


@pytest.mark.parametrize("name", DRAWS)
def test_asymmetric_ranges_have_nearly_the_least_error(name: str) -> None:
    values = DRAWS[name](np.random.default_rng(2)).astype(np.float32)
    values = np.where(values < 0, values / 3, values)
    tails = read_tail(tails_of(values), sizes_of(values)), read_tail(tails_of(-values), sizes_of(values))
    high, low = least_error(tails[0].candidates(), tails[1].candidates(), tails, body_of(values), 256)
    shares = np.linspace(0.05, 1, 25)
    tried = [error(values, asymmetric_range(values.min() * a, values.max() * b, 256)) for a in shares for b in shares]
    assert error(values, asymmetric_range(np.asarray(-low), np.asarray(high), 256)) < 1.1 * min(tried)


def test_a_range_from_zero_knows_that_zeros_cost_nothing() -> None:
    """Where nine values in ten are zero, the others weigh a tenth, and fewer of them are worth clipping."""
    draw = np.random.default_rng(3)
    values = np.where(draw.random((20, 20_000)) < 0.9, 0.0, draw.exponential(size=(20, 20_000))).astype(np.float32)
    tail = read_tail(tails_of(values), sizes_of(values))
    found = best_magnitude(least_error, tail, body_of(values), 256, signed=False)
    assert found > 1.05 * best_magnitude(least_error, tail, UNKNOWN, 256, signed=False)
    tried = [error(values, Range(np.zeros(1), np.asarray(share * values.max()))) for share in np.linspace(0.05, 1, 60)]
    assert error(values, Range(np.zeros(1), np.asarray(found))) < 1.06 * min(tried)


def test_the_error_of_rounding() -> None:
    """Values below half a step become zero; of others a square of the step / 12 is lost."""
    body = Body(np.array([0.0, 0.1, -3.0]), np.array([0.5, 0.25, 0.25]))
    np.testing.assert_allclose(rounding_error(body, np.array([1.0, 0.1])), [0.25 * 0.01 + 0.25 / 12, 0.5 * 0.01 / 12])


def test_a_tensor_of_zeros_has_no_border() -> None:
    tail = read_tail(np.zeros((3, 2), np.float32), np.array([10, 10, 10]))
    assert best_magnitude(least_error, tail, body_of(np.zeros(30)), 256, signed=False) == 0.0
    assert share_border(tail, 1e-3) == least_divergence(tail, body_of(np.zeros(30)), 256) == 0.0


@pytest.mark.parametrize("probability", [1e-5, 1e-4])
def test_a_share_of_all_values_is_cut_off(probability: float) -> None:
    """Of samples of one kind, and of loud and quiet ones, whose tails end far above the border."""
    draw = np.random.default_rng(4)
    for scale in (1.0, draw.lognormal(sigma=0.3, size=(50, 1))):
        values = np.abs(draw.normal(size=(50, 20_000)) * scale).astype(np.float32)
        found = share_border(read_tail(tails_of(values), sizes_of(values)), probability)
        assert np.mean(values > found) <= probability * 1.3
        assert found == pytest.approx(float(np.quantile(values, 1 - probability)), rel=0.04)


def test_what_a_sample_does_not_hold_is_left_out() -> None:
    short = np.array([[3.0, 1.0, np.nan], [5.0, 4.0, 2.0]], np.float32)
    tail = read_tail(short, np.array([2, 100]))
    count, squares = tail.excess(np.array([2.5]))
    assert (count[0], squares[0]) == (3, pytest.approx(0.5**2 + 2.5**2 + 1.5**2))


def test_divergence_leaves_outliers_out_and_keeps_what_is_even() -> None:
    draw = np.random.default_rng(5)
    even = draw.random((20, 20_000)).astype(np.float32)
    assert least_divergence(read_tail(tails_of(even), sizes_of(even)), body_of(even), 128) > 0.9
    outlying = np.concatenate([np.abs(draw.normal(size=(20, 20_000))), np.full((20, 1), 40.0)], axis=1).astype(np.float32)
    assert 2.0 < least_divergence(read_tail(tails_of(outlying), sizes_of(outlying)), body_of(outlying), 128) < 20.0


def test_weights_have_the_share_of_least_error_per_channel() -> None:
    draw = np.random.default_rng(6)
    weights = draw.normal(size=(40, 500)).astype(np.float32)
    weights[::2, 0] = 6.0
    full = symmetric_weight_range(np.abs(weights).max(axis=1).astype(np.float64), 255)
    share = weight_share(weights, full, 255)
    shares = np.linspace(1.0, 0.5, 26)
    for channel in range(40):
        low, high = (np.asarray(border[channel]) for border in full)
        errors = [error(weights[channel], Range(low * factor, high * factor), 255) for factor in shares]
        assert errors[int(np.argmin(np.abs(shares - share[channel])))] == pytest.approx(min(errors), rel=1e-6)
    assert share.min() < 1.0
