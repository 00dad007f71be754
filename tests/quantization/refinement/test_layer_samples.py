"""Sampled rows: from them, weights and bias alone, comes exactly what OpenVINO computes at those output positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from stages.quantization.model.graph import bias_add, read_graph
from stages.quantization.model.weights import Layout, bias_values, weight_layout
from stages.quantization.refinement.layer_samples import Rows, held_out, joined, positions, row_bytes, rows_at
from tests.quantization.quantizing import tensor
from tests.quantization.small import convolution, matmul, model, named, parameter, random

CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "pointwise": ((1, 4, 6, 5), (3, 4, 1, 1), {}),
    "padded, strided": ((1, 4, 7, 9), (3, 4, 3, 3), {"pads_begin": [1, 2], "pads_end": [2, 0], "strides": [2, 3]}),
    "dilated": ((2, 4, 9, 8), (3, 4, 3, 2), {"dilations": [2, 3]}),
    "same_upper": ((1, 4, 7, 8), (3, 4, 4, 3), {"auto_pad": "same_upper", "strides": [2, 2]}),
    "same_lower": ((1, 4, 7, 8), (3, 4, 4, 3), {"auto_pad": "same_lower", "strides": [2, 1]}),
    "grouped": ((1, 4, 6, 5), (2, 3, 2, 3, 3), {"pads_begin": [1], "pads_end": [1]}),
    "depthwise": ((1, 4, 6, 5), (4, 1, 1, 5, 3), {"pads_begin": [2], "pads_end": [2]}),
    "one dimension": ((2, 4, 11), (3, 4, 3), {"pads_begin": [1], "pads_end": [1], "strides": [2]}),
    "three dimensions": ((1, 2, 5, 4, 6), (3, 2, 2, 3, 2), {"pads_begin": [1], "pads_end": [0]}),
}
MATMULS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "matrix": ((5, 4), (4, 3), {}),
    "batch of rows": ((2, 3, 5, 4), (4, 3), {}),
    "transposed weights": ((2, 5, 4), (3, 4), {"transpose_b": True}),
    "transposed input": ((2, 4, 5), (4, 3), {"transpose_a": True}),
    "weights with an axis of one": ((2, 5, 4), (1, 4, 3), {}),
    "vector": ((4,), (4, 3), {}),
}


def checked(tested: ov.Model, shape: tuple[int, ...]) -> tuple[Layout, Rows, np.ndarray]:
    """The layout, all rows of one sample, and what the layer's weights and bias make of them."""
    graph = read_graph(tested)
    node = next(node for node in graph.nodes if node.name == "layer")
    layout, bias = weight_layout(node), bias_values(node)
    assert layout is not None and bias is not None
    source = random(*shape, seed=3)
    [output] = tensor(tested, "layer/biased", [source])
    count = positions(layout, output)
    rows = rows_at(layout, source, output, np.arange(count)[::-1], 7)
    weights = layout.value().reshape(layout.groups, layout.outputs // layout.groups, -1)
    computed = rows.inputs.reshape(layout.groups, count, -1) @ weights.swapaxes(1, 2) + bias.reshape(layout.groups, 1, -1)
    assert bias_add(node) is not None and np.all(rows.sample == 7) and len(rows) == count
    assert rows.inputs.nbytes + rows.outputs.nbytes == count * row_bytes(layout)
    return layout, rows, computed


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str) -> None:
    shape, weights, attributes = CONVOLUTIONS[name]
    x = parameter(shape)
    outputs = int(np.prod(weights[: 1 if len(weights) == len(shape) else 2]))
    layer = convolution(x, random(*weights), "layer", random(outputs, seed=1), **attributes)
    _, rows, computed = checked(model(named(op.relu(layer), "last"), x), shape)
    np.testing.assert_allclose(computed, rows.outputs, atol=1e-5)


@pytest.mark.parametrize("name", MATMULS)
def test_matmuls(name: str) -> None:
    shape, weights, attributes = MATMULS[name]
    x = parameter(shape)
    layer = matmul(x, random(*weights), "layer", random(3, seed=1), **attributes)
    _, rows, computed = checked(model(named(op.relu(layer), "last"), x), shape)
    np.testing.assert_allclose(computed, rows.outputs, atol=1e-5)


def test_rows_are_in_the_order_asked_for() -> None:
    x = parameter((1, 1, 2, 3))
    tested = model(named(op.relu(convolution(x, np.ones((1, 1, 1, 1), np.float32), "layer", np.zeros(1, np.float32))), "last"), x)
    layout = weight_layout(read_graph(tested).by_name["layer"])
    assert layout is not None
    values = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)
    rows = rows_at(layout, values, values * 10, np.array([4, 0, 5]), 0)
    assert rows.inputs.ravel().tolist() == [4, 0, 5] and rows.outputs.ravel().tolist() == [40, 0, 50]


def rows_of(samples: list[int]) -> Rows:
    count = len(samples)
    return Rows(np.arange(count, dtype=np.float32).reshape(1, count, 1, 1), np.zeros((1, count, 1), np.float32), np.array(samples))


@pytest.mark.parametrize(
    ("samples", "aside"),
    [
        ([0, 0, 1, 2, 3, 3, 4, 4], [6, 7]),  # the fifth of five samples
        ([3, 8], [1]),
        ([*range(10)], [8, 9]),
        ([5] * 10, [8, 9]),  # of one sample: rows
        ([5, 5], [1]),
        ([5], [0]),
    ],
)
def test_held_out(samples: list[int], aside: list[int]) -> None:
    assert np.flatnonzero(held_out(rows_of(samples))).tolist() == aside


def test_joined_and_taken() -> None:
    both = joined([rows_of([1, 1]), rows_of([2])])
    assert both.sample.tolist() == [1, 1, 2] and both.inputs.ravel().tolist() == [0, 1, 0]
    assert both.take(np.array([2, 0])).sample.tolist() == [2, 1]
    assert len(both.take(both.sample == 1)) == 2
