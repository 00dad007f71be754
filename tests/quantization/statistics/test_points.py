"""What is collected, and what follows from it."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import pytest
from hypothesis import given, settings
from openvino import opset13 as op

from stages.configuration import schema
from stages.quantization.model.graph import Port, read_graph
from stages.quantization.model.signs import is_non_negative
from stages.quantization.placement.plan import TensorName
from stages.quantization.statistics.points import Points, mean_is_linear, statistics_points
from tests.quantization.quantizing import plan_of, statistics_of, tensor
from tests.quantization.random_models import models
from tests.quantization.reference_runs import target
from tests.quantization.small import constant, convolution, images, matmul, model, named, parameter, random


def points_of(tested: ov.Model, every_channel: bool = False) -> Points:
    return statistics_points(read_graph(tested), target(), every_channel, pot_compatible=True)


def names(ports: list[Port]) -> list[str]:
    return [port.node.name for port in ports]


def test_the_inputs_of_layers_and_where_quantizers_move() -> None:
    x = parameter()
    relu = named(op.relu(convolution(x, random(3, 3, 1, 1), "first")), "relu")
    flat = named(op.concat([named(op.split(relu, np.int64(1), 3), "split").output(0), relu], 1), "joined")
    found = points_of(model(convolution(flat, random(3, 4, 1, 1), "second"), x))
    assert names(found.tensors) == ["x", "relu", "split", "joined"]
    assert [node.name for node in found.inputs] == ["first", "second"]
    assert found.perchannel == [] and found.pairs == []


def test_channels_of_depthwise_inputs_only_unless_asked() -> None:
    x = parameter()
    depthwise = convolution(named(op.relu(x), "relu"), random(3, 1, 1, 3, 3), "depthwise")
    tested = model(matmul(named(op.reshape(op.exp(depthwise), np.array([108]), False), "vector"), random(108, 4)), x)
    assert names(points_of(tested).perchannel) == ["relu"]
    assert "vector" not in names(points_of(tested, every_channel=True).perchannel)


def test_means_that_follow_from_others_are_not_collected() -> None:
    x = parameter()
    cases: dict[str, tuple[np.ndarray, dict[str, Any], bool]] = {
        "pointwise": (random(3, 3, 1, 1), {}, True),
        "padded": (random(3, 3, 1, 1), {"pads_begin": [1]}, False),
        "strided": (random(3, 3, 1, 1), {"strides": [2]}, False),
        "wide": (random(3, 3, 3, 1), {}, False),
        "grouped": (random(3, 1, 1, 1, 1), {}, True),
    }
    tested = model([convolution(x, weights, name, **attributes) for name, (weights, attributes, _) in cases.items()], x)
    graph = read_graph(tested)
    assert {name: mean_is_linear(graph.by_name[name]) for name in cases} == {name: linear for name, (*_, linear) in cases.items()}
    assert sorted(node.name for node in points_of(tested).outputs) == ["padded", "strided", "wide"]
    assert statistics_points(read_graph(tested), target()).outputs == []  # but for POT's own bias correction
    assert mean_is_linear(read_graph(model(matmul(x, random(8, 2)), x)).by_name["matmul"])


def scaled_and_shifted(x: ov.Node, offset: float) -> ov.Node:
    """-0.5 · sigmoid(x) + offset, with layers that read each step."""
    start = named(op.sigmoid(x), "start")
    scaled = named(op.multiply(constant(-0.5, "factor"), start), "scaled")
    shifted = named(op.add(scaled, constant(np.full((1, 1, 1, 1), offset), "term")), "shifted")
    tensors = (start, scaled, shifted, op.reshape(shifted, np.array([1, 8, 8, 3]), False))
    return op.concat(
        [op.reshape(convolution(t, random(1, t.get_output_shape(0)[1], 1, 1), f"c{i}"), [1, -1], False) for i, t in enumerate(tensors)], 1
    )


@pytest.mark.parametrize("offset", [0.25, 3.0, -7.9])
def test_derived_tensors_equal_those_collected(offset: float) -> None:
    x = parameter()
    tested = model(scaled_and_shifted(x, offset), x)
    found = points_of(tested)
    assert names(found.tensors) == ["shifted"]  # nothing else is
    samples = images(3)
    statistics = statistics_of(tested, samples, probabilities=[0.01])
    for name in ("start", "scaled", "shifted"):
        low, high, size = statistics.tails(TensorName(name, 0))
        assert list(size) == [192] * 3
        for position, values in enumerate(tensor(tested, name, samples)):
            ordered = np.sort(values, axis=None)
            np.testing.assert_allclose(low[position], ordered[: low.shape[1]], atol=1e-6)
            np.testing.assert_allclose(high[position], ordered[::-1][: high.shape[1]], atol=1e-6)


def test_an_offset_that_would_cost_precision_is_not_undone() -> None:
    x = parameter()
    assert names(points_of(model(scaled_and_shifted(x, 100.0), x)).tensors) == ["scaled", "shifted"]


def test_factors_that_cannot_be_undone() -> None:
    x = parameter()
    for factor in (0.0, np.inf, np.nan):
        start = named(op.exp(x), "start")
        end = named(op.multiply(start, constant(factor, "factor")), "end")
        assert names(points_of(model([convolution(t, random(1, 3, 1, 1), f"c{i}") for i, t in enumerate((start, end))], x)).tensors) == [
            "start",
            "end",
        ]


@given(models())
@settings(max_examples=40, deadline=None)
def test_statistics_hold_all_that_any_plan_needs(tested: ov.Model) -> None:
    found = points_of(tested)
    stored = {(port.node.name, port.index) for port in (*found.tensors, *found.derived)}
    channels = {(port.node.name, port.index) for port in found.perchannel}
    configs: list[dict[str, Any]] = [{}, {"preset": "mixed"}, {"model_type": "transformer"}, {"pot_compatible": True}]
    for config in configs:
        for quantizer in plan_of(tested, **config).quantizers:
            if quantizer.kind == "activations":
                assert quantizer.source in stored
                assert quantizer.channel_axis is None or quantizer.source in channels
    perchannel = plan_of(tested, activations=schema.Scheme(granularity="perchannel"), allow_unsupported=True)
    every = {(port.node.name, port.index) for port in points_of(tested, every_channel=True).perchannel}
    assert all(q.source in every for q in perchannel.quantizers if q.kind == "activations" and q.channel_axis is not None)


def test_what_is_never_negative() -> None:
    x = parameter()
    relu = op.relu(x)
    for index, (node, expected) in enumerate(
        (
            (relu, True),
            (op.clamp(x, 0.0, 6.0), True),
            (op.clamp(x, -1.0, 6.0), False),
            (op.concat([relu, op.sigmoid(x)], 1), True),
            (op.concat([relu, x], 1), False),
            (op.add(relu, relu), False),
        )
    ):
        graph = read_graph(model(named(node, f"tested{index}"), x))
        assert is_non_negative(Port(graph.by_name[f"tested{index}"], 0)) == expected
