"""Nodes that find the lowest and highest values of a tensor where it is computed, without bringing it to Python.

The tensor becomes a table [g, R]; each of its columns is a cell, reduced to its extreme. The n highest values lie in the n
cells with the highest extremes, and so all other cells are left behind. What leaves the graph is a little more than the tail,
which `tails.extremes` picks from it. The values of a cell are far apart in memory: so neighbouring cells are reduced
together, as long vectors.
Images go channels last: that is how the CPU computes them, and another order would have to be copied together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import openvino as ov
from openvino import opset13 as op

from stages.quantization.statistics.distribution import picked_places

LARGEST_CELL = 64  # from so many places at once memory is still read fast
LEAST_CELL = 8  # for less the values may as well be read twice
BALANCE = 4  # to copy and search a value of the cells that are left takes as long as to search so many cells
HEAP = 7  # for at least so many values along the last axis TopK keeps a heap; for fewer it takes ten times as long
LONG = 2**17  # values that are too many to be read twice where channels have tails, which want cells of another size
FEW = 2**10  # values that may as well leave the graph
Ends = tuple[ov.Output | None, ov.Output]  # lowest (None: not searched for), highest


class TailOutputs(NamedTuple):
    """Where the lowest and highest values leave the graph: one output twice where all values of the tensor leave."""

    whole: Ends | None  # of the whole tensor
    channels: Ends | None  # [C, n], per channel (axis 1)
    picked: ov.Output | None = None  # some of the values; None where all leave, or where the whole tensor is not searched


def find_tails(output: ov.Output, length: int | None, channel_length: int | None, lowest: bool = True) -> TailOutputs:
    """Search a tensor of static shape for its tails of `length` values, and per channel of `channel_length`; None: neither.

    lowest: search for the lowest values, too.
    """
    modes = ("min", "max") if lowest else ("max",)
    # What comes from outside comes as it is.
    image = len(output.get_shape()) in (4, 5) and output.get_node().get_type_name() != "Parameter"
    if channel_length is None:
        whole, picked = _whole_tails(_channels_last(output) if image else output, length, modes)
        return TailOutputs(whole, None, picked)
    columns = _columns(output)
    positions, channels = columns.get_shape()
    if image and length is not None and (channel_length == 1 or positions * channels >= LONG):
        cell = _cell(positions, channels, length, channel_length)
        if cell >= LEAST_CELL:
            return _both(columns, cell, length, channel_length, modes)
    whole, picked = _whole_tails(columns if image else output, length, modes)
    return TailOutputs(whole, _channel_tails(columns, channel_length, modes), picked)


def _ends(outputs: Sequence[ov.Output]) -> Ends:
    return (outputs[0] if len(outputs) == 2 else None), outputs[-1]


def _lowest(values: ov.Node, axes: int | Sequence[int]) -> ov.Node:
    return op.reduce_min(values, np.array(axes), False)


def _highest(values: ov.Node, axes: int | Sequence[int]) -> ov.Node:
    return op.reduce_max(values, np.array(axes), False)


EXTREMES = {"min": _lowest, "max": _highest}


def _channels_last(output: ov.Output) -> ov.Output:
    return op.transpose(output, np.array([0, *range(2, len(output.get_shape())), 1])).output(0)


def _columns(output: ov.Output) -> ov.Output:
    """[n, C], the values of each channel (axis 1). One node reads the transposed tensor: for several it would be copied."""
    return op.reshape(_channels_last(output), np.array([-1, output.get_shape()[1]]), False).output(0)


def _whole_tails(values: ov.Output, length: int | None, modes: Sequence[str]) -> tuple[Ends | None, ov.Output | None]:
    """The tails of a whole tensor, and some of its values."""
    if length is None:
        return None, None
    size = math.prod(values.get_shape())
    if length > 1 and size <= max(FEW, 2 * length):
        return _ends([op.reshape(values, np.array([-1]), False).output(0)] * len(modes)), None
    table = op.reshape(values, np.array([_cell(size, 1, length), -1]), False)
    return _ends([_of_best_cells(table, EXTREMES[mode](table, 0), length, mode) for mode in modes]), _picked(table)


def _picked(table: ov.Node) -> ov.Output:
    """Some of a table's values. Of the table that is searched, as another view of the tensor might be copied together."""
    flat = op.reshape(table, np.array([-1]), False)
    return op.gather(flat, picked_places(flat.get_output_shape(0)[0]), np.int64(0)).output(0)


def _channel_tails(columns: ov.Output, length: int, modes: Sequence[str]) -> Ends:
    count, channels = columns.get_shape()
    if length == 1:
        return _ends([op.unsqueeze(EXTREMES[mode](columns, 0), np.int64(1)).output(0) for mode in modes])
    if count < 8 * length:
        return _ends([op.transpose(columns, np.array([1, 0])).output(0)] * len(modes))
    table = op.reshape(columns, np.array([_cell(count, channels, channel_length=length), -1]), False)
    return _ends([_of_best_cells_per_channel(table, EXTREMES[mode](table, 0), channels, length, mode) for mode in modes])


def _both(columns: ov.Output, cell: int, length: int, channel_length: int, modes: Sequence[str]) -> TailOutputs:
    """Tails of the whole tensor [n, C] and per channel: each value is read once for both."""
    table = op.reshape(columns, np.array([cell, -1]), False)  # each cell is of one channel
    whole, by_channel = [], []
    for mode in modes:
        extremes = EXTREMES[mode](table, 0)
        whole.append(_of_best_cells(table, extremes, length, mode))
        by_channel.append(_of_best_cells_per_channel(table, extremes, columns.get_shape()[1], channel_length, mode))
    return TailOutputs(_ends(whole), _ends(by_channel), _picked(table))


def _cell(count: int, channels: int, length: int | None = None, channel_length: int = 1) -> int:
    """How many of a channel's `count` values make a cell.

    With large ones there are few cells to search, with small ones few values in those that are left. Where a channel has so
    many values that none of the possible sizes divides them, that is 1.
    """
    left = BALANCE * max(length, HEAP) if length is not None else 0
    if channel_length > 1:
        left += channel_length * channels
    return min((cell for cell in range(1, LARGEST_CELL + 1) if count % cell == 0), key=lambda cell: count * channels // cell + left * cell)


def _of_best_cells(table: ov.Node, extremes: ov.Node, length: int, mode: str) -> ov.Output:
    """The most extreme values of a table [g, R], whose columns have these `extremes` [R]."""
    if length == 1:
        return EXTREMES[mode](extremes, 0).output(0)
    picked = max(length, HEAP)
    if picked <= extremes.get_output_shape(0)[0] // 2:
        table = op.gather(table, op.topk(extremes, np.int64(picked), 0, mode, "none").output(1), np.int64(1))
    left = op.reshape(table, np.array([-1]), False)
    if left.get_output_shape(0)[0] <= max(FEW, 2 * picked):
        return left.output(0)
    return op.topk(left, np.int64(picked), 0, mode, "none").output(0)


def _of_best_cells_per_channel(table: ov.Node, extremes: ov.Node, channels: int, length: int, mode: str) -> ov.Output:
    """[C, n] for each of the `channels` C the most extreme values of a table [g, R * C], whose columns have these `extremes`."""
    extremes = op.reshape(extremes, np.array([-1, channels]), False)
    if length == 1:
        return op.unsqueeze(EXTREMES[mode](extremes, 0), np.int64(1)).output(0)
    if table.get_output_shape(0)[0] > 1 and length < extremes.get_output_shape(0)[0]:
        places = op.topk(extremes, np.int64(length), 0, mode, "none", "i32").output(1)  # [n, C], of R
        cells = op.add(op.multiply(places, np.int32(channels)), np.arange(channels, dtype=np.int32))
        table = op.gather(table, op.reshape(cells, np.array([-1]), False), np.int64(1))
    best = op.topk(op.reshape(table, np.array([-1, channels]), False), np.int64(length), 0, mode, "none").output(0)
    return op.transpose(best, np.array([1, 0])).output(0)
