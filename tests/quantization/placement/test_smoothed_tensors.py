"""Which tensors are smoothed, and why others are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from stages.configuration import schema
from tests.quantization.quantizing import plan_of
from tests.quantization.small import constant, matmul, model, named, parameter, random

TRANSFORMER: dict[str, Any] = {"model_type": "transformer"}


def rows(features: int = 8) -> ov.Node:
    """Rows of features behind an activation, as of a dynamic number of words."""
    return named(op.gelu(parameter((1, -1, features)), "erf"), "words")


def plan(tested: ov.Model, **config: Any) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Of the smoothed tensors who reads them; of the others the reason."""
    made = plan_of(tested, **(TRANSFORMER | config))
    return {entry.tensor.name: entry.readers for entry in made.smoothed}, {entry.tensor.name: entry.reason for entry in made.not_smoothed}


def parameters(node: ov.Node) -> list[ov.Node]:
    """The inputs of what `node` is computed from."""
    sources = [value.get_node() for value in node.input_values()]
    return [node] if node.get_type_name() == "Parameter" else [found for source in sources for found in parameters(source)]


def of(*outputs: ov.Node) -> ov.Model:
    return model(list(outputs), parameters(outputs[0])[0])


def test_what_several_matmuls_read_is_smoothed_once() -> None:
    words = rows()
    tested = of(matmul(words, random(8, 4), "query"), matmul(words, random(5, 8), "key", transpose_b=True))
    assert plan(tested) == ({"words": ("key", "query")}, {})


@pytest.mark.parametrize("config", [{"model_type": "none"}, {"use_smooth_quant": False}, {"pot_compatible": True}])
def test_only_where_it_is_asked_for(config: dict[str, Any]) -> None:
    assert plan(of(matmul(rows(), random(8, 4), "query")), **config) == ({}, {})


def test_what_another_operation_reads_quantized_stays() -> None:
    words = rows()
    scores = named(op.matmul(words, words, False, True), "scores")
    assert plan(of(matmul(words, random(8, 4), "query"), scores)) == ({}, {"words": "scores reads it quantized, too"})


def test_what_another_operation_reads_in_floating_point_is_no_obstacle() -> None:
    words = rows()
    tested = of(matmul(words, random(8, 4), "query"), named(op.sin(words), "sine"))
    assert plan(tested)[0] == {"words": ("query",)}


def test_reasons() -> None:
    words = rows()
    shared = constant(random(8, 8), "shared")
    both = [named(op.matmul(words, shared, False, False), f"reader{index}") for index in range(2)]
    assert plan(of(*both)) == ({}, {"words": "something else reads the weights of reader0"})
    turned = matmul(named(op.gelu(parameter((1, 8, 6)), "erf"), "words"), random(8, 4), "query", transpose_a=True)
    assert plan(of(turned)) == ({}, {"words": "query reads its features on another axis"})
    heads = named(op.gelu(parameter((1, 6, 2, 4)), "erf"), "heads")
    merged = named(op.reshape(heads, np.array([1, 6, 8]), False), "merged")
    assert plan(of(matmul(merged, random(8, 4), "query"))) == ({}, {"merged": "it is quantized further up, behind heads"})


def test_layers_in_floating_point_have_nothing_to_smooth() -> None:
    words = rows()
    hidden = named(op.tanh(matmul(words, random(8, 8), "query")), "hidden")
    smoothed, left = plan(of(matmul(hidden, random(8, 4), "last")), ignored=schema.Ignored(scope=["query"]))
    assert (smoothed, left) == ({"hidden": ("last",)}, {})
