"""Channel alignment: which pairs, the same function afterwards, and statistics that follow by arithmetic."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from stages.common.errors import UserError
from stages.configuration import schema
from stages.measurement.written_out import written_out
from stages.quantization.build import build
from stages.quantization.model.graph import read_graph
from stages.quantization.placement.alignment_pairs import alignment_pairs
from stages.quantization.placement.plan import NotAligned, Plan, TensorName, plan_from_json, plan_to_json
from stages.quantization.solution.alignment import align, compute_alignment
from stages.quantization.statistics.store import Statistics
from tests.quantization.quantizing import infer, plan_of, same, statistics_of
from tests.quantization.small import constant, convolution, images, matmul, model, named, parameter, random


def uneven(*shape: int, seed: int = 0) -> np.ndarray:
    """Weights whose output channels differ by a factor of hundred."""
    return random(*shape, seed=seed) * np.geomspace(0.1, 10, shape[0]).reshape(-1, *[1] * (len(shape) - 1)).astype(np.float32)


def pair(first_bias: bool = True, second_bias: bool = True, kernel: int = 1, grouped: bool = False) -> ov.Model:
    """Conv -> conv -> relu."""
    x = parameter((1, 4, 8, 8))
    weights = uneven(2, 3, 2, 3, 3) if grouped else uneven(6, 4, 3, 3)
    first = convolution(x, weights, "first", bias=random(6) * 3 if first_bias else None, pads_begin=[1], pads_end=[1])
    second = convolution(first, random(5, 6, kernel, kernel, seed=1), "second", bias=random(5) if second_bias else None)
    return model(named(op.relu(second), "relu"), x)


def aligned_only(tested: ov.Model, statistics: Statistics) -> ov.Model:
    plan = Plan((), (), tuple((a.name, b.name) for a, b in alignment_pairs(read_graph(tested))))
    assert plan.aligned
    return build(tested, statistics, plan)[0]


def between(tested: ov.Model) -> TensorName:
    graph = read_graph(tested)
    return TensorName(graph.by_name["second"].inputs[0].node.name, 0)


SAMPLES = images(5, (1, 4, 8, 8))
KINDS: list[dict[str, Any]] = [
    {},
    {"kernel": 3},
    {"grouped": True},
    {"first_bias": False},
    {"second_bias": False},
    {"first_bias": False, "second_bias": False},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_aligned_model_computes_the_same(kind: dict[str, Any]) -> None:
    tested = pair(**kind)
    same(aligned_only(tested, statistics_of(tested, SAMPLES)), tested, SAMPLES)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_statistics_by_arithmetic_are_those_of_the_aligned_model(kind: dict[str, Any]) -> None:
    tested = pair(**kind)
    probabilities = [0.01, 0.05]
    statistics = statistics_of(tested, SAMPLES, probabilities, probabilities, every_channel=True)
    result = aligned_only(tested, statistics)
    computed = align(read_graph(tested), statistics, Plan((), (), (("first", "second"),))).statistics
    collected = statistics_of(result, SAMPLES, probabilities, probabilities, every_channel=True)
    for quantity in ("lowest", "highest", "channel_lowest", "channel_highest"):
        ours, theirs = getattr(computed, quantity)[between(tested)], getattr(collected, quantity)[between(result)]
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4, err_msg=quantity)
    for quantity in ("input_mean", "output_mean"):
        for layer, theirs in getattr(collected, quantity).items():
            np.testing.assert_allclose(getattr(computed, quantity)[layer], theirs, rtol=1e-4, atol=1e-4, err_msg=f"{quantity} {layer}")


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_channels_become_equal(kind: dict[str, Any]) -> None:
    """Around zero, too, as a bias that is missing can be given."""
    tested = pair(**kind)
    name, statistics = between(tested), statistics_of(tested, SAMPLES)
    aligned = align(read_graph(tested), statistics, Plan((), (), (("first", "second"),))).statistics
    spreads = []
    for state in (statistics, aligned):
        low, high = state.channel_lowest[name][:, :, 0], state.channel_highest[name][:, :, 0]
        spreads.append(np.median(high - low, axis=0))
    assert spreads[0].max() / spreads[0].min() > 20
    assert spreads[1].max() / spreads[1].min() < 1.25
    middle = np.median(aligned.channel_highest[name][:, :, 0], axis=0) + np.median(aligned.channel_lowest[name][:, :, 0], axis=0)
    np.testing.assert_allclose(middle, 0, atol=0.05 * spreads[1].max())


def test_a_bias_that_is_not_one_value_per_channel_takes_no_shift() -> None:
    x = parameter((1, 4, 8, 8))
    second = convolution(convolution(x, uneven(6, 4, 3, 3), "first", pads_begin=[1], pads_end=[1]), random(5, 6, 1, 1), "second")
    tested = model(named(op.relu(op.add(second, constant(random(1, 5, 8, 8), "positions"))), "relu"), x)
    result = aligned_only(tested, statistics_of(tested, SAMPLES))
    same(result, tested, SAMPLES)
    assert not [node for node in result.get_ops() if node.get_friendly_name().endswith("/bias")]


def test_without_quantiles_only_minima_and_maxima_are_known() -> None:
    tested = pair()
    statistics = statistics_of(tested, SAMPLES, probabilities=[0.01])
    config = schema.RangeEstimator(preset="quantile", max=schema.Estimator(outlier_prob=0.01))
    plan = plan_of(tested, range_estimator=config)
    with pytest.raises(UserError, match=r"statistics hold no abs_quantile at 0.01 of first/biased \(output 0\); run"):
        build(tested, statistics, plan)
    build(tested, statistics_of(tested, SAMPLES, [0.01], [0.01]), plan)


def test_shift_and_scale_by_hand() -> None:
    low = np.array([[-1.0, 0.0, 3.0], [-3.0, -1.0, 3.0], [-2.0, -8.0, 3.0]])
    high = np.array([[1.0, 9.0, 3.0], [5.0, 7.0, 3.0], [2.0, 5.0, 3.0]])
    # Medians: low -2, -1, 3; high 2, 7, 3. Spread 4, 8, 0; the median of those above zero is 6.
    found = compute_alignment(low, high, can_shift=True)
    np.testing.assert_allclose(found.shift, [0, 3, 3])
    np.testing.assert_allclose(found.scale, [4 / 6, 8 / 6, 1])
    np.testing.assert_array_equal(compute_alignment(low, high, can_shift=False).shift, 0)


def test_scales_are_bounded_and_dead_channels_left() -> None:
    low = np.zeros((1, 5))
    found = compute_alignment(low, np.array([[1e-9, 1.0, 1.0, 1.0, 1e9]]), can_shift=False)
    np.testing.assert_array_equal(found.scale, [0.01, 1, 1, 1, 100])
    found = compute_alignment(low, low + 2, can_shift=True)
    np.testing.assert_array_equal(found.scale, 1)
    found = compute_alignment(low + 2, low + 2, can_shift=True)
    np.testing.assert_array_equal(found.scale, 1)
    np.testing.assert_array_equal(found.shift, 2)


# --------------------------------------------------------------------------------------------------------------- pairs


def pairs(output: ov.Node, *inputs: ov.Node) -> list[tuple[str, str]]:
    return [(first.name, second.name) for first, second in alignment_pairs(read_graph(model(output, *inputs)))]


def test_chains_align_pairwise() -> None:
    x = parameter((1, 4, 8, 8))
    first = convolution(x, uneven(6, 4, 3, 3), "a", bias=random(6))
    second = convolution(first, uneven(5, 6, 1, 1), "b", bias=random(5))
    tested = model(named(op.relu(convolution(second, uneven(4, 5, 1, 1), "c", bias=random(4))), "relu"), x)
    assert pairs(tested.get_results()[0].input_value(0).get_node(), x) == [("a", "b"), ("b", "c")]
    statistics = statistics_of(tested, SAMPLES)
    same(aligned_only(tested, statistics), tested, SAMPLES)


def conv_before(second: ov.Node | None = None, **attributes: Any) -> ov.Node:
    """First -> second; `second` stands for the tensor between them."""
    between = convolution(parameter((1, 4, 8, 8)), random(4, 4, 3, 3), "first") if second is None else second
    return convolution(between, random(5, 4, 1, 1), "second", **attributes)


def shifted() -> ov.Node:
    layer = convolution(parameter((1, 4, 8, 8)), random(4, 4, 3, 3), "first")
    return conv_before(op.add(layer, constant(random(1, 1, 6, 6), "position")))


def shared() -> ov.Node:
    x, kernel = parameter((1, 4, 8, 8)), constant(random(4, 4, 1, 1), "shared")
    first, other = (named(op.convolution(x, kernel, [1, 1], [0, 0], [0, 0], [1, 1]), name) for name in ("first", "other"))
    return op.add(convolution(first, random(4, 4, 1, 1), "second"), other)


def branched() -> ov.Node:
    first = convolution(parameter((1, 4, 8, 8)), random(4, 4, 3, 3), "first")
    return op.concat([conv_before(first), op.relu(first)], 1)


def grouped() -> ov.Node:
    return convolution(convolution(parameter((1, 4, 8, 8)), random(4, 4, 3, 3), "first"), random(4, 1, 1, 1, 1), "second")


def after_product() -> ov.Node:
    """POT pairs these, and scales the columns of an image as if they were its channels."""
    return conv_before(matmul(parameter((1, 4, 8, 8)), random(8, 4), "first"))


PADS, STEPS = "the second one pads its input", "the second one has a stride or a dilation"
NOT_ALIGNED: dict[str, tuple[ov.Node, str]] = {
    "padding": (conv_before(pads_begin=[1]), PADS),
    "padding by name": (conv_before(auto_pad="same_upper"), PADS),
    "stride": (conv_before(strides=[2]), STEPS),
    "dilation": (conv_before(dilations=[2]), STEPS),
    "branch": (branched(), "something else reads the tensor between them"),
    "grouped": (grouped(), "the second one is grouped"),
    "matrix product": (after_product(), "the channels of a MatMul lie elsewhere"),
    "position": (shifted(), "what is added between them is not one value per channel"),
    "shared weights": (shared(), "weights are computed, or read by something else"),
}


def closed(output: ov.Node) -> ov.Model:
    """The model around an operation."""
    node = output
    while node.get_type_name() != "Parameter":
        node = node.input_value(0).get_node()
    return model(named(op.relu(output), "relu"), node)


@pytest.mark.parametrize("what", NOT_ALIGNED)
def test_what_is_not_aligned_is_recorded_with_the_reason(what: str) -> None:
    output, reason = NOT_ALIGNED[what]
    tested = closed(output)
    plan = plan_of(tested)
    assert plan.aligned == () and plan.not_aligned == (NotAligned("first", "second", reason),)
    assert plan_from_json(plan_to_json(plan)) == plan
    assert plan_of(tested, use_channel_alignment=False).not_aligned == ()
    result = build(tested, statistics_of(tested, SAMPLES), plan)[0]
    assert len(list(infer(result, SAMPLES))) == len(SAMPLES)


def test_explicitly_no_padding_is_aligned() -> None:
    plan = plan_of(closed(conv_before(auto_pad="valid")))
    assert plan.aligned == (("first", "second"),) and plan.not_aligned == ()


def test_across_an_activation_there_is_no_candidate() -> None:
    layer = convolution(parameter((1, 4, 8, 8)), random(4, 4, 3, 3), "first")
    plan = plan_of(closed(conv_before(op.relu(layer))))
    assert plan.aligned == () and plan.not_aligned == ()


def test_half_precision_weights_stay_half() -> None:
    x = parameter((1, 4, 8, 8))
    weights = op.convert(constant(uneven(6, 4, 3, 3), "half", np.float16), "f32")
    first = named(op.convolution(x, weights, [1, 1], [0, 0], [0, 0], [1, 1]), "first")
    tested = model(named(op.relu(convolution(first, random(5, 6, 1, 1), "second")), "relu"), x)
    result = aligned_only(tested, statistics_of(tested, SAMPLES))
    stored = {node.get_friendly_name(): node.get_output_element_type(0) for node in result.get_ops()}
    assert stored["half"] == ov.Type.f16
    same(result, tested, SAMPLES, tolerance=3e-3)


def test_missing_channels_are_one_line() -> None:
    tested = pair()
    statistics = replace(statistics_of(tested, SAMPLES), channel_lowest={})
    with pytest.raises(UserError, match="statistics hold no channels of first/biased; run `dvc repro --force collect_statistics`"):
        aligned_only(tested, statistics)


def test_a_plan_of_another_model_is_one_line() -> None:
    x = parameter((1, 4, 8, 8))
    other = model(named(op.relu(convolution(named(op.relu(x), "first"), random(5, 4, 1, 1), "second")), "relu"), x)
    tested = pair()
    with pytest.raises(UserError, match=r"quantizers.json aligns the channels of Relu first, which has no constant weights"):
        statistics = statistics_of(tested, SAMPLES)
        statistics.channel_lowest[TensorName("first", 0)] = statistics.channel_lowest[between(tested)]
        statistics.channel_highest[TensorName("first", 0)] = statistics.channel_highest[between(tested)]
        statistics.channel_size[TensorName("first", 0)] = statistics.channel_size[between(tested)]
        build(other, statistics, Plan((), (), (("first", "second"),)))


def test_alignment_helps_where_small_channels_matter() -> None:
    x = parameter((1, 4, 8, 8))
    first = convolution(x, uneven(6, 4, 3, 3), "first", bias=random(6))
    weights = random(5, 6, 1, 1) / np.geomspace(0.1, 10, 6).reshape(1, -1, 1, 1).astype(np.float32)
    tested = model(named(op.relu(convolution(first, weights, "second", bias=random(5))), "relu"), x)
    samples = SAMPLES[-1:]  # nothing is clipped
    statistics = statistics_of(tested, samples)
    errors = {}
    for use in (False, True):
        result, _ = build(tested, statistics, plan_of(tested, use_channel_alignment=use, saturation_fix="no"))
        outputs = zip(infer(written_out(result), samples), infer(tested, samples), strict=True)  # CPUs without VNNI saturate
        errors[use] = float(np.mean([np.mean((ours[0] - theirs[0]) ** 2) for ours, theirs in outputs]))
    assert errors[True] < errors[False] / 10
