"""Means per channel, over the samples that have values."""

from __future__ import annotations

from collections import Counter

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as op

from stages.common.errors import UserError
from stages.quantization.model.graph import Port
from stages.quantization.statistics.masks import BEYOND

Array = NDArray[np.float64]


def channel_mean(port: Port, channel_axis: int, element_type: ov.Type | None = None) -> tuple[ov.Output, bool]:
    """The mean over all axes but the channel's, and whether it is marked: with it goes whether there is anything to take a mean of.

    Tensors of dynamic size may be empty, and their means are marked. element_type: compute in this type.
    """
    shape = port.node.shapes[port.index]
    if shape is None:
        raise UserError(f"{port.node}: a tensor of unknown rank cannot be quantized; give model.input_shape")
    axes = np.array([axis for axis in range(len(shape)) if axis != channel_axis % len(shape)], dtype=np.int64)
    source = port.node.operation.output(port.index)
    if element_type is not None and source.get_element_type() != element_type:
        source = op.convert(source, element_type.to_string()).output(0)
    mean = op.reduce_mean(source, axes, False)
    if -1 not in shape:
        return mean.output(0), False
    some = op.greater(op.reduce_prod(op.shape_of(source), np.array([0]), True), np.int64(0))
    return op.concat([mean, op.convert(some, mean.get_element_type().to_string())], 0).output(0), True


class Means:
    """Means over samples, by name of what they are of.

    Samples without values are left out, and those with values that stand for infinity: where a model takes the largest of
    nothing, for example.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Array] = {}
        self._counts: Counter[str] = Counter()

    def add(self, name: str, position: int, values: NDArray[np.floating], *, marked: bool) -> None:
        """The values [n, C] of the n samples from a position on; marked: with one more, which says whether there are any.

        Raises:
            UserError: they are infinite, or no numbers.
        """
        filled = values[:, -1] > 0 if marked else np.ones(len(values), np.bool_)
        values = values[:, :-1] if marked else values
        # Reductions pass over a NaN; a mean does not.
        finite = np.isfinite(values).all(axis=1)
        if (wrong := np.flatnonzero(filled & ~finite)).size:
            raise UserError(f"the model computes values that are not finite at {name} for calibration sample {position + int(wrong[0])}")
        filled &= (np.abs(values) < BEYOND).all(axis=1)
        if not filled.any():
            return
        total = self._sums.setdefault(name, np.zeros(values.shape[1:]))
        for value in values[filled]:  # one by one: the sum must not depend on how many come together
            total += value
        self._counts[name] += int(np.count_nonzero(filled))

    def value(self) -> dict[str, Array]:
        """By name; nothing where no sample has values."""
        return {name: total / self._counts[name] for name, total in self._sums.items()}
