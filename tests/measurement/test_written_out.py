"""Quantization written out: the same numbers as NumPy's, and nothing left for an INT8 kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from stages.measurement.written_out import is_activation_quantizer, written_out
from stages.quantization.build import compress_weights
from tests.quantization.reference_runs import core
from tests.quantization.small import constant, model, named, parameter, random


def quantize(values: Any, low: Any, high: Any, levels: int) -> np.ndarray:
    """FakeQuantize in double precision."""
    inside = np.clip(np.asarray(values, np.float64), low, high)
    return np.asarray(np.round((inside - low) / (high - low) * (levels - 1)) / (levels - 1) * (high - low) + low)


def fake_quantize(source: Any, low: Any, high: Any, levels: int, name: str) -> ov.Node:
    borders = [constant(border, f"{name}/{role}") for border, role in ((low, "low"), (high, "high"))]
    return named(op.fake_quantize(source, *borders, *borders, levels), name)


def outputs(tested: ov.Model, *inputs: Any) -> list[np.ndarray]:
    compiled = core().compile_model(tested, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [np.array(value) for value in compiled(list(inputs)).values()]


def types(tested: ov.Model) -> set[str]:
    return {node.get_type_name() for node in tested.get_ops()}


@pytest.mark.parametrize("levels", [256, 255, 16])
@pytest.mark.parametrize("folded", [False, True])
def test_activations_and_weights_are_what_numpy_makes_of_them(levels: int, folded: bool) -> None:
    low, high = random(1, 5, seed=1) - 3, random(1, 5, seed=2) + 3  # zero points, a range per column
    x, raw = parameter((4, 8)), random(8, 5)
    weights = fake_quantize(constant(raw, "raw"), low, high, levels, "weights")
    tested = model(named(op.matmul(fake_quantize(x, -1.5, 2.25, 256, "input"), weights, False, False), "matmul"), x)
    if folded:
        compress_weights(tested)
        assert "FakeQuantize" in types(tested) and any(node.get_element_type().is_integral() for node in tested.get_ops())
    sample = random(4, 8, seed=3)
    expected = quantize(sample, -1.5, 2.25, 256) @ quantize(raw, low, high, levels)
    result = written_out(tested)
    np.testing.assert_allclose(outputs(result, sample)[0], expected, atol=1e-4)
    assert "FakeQuantize" not in types(result)
    assert not any(node.get_type_name() == "Constant" and node.get_element_type().is_integral() for node in result.get_ops())
    assert "FakeQuantize" in types(tested)  # stays as it is


def test_what_the_model_is_compressed_to_in_memory_is_written_out_too() -> None:
    """Marks that no file holds do not keep the weights on integers."""
    from openvino._offline_transformations import compress_quantize_weights_transformation

    x = parameter((4, 8))
    tested = model(
        op.matmul(fake_quantize(x, -1, 1, 256, "input"), fake_quantize(constant(random(8, 5), "raw"), -2, 2, 255, "w"), False, False), x
    )
    compress_quantize_weights_transformation(tested)
    assert not any(node.get_element_type().is_integral() for node in written_out(tested).get_ops())


def test_the_shift_is_counted_in_levels() -> None:
    x, shift = parameter((1, 4)), op.parameter([], np.float32, name="shift")
    tested = model(fake_quantize(x, 0.0, 255.0, 256, "input"), x)  # a level is 1
    result = written_out(tested, shift)
    values = np.array([[10.0, 10.4, 10.48, 254.9]], np.float32)
    for amount, expected in ((0.0, [10, 10, 10, 255]), (0.05, [10, 10, 11, 255]), (-0.5, [10, 10, 10, 254]), (0.2, [10, 11, 11, 255])):
        np.testing.assert_allclose(outputs(result, values, np.array(amount, np.float32))[0], [expected], atol=1e-4)


def test_doubled_output_ranges_and_names() -> None:
    x = parameter((1, 3))
    borders = [constant(value, f"border {value}") for value in (-1.0, 1.0, -2.0, 2.0)]
    tested = model(named(op.relu(named(op.fake_quantize(x, *borders, 3), "quantizer")), "relu"), x)
    result = written_out(tested)
    np.testing.assert_allclose(outputs(result, np.array([[-5, 0.4, 0.6]], np.float32))[0], [[0, 0, 2]])
    assert {"x", "quantizer", "relu", "result0"} <= {node.get_friendly_name() for node in result.get_ops()}
    assert result.outputs[0].get_any_name() == "out0"


def test_bodies_are_written_out_too() -> None:
    x, use = parameter((1, 4)), parameter((), "use", np.bool_)
    branches = []
    for name, high in (("then", 1.0), ("else", 2.0)):
        inner = named(op.parameter([1, 4], np.float32), f"{name}/x")
        branches.append(ov.Model([op.result(fake_quantize(inner, 0.0, high, 3, f"{name}/quantizer"))], [inner]))
    choice = op.if_op(use)
    choice.set_then_body(branches[0])
    choice.set_else_body(branches[1])
    choice.set_input(x.output(0), branches[0].get_parameters()[0], branches[1].get_parameters()[0])
    choice.set_output(branches[0].get_results()[0], branches[1].get_results()[0])
    tested = model(named(choice, "choice"), x, use)
    result = written_out(tested)
    (bodies,) = ([node.get_then_body(), node.get_else_body()] for node in result.get_ops() if node.get_type_name() == "If")
    assert all("FakeQuantize" not in types(body) for body in bodies)
    sample = np.array([[0.2, 0.3, 0.8, 9.0]], np.float32)
    np.testing.assert_allclose(outputs(result, sample, np.array(True))[0], [[0, 0.5, 1, 1]])
    np.testing.assert_allclose(outputs(result, sample, np.array(False))[0], [[0, 0, 1, 2]])


def test_half_precision_keeps_its_type() -> None:
    x = parameter((1, 4), dtype=np.float16)
    borders = [constant(value, f"border {index}", np.float16) for index, value in enumerate((0.0, 1.0, 0.0, 1.0))]
    result = written_out(model(named(op.fake_quantize(x, *borders, 3), "quantizer"), x))
    assert result.outputs[0].get_element_type() == ov.Type.f16
    np.testing.assert_allclose(outputs(result, np.array([[0.2, 0.3, 0.8, 9.0]], np.float16))[0], [[0, 0.5, 1, 1]])


def test_quantizers_of_constants_are_told_from_those_of_activations() -> None:
    x = parameter((1, 4))
    of_input, of_weights = fake_quantize(x, 0.0, 1.0, 256, "input"), fake_quantize(constant(random(4, 4), "raw"), -1.0, 1.0, 255, "weights")
    assert is_activation_quantizer(of_input) and not is_activation_quantizer(of_weights)
    assert not is_activation_quantizer(x)
