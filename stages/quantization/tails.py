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
    first, second = (np.take_along_axis(tail, index, -1)[..., 0] for index in indices)
    return np.asarray(first + (second - first) * (place - below))


def absolute_tail(lowest: Array, highest: Array) -> Array:
    """The tail of the absolute values [..., k] from the lower and upper tails of the values [..., k]."""
    both = np.abs(np.concatenate([lowest, highest], axis=-1))
    both[np.isnan(both)] = -1
    # Where the two tails overlap (tensors hardly longer than a tail) a value may appear twice.
    return -np.sort(-both, axis=-1)[..., : lowest.shape[-1]]


def tails_of(values: NDArray[np.floating], length: int) -> tuple[Array, Array]:
    """The lowest and the highest `length` values of an array."""
    flat = values.reshape(-1)
    if length < flat.size:
        ends = np.partition(flat, [length - 1, flat.size - length])
        low, high = ends[:length], ends[flat.size - length :]
    else:
        low = high = flat
    return np.sort(low).astype(np.float32), np.sort(high)[::-1].astype(np.float32)


def channel_tails_of(values: NDArray[np.floating], length: int) -> tuple[Array, Array]:
    """The lowest and the highest `length` values of each channel (axis 1) of an array [N, C, ...] -> [C, length] each."""
    flat = np.sort(np.moveaxis(values, 1, 0).reshape(values.shape[1], -1), axis=1).astype(np.float32)
    return flat[:, :length], flat[:, ::-1][:, :length]


def channel_tails_in_graph(output: ov.Output, length: int) -> tuple[ov.Output, ov.Output]:
    """Nodes that compute, per channel (axis 1) of a tensor of static shape, the extreme values -> [C, length] each."""
    shape = list(output.get_shape())
    if length == 1:
        axes = np.array([axis for axis in range(len(shape)) if axis != 1])
        ends = [op.unsqueeze(reduce(output, axes, False), np.int64(1)) for reduce in (op.reduce_min, op.reduce_max)]
    else:
        last = op.transpose(output, np.array([0, *range(2, len(shape)), 1]))
        columns = op.reshape(last, np.array([-1, shape[1]]), False)
        ends = [op.transpose(op.topk(columns, np.int64(length), 0, mode, "value").output(0), np.array([1, 0])) for mode in ("min", "max")]
    low, high = (end.output(0) for end in ends)
    return low, high


def tails_in_graph(output: ov.Output, length: int) -> tuple[ov.Output, ov.Output]:
    """Nodes that compute the lowest and the highest `length` values of a tensor of static shape.

    The tensor is cut into rows. Each of the `length` extreme values lies in one of the `length` rows with the most
    extreme extremes, so only those are searched. Images go channels last first: that is how the CPU computes them, and
    another order would have to be copied together.
    """
    shape = list(output.get_shape())
    size = math.prod(shape)
    if len(shape) in (4, 5):
        output = op.transpose(output, np.array([0, *range(2, len(shape)), 1])).output(0)
        shape = [shape[0], *shape[2:], shape[1]]
    width = _row_width(size, shape[-1] if shape else 1, length)
    rows = op.reshape(output, np.array([size // width, width]), False)
    low, high = (_extremes(rows, size // width, width, length, mode) for mode in ("min", "max"))
    return low, high


def _row_width(size: int, channels: int, length: int) -> int:
    """A multiple of the channels (so that rows stay contiguous) that makes both searches short: rows, and within rows."""
    positions = size // channels
    fewest = math.sqrt(size * length)
    groups = (group for group in range(2, int(positions / fewest) + 1) if positions % group == 0)
    return channels * max(groups, default=1)


def _extremes(rows: ov.Node, height: int, width: int, length: int, mode: str) -> ov.Output:
    reduce = op.reduce_max if mode == "max" else op.reduce_min
    if length == 1:
        return reduce(reduce(rows, np.array([1]), False), np.array([0]), True).output(0)
    if length < height // 2:
        best_rows = op.topk(reduce(rows, np.array([1]), False), np.int64(length), 0, mode, "none")
        rows = op.gather(rows, best_rows.output(1), np.int64(0))
    return op.topk(op.reshape(rows, np.array([-1]), False), np.int64(length), 0, mode, "value").output(0)
