"""The plan of a quantized model."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import openvino as ov
import pytest
from hypothesis import given, settings
from openvino import opset13 as op

from stages.common.errors import ConfigError, UserError
from stages.configuration import schema
from stages.quantization.placement.plan import Plan, TensorName, plan_from_json, plan_to_json
from stages.quantization.planning import require_something_to_quantize
from tests.quantization.quantizing import plan_of
from tests.quantization.random_models import models
from tests.quantization.small import constant, convolution, matmul, model, named, parameter, random


def network() -> ov.Model:
    """Two convolutions, one of them depthwise, an Add and a MatMul."""
    x = parameter((1, 4, 8, 8))
    first = convolution(x, random(4, 4, 3, 3), "first", bias=random(4), pads_begin=[1], pads_end=[1])
    relu = named(op.relu(first), "relu")
    second = named(op.relu(convolution(relu, random(4, 1, 1, 1, 1), "depthwise")), "relu2")
    total = named(op.add(relu, second), "sum")
    return model(matmul(named(op.tanh(total), "tanh"), random(8, 3), "last"), x)


@pytest.mark.parametrize(("preset", "weights", "activations"), [("performance", 0, 0), ("mixed", 0, 1), ("accuracy", 1, 1)])
def test_presets(preset: str, weights: int, activations: int) -> None:
    expected = {"weights": ("symmetric", "asymmetric")[weights], "activations": ("symmetric", "asymmetric")[activations]}
    for quantizer in plan_of(network(), preset=preset).quantizers:
        assert quantizer.scheme.mode == expected[quantizer.kind]


def test_names_and_sources() -> None:
    found = {q.name: q for q in plan_of(network()).quantizers}
    assert found["first/fq_weights_1"].source == TensorName("first/weights", 0)
    assert found["first/fq_weights_1"].source_type == "Constant"
    assert found["relu/fq_output_0"].source == TensorName("relu", 0)
    assert [(place.name, place.type, place.port) for place in found["relu/fq_output_0"].consumers] == [
        ("depthwise", "GroupConvolution", 0),
        ("sum", "Add", 0),
    ]


def test_a_name_in_use_is_avoided() -> None:
    x = parameter()
    taken = named(op.relu(named(op.relu(x), "relu")), "relu/fq_output_0")
    plan = plan_of(
        model([convolution(taken, random(3, 3, 1, 1), "b"), convolution(taken.input_value(0).get_node(), random(3, 3, 1, 1), "a")], x)
    )
    assert {q.name for q in plan.quantizers if q.kind == "activations"} == {"relu/fq_output_0_", "relu/fq_output_0/fq_output_0"}


def test_a_depthwise_convolution_and_an_add_share_a_range_per_tensor() -> None:
    found = {q.name: q for q in plan_of(network()).quantizers}
    assert found["relu/fq_output_0"].scheme.granularity == "pertensor" and found["relu/fq_output_0"].channel_axis is None
    x = parameter((1, 4, 8, 8))
    alone = plan_of(model(convolution(x, random(4, 1, 1, 1, 1)), x)).quantizers
    assert {(q.kind, q.scheme.granularity, q.channel_axis) for q in alone} == {
        ("activations", "perchannel", 1),
        ("weights", "perchannel", 0),
    }


AXES: list[tuple[str, tuple[int, ...], int, dict[str, bool], int | None, int | None]] = [
    # what, shape of the weights, on which input, transposition, our axis, POT's
    ("conv", (4, 3, 1, 1), 1, {}, 0, 0),
    ("conv", (3, 2, 1, 1, 1), 1, {}, 0, 0),
    ("deconv", (3, 4, 2, 2), 1, {}, 1, 1),
    ("matmul", (8, 5), 1, {}, 1, 1),
    ("matmul", (5, 8), 1, {"transpose_b": True}, 0, 0),
    ("matmul", (1, 8, 5), 1, {}, 2, 0),
    ("matmul", (1, 5, 8), 1, {"transpose_b": True}, 1, 0),
    ("matmul", (1, 3, 8, 5), 1, {}, 0, 0),
    ("matmul", (3, 8, 5), 1, {}, 0, 0),
    ("matmul", (3, 5, 8), 0, {}, 1, 0),
    ("matmul", (5, 8), 0, {}, 0, 0),
    ("matmul", (8, 5), 0, {"transpose_a": True}, 1, 0),
    ("matmul", (8,), 1, {}, None, 0),
    ("multiply", (1, 3, 1, 1), 1, {}, 0, 0),
]


@pytest.mark.parametrize(("what", "shape", "port", "attributes", "ours", "pots"), AXES, ids=str)
def test_the_channel_axis_of_weights(
    what: str, shape: tuple[int, ...], port: int, attributes: dict[str, bool], ours: int | None, pots: int | None
) -> None:
    """Of weights in three dimensions, POT always takes the batch for the channels."""
    x, weights = parameter(), constant(random(*shape), "weights")
    if what == "conv":
        layer = convolution(x, random(*shape))
    elif what == "deconv":
        layer = op.convolution_backprop_data(x, weights, [2, 2])
    elif what == "multiply":
        layer = op.multiply(op.tanh(convolution(x, random(3, 3, 1, 1), "before")), weights)
    else:
        given = {"transpose_a": False, "transpose_b": False, **attributes}
        layer = op.matmul(*((x, weights) if port == 1 else (weights, x)), given["transpose_a"], given["transpose_b"])
    named(layer, "conv" if what == "conv" else "layer")
    tested = model(convolution(layer, random(3, 3, 1, 1), "behind") if what == "multiply" else layer, x)
    device = "any" if port == 1 else "gpu"  # the CPU gets constants on the left wrong
    for expected, flag in ((ours, False), (pots, True)):
        quantizers = plan_of(tested, device, pot_compatible=flag).quantizers
        (found,) = (q for q in quantizers if q.kind == "weights" and q.consumers[0].name not in ("before", "behind"))
        assert found.channel_axis == expected
        assert found.scheme.granularity == ("pertensor" if expected is None else "perchannel")


def test_channels_where_there_are_none() -> None:
    x = parameter((6,))
    weights = random(6, 2)
    config: dict[str, Any] = {"activations": schema.Scheme(granularity="perchannel"), "allow_unsupported": True}
    for quantizer in plan_of(model(matmul(x, weights), x), **config).quantizers:
        assert quantizer.scheme.granularity == ("pertensor" if quantizer.kind == "activations" else "perchannel")


# ------------------------------------------------------------------------------------------------------ saturation fix


def doubled(tested: ov.Model, device: str = "any", **config: Any) -> set[str]:
    return {q.consumers[0].name for q in plan_of(tested, device, **config).quantizers if q.doubled}


def test_saturation_fix() -> None:
    assert doubled(network()) == {"first"}
    assert doubled(network(), saturation_fix="no") == set()
    assert doubled(network(), saturation_fix="all") == {"first", "depthwise", "last"}
    assert doubled(network(), "cpu") == {"first"}
    assert doubled(network(), "gpu") == doubled(network(), "cpu_spr") == set()


def test_first_layers_on_every_path_from_an_input() -> None:
    x, y = parameter(), parameter(name="y")
    first = convolution(op.relu(x), random(3, 3, 1, 1), "a")
    other = convolution(op.add(first, y), random(3, 3, 1, 1), "b")
    assert doubled(model(convolution(named(op.relu(other), "r"), random(3, 3, 1, 1), "c"), x, y)) == {"a", "b"}


def test_without_a_convolution_weights_are_halved_only_on_request() -> None:
    x = parameter((2, 3))
    tested = model(matmul(x, random(3, 2)), x)
    assert doubled(tested) == set()
    assert doubled(tested, saturation_fix="all") == {"matmul"}
    assert doubled(tested, saturation_fix="all", pot_compatible=True) == set()


def test_the_second_of_an_aligned_pair_too() -> None:
    x = parameter()
    first = convolution(x, random(4, 3, 1, 1), "first")
    tested = model(convolution(first, random(5, 4, 1, 1), "second"), x)
    assert doubled(tested) == {"first", "second"}
    assert plan_of(tested).aligned == (("first", "second"),)
    assert doubled(tested, use_channel_alignment=False) == {"first"} and plan_of(tested, use_channel_alignment=False).aligned == ()


# ------------------------------------------------------------------------------------------------------------ refusals


def test_a_scheme_that_the_target_does_not_offer_names_the_operation() -> None:
    with pytest.raises(ConfigError, match=r"quantization.activations for Add sum: granularity=perchannel cannot run"):
        plan_of(network(), activations=schema.Scheme(granularity="perchannel"))
    forced = plan_of(network(), activations=schema.Scheme(granularity="perchannel"), allow_unsupported=True)
    assert {q.scheme.granularity for q in forced.quantizers if q.kind == "activations"} == {"perchannel"}


def test_one_range_per_tensor_for_a_depthwise_convolution_is_no_refusal() -> None:
    x = parameter((1, 4, 8, 8))
    plan = plan_of(model(convolution(x, random(4, 1, 1, 1, 1)), x), activations=schema.Scheme(granularity="pertensor"))
    assert {q.scheme.granularity for q in plan.quantizers if q.kind == "activations"} == {"pertensor"}


def test_a_constant_that_no_operation_takes_quantized_stays_float() -> None:
    x = parameter()
    joined = named(op.concat([named(op.relu(x), "relu"), constant(random(1, 2, 8, 8), "fixed")], 1), "joined")
    plan = plan_of(model(named(op.avg_pool(joined, [2, 2], [0, 0], [0, 0], [2, 2], False), "pool"), x))
    assert [q.source.name for q in plan.quantizers] == ["relu"]
    reasons = {(entry.name, entry.port): entry.reason for entry in plan.floats}
    assert reasons["joined", 1] == "ANY has no quantized weights for AvgPool"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (op.relu, "nothing to quantize: ANY has no quantized Relu"),
        (lambda x: op.convert(x, "i32"), "nothing to quantize: ANY has no quantized Convert"),
        (lambda x: op.multiply(x, constant(2.0, "two")), "nothing to quantize: ignored block: input preprocessing: scale"),
        (lambda x: op.reshape(x, np.array([-1]), False), "nothing to quantize: the model has no floating-point operation"),
    ],
)
def test_nothing_to_quantize_is_one_line(build: Any, message: str) -> None:
    x = parameter()
    with pytest.raises(UserError) as raised:
        require_something_to_quantize(plan_of(model(build(x), x)))
    assert str(raised.value) == message


def test_something_to_quantize() -> None:
    require_something_to_quantize(plan_of(network()))


def test_transformers_multiply_activations_symmetrically() -> None:
    x, y = parameter((2, 8)), parameter((8, 2), "y")
    both = named(op.matmul(named(op.exp(x), "a"), named(op.exp(y), "b"), False, False), "both")
    tested = model(matmul(both, random(2, 3), "last"), x, y)
    for model_type, expected in (("none", "asymmetric"), ("transformer", "symmetric")):
        modes = {q.source.name: q.scheme.mode for q in plan_of(tested, "npu", preset="mixed", model_type=model_type).quantizers}
        assert modes == {"a": expected, "b": expected, "both": "asymmetric", "last/weights": "symmetric"}


def test_estimators_of_a_group_replace_those_of_both() -> None:
    config: dict[str, Any] = {
        "range_estimator": schema.RangeEstimator(max=schema.Estimator(aggregator="max")),
        "activations": schema.Scheme(range_estimator=schema.RangeEstimator(preset="quantile")),
    }
    found = {q.kind: q.estimator.max for q in plan_of(network(), **config).quantizers if q.channel_axis is None or q.kind == "weights"}
    assert (found["activations"].type, found["activations"].aggregator) == ("abs_quantile", "mean")
    assert found["weights"].type == "abs_max"


@given(models())
@settings(max_examples=30, deadline=None)
def test_plans_survive_json(tested: ov.Model) -> None:
    plan = plan_of(tested, preset="mixed", stat_batch_size=3)
    stored = json.loads(json.dumps(plan_to_json(plan)))
    assert plan_from_json(stored) == plan and plan.stat_batch_size == 3
    assert isinstance(plan, Plan) and hash(plan)
