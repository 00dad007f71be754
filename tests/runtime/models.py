"""Small models made on the spot."""

from __future__ import annotations

import numpy as np
import openvino as ov
from openvino import opset13 as operations


def linear(weights: np.ndarray, name: str = "x") -> ov.Model:
    """[1, n] @ [n, m]: every output can be worked out by hand."""
    x = operations.parameter([1, weights.shape[0]], np.float32, name=name)
    product = operations.matmul(x, operations.constant(weights.astype(np.float32)), False, False)
    product.set_friendly_name("scores")
    return named(ov.Model([product], [x]))


def identity(*shape: int, dtype: type = np.float32, name: str = "x") -> ov.Model:
    """Gives back its input; -1 is a dynamic size."""
    x = operations.parameter(ov.PartialShape(list(shape)), dtype, name=name)
    same = operations.convert(x, ov.Type(dtype)) if dtype is not np.float32 else operations.relu(operations.relu(x))
    same.set_friendly_name("same")
    return named(ov.Model([same], [x]))


def two_inputs() -> ov.Model:
    """Image + tokens: sum over both, [1]."""
    image = operations.parameter([1, 2, 3], np.float32, name="image")
    tokens = operations.parameter([1, -1], np.int64, name="tokens")
    total = operations.add(
        operations.reduce_sum(image, operations.constant([1, 2])),
        operations.reduce_sum(operations.convert(tokens, "f32"), operations.constant([1])),
    )
    total.set_friendly_name("total")
    return named(ov.Model([total], [image, tokens]))


def named(model: ov.Model) -> ov.Model:
    """Give inputs and outputs the tensor names that an importer would give them."""
    for port in model.inputs:
        port.set_names({port.get_node().get_friendly_name()})
    for port in model.outputs:
        port.set_names({port.get_node().input_value(0).get_node().get_friendly_name()})
    return model
