"""The weights and the bias of a layer in one shape for all layouts: [output channels, input channels per group, kernel...]."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.quantization.model.graph import Node, bias_add, bias_constant_port, constant_value, output_channel_axis, weight_constant

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Layout:
    """How a weighted operation keeps its weights, and how to get to the common shape and back."""

    node: Node
    constant: Node
    shape: tuple[int, ...]  # as the operation reads them, after Reshapes between the Constant and the operation
    groups: int
    transposed: bool  # [input, output]: MatMul with transpose_b=false

    @property
    def kernel(self) -> tuple[int, ...]:
        """Spatial size of the kernel; empty for MatMul."""
        leading = {"MatMul": len(self.shape), "GroupConvolution": 3}.get(self.node.type, 2)
        return self.shape[leading:]

    @property
    def outputs(self) -> int:
        """Number of output channels."""
        if self.node.type == "MatMul":
            return self.shape[-1] if self.transposed else self.shape[-2]
        return math.prod(self.shape[:2]) if self.node.type == "GroupConvolution" else self.shape[0]

    def canonical(self, value: NDArray[np.floating]) -> Array:
        """[O, I/G, kernel...] from any shape in which the weights are kept."""
        value = value.astype(np.float32, copy=False).reshape(self.shape)
        if self.node.type == "MatMul":
            value = value.reshape(self.shape[-2:])
            return value.T if self.transposed else value
        return value.reshape(-1, *self.shape[2:]) if self.node.type == "GroupConvolution" else value

    def restored(self, canonical: Array) -> Array:
        """The shape of the Constant from [O, I/G, kernel...]."""
        return np.ascontiguousarray(canonical.T if self.transposed else canonical).reshape(self.constant.shapes[0] or ())

    def value(self) -> Array:
        """The floating-point weights as [O, I/G, kernel...]."""
        return self.canonical(constant_value(self.constant))


def weight_layout(node: Node) -> Layout | None:
    """The layout of a Convolution, GroupConvolution or MatMul with constant weights on port 1; None for anything else.

    None, too, for a batch of matrices as the weights of a MatMul.
    """
    if node.type not in ("Convolution", "GroupConvolution", "MatMul"):
        return None
    port = node.inputs[1]
    constant = weight_constant(port)
    if constant is None or node.inputs[0].node.constant:
        return None
    shape = port.node.shapes[port.index] or ()
    if node.type != "MatMul":
        return Layout(node, constant, shape, shape[0] if node.type == "GroupConvolution" else 1, transposed=False)
    if len(shape) < 2 or math.prod(shape[:-2]) != 1:
        return None
    return Layout(node, constant, shape, 1, transposed=not node.attributes()["transpose_b"])


def bias_values(node: Node) -> NDArray[np.float64] | None:
    """The bias of a layer as [C], or None without one (or with one that is not one value per output channel)."""
    add, layout, rank = bias_add(node), weight_layout(node), len(node.shapes[0] or ())
    if add is None or layout is None or not rank:
        return None
    port = add.inputs[bias_constant_port(add)]
    constant, shape = weight_constant(port), port.node.shapes[port.index] or ()
    channel = output_channel_axis(node) % rank - rank  # from the end, as shapes broadcast
    if constant is None or len(shape) > rank or any(size != 1 for axis, size in enumerate(shape, -len(shape)) if axis != channel):
        return None
    value = constant_value(constant).astype(np.float64).reshape(-1)
    return np.broadcast_to(value, layout.outputs) if value.size in (1, layout.outputs) else None
