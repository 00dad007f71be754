"""FastBiasCorrection: give each layer the bias that restores its mean output under quantized weights.

No inference: the mean output of a convolution fed with its mean input is linear in the weights, with each kernel tap
weighted by the share of output positions at which it falls inside the input (as POT 2023.3).

The shift is what the mean input makes of the weights' error. POT subtracts what it makes of the quantized weights from
the measured mean output instead, which adds an error of its own: the mean input is not the whole input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.configuration import schema
from stages.quantization.model.graph import Node
from stages.quantization.model.weights import Layout

Array = NDArray[np.float64]

FAST_THRESHOLD, ACCURATE_THRESHOLD = 2.0, 1000.0  # POT's


@dataclass(frozen=True)
class Correction:
    """The outcome for one layer: its new bias [C] and the largest change, or the reason why it was left alone."""

    name: str
    type: str
    bias: Array | None = None
    largest_shift: float = 0.0
    largest_relative_shift: float | None = None  # what was compared with the threshold
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
        before, after = padding(attributes, axis, length, size, stride, dilation)
        outputs = (length + before + after - dilation * (size - 1) - 1) // stride + 1
        positions = np.arange(outputs)[:, None] * stride - before + np.arange(size) * dilation
        shares.append(((positions >= 0) & (positions < length)).mean(axis=0))
    return shares


def padding(attributes: dict[str, Any], axis: int, length: int, size: int, stride: int, dilation: int) -> tuple[int, int]:
    mode = attributes.get("auto_pad", "explicit")
    if mode == "valid":
        return 0, 0
    if mode in ("same_upper", "same_lower"):
        total = max((-(-length // stride) - 1) * stride + dilation * (size - 1) + 1 - length, 0)
        return (total // 2, total - total // 2) if mode == "same_upper" else (total - total // 2, total // 2)
    return attributes["pads_begin"][axis], attributes["pads_end"][axis]


def threshold(config: schema.BiasCorrection) -> float:
    """The factor by which a bias may change: the given one, or the algorithm's own."""
    if config.threshold is not None:
        return config.threshold
    return FAST_THRESHOLD if config.use_fast_bias else ACCURATE_THRESHOLD


def decide(node: Node, bias: Array | None, corrected: Array, threshold: float, correct_zero_biases: bool) -> Correction:
    """Accept or refuse a new bias [C]. bias: the old one, None for a layer without.

    Refused when it changes by `threshold` times the layer's largest bias or more; where all are zero, nothing is refused.
    correct_zero_biases false, POT's rule: refused when any element changes by `threshold` times its own old value or
    more, or has none because it is zero. One element near zero is then enough to leave the layer alone.
    """
    old = np.zeros_like(corrected) if bias is None else bias
    shift = np.abs(corrected - old)
    if not correct_zero_biases and np.any(old == 0):
        return Correction(node.name, node.type, reason="no bias" if bias is None else "the bias has zero elements")
    measure = np.max(np.abs(old)) if correct_zero_biases else np.abs(old)
    relative = float(np.max(shift / measure)) if np.all(measure > 0) else None
    if relative is not None and relative >= threshold:
        what = (
            "the bias would change by {:.3g} times its largest value"
            if correct_zero_biases
            else "a bias element would change by {:.3g} times its value"
        )
        return Correction(node.name, node.type, reason=f"{what.format(relative)} (threshold {threshold:g})")
    return Correction(node.name, node.type, corrected, float(np.max(shift)), relative)
