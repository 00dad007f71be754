"""The lowest and highest values of a tensor: enough for its range and for exact quantiles near both ends.

A tail is a list of values from the extreme inwards. `tail_search` finds them where the tensor is computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
LONG = 2**8  # times as many values as a tail has are too many to sort


def tail_length(size: int, probabilities: Sequence[float]) -> int:
    """How many of the lowest (or highest) of `size` values the quantiles at `probabilities` need."""
    return min(size, max((int(probability * (size - 1)) + 2 for probability in probabilities), default=1))


def tail_quantile(tail: NDArray[np.floating], size: NDArray[np.integer] | int, probability: float) -> NDArray[np.float64]:
    """Quantile with linear interpolation from sorted tails [..., k] of tensors with `size` values.

    For the lower tail this is the quantile at `probability`, for the upper one that at 1 - probability.
    """
    place = probability * (np.asarray(size) - 1)
    below = np.floor(place).astype(np.int64)
    after = np.minimum(below + 1, np.asarray(size) - 1)
    if np.max(after) >= tail.shape[-1]:
        raise KeyError(f"a tail of {tail.shape[-1]} values does not reach the quantile at {probability:g}")
    indices = (np.broadcast_to(index, tail.shape[:-1])[..., None] for index in (below, after))
    # In f64: the difference of two large f32 values would be off by more than the quantile between them may be.
    first, second = (np.take_along_axis(tail, index, -1)[..., 0].astype(np.float64) for index in indices)
    return np.asarray(first + (second - first) * (place - below))


def absolute_tail(lowest: Array, highest: Array, size: NDArray[np.integer] | int) -> Array:
    """The tail of the absolute values [..., k] from the lower and upper tails [..., k] of tensors with `size` values.

    NaN in the tails stands for values that a tensor has not.
    """
    length, held = lowest.shape[-1], np.count_nonzero(~np.isnan(lowest), axis=-1)
    # In tensors hardly longer than a tail the two overlap: what the lower one holds is left out of the upper one.
    twice = np.arange(length) >= (np.asarray(size) - held)[..., None]
    both = np.abs(np.concatenate([lowest, np.where(twice, np.nan, highest)], axis=-1))
    return np.asarray(np.sort(-both, axis=-1)[..., :length] * np.float32(-1))  # sorted, NaN comes last


def extremes(values: NDArray[np.floating], length: int, *, upper: bool) -> Array:
    """The `length` highest (or lowest) values along the last axis, from the extreme inwards."""
    if values.shape[-1] >= LONG * length:
        values = _of_best_rows(values, length, upper)
    count = values.shape[-1]
    if length < count:
        values = np.partition(values, count - length if upper else length - 1, axis=-1)
        values = values[..., count - length :] if upper else values[..., :length]
    ordered = np.sort(values, axis=-1)
    return np.asarray(ordered[..., ::-1] if upper else ordered, np.float32)


def _of_best_rows(values: NDArray[np.floating], length: int, upper: bool) -> NDArray[np.floating]:
    """Of long arrays [..., n] the rows that hold the extremes: those with the most extreme extremes."""
    width = math.isqrt(values.shape[-1] // length)
    end = values.shape[-1] // width * width
    rows = values[..., :end].reshape(*values.shape[:-1], -1, width)
    ends = rows.max(axis=-1) if upper else rows.min(axis=-1)
    if np.isnan(ends).any():
        return values  # a row with one may hold extremes, too
    best = np.argpartition(-ends if upper else ends, length - 1, axis=-1)[..., :length, None]
    picked = np.take_along_axis(rows, best, axis=-2)
    return np.concatenate([picked.reshape(*values.shape[:-1], -1), values[..., end:]], axis=-1)
