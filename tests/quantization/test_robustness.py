"""Models of kinds that the ONNX project's backend tests hold (tests/benchmarks/onnx_backend.py): none crashes."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from stages.configuration import schema
from stages.quantization.build import build
from stages.quantization.model.graph import read_graph
from stages.quantization.planning import make_plan
from tests.quantization.quantizing import infer, plan_of, quantized, statistics_of
from tests.quantization.reference_runs import target
from tests.quantization.small import constant, images, matmul, model, named, parameter, random


def outputs(tested: ov.Model, sample: np.ndarray) -> list[np.ndarray]:
    return next(iter(infer(tested, [sample])))


def test_a_tensor_of_rank_zero_is_not_quantized() -> None:
    """Behind a quantizer, the CPU would give the output a rank of 1."""
    x = parameter((2, 3))
    total, mean = (named(reduce(x, np.array([0, 1]), False), name) for reduce, name in ((op.reduce_sum, "total"), (op.reduce_max, "top")))
    ratio = named(op.divide(total, mean), "ratio")
    tested, sample = model([ratio, matmul(x, random(3, 4))], x), np.abs(random(2, 3))
    result = quantized(tested, [sample], pot_compatible=True)  # otherwise there is nothing to gain in the first place
    assert result.floats()["ratio", 0] == result.floats()["ratio", 1] == "a single number"
    assert outputs(result.model, sample)[0].shape == ()


def test_no_quantizer_moves_up_to_a_tensor_of_rank_zero() -> None:
    x = parameter((2, 3))
    total = named(op.reduce_sum(x, np.array([0, 1]), False), "total")
    row = named(op.unsqueeze(total, np.array([0, 1])), "row")
    tested = model(named(op.add(named(op.relu(x), "relu"), row), "sum"), x)
    result = quantized(tested, [random(2, 3)], pot_compatible=True)
    assert {quantizer.source.name for quantizer in result.plan.quantizers} == {"relu", "row"}


def test_an_empty_tensor_is_not_quantized() -> None:
    x = parameter((2, 3))
    nothing = named(op.strided_slice(x, np.array([0, 0]), np.array([2, 0]), np.array([1, 1]), [0, 0], [0, 0]), "nothing")
    doubled = named(op.add(nothing, nothing), "doubled")
    joined = named(op.concat([named(op.relu(x), "relu"), doubled], 1), "joined")
    tested, sample = model([matmul(joined, random(3, 4))], x), random(2, 3)
    result = quantized(tested, [sample])
    assert {quantizer.source.name for quantizer in result.plan.quantizers if quantizer.kind == "activations"} == {"joined"}
    assert outputs(result.model, sample)[0].shape == (2, 4)


def test_a_vector_times_a_matrix_is_not_quantized() -> None:
    """OpenVINO 2026.4's CPU gives quantized ones the shapes [2, 2, 1] and [1, 4]."""
    x = parameter((3,))
    tested, sample = model([matmul(x, random(2, 3, 1)), named(op.matmul(x, random(3, 4), False, False), "product")], x), random(3)
    result = quantized(tested, [sample])
    assert not result.plan.quantizers
    assert [output.shape for output in outputs(result.model, sample)] == [(2, 1), (4,)]


def test_double_precision_is_not_quantized() -> None:
    """The CPU cannot compile a model in which f64 comes out of a quantizer."""
    x = parameter((2, 3), dtype=np.float64)
    tested = model(named(op.add(named(op.sqrt(x), "root"), x), "sum"), x)
    plan = plan_of(tested, pot_compatible=True)
    assert not plan.quantizers and {entry.reason for entry in plan.floats if entry.port is not None} == {"double precision"}


def test_no_quantizer_moves_up_to_a_tensor_computed_from_shapes() -> None:
    """Nothing is collected there."""
    x, y = parameter((2, -1)), parameter((2,), "y")
    size = named(op.convert(named(op.shape_of(x), "shape"), "f16"), "size")
    like = named(op.convert_like(size, y), "like")
    tested = model([named(op.add(like, y), "sum")], x, y)
    result = quantized(tested, [{"x": random(2, 5), "y": random(2)}])
    assert "size" not in {quantizer.source.name for quantizer in result.plan.quantizers}


@pytest.mark.parametrize("preset", ["performance", "accuracy"])
def test_operations_that_read_infinite_values_stay_in_floating_point(preset: str) -> None:
    """An attention mask holds them on purpose."""
    x = parameter((2, 4))
    scores = matmul(x, random(4, 4), "scores")
    hidden = named(op.greater(x, named(op.relu(x), "relu")), "hidden")
    mask = named(op.select(hidden, constant(0.0, "zero"), constant(-np.inf, "lowest")), "mask")
    masked = named(op.add(scores, named(op.select(op.is_inf(mask), mask, x), "bias")), "masked")
    tested, sample = model(named(op.softmax(named(op.add(masked, x), "again"), 1), "weights"), x), random(2, 4)
    statistics = statistics_of(tested, [sample])
    plan = make_plan(read_graph(tested), target(), schema.Quantization(preset=preset, pot_compatible=True), statistics)
    floats = {entry.name: entry.reason for entry in plan.floats}
    assert floats["masked"] == floats["again"] == "reads values that are not finite"
    assert {quantizer.consumers[0].name for quantizer in plan.quantizers} >= {"scores"}
    result, _ = build(tested, statistics, plan)
    assert outputs(result, sample)[0].shape == (2, 4)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_infinite_constants_stay_in_floating_point(value: float) -> None:
    """A mask that is part of the model, and broken weights: their ranges would be no numbers, and so would all outputs."""
    x, broken = parameter((1, 4)), random(4, 3)
    broken[1, 2] = value
    masked = op.add(named(op.tanh(matmul(x, random(4, 4), "first")), "tanh"), constant(np.array([[[0.0]], [[value]]], np.float32), "mask"))
    tested = model([named(masked, "masked"), matmul(x, broken, "last")], x)
    for preset in schema.PRESETS:
        found = quantized(tested, images(3, (1, 4)), preset=preset, pot_compatible=True)
        assert {place.name for quantizer in found.plan.quantizers for place in quantizer.layers} == {"first"}
        assert found.floats()["last", None] == found.floats()["masked", None] == "reads values that are not finite"
