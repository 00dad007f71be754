"""From statistics to the range of a FakeQuantize: small pure functions (as POT 2023.3).

All arrays are float64, scalars or one value per channel [C].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SMALLEST_RANGE = 8e-5  # of a symmetric range
SMALLEST_SHARE = 0.01  # of the widest channel's range
SMALLEST_WIDTH = 8e-4  # of an asymmetric range
SIGN_TOLERANCE = 1e-6  # negative values smaller than this share of the maximum do not make a range signed


class Range(NamedTuple):
    """Lower and upper border."""

    low: Array
    high: Array


def range_json(borders: Range, doubled: bool) -> dict[str, list[float]]:
    """A FakeQuantize's borders as plain data. doubled: its output range is twice its input range (saturation fix)."""
    low, high = (np.asarray(border, np.float32).reshape(-1).tolist() for border in borders)
    data = {"input_low": low, "input_high": high}
    if doubled:
        data |= {"output_low": [2 * value for value in low], "output_high": [2 * value for value in high]}
    return data


def widen_small_channels(high: Array) -> Array:
    """No channel gets less than 1 % of the widest channel's range, nor less than the smallest range."""
    return np.maximum(high, max(SMALLEST_RANGE, SMALLEST_SHARE * float(np.max(high))))


def symmetric_weight_range(high: Array, levels: int) -> Range:
    """[-max, max] per channel, for an odd number of levels."""
    return signed_range(widen_small_channels(high), levels)


def symmetric_activation_range(low: Array, high: Array, levels: int, signed: bool, tolerance: float = SIGN_TOLERANCE) -> Range:
    """[0, max] where nothing is negative, else a range with zero on a level and one step more below it where `levels` is even.

    low: aggregated minimum, for the sign alone. tolerance: negative values down to this share of max count as zero.
    """
    high = widen_small_channels(high)
    if not signed and np.all(low >= -tolerance * np.max(high)):
        return Range(np.zeros_like(high), high)
    return signed_range(high, levels)


def signed_range(high: Array, levels: int) -> Range:
    """The symmetric range up to `high`: as many steps below zero as above, or one more."""
    return Range(-high * (levels // 2) / ((levels - 1) // 2), high)


def asymmetric_range(low: Array, high: Array, levels: int, pot_compatible: bool = False) -> Range:
    """A range that contains zero exactly on a level: one border is moved, the choice that gives the wider range.

    With n = levels - 1 steps, zero goes to level z = round(-low * n / (high - low)). Where z is the first or last level the
    border becomes zero. A range that is hardly wider than nothing is widened.
    pot_compatible: the border then stays where it is, and zero up to half a step beside a level; and what is widened is
    judged without the zero.
    """
    if not pot_compatible:
        # How far above zero a tensor begins that is never negative thus decides nothing, and need not be known.
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    degenerate = high - low <= SMALLEST_WIDTH
    low = np.minimum(np.where(degenerate, low - SMALLEST_WIDTH, low), 0.0)
    high = np.maximum(np.where(degenerate, high + SMALLEST_WIDTH, high), 0.0)
    return zero_on_level(low, high, levels, exact_zero_at_borders=not pot_compatible)


def zero_on_level(low: Array, high: Array, levels: int, exact_zero_at_borders: bool = True, narrow: bool = False) -> Range:
    """Move one border of a range around zero so that zero falls on a level (see `asymmetric_range`).

    narrow: take the choice that gives the narrower range instead.
    """
    steps = levels - 1
    zero = np.round(-low * steps / (high - low))
    with np.errstate(divide="ignore", invalid="ignore"):
        moved_low = np.where(zero < steps, zero / (zero - steps) * high, low)
        moved_high = np.where(zero > 0, (zero - steps) / zero * low, high)
    move_low = (high - moved_low > moved_high - low) != narrow
    move_high = ~move_low
    if exact_zero_at_borders:
        low = np.where(zero == 0, 0.0, low)
        high = np.where(zero == steps, 0.0, high)
        inner = (zero > 0) & (zero < steps)
        move_low, move_high = move_low & inner, move_high & inner
    return Range(np.where(move_low, moved_low, low), np.where(move_high, moved_high, high))


def clip_range(borders: Range, lowest: float | None, highest: float | None) -> Range:
    """No border wider than the configured clipping values; zero may end up beside the levels, as POT has it."""
    low = borders.low if lowest is None else np.maximum(borders.low, lowest)
    high = borders.high if highest is None else np.minimum(borders.high, highest)
    return Range(low, high)


def clip_with_zero(borders: Range, lowest: float | None, highest: float | None, levels: int, symmetric: bool) -> Range:
    """No border wider than the configured clipping values, and zero on a level."""
    if lowest is None and highest is None:
        return borders
    clipped = clip_range(borders, lowest, highest)
    if not symmetric:
        return zero_on_level(*clipped, levels, narrow=True)
    # Both borders by the same factor.
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = [np.where(border != 0, limited / border, 1.0) for border, limited in zip(borders, clipped, strict=True)]
    share = np.minimum(*shares)
    return Range(borders.low * share, borders.high * share)


def fake_quantize(values: NDArray[np.floating], borders: Range, levels: int) -> NDArray[np.float32]:
    """What FakeQuantize does: clamp, round to the nearest of `levels` values (half to even), back to floating point.

    In OpenVINO's order and precision (f32): where a value lies half-way between two levels, as the largest weight under
    the saturation fix always does, rounding errors decide. `borders` must broadcast to `values`.
    """
    low, high = (np.asarray(border, np.float32) for border in borders)
    width, steps = high - low, np.float32(levels - 1)
    result = np.asarray(np.clip(values.astype(np.float32, copy=False), low, high))
    result -= low
    result /= width
    result *= steps
    np.round(result, out=result)
    result /= steps
    result *= width
    result += low
    return result
