"""Borders by the samples' errors in decibels against trying them all on the values themselves."""

from __future__ import annotations

import numpy as np
import pytest

from stages.quantization.solution.least_error import UNKNOWN, Body, best_magnitude, least_error, read_tail
from stages.quantization.solution.ranges import Range, asymmetric_range, fake_quantize, signed_range
from stages.quantization.solution.sample_error import largest_sqnr, range_error
from tests.quantization.solution.test_least_error import DRAWS, body_of, sizes_of, tails_of


def error(values: np.ndarray, borders: Range) -> float:
    """The mean over samples [N, n] of the error's power in decibels."""
    return float(np.mean(10 * np.log10(np.mean((fake_quantize(values, borders, 256) - values.astype(np.float64)) ** 2, axis=1))))


@pytest.mark.parametrize("name", DRAWS)
def test_symmetric_ranges_have_nearly_the_least_mean_error_in_decibels(name: str) -> None:
    values = DRAWS[name](np.random.default_rng(1)).astype(np.float32)
    magnitudes = np.abs(values)
    found = best_magnitude(largest_sqnr, read_tail(tails_of(magnitudes), sizes_of(values)), body_of(values), 256, signed=True)
    tried = [error(values, signed_range(np.asarray(high), 256)) for high in np.linspace(0.05, 1, 60) * magnitudes.max()]
    assert error(values, signed_range(np.asarray(found), 256)) < min(tried) + 0.4


@pytest.mark.parametrize("name", DRAWS)
def test_asymmetric_ranges_have_nearly_the_least_mean_error_in_decibels(name: str) -> None:
    values = DRAWS[name](np.random.default_rng(2)).astype(np.float32)
    values = np.where(values < 0, values / 3, values)
    tails = read_tail(tails_of(values), sizes_of(values)), read_tail(tails_of(-values), sizes_of(values))
    high, low = largest_sqnr(tails[0].candidates(), tails[1].candidates(), tails, body_of(values), 256)
    shares = np.linspace(0.05, 1, 25)
    tried = [error(values, asymmetric_range(values.min() * a, values.max() * b, 256)) for a in shares for b in shares]
    assert error(values, asymmetric_range(np.asarray(-low), np.asarray(high), 256)) < min(tried) + 0.4


def test_a_loud_sample_does_not_decide_for_the_quiet_ones() -> None:
    """Nine samples from -1 to 1, one from -16 to 16: wider borders would cost the nine 24 dB each, and gain the one 64 dB."""
    scale = np.where(np.arange(10) == 0, 16.0, 1.0)[:, None]
    values = (np.linspace(-1, 1, 2000) * scale).astype(np.float32)
    tail = read_tail(tails_of(np.abs(values), 0.999), sizes_of(values))
    assert best_magnitude(largest_sqnr, tail, body_of(values), 256, signed=True) == pytest.approx(1.0, rel=0.06)
    assert best_magnitude(least_error, tail, body_of(values), 256, signed=True) == pytest.approx(16.0, rel=0.06)


def test_the_error_of_a_range() -> None:
    """Beyond 2 lies a 3, below -1 a -1.5; levels are one apart, so of other values 1 / 12 is lost, and 0.3 becomes zero."""
    values = np.array([[3.0, 0.3, -1.5, 1.2], [1.0, 0.3, 0.3, 0.3]], np.float32)
    tails = read_tail(tails_of(values, 0.9), sizes_of(values)), read_tail(tails_of(-values, 0.9), sizes_of(values))
    body = Body(np.array([0.3, 1.2]), np.array([0.5, 0.5]))
    rounding = 0.5 * 0.3**2 + 0.5 / 12
    expected = 10 * np.mean(np.log10([(1.0**2 + 0.5**2) / 4 + rounding, rounding]))
    assert range_error(2.0, 1.0, tails, body, 4) == pytest.approx(expected, rel=1e-6)


def test_half_the_step_is_six_decibels() -> None:
    values = np.linspace(-1, 1, 1000, dtype=np.float32)[None]
    tails = read_tail(tails_of(values), sizes_of(values)), read_tail(tails_of(-values), sizes_of(values))
    wide, narrow = (range_error(border, border, tails, UNKNOWN, 256) for border in (2.0, 1.0))
    assert wide - narrow == pytest.approx(20 * np.log10(2))


def test_a_tensor_of_zeros_has_no_border() -> None:
    tail = read_tail(np.zeros((3, 2), np.float32), np.array([10, 10, 10]))
    assert best_magnitude(largest_sqnr, tail, body_of(np.zeros(30)), 256, signed=False) == 0.0
