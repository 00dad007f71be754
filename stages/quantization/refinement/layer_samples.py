"""What layer-wise tuning learns from: inputs and floating-point outputs of layers at sampled output positions.

A row is one output position of a layer: the patch of its input that the position is computed from, and the output there
over all channels. A few rows per calibration sample replace whole feature maps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.quantization.model.weights import Layout
from stages.quantization.solution.biases import padding

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Rows:
    """Sampled rows of one layer with G groups of I/G input and O/G output channels, and T kernel taps (1 for MatMul).

    Attributes:
        inputs: [G, N, I/G, T]; taps that fall beside the input are zero, as padding is.
        outputs: [G, N, O/G], of the floating-point model, with the bias.
        sample: [N], the calibration sample that a row is from.
    """

    inputs: Array
    outputs: Array
    sample: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.sample)

    def take(self, rows: NDArray[np.integer] | NDArray[np.bool_]) -> Rows:
        """Some of the rows."""
        return Rows(self.inputs[:, rows], self.outputs[:, rows], self.sample[rows])

    def within(self, limit: np.float32) -> NDArray[np.bool_]:
        """[N]: the rows without values of that magnitude."""
        inputs, outputs = ((np.abs(values) < limit) for values in (self.inputs, self.outputs))
        return np.asarray(inputs.all(axis=(0, 2, 3)) & outputs.all(axis=(0, 2)))


def joined(parts: list[Rows]) -> Rows:
    """The rows of all parts, in their order."""
    return Rows(
        np.concatenate([part.inputs for part in parts], axis=1),
        np.concatenate([part.outputs for part in parts], axis=1),
        np.concatenate([part.sample for part in parts]),
    )


def held_out(rows: Rows) -> NDArray[np.bool_]:
    """[N]: the rows of the last fifth of the samples (of the rows, where all are of one sample), at least one.

    All of them are held out, and none is left to learn from, where there is only one row.
    """
    _, group = np.unique(rows.sample, return_inverse=True)
    if group.max(initial=0) == 0:
        group = np.arange(len(rows))
    count = int(group.max(initial=0)) + 1
    return group >= count - max(1, count // 5)


def positions(layout: Layout, output: NDArray[np.floating]) -> int:
    """How many output positions a layer's output tensor has."""
    return output.size // layout.outputs


def row_bytes(layout: Layout) -> int:
    """Size of one row in memory."""
    patch = layout.groups * math.prod(layout.shape) // layout.outputs
    return 4 * (patch + layout.outputs)


def rows_at(layout: Layout, source: NDArray[np.floating], output: NDArray[np.floating], places: NDArray[np.integer], sample: int) -> Rows:
    """The rows at some output positions of one sample.

    Args:
        source: the layer's data input, [N, I, spatial...] for convolutions.
        output: what the layer is to give, in the shape of its output.
        places: flat numbers of output positions, channels left out, below `positions`.
        sample: number of the sample.
    """
    if layout.node.type == "MatMul":
        patches, wanted = _matmul_rows(layout, source, output, places)
    else:
        patches, wanted = _convolution_rows(layout, source, output, places)
    count, groups = len(places), layout.groups
    patches = patches.reshape(count, groups, -1, patches.shape[-1]).transpose(1, 0, 2, 3)
    wanted = wanted.reshape(count, groups, -1).transpose(1, 0, 2)
    return Rows(np.ascontiguousarray(patches, np.float32), np.ascontiguousarray(wanted, np.float32), np.full(count, sample, np.int64))


def _matmul_rows(
    layout: Layout, source: NDArray[np.floating], output: NDArray[np.floating], places: NDArray[np.integer]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """[rows, I, 1] and [rows, O]."""
    if layout.node.attributes()["transpose_a"]:
        source = source.swapaxes(-1, -2)
    return source.reshape(-1, source.shape[-1])[places][..., None], output.reshape(-1, layout.outputs)[places]


def _convolution_rows(
    layout: Layout, source: NDArray[np.floating], output: NDArray[np.floating], places: NDArray[np.integer]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """[rows, I, taps] and [rows, O]."""
    attributes, kernel = layout.node.attributes(), layout.kernel
    batch, *place = np.unravel_index(places, (output.shape[0], *output.shape[2:]))
    indices, inside = [], np.ones((len(places), *[1] * len(kernel)), np.bool_)
    for axis, size in enumerate(kernel):
        length, stride, dilation = source.shape[2 + axis], attributes["strides"][axis], attributes["dilations"][axis]
        before, _ = padding(attributes, axis, length, size, stride, dilation)
        index = place[axis][:, None] * stride - before + np.arange(size) * dilation
        spread = [len(places), *(size if other == axis else 1 for other in range(len(kernel)))]
        inside = inside & ((index >= 0) & (index < length)).reshape(spread)
        indices.append(np.clip(index, 0, length - 1).reshape(spread))
    batch = batch.reshape(-1, *[1] * len(kernel))
    # Indices around the channels' slice: their axes come first, [rows, kernel..., I].
    around: tuple[Any, ...] = (batch, slice(None), *indices)
    patches = source[around] * inside[..., None]
    patches = np.moveaxis(patches, -1, 1)
    at: tuple[Any, ...] = (batch.reshape(-1), slice(None), *place)
    return patches.reshape(*patches.shape[:2], -1), output[at]
