"""The pure-Python view of a model."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from stages.common.errors import UserError
from stages.quantization.model.graph import (
    Graph,
    Node,
    Port,
    bias_add,
    bias_constant_port,
    constant_value,
    input_channel_axis,
    is_depthwise,
    is_padded,
    operation_kind,
    output_channel_axis,
    read_graph,
    walk,
    weight_constant,
)
from stages.quantization.model.weights import bias_values, weight_layout
from tests.quantization.small import constant, convolution, matmul, model, named, parameter, random


def graph_of(output: ov.Node, *inputs: ov.Node) -> Graph:
    return read_graph(model(output, *inputs))


def test_edges_lead_both_ways_in_topological_order() -> None:
    x = parameter()
    split = named(op.split(x, np.int64(1), 3), "split")
    graph = graph_of(named(op.add(split.output(2), split.output(2)), "twice"), x)
    twice, producer = graph.by_name["twice"], graph.by_name["split"]
    assert twice.inputs == [Port(producer, 2), Port(producer, 2)]
    assert [[(edge.node.name, edge.index) for edge in edges] for edges in producer.consumers] == [[], [], [("twice", 0), ("twice", 1)]]
    assert [node.order for node in graph.nodes] == list(range(len(graph.nodes)))
    assert all(port.node.order < node.order for node in graph.nodes for port in node.inputs)


def test_shapes_and_types() -> None:
    x, anything = parameter((-1, 3, 8, 8)), named(op.parameter(ov.PartialShape.dynamic(), np.int64), "anything")
    graph = graph_of(named(op.shape_of(op.concat([x, op.relu(x)], 1)), "shape"), x, anything)
    assert graph.by_name["x"].shapes == [(-1, 3, 8, 8)] and graph.by_name["x"].is_float == [True]
    assert graph.by_name["anything"].shapes == [None] and graph.by_name["anything"].is_float == [False]
    assert graph.by_name["shape"].shapes == [(4,)]


def test_what_is_constant_and_what_comes_from_shapes() -> None:
    x = parameter((-1, 3, 8, 8))
    half = named(op.multiply(constant(1.0, "one"), constant(0.5, "half")), "folded")
    shape = named(op.shape_of(x), "shape")
    batch = named(op.gather(shape, np.array([0]), np.int64(0)), "batch")
    target = named(op.concat([batch, op.constant(np.array([-1]))], 0), "target")
    noise = named(op.random_uniform(op.constant(np.array([1])), op.constant(np.float32(0)), op.constant(np.float32(1)), "f32"), "noise")
    flat = named(op.reshape(op.multiply(op.multiply(x, half), noise), target, False), "flat")
    graph = graph_of(flat, x)
    assert {node.name for node in graph.nodes if node.from_shape} == {"shape", "batch", "target"}
    assert graph.by_name["folded"].constant and not graph.by_name["noise"].constant and not graph.by_name["flat"].constant


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "f64"])
def test_the_constant_behind_weights(dtype: str) -> None:
    stored = named(op.constant(np.array([1.5, -2.0, 3.0]), dtype=getattr(ov.Type, dtype)), "stored")
    x = parameter((1, 3))
    read = op.reshape(stored if dtype == "f32" else op.convert(stored, "f32"), np.array([1, 3]), False)
    graph = graph_of(named(op.multiply(x, read), "scaled"), x)
    found = weight_constant(graph.by_name["scaled"].inputs[1])
    assert found is graph.by_name["stored"]
    np.testing.assert_array_equal(constant_value(found), [1.5, -2, 3])
    assert weight_constant(graph.by_name["scaled"].inputs[0]) is None


def test_compressed_weights_are_no_floating_point_constant() -> None:
    x = parameter((1, 3))
    stored = op.convert(constant([1, 2, 3], "stored", np.int8), "f32")
    assert weight_constant(graph_of(named(op.multiply(x, stored), "scaled"), x).by_name["scaled"].inputs[1]) is None


def test_kinds_of_convolutions() -> None:
    x = parameter((1, 4, 8, 8))
    plain, grouped, depthwise, multiplied = (
        graph_of(convolution(x, random(*shape)), x).by_name["conv"]
        for shape in ((6, 4, 3, 3), (2, 3, 2, 3, 3), (4, 1, 1, 3, 3), (4, 2, 1, 3, 3))
    )
    assert [is_depthwise(node) for node in (plain, grouped, depthwise, multiplied)] == [False, False, True, False]
    kinds = [operation_kind(node) for node in (plain, grouped, depthwise, multiplied)]
    assert kinds == ["Convolution", "Convolution", "DepthWiseConvolution", "Convolution"]


def test_padding() -> None:
    x = parameter()
    weights = random(2, 3, 3, 3)
    for expected, attributes in (
        (False, {}),
        (True, {"pads_end": [1]}),
        (True, {"auto_pad": "same_upper"}),
        (False, {"auto_pad": "valid", "pads_begin": [1]}),
    ):
        assert is_padded(graph_of(convolution(x, weights, **attributes), x).by_name["conv"]) is expected


def test_channel_axes() -> None:
    x = parameter((2, 5, 4))
    swapped = graph_of(matmul(x, random(5, 3), transpose_a=True), x).by_name["matmul"]
    plain = graph_of(matmul(x, random(4, 3)), x).by_name["matmul"]
    assert [input_channel_axis(node) for node in (plain, swapped)] == [-1, -2]
    assert [output_channel_axis(node) for node in (plain, swapped)] == [-1, -1]


class TestBias:
    def node(self, output: ov.Node, *inputs: ov.Node) -> Node:
        return graph_of(output, *inputs).by_name["conv"]

    def test_on_either_input(self) -> None:
        x = parameter()
        for order in (1, -1):
            pair = [convolution(x, random(3, 3, 1, 1)), constant(np.arange(3).reshape(1, 3, 1, 1), "values")][::order]
            conv = self.node(named(op.add(*pair), "bias"), x)
            add = bias_add(conv)
            assert add is not None and add.name == "bias"
            assert bias_constant_port(add) == (1 if order == 1 else 0)
            np.testing.assert_array_equal(bias_values(conv), [0, 1, 2])

    def test_not_with_a_second_consumer_or_without_a_constant(self) -> None:
        x = parameter()
        layer = convolution(x, random(3, 3, 1, 1))
        shared = op.concat([op.add(layer, constant(1.0, "one")), layer], 1)
        assert bias_add(self.node(shared, x)) is None
        assert bias_add(self.node(op.add(convolution(x, random(3, 3, 1, 1)), x), x)) is None

    @pytest.mark.parametrize(
        ("shape", "expected"),
        [((1, 8, 1, 1), range(8)), ((8, 1, 1), range(8)), ((1, 1, 1, 1), [0] * 8), ((), [0] * 8), ((8,), None), ((1, 1, 8, 1), None)],
        ids=str,
    )
    def test_is_one_value_per_channel(self, shape: tuple[int, ...], expected: object) -> None:
        """A constant of eight values on the image's width or height is none, though there are eight channels."""
        x = parameter()
        values = constant(np.arange(np.prod(shape, dtype=int)).reshape(shape), "values")
        found = bias_values(self.node(op.add(convolution(x, random(8, 3, 1, 1)), values), x))
        assert found is None if expected is None else found is not None and list(found) == list(expected)  # type: ignore[call-overload]

    def test_of_a_matrix_product_belongs_to_the_last_axis(self) -> None:
        x = parameter((1, 4, 4))
        for shape, expected in (((4,), True), ((1, 4), True), ((4, 1), False)):
            product = matmul(x, random(4, 4), "conv")
            found = bias_values(self.node(op.add(product, constant(np.arange(4).reshape(shape), "values")), x))
            assert (found is not None) is expected


class TestLayout:
    def value(self, output: ov.Node, x: ov.Node, name: str) -> np.ndarray:
        layout = weight_layout(graph_of(output, x).by_name[name])
        assert layout is not None
        stored = constant_value(layout.constant)
        np.testing.assert_array_equal(layout.restored(layout.value()), stored)
        assert layout.outputs == len(layout.value())
        return layout.value()

    def test_convolutions(self) -> None:
        x, weights = parameter((1, 4, 8, 8)), random(6, 4, 3, 2)
        np.testing.assert_array_equal(self.value(convolution(x, weights), x, "conv"), weights)
        grouped = random(2, 3, 2, 3, 3)
        np.testing.assert_array_equal(self.value(convolution(x, grouped), x, "conv"), grouped.reshape(6, 2, 3, 3))

    def test_grouped_weights_behind_a_reshape(self) -> None:
        x, weights = parameter((1, 4, 8, 8)), random(6, 2, 3, 3)
        kernel = op.reshape(constant(weights, "weights"), np.array([2, 3, 2, 3, 3]), False)
        conv = named(op.group_convolution(x, kernel, [1, 1], [0, 0], [0, 0], [1, 1]), "conv")
        np.testing.assert_array_equal(self.value(conv, x, "conv"), weights)

    def test_matrices(self) -> None:
        x, weights = parameter((2, 4)), random(4, 5)
        np.testing.assert_array_equal(self.value(matmul(x, weights), x, "matmul"), weights.T)
        np.testing.assert_array_equal(self.value(matmul(x, weights.T, transpose_b=True), x, "matmul"), weights.T)
        np.testing.assert_array_equal(self.value(matmul(x, weights[None]), x, "matmul"), weights.T)

    def test_others_have_none(self) -> None:
        x = parameter((2, 4))
        batch = graph_of(matmul(x, random(3, 4, 5)), x)
        first = graph_of(named(op.matmul(constant(random(3, 2), "weights"), x, False, False), "matmul"), x)
        assert weight_layout(batch.by_name["matmul"]) is None and weight_layout(first.by_name["matmul"]) is None
        assert weight_layout(batch.by_name["x"]) is None


def test_a_copy_can_be_edited() -> None:
    x = parameter()
    graph = graph_of(named(op.relu(x), "relu"), x)
    copy = graph.copy()
    assert [node.name for node in copy.nodes] == [node.name for node in graph.nodes]
    copy.by_name["relu"].inputs.clear()
    assert graph.by_name["relu"].inputs and copy.by_name["relu"] is not graph.by_name["relu"]


def test_names_must_be_unique() -> None:
    x = parameter()
    with pytest.raises(UserError, match=r"^the model has several operations named twice$"):
        graph_of(named(op.exp(named(op.relu(x), "twice")), "twice"), x)


def test_walk_yields_each_node_once_and_not_the_start() -> None:
    x = parameter()
    left, right = named(op.relu(x), "left"), named(op.exp(x), "right")
    graph = graph_of(named(op.add(left, right), "end"), x)

    def neighbours(node: Node) -> list[Node]:
        return [*node.producers(), *(edge.node for edge in node.all_consumers())]

    assert [node.name for node in walk([graph.by_name["x"]], neighbours)] == ["left", "right", "end", "result0"]


def test_unused_names() -> None:
    x = parameter()
    graph = graph_of(named(op.relu(named(op.relu(x), "a")), "a_"), x)
    assert graph.unused("b") == "b" and graph.unused("a") == "a__"
