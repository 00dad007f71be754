"""Nodes that find the lowest and highest values of a tensor where it is computed, without bringing it to Python.

Few candidates leave the graph: the tensor is cut into groups, each extreme value lies in one of the groups with the most
extreme extremes, and so all other groups are left behind. What is exactly the tail is picked from them by `tails.extremes`.
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
    shape = list(output.get_shape())
    from_outside = output.get_node().get_type_name() == "Parameter"
    whole = channels = None
    if channel_length == 1 and length is not None and len(shape) in (4, 5) and not from_outside:
        return _both(output, length, modes)
    if channel_length is not None:
        channels = _channel_tails(output, channel_length, modes)
    if length is not None:
        # What comes from outside comes as it is.
        last = _channels_last(output) if len(shape) in (4, 5) and not from_outside else output
        rows = op.reshape(last, np.array([-1, _width(math.prod(shape), length)]), False)
        whole = _ends([_best_rows(rows, EXTREMES[mode](rows, 1), length, mode) for mode in modes])
    return Found(whole, channels)


def _ends(outputs: Sequence[ov.Output]) -> Ends:
    return (outputs[0] if len(outputs) == 2 else None), outputs[-1]


def _lowest(values: ov.Node, axis: int) -> ov.Node:
    return op.reduce_min(values, np.array([axis]), False)


def _highest(values: ov.Node, axis: int) -> ov.Node:
    return op.reduce_max(values, np.array([axis]), False)


EXTREMES = {"min": _lowest, "max": _highest}


def _best_rows(rows: ov.Node, extremes: ov.Node, length: int, mode: str) -> ov.Output:
    """The values of the `length` rows with the most extreme `extremes` [R] of rows [R, ...], or all if that saves little."""
    if length == 1:
        return EXTREMES[mode](extremes, 0).output(0)
    if length >= extremes.get_output_shape(0)[0] // 2:
        return rows.output(0)
    return op.gather(rows, op.topk(extremes, np.int64(length), 0, mode, "none").output(1), np.int64(0)).output(0)


def _both(output: ov.Output, length: int, modes: Sequence[str]) -> Found:
    """Tails of the whole tensor, and minimum and maximum per channel: each value is read once for both."""
    last = _channels_last(output)
    size, channels = math.prod(last.get_shape()), last.get_shape()[-1]
    groups = op.reshape(last, np.array([-1, _width(size, length, channels) // channels, channels]), False)
    whole, by_channel = [], []
    for mode in modes:
        reduced = EXTREMES[mode]
        of_groups = reduced(groups, 1)  # [R, C]
        whole.append(_best_rows(groups, reduced(of_groups, 1), length, mode))
        by_channel.append(op.unsqueeze(reduced(of_groups, 0), np.int64(1)).output(0))
    return Found(_ends(whole), _ends(by_channel))


def _channel_tails(output: ov.Output, length: int, modes: Sequence[str]) -> Ends:
    channels = output.get_shape()[1]
    columns = op.reshape(_channels_last(output), np.array([-1, channels]), False)
    count = columns.get_output_shape(0)[0]
    group = max(group for group in range(1, count + 1) if group == 1 or (count % group == 0 and group * group * length <= count))
    ends = []
    for mode in modes:
        reduced = EXTREMES[mode]
        if length == 1:
            ends.append(op.unsqueeze(reduced(columns, 0), np.int64(1)).output(0))
            continue
        best: ov.Node = columns
        if group > 1:
            groups = op.reshape(columns, np.array([-1, group, channels]), False)
            places = op.topk(reduced(groups, 1), np.int64(length), 0, mode, "none").output(1)
            spread = op.broadcast(op.unsqueeze(places, np.int64(1)), np.array([length, group, channels]))
            best = op.reshape(op.gather_elements(groups, spread, 0), np.array([-1, channels]), False)
        values = op.topk(best, np.int64(length), 0, mode, "none").output(0)
        ends.append(op.transpose(values, np.array([1, 0])).output(0))
    return _ends(ends)


def _channels_last(output: ov.Output) -> ov.Output:
    rank = len(output.get_shape())
    return op.transpose(output, np.array([0, *range(2, rank), 1])).output(0)


def _width(size: int, length: int, unit: int = 1) -> int:
    """How long rows are, a multiple of `unit`: both searches are short, among the rows and within those that are left."""
    best = math.sqrt(size / length)
    widths = [width for width in range(unit, int(best) + 1, unit) if size % width == 0]
    return max([width for width in widths if width % VECTOR == 0] or widths, default=unit)
