"""Ranges against their formulas, and FakeQuantize against OpenVINO's."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from openvino import opset13 as op

from stages.quantization.solution.ranges import (
    Range,
    asymmetric_range,
    clip_range,
    clip_with_zero,
    fake_quantize,
    signed_range,
    symmetric_activation_range,
    symmetric_weight_range,
    widen_small_channels,
    zero_on_level,
)
from tests.quantization.reference_runs import core

borders = st.floats(-1e4, 1e4, width=32)
# An aggregated minimum and maximum, and a number of levels: 3 to 8 bits, also without the lowest integer.
ranges = st.tuples(borders, borders, st.sampled_from([8, 15, 16, 255, 256])).map(lambda t: (min(t[:2]), max(t[:2]), t[2]))


def scalar(value: float) -> np.ndarray:
    return np.asarray(value, np.float64)


def numbers(borders: Range) -> tuple[float, float]:
    return float(borders.low), float(borders.high)


def zero_error(borders: Range, levels: int) -> float:
    """How far from zero the level next to it is, in steps."""
    zero = float(fake_quantize(np.zeros(1), borders, levels)[0])
    return abs(zero) / (float(borders.high - borders.low) / (levels - 1))


@given(ranges)
@settings(max_examples=300, deadline=None)
def test_zero_is_a_level_of_every_range(drawn: tuple[float, float, int]) -> None:
    low, high, levels = drawn
    symmetric = symmetric_activation_range(scalar(low), scalar(max(abs(low), abs(high))), levels, signed=False)
    for found in (symmetric, asymmetric_range(scalar(low), scalar(high), levels)):
        assert found.low <= 0 <= found.high and found.low < found.high
        assert zero_error(found, levels) < 1e-3  # of a step: rounding of f32


@given(ranges)
@example((-86.0, 2322.0, 15))
@settings(max_examples=300, deadline=None)
def test_an_asymmetric_range_holds_what_it_should(drawn: tuple[float, float, int]) -> None:
    low, high, levels = drawn
    found = asymmetric_range(scalar(low), scalar(high), levels)
    step = (max(high, 0.0) - min(low, 0.0)) / (levels - 1)  # of the range as it was estimated
    # Cut off is at most half a step, where the border is so near to zero that it becomes zero.
    assert found.low <= min(low, 0.0) + 0.5001 * step
    assert found.high >= max(high, 0.0) - 0.5001 * step


@given(ranges, st.floats(-100, -0.01), st.floats(0.01, 100), st.booleans())
@settings(max_examples=300, deadline=None)
def test_clipping_keeps_zero_and_never_widens(drawn: tuple[float, float, int], lowest: float, highest: float, symmetric: bool) -> None:
    low, high, levels = drawn
    if symmetric:
        wide = symmetric_activation_range(scalar(low), scalar(max(abs(low), abs(high))), levels, signed=False)
    else:
        wide = asymmetric_range(scalar(low), scalar(high), levels)
    found = clip_with_zero(wide, lowest, highest, levels, symmetric)
    assert found.low >= max(lowest, float(wide.low)) - 1e-9 and found.high <= min(highest, float(wide.high)) + 1e-9
    if found.low < found.high:
        assert zero_error(found, levels) < 1e-3


def test_asymmetric_by_hand() -> None:
    # -1 … 2 in 255 steps: zero at 85, exactly on a level already.
    found = asymmetric_range(scalar(-1), scalar(2), 256)
    assert numbers(found) == pytest.approx((-1, 2))
    # -1 … 1: zero at round(127.5) = 128 (half to even). Keeping the upper border, the lower one becomes 128 / -127;
    # keeping the lower one, the upper one becomes 127 / 128: the first is the wider.
    found = asymmetric_range(scalar(-1), scalar(1), 256)
    assert numbers(found) == pytest.approx((-128 / 127, 1))


@pytest.mark.parametrize(("low", "high", "ours"), [(-0.001, 6.0, (0.0, 6.0)), (-6.0, 0.001, (-6.0, 0.0))])
def test_a_border_next_to_zero_becomes_zero_where_pot_leaves_it(low: float, high: float, ours: tuple[float, float]) -> None:
    found = asymmetric_range(scalar(low), scalar(high), 256)
    assert numbers(found) == ours
    pots = asymmetric_range(scalar(low), scalar(high), 256, pot_compatible=True)
    assert numbers(pots) == (low, high)
    assert zero_error(pots, 256) > 0.01


def test_a_range_without_width_is_widened() -> None:
    found = asymmetric_range(scalar(0), scalar(0), 256)
    assert found.high - found.low == pytest.approx(1.6e-3, rel=0.01)
    assert numbers(asymmetric_range(scalar(3), scalar(3), 256)) == (0, 3)  # wide enough, from the zero
    assert numbers(asymmetric_range(scalar(3), scalar(3), 256, pot_compatible=True)) == pytest.approx((0, 3.0008))


def test_positive_values_only() -> None:
    found = asymmetric_range(scalar(2), scalar(5), 256)
    assert numbers(found) == (0, 5)
    found = asymmetric_range(scalar(-5), scalar(-2), 256)
    assert numbers(found) == (-5, 0)


def test_symmetric_activations() -> None:
    unsigned = symmetric_activation_range(scalar(0), scalar(6), 256, signed=False)
    assert numbers(unsigned) == (0, 6)
    signed = symmetric_activation_range(scalar(-3), scalar(6), 256, signed=False)
    assert numbers(signed) == pytest.approx((-6 * 128 / 127, 6))
    asked = symmetric_activation_range(scalar(0), scalar(6), 256, signed=True)
    assert asked == signed
    tiny = symmetric_activation_range(scalar(0), scalar(0), 256, signed=False)
    assert numbers(tiny) == (0, 8e-5)


def test_a_tiny_negative_value_does_not_cost_a_bit() -> None:
    for low, ours, pots in ((-1e-9, 0.0, -6 * 128 / 127), (-1e-3, -6 * 128 / 127, -6 * 128 / 127)):
        assert symmetric_activation_range(scalar(low), scalar(6), 256, signed=False).low == pytest.approx(ours)
        assert symmetric_activation_range(scalar(low), scalar(6), 256, signed=False, tolerance=0.0).low == pytest.approx(pots)


def test_the_sign_is_one_for_all_channels() -> None:
    found = symmetric_activation_range(scalar(-1), np.array([1.0, 2.0]), 256, signed=False)
    np.testing.assert_allclose(found.low, [-128 / 127, -256 / 127])
    found = symmetric_activation_range(np.array([0.0, 0.0]), np.array([1.0, 2.0]), 256, signed=False)
    np.testing.assert_array_equal(found.low, [0, 0])


@pytest.mark.parametrize(("levels", "share"), [(255, 1.0), (256, 128 / 127), (15, 1.0), (16, 8 / 7), (3, 1.0), (4, 2.0)])
def test_signed_range_has_zero_on_a_level(levels: int, share: float) -> None:
    found = signed_range(scalar(2), levels)
    assert numbers(found) == pytest.approx((-2 * share, 2))
    assert zero_error(found, levels) < 1e-4


def test_weights_of_small_channels_get_one_percent_of_the_largest() -> None:
    found = symmetric_weight_range(np.array([2.0, 1e-6, 0.5, 0.0]), 255)
    np.testing.assert_allclose(found.high, [2.0, 0.02, 0.5, 0.02])
    np.testing.assert_allclose(found.low, -found.high)
    np.testing.assert_allclose(widen_small_channels(np.array([1e-9, 2e-9])), [8e-5, 8e-5])


def test_clipping_by_hand() -> None:
    plain = clip_range(Range(scalar(-4), scalar(4)), -1.0, 2.0)
    assert numbers(plain) == (-1, 2)
    assert clip_range(plain, None, None) == plain
    assert clip_with_zero(plain, None, None, 256, symmetric=True) is plain
    both = clip_with_zero(Range(scalar(-2 * 128 / 127), scalar(2)), None, 1.0, 256, symmetric=True)
    assert numbers(both) == pytest.approx((-128 / 127, 1))
    unsigned = clip_with_zero(Range(scalar(0), scalar(6)), None, 1.0, 256, symmetric=True)
    assert numbers(unsigned) == (0, 1)
    # -1 … 1 after clipping: of both ways to put zero on level 128 the narrower.
    narrow = clip_with_zero(Range(scalar(-3), scalar(3)), -1.0, 1.0, 256, symmetric=False)
    assert numbers(narrow) == pytest.approx((-1, 127 / 128))


def test_the_wider_and_the_narrower_choice() -> None:
    wide = zero_on_level(scalar(-1), scalar(1), 256)
    narrow = zero_on_level(scalar(-1), scalar(1), 256, narrow=True)
    assert wide.high - wide.low > 2 > narrow.high - narrow.low


@pytest.mark.parametrize("levels", [255, 256, 16, 15, 4, 2])
@pytest.mark.parametrize(("low", "high"), [(-1.7, 1.7), (0.0, 6.0), (-0.3, 2.2), (-5.0, 0.0)])
def test_fake_quantize_is_openvinos(levels: int, low: float, high: float) -> None:
    values = np.random.default_rng(levels).normal(0, 2, 10_000).astype(np.float32)
    values[:3] = low, high, 0
    source = op.parameter([values.size], np.float32)
    inputs = [op.constant(np.float32(value)) for value in (low, high, low, high)]
    model = ov.Model([op.fake_quantize(source, *inputs, levels)], [source])
    theirs = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([values])[0]
    ours = fake_quantize(values, Range(scalar(low), scalar(high)), levels)
    assert ours.dtype == np.float32
    step = (high - low) / (levels - 1)
    differ = np.abs(ours - theirs) > 1e-4 * step
    # Values half-way between two levels may go either way.
    offset = (np.clip(values[differ], low, high) - low) / step
    assert np.all(np.abs(offset % 1 - 0.5) < 1e-3) and differ.mean() < 0.01
    np.testing.assert_allclose(np.sort(np.unique(ours)), np.asarray(np.unique(theirs), np.float32), atol=1e-5)


def test_fake_quantize_per_channel() -> None:
    values = np.array([[-3.0, 0.4, 3.0], [-3.0, 0.4, 3.0]])
    found = fake_quantize(values, Range(np.array([[0.0], [-2.0]]), np.array([[1.0], [2.0]])), 5)
    np.testing.assert_allclose(found, np.array([[0, 0.5, 1], [-2, 0, 2]]))
    assert fake_quantize(np.asarray(0.3), Range(scalar(0), scalar(1)), 3) == 0.5
