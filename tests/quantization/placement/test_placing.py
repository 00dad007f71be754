"""Where quantizers go, and why not elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import pytest
from hypothesis import given, settings
from openvino import opset1
from openvino import opset13 as op

from stages.configuration import schema
from stages.quantization.model.graph import operation_kind, read_graph
from tests.quantization.quantizing import plan_of
from tests.quantization.random_models import models
from tests.quantization.reference_runs import target
from tests.quantization.small import constant, convolution, matmul, model, named, parameter, random


def placed(tested: ov.Model, device: str = "any", **config: Any) -> dict[str, set[str]]:
    """By quantized tensor (name:port), the inputs of layers that read it through whatever passes data on."""
    plan = plan_of(tested, device, **config)
    found: dict[str, set[str]] = {}
    for quantizer in plan.quantizers:
        if quantizer.kind == "activations":
            found[f"{quantizer.source.name}:{quantizer.source.port}"] = {f"{place.name}:{place.port}" for place in quantizer.layers}
    return found


def reasons(tested: ov.Model, device: str = "any", **config: Any) -> dict[tuple[str, int | None], str]:
    return {(entry.name, entry.port): entry.reason for entry in plan_of(tested, device, **config).floats}


def conv(source: ov.Node, name: str = "conv", outputs: int = 3) -> ov.Node:
    return convolution(source, random(outputs, source.output(0).get_shape()[1], 1, 1), name)


# ------------------------------------------------------------------------------------------------------ moving up


def test_a_quantizer_sits_behind_the_activation_and_before_what_passes_data_on() -> None:
    x = parameter()
    relu = named(op.relu(conv(x, "first")), "relu")
    pooled = opset1.max_pool(relu, [2, 2], [0, 0], [0, 0], [2, 2])
    turned = op.transpose(op.reshape(pooled, np.array([1, 3, 4, 4]), False), np.array([0, 1, 3, 2]))
    assert placed(model(conv(turned, "second"), x)) == {"x:0": {"first:0"}, "relu:0": {"second:0"}}


def test_above_a_concat_every_branch_gets_its_own() -> None:
    x = parameter()
    left, right = named(op.relu(conv(x, "a")), "left"), named(op.sigmoid(conv(x, "b")), "right")
    joined = conv(op.concat([left, right], 1), "after")
    assert placed(model(joined, x)) == {"x:0": {"a:0", "b:0"}, "left:0": {"after:0"}, "right:0": {"after:0"}}


def test_above_a_split_one_serves_all_parts() -> None:
    x = parameter((1, 4, 8, 8))
    parts = op.split(named(op.relu(x), "relu"), np.int64(1), 2)
    halves = [op.squeeze(op.unsqueeze(parts.output(index), np.int64(0)), np.array([0])) for index in (0, 1)]
    outputs = [convolution(half, random(3, 2, 1, 1), f"c{index}") for index, half in enumerate(halves)]
    assert placed(model(outputs, x)) == {"relu:0": {"c0:0", "c1:0"}}


def test_a_tensor_has_one_quantizer_for_all_consumers() -> None:
    x = parameter()
    relu = named(op.relu(x), "relu")
    total = named(op.add(conv(relu, "a"), relu), "sum")
    plan = plan_of(model(conv(total, "b"), x))
    of_relu = [quantizer for quantizer in plan.quantizers if quantizer.source.name == "relu"]
    assert len(of_relu) == 1
    assert {(place.name, place.port) for place in of_relu[0].consumers} == {("a", 0), ("sum", 1)}


def test_a_consumer_that_stays_float_blocks_the_way_up() -> None:
    x = parameter()
    relu = named(op.relu(x), "relu")
    pooled = named(opset1.max_pool(relu, [1, 1], [0, 0], [0, 0], [3, 3]), "pool")
    assert placed(model([conv(pooled, "conv"), op.exp(pooled)], x)) == {"pool:0": {"conv:0"}}
    free = opset1.max_pool(named(op.relu(x), "relu"), [1, 1], [0, 0], [0, 0], [3, 3])
    assert placed(model(conv(free, "conv"), x)) == {"relu:0": {"conv:0"}}


def test_a_model_output_does_not_block() -> None:
    x = parameter()
    flat = named(op.reshape(named(op.relu(x), "relu"), np.array([1, 3, 64]), False), "flat")
    assert placed(model([flat, matmul(flat, random(64, 4))], x)) == {"relu:0": {"matmul:0"}}


def test_concat_of_a_float_branch_blocks_if_somebody_below_reads_floats() -> None:
    x = parameter()
    joined = named(op.concat([named(op.relu(conv(x, "a")), "left"), named(op.exp(x), "right")], 1), "joined")
    assert placed(model([conv(joined, "after"), op.sqrt(joined)], x)) == {"x:0": {"a:0"}, "joined:0": {"after:0"}}


def test_concat_of_one_tensor_with_itself() -> None:
    """POT stops with an error here."""
    x = parameter()
    relu = named(op.relu(conv(x, "first")), "relu")
    assert placed(model(conv(op.concat([relu, relu], 1), "second"), x)) == {"x:0": {"first:0"}, "relu:0": {"second:0"}}


def test_a_constant_in_a_concat_is_quantized_as_weights() -> None:
    x = parameter()
    joined = named(op.concat([named(op.relu(x), "relu"), constant(random(1, 2, 8, 8), "fixed")], 1), "joined")
    plan = plan_of(model(conv(joined), x))
    assert {(q.kind, q.source.name) for q in plan.quantizers} == {
        ("activations", "relu"),
        ("weights", "fixed"),
        ("weights", "conv/weights"),
    }


@pytest.mark.parametrize("limit_first", [False, True])
def test_a_limit_passes_data_on(limit_first: bool) -> None:
    x, limit = parameter(), constant(2.0, "limit")
    relu = named(op.relu(x), "relu")
    limited = named(op.minimum(*((limit, relu) if limit_first else (relu, limit))), "limited")
    # With the constant first, POT quantizes the constant in place of the tensor.
    assert placed(model(conv(limited), x)) == {"limited:0" if limit_first else "relu:0": {"conv:0"}}


def test_two_tensors_that_are_compared_are_not_quantized_by_halves() -> None:
    x = parameter()
    larger = named(op.maximum(named(op.relu(x), "a"), named(op.exp(x), "b")), "larger")
    assert placed(model(conv(larger), x)) == {"larger:0": {"conv:0"}}


# ----------------------------------------------------------------------------------------------- what stays float


def test_reasons() -> None:
    x = parameter()
    biased = named(op.add(conv(x), constant(random(1, 3, 1, 1), "values")), "bias")
    tested = model(named(op.softmax(biased, 1), "softmax"), x)
    assert reasons(tested) == {
        ("bias", None): "ignored block: bias of a weighted operation",
        ("softmax", None): "ANY has no quantized Softmax",
    }


def test_integer_operations_and_shapes_are_no_candidates() -> None:
    x, index = parameter((-1, 3, 8, 8)), parameter((1,), "index", np.int32)
    shape = named(op.shape_of(x), "shape")
    batch = named(op.gather(shape, np.array([0]), np.int64(0)), "batch")
    doubled = named(op.multiply(batch, op.constant(np.int64(2))), "doubled")
    flat = op.reshape(x, op.concat([doubled, op.constant(np.array([-1]))], 0), False)
    moved = named(op.add(index, op.constant(np.int32(1))), "moved")
    same = named(op.equal(index, moved), "same")
    tested = model([flat, same], x, index)
    assert reasons(tested) == {
        ("doubled", None): "computes shapes",
        ("moved", None): "works on integers",
        ("same", None): "works on integers",
    }
    assert placed(tested) == {}


def test_arithmetic_with_values_computed_from_shapes_is_left_float_where_pot_quantizes_the_other_operand() -> None:
    """Behind such a quantizer, OpenVINO 2026.4's CPU computes garbage (seen on silero-vad, read without constant folding)."""
    x = parameter((-1, 3, 8, 8))
    count = named(op.convert(named(op.shape_of(x), "shape"), "f32"), "count")
    total = named(op.reduce_prod(count, np.array([0]), True), "total")
    tested = model(named(op.divide(named(op.relu(x), "relu"), total), "mean"), x)
    assert placed(tested) == {}
    assert reasons(tested)["mean", None] == "element-wise with values computed from shapes"
    assert placed(tested, pot_compatible=True) == {"relu:0": {"mean:0"}}
    assert reasons(tested, pot_compatible=True)["mean", 1] == "input is computed from shapes"


def test_the_first_scale_and_shift_stays_float() -> None:
    x = parameter()
    scaled = named(op.multiply(x, constant(random(1, 3, 1, 1), "deviation")), "scale")
    tested = model(conv(named(op.add(scaled, constant(random(1, 3, 1, 1), "mean")), "shift")), x)
    assert placed(tested) == {"shift:0": {"conv:0"}}
    found = reasons(tested)
    assert found["scale", None].startswith("ignored block: ") and found["shift", None].startswith("ignored block: ")


def test_of_a_scale_and_shift_inside_the_model_the_tensor_alone_is_quantized() -> None:
    x = parameter()
    scaled = named(op.multiply(named(op.tanh(conv(x, "first")), "tanh"), constant(random(1, 3, 1, 1), "factors")), "scale")
    tested = model(conv(named(op.add(scaled, constant(random(1, 3, 1, 1), "terms")), "shift"), "last"), x)
    assert placed(tested) == {"x:0": {"first:0"}, "tanh:0": {"scale:0"}, "shift:0": {"last:0"}}
    assert reasons(tested)["scale", 1] == "the constant of a scale and shift"


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1, 1)], ids=str)
def test_arithmetic_with_a_single_number_is_left_float_where_pot_quantizes_it(shape: tuple[int, ...]) -> None:
    """Such as the 1e-5 of a decomposed normalisation, which POT quantizes to ±8e-5."""
    x = parameter()
    tested = model(op.sqrt(named(op.add(named(op.exp(x), "exp"), constant(np.full(shape, 1e-5), "epsilon")), "sum")), x)
    ours, pots = plan_of(tested), plan_of(tested, pot_compatible=True)
    assert ours.quantizers == () and reasons(tested)["sum", None] == "element-wise with a single number"
    assert {q.source.name for q in pots.quantizers} == {"exp", "epsilon"}
    assert not {("sum", 1), ("sum", None)} & set(reasons(tested, pot_compatible=True))


def test_computed_weights_are_left_float() -> None:
    x = parameter()
    kernel = op.multiply(constant(random(3, 3, 1, 1), "raw"), constant(2.0, "two"))
    tested = model(named(op.convolution(x, kernel, [1, 1], [0, 0], [0, 0], [1, 1]), "conv"), x)
    assert reasons(tested) == {("conv", 1): "a constant that is computed, not stored in floating point"}


def test_weights_that_move_are_quantized_as_activations() -> None:
    x, kernel = parameter(), parameter((3, 3, 1, 1), "kernel")
    tested = model(named(op.convolution(x, kernel, [1, 1], [0, 0], [0, 0], [1, 1]), "conv"), x, kernel)
    assert placed(tested) == {"x:0": {"conv:0"}, "kernel:0": {"conv:1"}}


# --------------------------------------------------------------------------------------------------- on request


def test_ignored_operations_are_left_and_do_not_stop_others() -> None:
    x = parameter()
    tested = model(conv(named(op.relu(conv(x, "a")), "relu"), "b"), x)
    scope = {"scope": ["b"], "operations": []}
    assert placed(tested, ignored=_ignored(**scope)) == {"x:0": {"a:0"}}
    assert reasons(tested, ignored=_ignored(**scope))["b", None] == "quantization.ignored.scope"


def test_ignoring_what_passes_data_on_ignores_its_consumers() -> None:
    x = parameter()
    flat = named(op.reshape(named(op.relu(x), "relu"), np.array([1, 3, 64]), False), "flat")
    tested = model(matmul(flat, random(64, 4)), x)
    ignored = _ignored(scope=["flat"], operations=[])
    assert placed(tested, ignored=ignored) == {}
    assert reasons(tested, ignored=ignored)["matmul", None] == "consumes flat: quantization.ignored.scope"


def _ignored(**entries: list[Any]) -> schema.Ignored:
    return schema.Ignored(**entries)


# --------------------------------------------------------------------------------------------------- residual Adds


def test_cpu_spr_adds_one_branch_in_floating_point() -> None:
    x = parameter()
    relu = named(op.relu(x), "relu")
    block = named(op.add(conv(relu, "a"), relu), "sum")
    tested = model(conv(named(op.relu(block), "relu2"), "b"), x)
    assert placed(tested) == {"relu:0": {"a:0", "sum:1"}, "a:0": {"sum:0"}, "relu2:0": {"b:0"}}
    assert placed(tested, "cpu_spr") == {"relu:0": {"a:0", "sum:1"}, "relu2:0": {"b:0"}}
    assert reasons(tested, "cpu_spr")["sum", 0] == "accumulated in floating point"


def test_cpu_spr_keeps_both_where_no_layer_precedes() -> None:
    x = parameter()
    y = parameter(name="y")
    a, b = named(op.exp(x), "a"), named(op.sqrt(y), "b")
    read = [conv(named(op.add(a, b), "sum")), conv(a, "of a"), conv(b, "of b")]
    assert placed(model(read, x, y), "cpu_spr") == {"a:0": {"sum:0", "of a:0"}, "b:0": {"sum:1", "of b:0"}, "sum:0": {"conv:0"}}
    relu = named(op.relu(conv(x, "first")), "relu")
    twice = model(op.sqrt(named(op.add(relu, relu), "twice")), x)
    assert placed(twice, "cpu_spr", pot_compatible=True) == {"x:0": {"first:0"}, "relu:0": {"twice:0", "twice:1"}}


# ----------------------------------------------------------------------------------------------------- properties


@given(models())
@settings(max_examples=60, deadline=None)
def test_every_input_of_a_quantizable_operation_is_quantized_or_has_a_reason(tested: ov.Model) -> None:
    for device, pot_compatible in (("any", False), ("cpu_spr", False), ("gpu", True)):
        tables = target(device)
        graph, plan = read_graph(tested), plan_of(tested, device, pot_compatible=pot_compatible)
        quantized = {(place.name, place.port) for quantizer in plan.quantizers for place in quantizer.layers}
        why = {(entry.name, entry.port) for entry in plan.floats}
        assert all(entry.reason for entry in plan.floats)
        assert not quantized & why and not {name for name, _ in quantized} & {name for name, port in why if port is None}
        for node in graph.nodes:
            if node.constant or not tables.quantizable(operation_kind(node)):
                continue
            ports = [0] if node.type in ("ReduceMean", "Interpolate", "Power", "AvgPool", "NormalizeL2", "MVN") else range(len(node.inputs))
            for port in ports:
                assert {(node.name, port), (node.name, None)} & (quantized | why), (node, port)


@given(models())
@settings(max_examples=60, deadline=None)
def test_every_quantizer_serves_layers_and_has_a_name_and_a_tensor_of_its_own(tested: ov.Model) -> None:
    plan = plan_of(tested)
    assert all(quantizer.layers and quantizer.consumers for quantizer in plan.quantizers)
    names = [quantizer.name for quantizer in plan.quantizers] + [node.get_friendly_name() for node in tested.get_ops()]
    assert len(set(names)) == len(names)
    activations = [quantizer.source for quantizer in plan.quantizers if quantizer.kind == "activations"]
    assert len(set(activations)) == len(activations)
    edges = [place for quantizer in plan.quantizers for place in quantizer.consumers]
    assert len(set(edges)) == len(edges)
