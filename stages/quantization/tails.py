"""The lowest and highest values of a tensor: enough for its range and for exact quantiles near both ends.

`tails_in_graph` finds them where the tensor is computed, without bringing it to Python; `tails_of` does the same for an
array. A tail is a list of values from the extreme inwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as op

Array = NDArray[np.float32]


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
    """The `length` highest (or lowest) values of an array, from the extreme inwards."""
    ordered = np.sort(values, axis=None)
    return (ordered[::-1] if upper else ordered)[:length].astype(np.float32)


def channel_extremes(values: NDArray[np.floating], length: int, *, upper: bool) -> Array:
    """The same for each channel (axis 1) of an array [N, C, ...] -> [C, length]."""
    ordered = np.sort(np.moveaxis(values, 1, 0).reshape(values.shape[1], -1), axis=1)
    return (ordered[:, ::-1] if upper else ordered)[:, :length].astype(np.float32)


def tails_in_graph(output: ov.Output, length: int) -> tuple[ov.Output, ov.Output]:
    """Nodes that find few values of a tensor of static shape, among them its `length` lowest, and the same for the highest.

    The tensor is cut into rows. Each of the extreme values lies in one of the `length` rows with the most extreme
    extremes, so only those are left. Images go channels last first: that is how the CPU computes them, and another order
    would have to be copied together.
    """
    shape = list(output.get_shape())
    size = math.prod(shape)
    if len(shape) in (4, 5):
        output = _channels_last(output)
        shape = [shape[0], *shape[2:], shape[1]]
    width = _row_width(size, shape[-1] if shape else 1, length)
    height = size // width
    rows = op.reshape(output, np.array([height, width]), False)
    ends = []
    for reduce, mode in ((op.reduce_min, "min"), (op.reduce_max, "max")):
        best: ov.Node = rows
        if length == 1:
            best = reduce(reduce(rows, np.array([1]), False), np.array([0]), True)
        elif length < height // 2:
            best = op.gather(rows, op.topk(reduce(rows, np.array([1]), False), np.int64(length), 0, mode, "none").output(1), np.int64(0))
        ends.append(best.output(0))
    return ends[0], ends[1]


def channel_tails_in_graph(output: ov.Output, length: int) -> tuple[ov.Output, ov.Output]:
    """The same per channel (axis 1) -> [1, C, n] each."""
    axes = np.array([axis for axis in range(len(output.get_shape())) if axis != 1])
    ends = []
    for reduce, mode, beyond in ((op.reduce_min, "min", np.inf), (op.reduce_max, "max", -np.inf)):
        if length == 1:
            ends.append(op.unsqueeze(reduce(output, axes, False), np.array([0, 2])).output(0))
        elif length == 2:  # much faster than TopK: the extreme, and the extreme of what is left without it
            first = reduce(output, axes, True)
            is_first = op.equal(output, first)
            left = reduce(op.select(is_first, op.constant(np.float32(beyond)), output), axes, True)
            tied = op.greater(op.reduce_sum(op.convert(is_first, "f32"), axes, True), op.constant(np.float32(1)))
            pair = (op.reshape(end, np.array([1, -1, 1]), False) for end in (first, op.select(tied, first, left)))
            ends.append(op.concat(list(pair), 2).output(0))
        else:
            columns = op.reshape(_channels_last(output), np.array([-1, output.get_shape()[1]]), False)
            best = op.topk(columns, np.int64(length), 0, mode, "none")
            ends.append(op.unsqueeze(op.transpose(best.output(0), np.array([1, 0])), np.int64(0)).output(0))
    return ends[0], ends[1]


def _channels_last(output: ov.Output) -> ov.Output:
    rank = len(output.get_shape())
    return op.transpose(output, np.array([0, *range(2, rank), 1])).output(0)


def _row_width(size: int, channels: int, length: int) -> int:
    """A multiple of the channels (so that rows stay contiguous) that makes both searches short: rows, and within rows."""
    positions = size // channels
    fewest = math.sqrt(size * length)
    groups = (group for group in range(2, int(positions / fewest) + 1) if positions % group == 0)
    return channels * max(groups, default=1)
