"""Models of every kind go through statistics, quantization, storage and inference: none crashes, and bodies stay as they are."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
from openvino import opset1
from openvino import opset13 as op

from stages.common.errors import UserError
from stages.configuration import schema
from stages.quantization.planning import require_something_to_quantize
from tests.quantization.quantizing import close, compressed, infer, plan_of, quantized, same, types
from tests.quantization.small import constant, convolution, images, matmul, model, named, parameter, random

ON = schema.BiasCorrection()
IMAGES = images(3, (1, 4, 8, 8))


def test_several_inputs_and_outputs_of_changing_size() -> None:
    x, y = parameter((1, 3, -1, -1)), parameter((1, 3, -1, -1), "y")
    layer = convolution(op.add(named(op.relu(x), "a"), named(op.relu(y), "b")), random(4, 3, 3, 3), "conv", pads_begin=[1], pads_end=[1])
    tested = model([named(op.relu(layer), "r"), named(op.sigmoid(layer), "s")], x, y)
    samples = [{"x": random(1, 3, size, 9 - size), "y": random(1, 3, size, 9 - size, seed=1)} for size in (3, 4, 5)]
    close(quantized(tested, samples, correction=ON), tested, samples)


def test_outputs_within_and_an_input_that_nothing_reads() -> None:
    x, y, unused = parameter(), parameter(name="y"), parameter((2,), "unused")
    first = convolution(x, random(3, 3, 1, 1), "first")
    second = convolution(op.relu(op.add(first, y)), random(3, 3, 1, 1), "second")
    tested = model([first, named(op.relu(first), "relu"), second], x, y, unused)
    samples = [{"x": image, "y": image + 1, "unused": random(2)} for image in images()]
    result = quantized(tested, samples, correction=ON)
    assert len(result.model.outputs) == 3 and len(next(infer(compressed(result.model), samples))) == 3
    close(result, tested, samples, share=0.3)


@pytest.mark.parametrize("preset", schema.PRESETS)
def test_only_the_rank_is_known(preset: str) -> None:
    x = parameter((-1, 3, -1, -1))
    relu = named(op.relu(convolution(x, random(4, 3, 3, 3), "conv", bias=random(4), auto_pad="same_upper")), "relu")
    pooled = named(op.reduce_mean(relu, np.array([2, 3]), True), "pooled")
    tested = model(convolution(pooled, random(5, 4, 1, 1), "head"), x)
    samples = [random(batch, 3, 5 + batch, 4, seed=batch) for batch in (1, 2, 3)]
    result = quantized(tested, samples, correction=ON, preset=preset)
    assert {"conv/fq_weights_1", "head/fq_weights_1"} <= result.names()
    same(compressed(result.model), tested, samples, tolerance=0.2)


# ------------------------------------------------------------------------------------------------------------ bodies


BODY = "inside the body of {}"


def chosen(x: ov.Node, use: ov.Node) -> ov.Node:
    """One of two convolutions."""
    branches = []
    for name, function in (("then", op.sigmoid), ("else", op.relu)):
        inner = named(op.parameter([1, 3, 8, 8], np.float32), f"{name}/x")
        layer = convolution(named(function(inner), f"{name}/function"), random(3, 3, 1, 1), f"{name}/conv")
        branches.append(ov.Model([op.result(layer)], [inner]))
    choice = op.if_op(use)
    choice.set_then_body(branches[0])
    choice.set_else_body(branches[1])
    choice.set_input(x.output(0), branches[0].get_parameters()[0], branches[1].get_parameters()[0])
    choice.set_output(branches[0].get_results()[0], branches[1].get_results()[0])
    return named(choice, "choice")


def flagged() -> list[dict[str, np.ndarray]]:
    """The same image for both branches."""
    return [{"x": sample, "use": np.array(flag)} for sample, flag in zip(images(1) * 2, (True, False), strict=True)]


def test_both_branches_of_an_if_stay_in_floating_point() -> None:
    x, use = parameter(), parameter((), "use", np.bool_)
    layer = named(op.relu(convolution(x, random(3, 3, 1, 1), "conv")), "relu")
    tested = model(convolution(named(op.sigmoid(chosen(layer, use)), "after"), random(3, 3, 1, 1), "last"), x, use)
    result = quantized(tested, flagged(), correction=ON)
    floats = result.floats()
    assert floats["choice", None] == "ANY has no quantized If"
    assert {key: why for key, why in floats.items() if key[0].startswith("choice/")} == {
        ("choice/then/then/conv", None): BODY.format("If choice"),
        ("choice/else/else/conv", None): BODY.format("If choice"),
    }
    assert {q.source.name for q in result.plan.quantizers if q.kind == "activations"} == {"x", "after"}
    close(result, tested, flagged(), share=0.3)
    same(compressed(result.model), result.model, flagged(), tolerance=0.02)


def test_an_if_within_an_if() -> None:
    x, use = parameter(), parameter((), "use", np.bool_)
    inner, flag = named(op.parameter([1, 3, 8, 8], np.float32), "inner"), named(op.parameter([], np.bool_), "flag")
    deeper = ov.Model([op.result(op.tanh(chosen(inner, flag)))], [inner, flag])
    other = named(op.parameter([1, 3, 8, 8], np.float32), "other")
    outer = op.if_op(use)
    outer.set_then_body(deeper)
    outer.set_else_body(ov.Model([op.result(op.relu(other))], [other]))
    outer.set_input(x.output(0), deeper.get_parameters()[0], other)
    outer.set_input(use.output(0), deeper.get_parameters()[1], None)
    outer.set_output(deeper.get_results()[0], outer.get_else_body().get_results()[0])
    tested = model(convolution(named(outer, "outer"), random(3, 3, 1, 1), "last"), x, use)
    widest = schema.RangeEstimator(max=schema.Estimator(aggregator="max"))
    result = quantized(tested, flagged(), correction=ON, range_estimator=widest)
    inside = {name for name, _ in result.floats() if name.startswith("outer/")}
    assert inside == {"outer/then/choice/then/then/conv", "outer/then/choice/else/else/conv"}
    close(result, tested, flagged(), share=0.3)


def repeated(kind: str, x: ov.Node) -> ov.Node:
    """The rows of x, each added to the sum so far and multiplied, by a TensorIterator or a Loop."""
    row, total = named(op.parameter([1, 3], np.float32), "row"), named(op.parameter([1, 3], np.float32), "total")
    added = named(op.add(named(op.tanh(row), "tanh"), total), "added")
    rows = matmul(added, random(3, 3), "product")
    results = [op.result(added), op.result(rows)]
    loop = op.tensor_iterator() if kind == "TensorIterator" else op.loop(op.constant(np.int32(4)), op.constant(True))
    if kind == "Loop":
        results.append(op.result(op.constant(np.array([True]))))
    body = ov.Model(results, [row, total], "body")
    if kind == "Loop":
        loop.set_function(body)
        loop.set_special_body_ports([-1, 2])
    else:
        loop.set_body(body)
    loop.set_sliced_input(row, x.output(0), 0, 1, 1, -1, 0)
    loop.set_merged_input(total, constant(np.zeros((1, 3)), "start").output(0), results[0].output(0))
    loop.get_concatenated_slices(results[1].output(0), 0, 1, 1, -1, 0)
    return named(loop, "loop")


@pytest.mark.parametrize("kind", ["Loop", "TensorIterator"])
def test_bodies_of_loops_stay_in_floating_point(kind: str) -> None:
    x = parameter((4, 3))
    tested, samples = model(matmul(named(op.relu(repeated(kind, x)), "relu"), random(3, 2), "after"), x), images(2, (4, 3))
    result = quantized(tested, samples, correction=ON)
    assert result.floats()["loop", None] == f"ANY has no quantized {kind}"
    inside = {key[0]: why for key, why in result.floats().items() if key[0].startswith("loop/")}
    assert inside == dict.fromkeys(("loop/body/added", "loop/body/product"), BODY.format(f"{kind} loop"))
    assert result.names() == {"relu/fq_output_0", "after/fq_weights_1"}
    close(result, tested, samples, share=0.3)
    same(compressed(result.model), result.model, samples, tolerance=0.02)


def test_all_there_is_lies_in_a_body() -> None:
    x, use = parameter(), parameter((), "use", np.bool_)
    tested = model(named(op.relu(chosen(x, use)), "relu"), x, use)
    result = quantized(tested, flagged(), correction=ON)
    same(result.model, tested, flagged())
    with pytest.raises(UserError, match=r"^nothing to quantize: .*inside the body of If choice$"):
        require_something_to_quantize(plan_of(tested))


# ----------------------------------------------------------------------------------------- quantized before, or not at all


def test_nothing_to_quantize() -> None:
    """The same model comes out, and the stage's message says why."""
    x = parameter()
    tested = model(named(op.softmax(named(op.relu(x), "relu"), 1), "softmax"), x)
    result = quantized(tested, images(), correction=ON)
    assert result.names() == set() and types(result.model) == types(tested)
    same(compressed(result.model), tested, images())
    with pytest.raises(UserError, match=r"^nothing to quantize: ANY has no quantized Relu; ANY has no quantized Softmax$"):
        require_something_to_quantize(result.plan)


def test_what_is_quantized_already_is_left_alone() -> None:
    x = parameter()
    borders = [constant(value, name) for value, name in ((-3.0, "low"), (3.0, "high"))]
    there = named(op.fake_quantize(op.relu(x), *borders, *borders, 256), "there")
    first = convolution(opset1.max_pool(there, [1, 1], [0, 0], [0, 0], [2, 2]), random(3, 3, 1, 1), "first")
    kernel = op.fake_quantize(constant(random(3, 3, 1, 1), "raw"), *borders, *borders, 255)
    second = named(op.convolution(named(op.relu(first), "relu"), kernel, [1, 1], [0, 0], [0, 0], [1, 1]), "second")
    tested = model(second, x)
    result = quantized(tested, images(1), correction=ON)
    assert result.names() == {"first/fq_weights_1", "relu/fq_output_0"}
    assert result.floats()["first", 0] == "already quantized in the model"
    assert result.floats()["second", 1] == "already quantized in the model"
    assert types(result.model).count("FakeQuantize") == 4
    close(result, tested, images(1))


def test_quantizing_twice_changes_no_quantizer() -> None:
    x = parameter((1, 4, 8, 8))
    first = convolution(x, random(4, 4, 3, 3), "first", bias=random(4), pads_begin=[1], pads_end=[1])
    total = named(op.add(named(op.tanh(first), "tanh"), named(op.relu(first), "relu")), "sum")
    tested = model(matmul(named(op.relu(total), "relu2"), random(8, 3), "last"), x)
    once = quantized(tested, IMAGES, correction=ON)
    stored = compressed(once.model)
    twice = quantized(stored, IMAGES, correction=ON)
    assert twice.names() == set()
    assert set(twice.floats().values()) >= {"already quantized in the model", "a constant that is computed, not stored in floating point"}
    same(twice.model, stored, IMAGES)


# ------------------------------------------------------------------------------------------------------------ memory


def test_memory() -> None:
    x = parameter((1, 4))
    state = op.read_value(constant(np.zeros((1, 4)), "start"), "state", np.float32, [1, 4])
    layer = matmul(named(op.add(named(op.exp(x), "exp"), state), "sum"), random(4, 4), "matmul")
    sink = op.assign(layer, "state")
    layer.output(0).set_names({"out0"})
    tested = ov.Model([op.result(layer)], [sink], [x], "memory")
    result = quantized(tested, images(2, (1, 4)), correction=ON)
    assert "sum/fq_output_0" in result.names() and types(result.model).count("Assign") == 1
    assert len(list(infer(result.model, images(2, (1, 4))))) == 2
