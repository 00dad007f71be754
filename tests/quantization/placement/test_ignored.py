"""What the configuration excludes by name, by type and attributes, and by the type of the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from stages.common.errors import ConfigError
from stages.configuration import schema
from stages.quantization.model.graph import read_graph
from stages.quantization.placement.ignored import ignored_operations
from tests.quantization.reference_runs import target
from tests.quantization.small import constant, convolution, matmul, model, named, parameter, random


def network() -> ov.Model:
    x = parameter()
    first = convolution(x, random(3, 3, 3, 3), "block/conv1", strides=[2])
    second = convolution(named(op.relu(first), "block/relu"), random(4, 3, 1, 1), "block/conv2")
    flat = op.reshape(second, np.array([1, 36]), False)
    mean = named(op.reduce_mean(matmul(flat, random(36, 2), "head"), np.array([1]), True), "mean")
    return model(named(op.multiply(mean, constant(2.0, "two")), "scaled"), x)


def ignored(device: str = "any", model_type: str = "none", **entries: Any) -> dict[str, str]:
    config = schema.Quantization(ignored=schema.Ignored(**entries), model_type=model_type)
    return {node.name: why for node, why in ignored_operations(read_graph(network()), target(device), config).items()}


def test_by_name() -> None:
    assert ignored(scope=["head", "block/relu"]) == dict.fromkeys(("head", "block/relu"), "quantization.ignored.scope")


def test_by_regular_expression_on_the_whole_name() -> None:
    assert set(ignored(scope=["re:block/conv.*"])) == {"block/conv1", "block/conv2"}
    assert set(ignored(scope=[r"re:.*\d"])) >= {"block/conv1", "block/conv2"}
    with pytest.raises(ConfigError, match="'re:conv' matches no operation"):
        ignored(scope=["re:conv"])


def test_a_name_that_is_none_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as raised:
        ignored(scope=["block/conv3"])
    message = str(raised.value)
    assert message.startswith("quantization.ignored.scope: 'block/conv3' matches no operation; nearest names: block/conv")
    assert "weights" not in message and "\n" not in message
    with pytest.raises(ConfigError, match="nearest names: none"):
        ignored(scope=["#"])


def test_constants_cannot_be_named() -> None:
    with pytest.raises(ConfigError, match="'head/weights' matches no operation"):
        ignored(scope=["head/weights"])


def test_a_broken_expression_is_named() -> None:
    with pytest.raises(ConfigError, match=r"quantization.ignored.scope: 're:\(' is not a regular expression: "):
        ignored(scope=["re:("])


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, ["block/conv1", "block/conv2"]),
        ({"strides": [2, 2]}, ["block/conv1"]),
        ({"strides": [1, 1], "auto_pad": "EXPLICIT"}, ["block/conv2"]),
    ],
    ids=str,
)
def test_by_type_and_attributes(attributes: dict[str, Any], expected: list[str]) -> None:
    found = ignored(operations=[schema.IgnoredOperation("Convolution", attributes)])
    assert found == dict.fromkeys(expected, "quantization.ignored.operations")


def test_booleans_and_numbers_are_different_attributes() -> None:
    assert set(ignored(operations=[schema.IgnoredOperation("MatMul", {"transpose_b": False})])) == {"head"}
    for wrong in (True, 0, [False], "none"):
        with pytest.raises(ConfigError, match="no MatMul with attributes"):
            ignored(operations=[schema.IgnoredOperation("MatMul", {"transpose_b": wrong})])
    assert set(ignored(operations=[schema.IgnoredOperation("Reshape", {"special_zero": False})])) != set()


def test_every_entry_counts_where_pot_stops_at_the_first() -> None:
    entries = [schema.IgnoredOperation("Convolution", {"strides": [9, 9]}), schema.IgnoredOperation("Convolution", {"strides": [1, 1]})]
    with pytest.raises(ConfigError, match=r"no Convolution with attributes \{'strides': \[9, 9\]\}"):
        ignored(operations=entries)
    assert len(ignored(operations=[schema.IgnoredOperation("Convolution", {"strides": [s, s]}) for s in (1, 2)])) == 2


def test_a_type_that_the_model_does_not_have_is_answered_with_those_it_has() -> None:
    with pytest.raises(ConfigError, match=r"no Add with attributes .*operation types of the model: .*MatMul.*ReduceMean"):
        ignored(operations=[schema.IgnoredOperation("Add")])


def test_transformers() -> None:
    assert ignored(model_type="transformer") == dict.fromkeys(("mean", "scaled"), "model_type transformer")
    assert set(ignored("cpu_spr", model_type="transformer")) == {"mean"}
    assert ignored(model_type="transformer", scope=["mean"])["mean"] == "quantization.ignored.scope"
