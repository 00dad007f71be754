"""What INT8 makes no faster is left float: blocks that are written out, arithmetic outside the layers, kernels without an INT8 form."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Set
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from stages.configuration import schema
from stages.quantization.model.graph import read_graph
from stages.quantization.placement.gain import FEW_MULTIPLICATIONS, NOTHING, without_gain
from stages.quantization.placement.plan import Plan
from tests.quantization.placement import written_out
from tests.quantization.placement.written_out import BLOCKS, Written
from tests.quantization.quantizing import plan_of, quantized
from tests.quantization.reference_runs import core, run, target
from tests.quantization.small import constant, convolution, matmul, model, named, parameter, random


def reads(plan: Plan) -> set[str]:
    """The operations that read quantized activations."""
    return {place.name for quantizer in plan.quantizers if quantizer.kind == "activations" for place in quantizer.layers}


def reasons(tested: ov.Model, device: str = "any", **config: Any) -> dict[str, str]:
    """Why operations gain nothing, without the words that all reasons begin with."""
    found = without_gain(read_graph(tested), target(device), schema.Quantization(**config))
    return {node.name: reason.removeprefix(NOTHING) for node, reason in found.items()}


def conv(source: ov.Node, name: str, outputs: int = 4) -> ov.Node:
    return convolution(source, random(outputs, source.output(0).get_shape()[1], 1, 1), name)


# ---------------------------------------------------------------------------------------------------- blocks written out

LINEAR = frozenset({"first", "second"})
STREAM = frozenset({"embedding", "wide0", "narrow0", "wide1", "narrow1", "head"})
HEAD = frozenset({"stem", "neck", "sides", "classes"})
ATTENTION = frozenset({"query", "key", "value", "output"})
# What reads INT8 with symmetric ranges. "MatMul_0" is query times key.
PLACEMENT: dict[str, Set[str]] = {
    **dict.fromkeys(("LayerNorm", "LayerNorm by squares", "LayerNorm by reciprocal", "RMSNorm"), LINEAR),
    **dict.fromkeys(("GELU by erf", "GELU by tanh", "GELU by products", "Swish", "softmax", "input normalisation"), LINEAR),
    **dict.fromkeys(("residual LayerNorm", "residual LayerNorm by squares", "residual RMSNorm"), STREAM),
    **dict.fromkeys(("attention", "rotary embedding", "rotary embedding by place", "attention mask"), ATTENTION | {"MatMul_0"}),
    "softmax by exp": ATTENTION | {"MatMul_0", "MatMul_1"},
    "squeeze-and-excitation": {"first", "ReduceMean_0", "Multiply_0", "second"},
    "residual network": {"stem", "first0", "second0", "Add_0", "first1", "second1", "Add_1", "head"},
    "box refinement": {"boxes", "stream", "place0", "embedding0", "Add_0", "layer0", "Add_1", "shift0"}
    | {"place1", "embedding1", "Add_3", "layer1", "Add_4", "shift1"},
    **dict.fromkeys(("boxes by convolution", "boxes by MatMul"), HEAD),
}


@functools.cache
def block(name: str) -> Written:
    return BLOCKS[name]()


def test_every_block_is_tested() -> None:
    assert PLACEMENT.keys() == BLOCKS.keys()


@pytest.mark.parametrize("name", BLOCKS)
def test_layers_read_int8_and_what_is_written_out_does_not(name: str) -> None:
    tested = block(name).model
    assert reads(plan_of(tested)) == PLACEMENT[name]
    assert reads(plan_of(tested, preset="mixed")) == PLACEMENT[name] - {"MatMul_0", "MatMul_1"}


def signal_to_noise(tested: ov.Model, other: ov.Model, samples: list[Any]) -> float:
    """In dB, of all outputs, as the quantized model says it: its kernels' own errors, such as saturated sums, are left out."""
    settings = {"INFERENCE_PRECISION_HINT": "f32", "LP_TRANSFORMS_MODE": False}

    def outputs(computed: ov.Model) -> Iterator[np.ndarray]:
        compiled = core().compile_model(computed, "CPU", settings)
        for sample in samples:
            values = compiled(sample if isinstance(sample, dict) else [sample]).values()
            yield np.concatenate([np.ravel(value).astype(np.float64) for value in values])

    pairs = list(zip(outputs(tested), outputs(other), strict=True))
    signal, noise = sum(float(np.sum(one**2)) for one, _ in pairs), sum(float(np.sum((one - two) ** 2)) for one, two in pairs)
    return float(10 * np.log10(signal / noise))


# Of the layers themselves: what 8 bits of the query and the key cost in the scores, or four convolutions in a row.
LAYERS_ALONE = {"rotary embedding": 29.5, "rotary embedding by place": 29.5, "softmax by exp": 29.5, "residual network": 28.0}


@pytest.mark.parametrize("preset", schema.PRESETS)
@pytest.mark.parametrize("name", BLOCKS)
def test_30_db_at_the_output(name: str, preset: str) -> None:
    tested, samples = block(name)
    assert signal_to_noise(tested, quantized(tested, samples, preset=preset).model, samples) > LAYERS_ALONE.get(name, 30)


@pytest.mark.parametrize("name", ["boxes by convolution", "boxes by MatMul"])
def test_boxes_of_a_detector_are_several_times_as_exact(name: str) -> None:
    tested, samples = block(name)
    ours, pots = (quantized(tested, samples, pot_compatible=flag) for flag in (False, True))
    assert signal_to_noise(tested, ours.model, samples) > signal_to_noise(tested, pots.model, samples) + 6
    left = {name for name, port in pots.floats().keys() ^ ours.floats().keys() if port is None}
    assert "distribution" in left and not reads(ours.plan) & left


# ---------------------------------------------------------------------------------------------------- not between layers


@pytest.mark.parametrize("name", ["residual network", "squeeze-and-excitation"])
def test_networks_of_convolutions_keep_their_placement(name: str) -> None:
    tested = block(name).model
    assert reads(plan_of(tested)) == reads(plan_of(tested, pot_compatible=True))


@pytest.mark.parametrize("name", ["resnet.performance", "mbv2.mixed", "mbv3se.performance", "seg.performance", "smallcnn.mixed"])
def test_the_reference_models_keep_their_placement(name: str) -> None:
    ours, pots = (run(name, pot_compatible=flag).plan for flag in (False, True))
    assert {q.source for q in ours.quantizers} == {q.source for q in pots.quantizers}


def test_operands_must_come_from_layers_and_results_must_reach_one() -> None:
    x = parameter()
    inside = named(op.relu(conv(x, "first", 3)), "relu")
    before = named(op.add(named(op.exp(x), "exp"), inside), "before")
    within = named(op.multiply(conv(inside, "second", 3), conv(inside, "third", 3)), "within")
    after = named(op.add(named(op.tanh(within), "tanh"), inside), "after")
    tested = model([conv(before, "a"), conv(within, "b"), named(op.sqrt(after), "root")], x)
    assert reasons(tested) == {"before": "an operand comes from no layer with weights", "after": "no layer with weights follows"}
    assert reads(plan_of(tested)) == {"first", "second", "third", "within", "a", "b"}
    assert reasons(tested, pot_compatible=True) == {} and reads(plan_of(tested, pot_compatible=True)) > {"before", "after"}


def test_a_tensor_that_a_layer_reads_is_as_good_as_one_that_a_layer_wrote() -> None:
    """It is quantized anyway: the first sum of a residual network whose stem is pooled otherwise than by a kernel of INT8."""
    x, y = parameter(), parameter(name="y")
    read = named(op.sqrt(op.exp(x)), "read")
    total = named(op.add(conv(read, "first", 3), read), "sum")
    assert reasons(model(conv(total, "last"), x)) == {}
    other = named(op.add(conv(read, "first", 3), y), "sum")
    assert reasons(model(conv(other, "last"), x, y)) == {"sum": "an operand comes from no layer with weights"}


def test_what_is_left_leaves_what_depends_on_it() -> None:
    x, y = parameter(), parameter(name="y")
    left = named(op.add(conv(x, "first", 3), y), "left")
    later = named(op.multiply(op.relu(left), conv(x, "second", 3)), "later")
    tested = model(conv(later, "last"), x, y)
    assert set(reasons(tested)) == {"left", "later"}


def test_means_lie_between_layers_but_do_not_make_one_of_what_follows() -> None:
    x = parameter()
    relu = op.relu(conv(x, "first", 3))
    mean = named(op.reduce_mean(relu, np.array([2, 3]), True), "mean")
    assert reasons(model(conv(mean, "last"), x)) == {} and reasons(model(mean, x)) == {}
    centred = named(op.subtract(relu, mean), "centred")
    assert set(reasons(model(conv(centred, "last"), x))) == {"mean", "centred"}


def test_numbers_and_shapes_are_no_matter_of_gain() -> None:
    x = parameter((-1, 3, 8, 8))
    doubled = op.multiply(x, constant(2.0, "two"))
    shape = op.multiply(op.shape_of(x), op.constant(np.array([1, 1, 2, 2])))
    assert reasons(model([named(doubled, "doubled"), op.reduce_prod(shape, np.array([0]))], x)) == {}


# --------------------------------------------------------------------------------------------------- functions of a tensor

ONE = "part of a function of one tensor, which is one kernel"


def gated(x: ov.Node) -> ov.Node:
    first, second = op.split(conv(x, "first", 6), np.int64(1), 2).outputs()
    return named(op.multiply(first, op.sigmoid(second)), "gated")


def test_functions_of_one_tensor_pass_data_on() -> None:
    x = parameter()
    gate = gated(x)
    total = named(op.add(gate, conv(gate, "second", 3)), "sum")
    tested = model(conv(total, "last"), x)
    assert reasons(tested) == {"gated": ONE} and reads(plan_of(tested)) == {"first", "second", "sum", "last"}


def test_a_scale_before_a_function_is_part_of_it_where_nothing_else_reads_its_tensor() -> None:
    x = parameter()

    def scaled_swish(read: bool) -> ov.Model:
        layer = named(op.relu(conv(x, "first", 3)), "relu")
        scaled = named(op.multiply(layer, constant(random(1, 3, 1, 1), "factors")), "scaled")
        swish = named(op.multiply(scaled, op.sigmoid(scaled)), "swish")
        return model([conv(swish, "last"), *([conv(layer, "other")] if read else [])], x)

    assert reasons(scaled_swish(read=False)) == {"scaled": ONE, "swish": ONE}
    assert reasons(scaled_swish(read=True)) == {"swish": ONE}


# ------------------------------------------------------------------------------------------------- kernels without INT8


def between(kind: Callable[..., ov.Node], *others: ov.Node) -> ov.Model:
    x = parameter()
    operands = [op.relu(conv(x, "first", 3)), *(others or [op.sigmoid(conv(x, "second", 3))])]
    return model(conv(named(kind(*operands), "tested"), "last"), x)


@pytest.mark.parametrize("kind", [op.divide, op.floor_mod])
def test_arithmetic_that_openvino_has_no_int8_form_of(kind: Callable[..., ov.Node]) -> None:
    tested = between(kind)
    left = {"tested": f"OpenVINO computes {kind(*[op.constant(1.0)] * 2).get_type_name()} in floating point"}
    assert reasons(tested) == reasons(tested, "gpu") == left and reasons(tested, "npu") == {}
    assert precisions(quantized(tested, SAMPLES, pot_compatible=True).model)["tested"] == {"f32"}  # whatever quantizer is before it


@pytest.mark.parametrize("kind", [op.add, op.subtract, op.multiply])
def test_arithmetic_that_openvino_has_an_int8_form_of(kind: Callable[..., ov.Node]) -> None:
    tested = between(kind)
    assert reasons(tested) == {} and precisions(quantized(tested, SAMPLES).model)["tested"] & {"i8", "u8"}


def test_a_constant_divides_as_it_multiplies() -> None:
    assert reasons(between(op.divide, constant(random(1, 3, 1, 1) + 5, "divisors"))) == {}


SAMPLES = [random(1, 3, 8, 8, seed=seed) for seed in range(4)]


def precisions(computed: ov.Model) -> dict[str, set[str]]:
    """By operation the types that the kernels read which carry it out."""
    compiled = core().compile_model(computed, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    types: dict[str, set[str]] = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        names = node.get_rt_info()["originalLayersNames"]
        for name in str(getattr(names, "value", names)).split(","):
            types.setdefault(name, set()).update(value.get_element_type().to_string() for value in node.input_values())
    return types


TOKENS = [random(2, 8, 8, seed=seed) for seed in range(4)]


def product(second: Callable[[ov.Node], ov.Node] = op.tanh) -> ov.Model:
    """Two activations, multiplied."""
    x = parameter((2, 8, 8))
    left, right = op.tanh(matmul(x, random(8, 8), "left")), second(matmul(x, random(8, 8, seed=1), "right"))
    return model(op.sigmoid(named(op.matmul(left, right, False, False), "product")), x)


ASYMMETRIC = "the CPU multiplies two activations in floating point where their ranges are asymmetric"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({}, None),
        ({"preset": "mixed"}, ASYMMETRIC),
        ({"preset": "accuracy"}, ASYMMETRIC),
        ({"preset": "mixed", "model_type": "transformer"}, None),
        ({"preset": "mixed", "activations": schema.Scheme(mode="symmetric")}, None),
        ({"activations": schema.Scheme(mode="asymmetric")}, ASYMMETRIC),
    ],
)
def test_products_of_activations(config: dict[str, Any], reason: str | None) -> None:
    tested = product()
    assert reasons(tested, **config).get("product") == reason
    result = quantized(tested, TOKENS, **{**config, "pot_compatible": True}).model  # where it is quantized all the same
    assert bool(precisions(result)["product"] & {"i8", "u8"}) == (reason is None)


@pytest.mark.parametrize("second", [op.relu, lambda x: op.transpose(op.softmax(x, 2), np.array([0, 2, 1]))])
def test_products_with_what_is_never_negative(second: Callable[[ov.Node], ov.Node]) -> None:
    tested = product(second)
    assert reasons(tested) == {"product": "the CPU multiplies by an activation that is never negative in floating point"}
    assert precisions(quantized(tested, TOKENS, pot_compatible=True).model)["product"] == {"f32"}


def normalised(shape: tuple[int, ...], axes: list[int], reshaped: list[int] | None = None) -> ov.Model:
    x = parameter(shape)
    layer = matmul(x, random(shape[-1], shape[-1]), "first")
    source = op.reshape(layer, np.array(reshaped), False) if reshaped else layer
    mvn = named(op.mvn(source, np.array(axes), True, 1e-5, "INSIDE_SQRT"), "norm")
    back = op.reshape(mvn, np.array(shape), False)
    return model(matmul(named(op.add(back, layer), "sum"), random(shape[-1], 3), "last"), x)


EVERY_PLACE = "normalises every place by itself, which the CPU does no faster in INT8"


def test_layer_norm_is_left_and_instance_and_group_norm_are_not() -> None:
    outside = "an operand comes from no layer with weights"
    assert reasons(normalised((1, 6, 8), [-1])) == {"norm": EVERY_PLACE, "sum": outside}
    assert reasons(normalised((1, 6, 8), [2], [1, 2, 3, 8])) == {}  # not the last axis
    assert reasons(normalised((1, 6, 8), [3], [1, 2, 3, 8])) == {"norm": EVERY_PLACE, "sum": outside}
    assert reasons(normalised((1, 4, 8, 8), [2, 3])) == {}
    assert reasons(normalised((1, 4, 8, 8), [2], [1, 2, 128])) == {}
    assert "norm" not in reasons(normalised((1, 6, 8), [-1]), "gpu")


@pytest.mark.parametrize("activation", [op.relu, lambda x: op.elu(x, 1.0)], ids=["from zero", "from below"])
def test_a_norm_of_an_asymmetric_range_reads_floating_point(activation: Callable[[ov.Node], ov.Node]) -> None:
    x = parameter()
    mvn = named(op.mvn(activation(conv(x, "first")), np.array([2, 3]), True, 1e-5, "INSIDE_SQRT"), "norm")
    tested, from_zero = model(conv(mvn, "last"), x), activation is op.relu
    reason = {"norm": "the CPU computes MVN in floating point where its range is asymmetric"}
    assert reasons(tested) == {} and reasons(tested, preset="mixed") == ({} if from_zero else reason)
    for preset, integers in (("performance", True), ("mixed", from_zero)):
        result = quantized(tested, SAMPLES, preset=preset, pot_compatible=True).model
        assert bool(precisions(result)["norm"] & {"i8", "u8"}) == integers


@pytest.mark.parametrize("outputs", [1, FEW_MULTIPLICATIONS - 1, FEW_MULTIPLICATIONS])
@pytest.mark.parametrize("kind", ["convolution", "matmul", "transposed", "strided"])
def test_layers_that_multiply_too_few_times_what_no_kernel_quantizes(outputs: int, kind: str) -> None:
    x = parameter((1, 16, 6, 6))
    shares = op.transpose(op.softmax(x, 1), np.array([0, 1, 3, 2]))
    if kind == "convolution":
        layer = convolution(shares, random(outputs, 16, 1, 1), "tested")
    elif kind == "strided":
        layer = convolution(shares, random(outputs, 16, 2, 2), "tested", strides=[2])
    else:
        weights = random(outputs, 6) if kind == "transposed" else random(6, outputs)
        layer = matmul(shares, weights, "tested", transpose_b=kind == "transposed")
    few = outputs < FEW_MULTIPLICATIONS
    left = {"tested": f"it multiplies a value fewer than {FEW_MULTIPLICATIONS} times, which quantizing all of them outweighs"}
    assert reasons(model(layer, x)) == (left if few else {})
    behind_layer = convolution(op.relu(x), random(outputs, 16, 1, 1), "tested")
    assert reasons(model(behind_layer, x)) == {}


# --------------------------------------------------------------------------------------------------------------- devices


def test_a_device_of_integers_alone_gets_everything_quantized() -> None:
    assert reasons(block("boxes by convolution").model, "gna") == {}


def test_npus_follow_the_layers_alone() -> None:
    tested = block("LayerNorm").model
    assert set(reasons(tested, "npu")) >= {"Subtract_0", "Divide_0"} and "OpenVINO" not in " ".join(reasons(tested, "npu").values())


def test_sizes_that_are_not_known() -> None:
    x = parameter((-1, -1, written_out.WIDTH))
    tested = written_out.name_all(model(written_out.linear(written_out.layer_norm(x), 8, "last"), x))
    assert reads(plan_of(tested)) == {"last"}
    samples = [random(batch, tokens, written_out.WIDTH) for batch, tokens in ((1, 4), (2, 9), (3, 5))]
    assert signal_to_noise(tested, quantized(tested, samples).model, samples) > 30
