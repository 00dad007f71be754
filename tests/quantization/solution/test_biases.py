"""Fast bias correction: its closed form against inference, its decisions, and what it does to a model's mean outputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from stages.configuration import schema
from stages.quantization.build import build
from stages.quantization.model.graph import Node, read_graph
from stages.quantization.model.weights import weight_layout
from stages.quantization.placement.plan import Plan
from stages.quantization.solution.biases import decide, mean_output, tap_shares
from tests.quantization.quantizing import infer, plan_of, quantized, statistics_of, tensor
from tests.quantization.small import constant, convolution, images, matmul, model, named, parameter, random

ON = schema.BiasCorrection()


def both_ways(output: ov.Node, x: ov.Node, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The mean output of a layer for an input with constant channels: in closed form, and by running it."""
    tested = model(output, x)
    node = read_graph(tested).by_name[name]
    layout = weight_layout(node)
    assert layout is not None
    shape = tuple(x.output(0).get_shape())
    axis = 1 if layout.kernel or node.type != "MatMul" else (-2 if node.attributes()["transpose_a"] else -1)
    means = np.random.default_rng(5).normal(size=shape[axis])
    filled = np.moveaxis(np.broadcast_to(means.reshape(-1, *[1] * (len(shape) - 1)), (shape[axis], *np.delete(shape, axis))), 0, axis)
    result = next(infer(tested, [np.ascontiguousarray(filled, np.float32)]))[0]
    channel = 1 if node.type != "MatMul" else result.ndim - 1
    measured = result.mean(axis=tuple(index for index in range(result.ndim) if index != channel))
    return mean_output(layout, layout.value(), means, shape), measured


GEOMETRIES: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((1, 3, 9, 7), (4, 3, 1, 1), {}),
    ((1, 3, 9, 7), (4, 3, 3, 3), {"pads_begin": [1], "pads_end": [1]}),
    ((1, 3, 9, 7), (4, 3, 3, 2), {"pads_begin": [2, 0], "pads_end": [0, 1]}),
    ((1, 3, 9, 7), (4, 3, 3, 3), {"strides": [2], "pads_begin": [1], "pads_end": [1]}),
    ((1, 3, 9, 7), (4, 3, 3, 3), {"strides": [3, 2], "dilations": [2, 1], "pads_begin": [2], "pads_end": [1]}),
    ((1, 3, 9, 7), (4, 3, 5, 5), {"auto_pad": "same_upper", "strides": [2]}),
    ((1, 3, 9, 7), (4, 3, 4, 4), {"auto_pad": "same_lower", "strides": [2]}),
    ((1, 3, 10, 8), (4, 3, 4, 2), {"auto_pad": "same_upper"}),
    ((1, 3, 10, 8), (4, 3, 2, 3), {"auto_pad": "same_lower", "dilations": [2]}),
    ((1, 3, 9, 7), (4, 3, 3, 3), {"auto_pad": "valid", "pads_begin": [1], "strides": [2]}),
    ((1, 6, 9, 7), (3, 2, 2, 3, 3), {"pads_begin": [1], "pads_end": [1]}),
    ((1, 6, 9, 7), (6, 1, 1, 5, 3), {"pads_begin": [2, 1], "pads_end": [2, 1], "strides": [2, 1]}),
    ((2, 3, 12), (4, 3, 5), {"pads_begin": [2], "pads_end": [1], "strides": [2]}),
    ((1, 4, 12), (2, 3, 2, 5), {"auto_pad": "same_upper"}),
    ((1, 3, 5, 6, 7), (4, 3, 3, 2, 3), {"pads_begin": [1, 0, 1], "pads_end": [1, 1, 1], "strides": [1, 2, 2]}),
    ((1, 3, 2, 2), (4, 3, 5, 5), {"pads_begin": [2], "pads_end": [2]}),
]


@pytest.mark.parametrize(("shape", "weights", "attributes"), GEOMETRIES, ids=str)
def test_the_closed_form_of_convolutions(shape: tuple[int, ...], weights: tuple[int, ...], attributes: dict[str, Any]) -> None:
    x = parameter(shape)
    ours, measured = both_ways(convolution(x, random(*weights), **attributes), x, "conv")
    np.testing.assert_allclose(ours, measured, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("shape", [(4, 6), (2, 4, 6), (1, 2, 4, 6)], ids=str)
def test_the_closed_form_of_matrix_products(transpose_a: bool, transpose_b: bool, shape: tuple[int, ...]) -> None:
    x, inner = parameter(shape), shape[-2] if transpose_a else shape[-1]
    weights = random(5, inner) if transpose_b else random(inner, 5)
    ours, measured = both_ways(matmul(x, weights, transpose_a=transpose_a, transpose_b=transpose_b), x, "matmul")
    np.testing.assert_allclose(ours, measured, rtol=1e-5, atol=1e-5)


def test_tap_shares_by_hand() -> None:
    x = parameter((1, 1, 4, 4))
    node = read_graph(model(convolution(x, random(1, 1, 3, 3), pads_begin=[1], pads_end=[1]), x)).by_name["conv"]
    for shares in tap_shares(node, (3, 3), (1, 1, 4, 4)):
        np.testing.assert_allclose(shares, [3 / 4, 1, 3 / 4])


# ------------------------------------------------------------------------------------------------------------ decisions

NODE = Node("layer", "Convolution")


def test_a_change_below_the_threshold_is_accepted() -> None:
    bias, corrected = np.array([1.0, -2.0]), np.array([2.5, -1.0])
    for ours, relative in ((True, 0.75), (False, 1.5)):
        found = decide(NODE, bias, corrected, threshold=2.0, correct_zero_biases=ours)
        assert found.bias is corrected
        assert (found.largest_shift, found.largest_relative_shift, found.reason) == (1.5, relative, None)


def test_a_change_of_the_threshold_is_refused_with_the_figure() -> None:
    ours = decide(NODE, np.array([1.0, -2.0]), np.array([6.0, -1.0]), threshold=2.0, correct_zero_biases=True)
    assert ours.bias is None and ours.reason == "the bias would change by 2.5 times its largest value (threshold 2)"
    pots = decide(NODE, np.array([1.0, -2.0]), np.array([3.0, -1.0]), threshold=2.0, correct_zero_biases=False)
    assert pots.bias is None and pots.reason == "a bias element would change by 2 times its value (threshold 2)"


def test_one_element_near_zero_stops_pot_alone() -> None:
    bias, corrected = np.array([1.0, 1e-12]), np.array([1.1, 0.1])
    assert decide(NODE, bias, corrected, threshold=2.0, correct_zero_biases=True).bias is corrected
    pots = decide(NODE, bias, corrected, threshold=2.0, correct_zero_biases=False)
    assert pots.reason == "a bias element would change by 1e+11 times its value (threshold 2)"


@pytest.mark.parametrize(("bias", "reason"), [(None, "no bias"), (np.array([0.0, 1.0]), "the bias has zero elements")])
def test_zero_biases_are_corrected_but_not_by_pot(bias: np.ndarray | None, reason: str) -> None:
    corrected = np.array([0.7, 1.1])
    ours = decide(NODE, bias, corrected, threshold=2.0, correct_zero_biases=True)
    assert ours.bias is corrected and ours.largest_shift == pytest.approx(0.7 if bias is not None else 1.1)
    assert ours.largest_relative_shift == (None if bias is None else pytest.approx(0.7))
    pots = decide(NODE, bias, corrected, threshold=2.0, correct_zero_biases=False)
    assert pots.bias is None and pots.reason == reason


# ----------------------------------------------------------------------------------------------------- whole models


def coarse(**config: Any) -> dict[str, Any]:
    """Few bits, so that weights lose much of their mean."""
    return {"weights": schema.Scheme(bits=4), "allow_unsupported": True, "saturation_fix": "no", **config}


def network(bias: bool) -> ov.Model:
    """One layer of each kind, each fed by its own activation."""
    x = parameter((1, 4, 8, 8))
    first = convolution(x, random(4, 4, 1, 1), "pointwise", bias=random(4) + 3 if bias else None)
    grouped = convolution(named(op.relu(first), "r1"), random(2, 2, 2, 1, 1), "grouped", bias=random(4, seed=1) + 3 if bias else None)
    product = matmul(named(op.relu(grouped), "r2"), random(8, 6), "product", bias=random(6) + 3 if bias else None)
    return model(named(op.relu(product), "r3"), x)


def weights_only(tested: ov.Model, correction: schema.BiasCorrection, samples: list[np.ndarray], **config: Any) -> ov.Model:
    plan = plan_of(tested, **coarse(**config))
    plan = replace(plan, quantizers=tuple(q for q in plan.quantizers if q.kind == "weights"))
    return build(tested, statistics_of(tested, samples), plan, correction, config.get("pot_compatible", False))[0]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layer", ["pointwise", "grouped", "product"])
def test_mean_outputs_come_back(bias: bool, layer: str) -> None:
    """One layer with coarse weights, the others float: its mean output is that of the floating-point model."""
    tested, samples = network(bias), images(3, (1, 4, 8, 8))
    others = {"pointwise", "grouped", "product"} - {layer}
    ignored = schema.Ignored(scope=sorted(others))
    end = f"{layer}/biased" if bias else layer
    axes = (0, 2, 3) if layer != "product" else (0, 1, 2)
    expected = np.mean([values.mean(axis=axes) for values in tensor(tested, end, samples)], axis=0)
    errors = []
    for correction in (schema.BiasCorrection(enabled=False), schema.BiasCorrection(threshold=100.0)):
        result = weights_only(tested, correction, samples, ignored=ignored)
        names = {node.get_friendly_name() for node in result.get_ops()}
        place = end if f"{layer}/bias" not in names else f"{layer}/bias"
        found = np.mean([values.mean(axis=axes) for values in tensor(result, place, samples)], axis=0)
        errors.append(float(np.abs(found - expected).max()))
    assert errors[0] > 0.01 and errors[1] < 1e-4


@pytest.mark.parametrize("attributes", [{"pads_begin": [1], "pads_end": [1]}, {"strides": [2]}, {}], ids=str)
def test_only_the_error_of_the_weights_is_corrected(attributes: dict[str, Any]) -> None:
    """The mean input says little of what a 3x3 convolution makes of small images; POT adds that error to the bias."""
    x = parameter((1, 4, 8, 8))
    tested = model(named(op.relu(convolution(x, random(6, 4, 3, 3), bias=random(6) + 3, **attributes)), "relu"), x)
    samples = images(2, (1, 4, 8, 8))
    errors = {}
    for name, correction, flag in (("none", schema.BiasCorrection(enabled=False), False), ("ours", ON, False), ("pots", ON, True)):
        result = quantized(
            tested, samples, correction=correction, weights=schema.Scheme(bits=4), allow_unsupported=True, pot_compatible=flag
        )
        means = [np.mean([v.mean(axis=(0, 2, 3)) for v in tensor(m, "conv/biased", samples)], axis=0) for m in (result.model, tested)]
        errors[name] = float(np.abs(means[0] - means[1]).max())
    assert errors["ours"] < 1.05 * errors["none"] and errors["ours"] < errors["pots"] / 2


def test_layers_without_a_bias_are_left_by_pot_and_named() -> None:
    tested, samples = network(bias=False), images(3, (1, 4, 8, 8))
    ours = quantized(tested, samples, correction=ON)
    pots = quantized(tested, samples, correction=ON, pot_compatible=True)
    assert {entry.name for entry in ours.solved.corrections if entry.bias is not None} == {"pointwise", "grouped", "product"}
    assert {entry.name: entry.reason for entry in pots.solved.corrections} == dict.fromkeys(("pointwise", "grouped", "product"), "no bias")
    assert not pots.solved.biases


def test_every_layer_with_quantized_weights_is_corrected_or_has_a_reason() -> None:
    x = parameter((1, 4, 8, 8))
    layers = [
        convolution(x, random(4, 4, 1, 1), "good"),
        named(op.add(convolution(x, random(8, 4, 1, 1), "odd"), constant(random(1, 1, 8, 1), "rows")), "odd/bias_add"),
        named(op.convolution_backprop_data(x, constant(random(4, 2, 2, 2), "up/weights"), [2, 2]), "up"),
        matmul(x, random(1, 4, 8, 5), "batch"),
        named(op.matmul(constant(random(5, 8), "left/weights"), x, False, False), "left"),
    ]
    tested = model([named(op.relu(layer), f"r{index}") for index, layer in enumerate(layers)], x)
    found = quantized(tested, images(3, (1, 4, 8, 8)), "gpu", correction=ON).solved.corrections  # the CPU gets weights on the left wrong
    layout = "not a convolution or a MatMul with one matrix of weights on its second input"
    assert {entry.name: entry.reason for entry in found} == {
        "good": None,
        "odd": "its bias is not one value per channel",
        "up": layout,
        "batch": layout,
        "left": layout,
    }


def test_all_layers_on_request() -> None:
    tested, samples = network(bias=True), images(3, (1, 4, 8, 8))
    ignored = schema.Ignored(scope=["product"])
    for everywhere, expected in ((False, {"pointwise", "grouped"}), (True, {"pointwise", "grouped", "product"})):
        correction = schema.BiasCorrection(apply_for_all_nodes=everywhere)
        found = quantized(tested, samples, correction=correction, ignored=ignored).solved.corrections
        assert {entry.name for entry in found} == expected


def test_a_bias_of_one_number_is_corrected_per_channel_but_not_by_pot() -> None:
    x = parameter((1, 4, 8, 8))
    layer = op.add(convolution(x, random(5, 4, 1, 1)), constant(np.full((1, 1, 1, 1), 3.0), "three"))
    tested, samples = model(named(op.relu(layer), "relu"), x), images(3, (1, 4, 8, 8))
    for flag, reason in ((False, None), (True, "the bias has another shape than the output's channels")):
        (entry,) = quantized(tested, samples, correction=ON, pot_compatible=flag).solved.corrections
        assert entry.reason == reason
        assert (entry.bias is None) if flag else (entry.bias is not None and entry.bias.shape == (5,))


def test_nothing_without_statistics_of_the_input() -> None:
    tested, samples = network(bias=True), images(3, (1, 4, 8, 8))
    statistics = statistics_of(tested, samples)
    del statistics.input_mean["grouped"]
    _, solved = build(tested, statistics, plan_of(tested), ON)
    assert {entry.name: entry.reason for entry in solved.corrections}["grouped"] == "no mean of its input was collected"


def test_disabled() -> None:
    tested, samples = network(bias=True), images(3, (1, 4, 8, 8))
    _, solved = build(tested, statistics_of(tested, samples), plan_of(tested), schema.BiasCorrection(enabled=False))
    assert solved.corrections == [] and solved.biases == {}
    assert build(tested, statistics_of(tested, samples), Plan((), ()), ON)[1].corrections == []
