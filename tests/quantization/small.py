"""Small models with named operations, and samples for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

IMAGE = (1, 3, 8, 8)


def named(node: ov.Node, name: str) -> ov.Node:
    """The node under a friendly name."""
    node.set_friendly_name(name)
    return node


def parameter(shape: Sequence[int] = IMAGE, name: str = "x", dtype: Any = np.float32) -> ov.Node:
    """A model input; -1 keeps a dimension dynamic."""
    node = named(op.parameter(ov.PartialShape(list(shape)), dtype, name=name), name)
    node.output(0).set_names({name})
    return node


def constant(value: Any, name: str, dtype: Any = np.float32) -> ov.Node:
    """A constant."""
    return named(op.constant(np.asarray(value, dtype)), name)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    """Normally distributed values."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def convolution(source: Any, weights: np.ndarray, name: str = "conv", bias: np.ndarray | None = None, **attributes: Any) -> ov.Node:
    """A convolution (grouped if the weights have one dimension more than its input) with an optional bias [C]."""
    rank = len(source.output(0).get_partial_shape())
    given: dict[str, Any] = {"pads_begin": [0], "pads_end": [0], "strides": [1], "dilations": [1], **attributes}
    lists = {key: value * (rank - 2) if len(value) == 1 else value for key, value in given.items() if key != "auto_pad"}
    create = op.convolution if weights.ndim == rank else op.group_convolution
    kernel = constant(weights, f"{name}/weights")
    arguments = (lists["strides"], lists["pads_begin"], lists["pads_end"], lists["dilations"], given.get("auto_pad", "explicit"))
    node = named(create(source, kernel, *arguments), name)
    if bias is None:
        return node
    values = constant(bias.reshape(1, -1, *[1] * (rank - 2)), f"{name}/bias_values")
    return named(op.add(node, values), f"{name}/biased")


def matmul(source: Any, weights: np.ndarray, name: str = "matmul", bias: np.ndarray | None = None, **attributes: Any) -> ov.Node:
    """A MatMul with constant weights on port 1 and an optional bias [C]."""
    given = {"transpose_a": False, "transpose_b": False, **attributes}
    node = named(op.matmul(source, constant(weights, f"{name}/weights"), given["transpose_a"], given["transpose_b"]), name)
    return node if bias is None else named(op.add(node, constant(bias, f"{name}/bias_values")), f"{name}/biased")


def model(outputs: ov.Node | Sequence[ov.Node], *inputs: ov.Node) -> ov.Model:
    """A model whose outputs carry the tensor names out0, out1, ..."""
    results = []
    for index, node in enumerate([outputs] if isinstance(outputs, ov.Node) else outputs):
        node.output(0).set_names({f"out{index}"})
        results.append(named(op.result(node), f"result{index}"))
    return ov.Model(results, list(inputs))


def images(count: int = 3, shape: Sequence[int] = IMAGE, seed: int = 7) -> list[np.ndarray]:
    """Samples with a different spread each."""
    generator = np.random.default_rng(seed)
    return [(generator.standard_normal(tuple(shape)) * (index + 1)).astype(np.float32) for index in range(count)]
