"""Nodes that find the lowest and highest values of a tensor where it is computed, without bringing it to Python.

The tensor is cut into groups, each extreme value lies in one of the groups with the most extreme extremes, and so all other
groups are left behind. What leaves the graph is a little more than the tail, which `tails.extremes` picks from it.
Images go channels last: that is how the CPU computes them, and another order would have to be copied together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import openvino as ov
from openvino import opset13 as op

VECTOR = 16  # values that the CPU compares at once
LONG = 2**17  # values that are too many to be read twice
GROUP = 8  # positions of an image whose channels are then compared first
HEAP = 7  # for at least so many values along the last axis TopK keeps a heap; for fewer it takes ten times as long
FEW = 2**10  # values that may as well leave the graph
SHORT = 2**13  # what TopK searches as it is: not worth the cutting into groups
Ends = tuple[ov.Output | None, ov.Output]  # lowest (None: not searched for), highest


class Found(NamedTuple):
    """Where the lowest and highest values leave the graph: one output twice where all values of the tensor leave."""

    whole: Ends | None  # of the whole tensor
    channels: Ends | None  # [C, n], per channel (axis 1)


def find_tails(output: ov.Output, length: int | None, channel_length: int | None, lowest: bool = True) -> Found:
    """Search a tensor of static shape for its tails of `length` values, and per channel of `channel_length`; None: neither.

    lowest: search for the lowest values, too.
    """
    modes = ("min", "max") if lowest else ("max",)
    # What comes from outside comes as it is.
    channels_last = len(output.get_shape()) in (4, 5) and output.get_node().get_type_name() != "Parameter"
    columns = _columns(output) if channels_last or channel_length is not None else output
    if channel_length == 1 and length is not None and channels_last:
        return _both(columns, length, modes)
    channels = _channel_tails(columns, channel_length, modes) if channel_length is not None else None
    whole = _whole_tails(columns if channels_last else output, length, modes) if length is not None else None
    return Found(whole, channels)


def _ends(outputs: Sequence[ov.Output]) -> Ends:
    return (outputs[0] if len(outputs) == 2 else None), outputs[-1]


def _lowest(values: ov.Node, axes: int | Sequence[int]) -> ov.Node:
    return op.reduce_min(values, np.array(axes), False)


def _highest(values: ov.Node, axes: int | Sequence[int]) -> ov.Node:
    return op.reduce_max(values, np.array(axes), False)


EXTREMES = {"min": _lowest, "max": _highest}


def _whole_tails(values: ov.Output, length: int, modes: Sequence[str]) -> Ends:
    size, picked = math.prod(values.get_shape()), max(length, HEAP)
    if length > 1 and size <= max(SHORT, 2 * picked):
        flat = op.reshape(values, np.array([-1]), False)
        return _ends([_best(flat, picked, mode) for mode in modes])
    rows = op.reshape(values, np.array([-1, _width(size, picked)]), False)
    return _ends([_of_best_rows(rows, EXTREMES[mode](rows, 1), length, mode) for mode in modes])


def _best(values: ov.Node, picked: int, mode: str) -> ov.Output:
    """The `picked` most extreme of values [n] in no order, or all if they are few."""
    if values.get_output_shape(0)[0] <= max(FEW, 2 * picked):
        return values.output(0)
    return op.topk(values, np.int64(picked), 0, mode, "none").output(0)


def _of_best_rows(rows: ov.Node | ov.Output, extremes: ov.Node, length: int, mode: str) -> ov.Output:
    """The most extreme values of the rows with the most extreme `extremes` [R] of rows [R, ...]."""
    if length == 1:
        return EXTREMES[mode](extremes, 0).output(0)
    picked = max(length, HEAP)
    if picked <= extremes.get_output_shape(0)[0] // 2:
        rows = op.gather(rows, op.topk(extremes, np.int64(picked), 0, mode, "none").output(1), np.int64(0))
    return _best(op.reshape(rows, np.array([-1]), False), picked, mode)


def _both(columns: ov.Output, length: int, modes: Sequence[str]) -> Found:
    """Tails of the whole tensor [n, C], and minimum and maximum per channel."""
    positions, channels = columns.get_shape()
    group = max(group for group in range(1, GROUP + 1) if positions % group == 0)
    whole, by_channel = [], []
    for mode in modes:
        reduced = EXTREMES[mode]
        if group == 1 or positions * channels < LONG or length == 1:
            by_channel.append(op.unsqueeze(reduced(columns, 0), np.int64(1)).output(0))
            whole.append(_of_best_rows(columns, reduced(columns, 1), length, mode))
            continue
        # Each value is read once for both. The new axis keeps OpenVINO from merging this reduction with the next ones.
        groups = op.reshape(columns, np.array([-1, group, channels]), False)
        of_groups = op.unsqueeze(reduced(groups, 1), np.int64(2))  # [R, C, 1]
        by_channel.append(reduced(of_groups, 0).output(0))
        whole.append(_of_best_groups(groups, reduced(of_groups, [1, 2]), length, mode))
    return Found(_ends(whole), _ends(by_channel))


def _of_best_groups(groups: ov.Node, extremes: ov.Node, length: int, mode: str) -> ov.Output:
    """The most extreme values of groups [R, g, C] with `extremes` [R]: of the best groups, then of their best positions."""
    count, _, channels = groups.get_output_shape(0)
    picked = max(length, HEAP)
    if picked <= count // 2:
        groups = op.gather(groups, op.topk(extremes, np.int64(picked), 0, mode, "none").output(1), np.int64(0))
    rows = op.reshape(groups, np.array([-1, channels]), False)
    return _of_best_rows(rows, EXTREMES[mode](rows, 1), length, mode)


def _channel_tails(columns: ov.Output, length: int, modes: Sequence[str]) -> Ends:
    count, channels = columns.get_shape()
    group = max(group for group in range(1, count + 1) if group == 1 or (count % group == 0 and group * group * length <= count))
    if length > 1 and count < 8 * length:
        return _ends([op.transpose(columns, np.array([1, 0])).output(0)] * len(modes))
    ends = []
    for mode in modes:
        reduced = EXTREMES[mode]
        if length == 1:
            ends.append(op.unsqueeze(reduced(columns, 0), np.int64(1)).output(0))
            continue
        best: ov.Node | ov.Output = columns
        if group > 1:
            groups = op.reshape(columns, np.array([-1, group, channels]), False)
            places = op.topk(reduced(groups, 1), np.int64(length), 0, mode, "none").output(1)
            spread = op.broadcast(op.unsqueeze(places, np.int64(1)), np.array([length, group, channels]))
            best = op.reshape(op.gather_elements(groups, spread, 0), np.array([-1, channels]), False)
        values = op.topk(best, np.int64(length), 0, mode, "none").output(0)
        ends.append(op.transpose(values, np.array([1, 0])).output(0))
    return _ends(ends)


def _columns(output: ov.Output) -> ov.Output:
    """[n, C], the values of each channel (axis 1). One node reads the transposed tensor: for several it would be copied."""
    rank, channels = len(output.get_shape()), output.get_shape()[1]
    last = op.transpose(output, np.array([0, *range(2, rank), 1]))
    return op.reshape(last, np.array([-1, channels]), False).output(0)


def _width(size: int, length: int) -> int:
    """How long rows are: both searches are short, among the rows and within those that are left."""
    best = math.sqrt(size / length)
    widths = [width for width in range(1, int(best) + 1) if size % width == 0]
    return max([width for width in widths if width % VECTOR == 0] or widths, default=1)
