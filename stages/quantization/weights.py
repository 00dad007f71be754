"""The weights of a layer in one shape for all layouts: [output channels, input channels per group, kernel...]."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.quantization.graph import Node, constant_value, weight_constant

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Layout:
    """How a weighted operation stores its weights, and how to get to the common shape and back."""

    node: Node
    constant: Node
    stored: tuple[int, ...]  # shape of the Constant
    groups: int
    transposed: bool  # stored as [input, output], MatMul with transpose_b=false

    def canonical(self, value: NDArray[np.floating]) -> Array:
        """[O, I/G, kernel...] from the stored shape."""
        value = value.astype(np.float32, copy=False)
        if self.transposed:
            return value.T
        if self.groups > 1 or self.node.type == "GroupConvolution":
            kernel = self.kernel
            return value.reshape(-1, math.prod(self.stored) // math.prod((self.outputs, *kernel)), *kernel)
        return value

    def restored(self, canonical: Array) -> Array:
        """The stored shape from [O, I/G, kernel...]."""
        return np.ascontiguousarray(canonical.T if self.transposed else canonical.reshape(self.stored))

    @property
    def kernel(self) -> tuple[int, ...]:
        """Spatial size of the kernel; empty for MatMul."""
        if self.node.type == "MatMul":
            return ()
        leading = 3 if self.node.type == "GroupConvolution" else 2
        shape = self.node.inputs[1].node.shapes[self.node.inputs[1].index] or ()
        return tuple(shape[leading:])

    @property
    def outputs(self) -> int:
        """Number of output channels."""
        if self.node.type == "MatMul":
            return self.stored[1] if self.transposed else self.stored[0]
        shape = self.node.inputs[1].node.shapes[self.node.inputs[1].index] or ()
        return shape[0] * shape[1] if self.node.type == "GroupConvolution" else shape[0]

    def value(self) -> Array:
        """The floating-point weights as [O, I/G, kernel...]."""
        return self.canonical(constant_value(self.constant))


def weight_layout(node: Node) -> Layout | None:
    """The layout of a Convolution, GroupConvolution or MatMul with constant weights on port 1; None for anything else.

    MatMul: 2-D weights only; weights of more dimensions are a batch of matrices.
    """
    if node.type not in ("Convolution", "GroupConvolution", "MatMul"):
        return None
    constant = weight_constant(node.inputs[1])
    if constant is None or node.inputs[0].node.constant:
        return None
    stored = tuple(constant.shapes[0] or ())
    if node.type == "MatMul":
        if len(stored) != 2 or constant_changes_shape(node):
            return None
        return Layout(node, constant, stored, 1, transposed=not node.attributes()["transpose_b"])
    shape = node.inputs[1].node.shapes[node.inputs[1].index] or ()
    return Layout(node, constant, stored, shape[0] if node.type == "GroupConvolution" else 1, transposed=False)


def constant_changes_shape(node: Node) -> bool:
    """Whether a Reshape stands between a MatMul and its constant weights."""
    port = node.inputs[1]
    constant = weight_constant(port)
    return constant is not None and constant.shapes[0] != port.node.shapes[port.index]
