"""FastBiasCorrection: give each layer the bias that restores its mean output under quantized weights.

No inference: the mean output of a convolution fed with its mean input is linear in the weights, with each kernel tap
weighted by the share of output positions at which it falls inside the input (pot_behaviour.md section 7.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.quantization.graph import Node
from stages.quantization.weights import Layout

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Correction:
    """The outcome for one layer: its new bias [C] and the largest change, or the reason why it was left alone."""

    name: str
    type: str
    bias: Array | None = None
    largest_shift: float = 0.0
    largest_relative_shift: float | None = None  # of the elements that were not zero
    reason: str | None = None


def mean_output(layout: Layout, weights: NDArray[np.floating], mean_input: Array, input_shape: tuple[int, ...]) -> Array:
    """Mean output per channel [O] (without bias) of a layer whose input channels are constant at `mean_input` [I].

    weights: [O, I/G, kernel...]. input_shape: of the data input, [N, I, spatial...] for convolutions.
    """
    taps = np.ones(1)
    for share in tap_shares(layout.node, layout.kernel, input_shape):
        taps = np.multiply.outer(taps, share).reshape(-1)
    values = np.multiply.outer(mean_input, taps).reshape(layout.groups, -1)
    # Not a matrix product: BLAS would spread this little work over threads and let them spin.
    return np.einsum("goj,gj->go", weights.reshape(layout.groups, -1, values.shape[1]), values).reshape(-1)


def tap_shares(node: Node, kernel: tuple[int, ...], input_shape: tuple[int, ...]) -> list[Array]:
    """Per spatial axis: for each kernel tap the share of output positions at which it falls inside the unpadded input."""
    if not kernel:
        return []
    attributes = node.attributes()
    shares = []
    for axis, size in enumerate(kernel):
        length, stride, dilation = input_shape[2 + axis], attributes["strides"][axis], attributes["dilations"][axis]
        before, after = _padding(attributes, axis, length, size, stride, dilation)
        outputs = (length + before + after - dilation * (size - 1) - 1) // stride + 1
        positions = np.arange(outputs)[:, None] * stride - before + np.arange(size) * dilation
        shares.append(((positions >= 0) & (positions < length)).mean(axis=0))
    return shares


def _padding(attributes: dict[str, Any], axis: int, length: int, size: int, stride: int, dilation: int) -> tuple[int, int]:
    mode = attributes.get("auto_pad", "explicit")
    if mode == "valid":
        return 0, 0
    if mode in ("same_upper", "same_lower"):
        total = max((-(-length // stride) - 1) * stride + dilation * (size - 1) + 1 - length, 0)
        return (total // 2, total - total // 2) if mode == "same_upper" else (total - total // 2, total // 2)
    return attributes["pads_begin"][axis], attributes["pads_end"][axis]


def decide(node: Node, bias: Array | None, corrected: Array, threshold: float, correct_zero_biases: bool) -> Correction:
    """Accept or refuse a new bias [C]. bias: the old one, None for a layer without.

    Refused when an element changes by `threshold` times its old value or more. Elements that are zero have no such
    measure: they are corrected, or (correct_zero_biases false, as POT does) the whole layer is left alone.
    """
    old = np.zeros_like(corrected) if bias is None else bias
    shift = np.abs(corrected - old)
    zero = old == 0
    if not correct_zero_biases and np.any(zero):
        return Correction(node.name, node.type, reason="no bias" if bias is None else "the bias has zero elements")
    relative = float(np.max(shift[~zero] / np.abs(old[~zero]))) if not np.all(zero) else None
    if relative is not None and relative >= threshold:
        return Correction(
            node.name, node.type, reason=f"a bias element would change by {relative:.3g} times its value (threshold {threshold:g})"
        )
    return Correction(node.name, node.type, corrected, float(np.max(shift)), relative)
