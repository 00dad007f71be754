"""ActivationChannelAlignment: equalise the ranges of channels between a convolution and the 1x1 convolution after it.

Only the outputs of the first convolution are shifted and scaled, so everything that statistics say about the tensor
between the two follows by arithmetic (pot_behaviour.md section 6).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.quantization.graph import Graph, Node, Port, bias_add, bias_constant_port, constant_value
from stages.quantization.weights import weight_layout

TAIL = 1e-4  # per-channel quantiles of one sample that count as its range
SMALLEST_SCALE, LARGEST_SCALE = 0.01, 100.0

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Alignment:
    """What is subtracted from, and then divided out of, each channel between two convolutions [C]."""

    shift: Array
    scale: Array


def alignment_pairs(graph: Graph) -> list[tuple[Node, Node]]:
    """Pairs (first, second): a 1x1 convolution fed by nothing but a convolution or MatMul, with no activation between."""
    pairs = []
    for second in sorted(graph.of_type(["Convolution"]), key=lambda node: node.name):
        if weight_layout(second) is None or not _is_pointwise(second):
            continue
        first = _feeding_layer(second)
        if first is not None:
            pairs.append((first, second))
    return pairs


def aligned_port(second: Node) -> Port:
    """The tensor between the two operations of a pair."""
    return second.inputs[0]


def _is_pointwise(node: Node) -> bool:
    """Exact under a shift of its input: no padding. POT also asks for stride and dilation 1."""
    attributes = node.attributes()
    padded = any([*attributes["pads_begin"], *attributes["pads_end"]]) or attributes.get("auto_pad", "explicit") not in ("explicit", "valid")
    return not padded and all(value == 1 for value in [*attributes["strides"], *attributes["dilations"]])


def _feeding_layer(second: Node) -> Node | None:
    port = second.inputs[0]
    if len(port.node.consumers[port.index]) != 1:
        return None
    first = port.node
    if first.type == "Add":
        if first.inputs[0].node.constant or not first.inputs[1].node.constant:
            return None
        first = first.inputs[0].node
        if bias_add(first) is not port.node:
            return None
    return first if weight_layout(first) is not None else None


def bias_values(node: Node) -> Array | None:
    """The bias of a weighted operation as [C], or None without one (or with one that is not one value per channel)."""
    add = bias_add(node)
    if add is None:
        return None
    port = add.inputs[bias_constant_port(add)]
    constant = port.node
    while constant.type == "Convert":
        constant = constant.inputs[0].node
    layout = weight_layout(node)
    if constant.type != "Constant" or layout is None:
        return None
    value = constant_value(constant)
    return value.astype(np.float64).reshape(-1) if value.size == layout.outputs else None


def compute_alignment(low: Array, high: Array, can_shift: bool) -> Alignment:
    """Shift and scale per channel from the channels' tail quantiles per sample, low and high [N, C].

    The median over the samples counts. can_shift: both operations have a bias to take the shift.
    """
    low, high = np.median(low, axis=0), np.median(high, axis=0)
    shift = (low + high) / 2 if can_shift else np.zeros_like(low)
    spread = high - low
    if not np.any(spread > 0):
        return Alignment(shift, np.ones_like(spread))
    scale = spread / np.median(spread[spread > 0])
    scale[spread <= 0] = 1.0
    return Alignment(shift, np.clip(scale, SMALLEST_SCALE, LARGEST_SCALE))
