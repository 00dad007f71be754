"""What OpenVINO's CPU gets wrong in INT8 is not asked of it, and said why; what it gets right next to that is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from stages.configuration import schema
from stages.quantization.model.graph import read_graph
from stages.quantization.placement import kernel_faults
from stages.quantization.placement.kernel_faults import FAULTS, RUN_ON_CPU, Only, known_faults
from stages.quantization.placement.plan import Plan, plan_from_json, plan_to_json
from stages.quantization.planning import make_plan_options
from stages.runtime.kernel_faults import ZERO_POINTS_IN_BF16, installed, release
from tests.quantization.quantizing import plan_of
from tests.quantization.reference_runs import target
from tests.quantization.small import constant, convolution, matmul, model, named, parameter, random

IMAGE = (1, 4, 8, 8)


def faults(tested: ov.Model, rules: str = "ANY", pot_compatible: bool = False) -> dict[str, set[str]]:
    """By operation the names of its faults."""
    found = known_faults(read_graph(tested), rules, pot_compatible)
    return {node.name: {fault.name for fault in here} for node, here in found.items()}


def kinds(plan: Plan) -> dict[tuple[str, int], tuple[str, str, str, str | None]]:
    """By layer and port: weights or activations, mode, granularity, and why not what the preset chooses."""
    return {
        (layer.name, layer.port): (entry.kind, entry.scheme.mode, entry.scheme.granularity, entry.restriction)
        for entry in plan.quantizers
        for layer in entry.layers
    }


def reasons(plan: Plan) -> dict[tuple[str, int | None], str]:
    return {(entry.name, entry.port): entry.reason for entry in plan.floats}


def left(*shape: int, of: tuple[int, ...] = (8, 16)) -> ov.Model:
    x = parameter(of)
    return model(named(op.matmul(constant(random(*shape), "weights"), x, False, False), "matmul"), x)


def right(*shape: int, of: tuple[int, ...]) -> ov.Model:
    x = parameter(of)
    return model(matmul(x, random(*shape)), x)


# ------------------------------------------------------------------------------------------------------- MatMul and weights


@pytest.mark.parametrize("shape", [(4, 8), (1, 4, 8)])
@pytest.mark.parametrize("preset", schema.PRESETS)
def test_a_constant_on_the_left_stays_in_floating_point(shape: tuple[int, ...], preset: str) -> None:
    plan = plan_of(left(*shape), preset=preset)
    assert plan.quantizers == ()
    assert reasons(plan) == {("matmul", None): "a MatMul with the constant on the left, which the CPU gets wrong in INT8"}
    assert len(plan_of(right(16, 5, of=(8, 16)), preset=preset).quantizers) == 2


def test_a_search_is_not_offered_what_goes_wrong() -> None:
    offer = make_plan_options(read_graph(right(2, 8, 5, of=(2, 6, 8))), target(), schema.Quantization(preset="mixed"))
    offered = {entry.kind: {other.scheme.mode for other in offer.schemes[entry.name]} for entry in offer.plan.quantizers}
    assert offered == {"weights": {"symmetric"}, "activations": {"symmetric", "asymmetric"}}


def test_who_asks_for_nothing_else_gets_floating_point() -> None:
    plan = plan_of(right(2, 8, 5, of=(2, 6, 8)), weights=schema.Scheme(mode="asymmetric"))
    assert plan.quantizers == ()  # the activation alone would be rounded for nothing
    reason = "symmetric 8-bit weights: of several weight matrices the CPU gets other ones wrong"
    assert reasons(plan) == {("matmul", 0): reason, ("matmul", 1): reason}
    x = parameter((2, 6, 8))
    shared = plan_of(model([matmul(x, random(2, 8, 5)), matmul(x, random(8, 5), "other")], x), weights=schema.Scheme(mode="asymmetric"))
    assert {layer.name for entry in shared.quantizers for layer in entry.layers} >= {"other"}
    assert reasons(shared)["matmul", 1] == reason


def test_several_weight_matrices_are_symmetric_with_a_range_each() -> None:
    plan = plan_of(right(2, 8, 5, of=(2, 6, 8)), preset="accuracy")
    reason = "symmetric 8-bit weights: of several weight matrices the CPU gets other ones wrong"
    assert kinds(plan)["matmul", 1] == ("weights", "symmetric", "perchannel", reason)
    assert kinds(plan)["matmul", 0] == ("activations", "asymmetric", "pertensor", None)
    (weights,) = (entry for entry in plan.quantizers if entry.kind == "weights")
    assert weights.channel_axis == 0
    (one,) = (entry for entry in plan_of(right(8, 5, of=(2, 6, 8)), preset="accuracy").quantizers if entry.kind == "weights")
    assert one.channel_axis == 1 and not one.scheme.symmetric


def test_several_weight_matrices_on_a_dynamic_batch_stay_in_floating_point() -> None:
    reason = "several weight matrices on a dynamic batch, whose shape the CPU gets wrong in INT8"
    assert reasons(plan_of(right(2, 8, 5, of=(-1, 6, 8))))["matmul", None] == reason
    for tested in (right(2, 8, 5, of=(2, -1, 8)), right(8, 5, of=(-1, 6, 8)), right(1, 8, 5, of=(-1, 6, 8))):
        assert ("matmul", None) not in reasons(plan_of(tested))


@pytest.mark.parametrize(("shape", "is_wrong"), [((1, 1, 8, 5), True), ((1, 1, 1, 8, 5), True), ((1, 8, 5), False), ((8, 5), False)])
def test_a_matrix_of_rank_4_has_symmetric_8_bit_weights(shape: tuple[int, ...], is_wrong: bool) -> None:
    tested = right(*shape, of=(1, 1, 3, 6, 8))
    (weights,) = (entry for entry in plan_of(tested, preset="accuracy").quantizers if entry.kind == "weights")
    assert weights.scheme.symmetric == is_wrong
    plan = plan_of(tested, weights=schema.Scheme(bits=4), allow_unsupported=True)
    assert (plan.quantizers == ()) == is_wrong
    if is_wrong:
        assert reasons(plan)["matmul", 1] == "symmetric 8-bit weights: other ones of rank 4 and more the CPU does not compile"


def test_deconvolutions_have_symmetric_weights() -> None:
    x = parameter(IMAGE)
    layer = named(op.convolution_backprop_data(x, constant(random(4, 3, 3, 3), "weights"), [1, 1]), "layer")
    plan = plan_of(model(layer, x), preset="accuracy")
    reason = "symmetric weights: the CPU gets zero points of a deconvolution's weights wrong"
    assert kinds(plan)["layer", 1] == ("weights", "symmetric", "perchannel", reason)
    other = plan_of(model(convolution(x, random(3, 4, 3, 3), "layer"), x), preset="accuracy")
    assert kinds(other)["layer", 1] == ("weights", "asymmetric", "perchannel", None)


@pytest.mark.parametrize(
    ("shape", "of", "is_wrong"),
    [((2, 3, 2, 3), (1, 4, 12), True), ((4, 1, 1, 3), (1, 4, 12), False), ((2, 3, 2, 3, 3), IMAGE, False), ((3, 4, 3), (1, 4, 12), False)],
)
def test_grouped_convolutions_in_one_dimension_have_symmetric_weights(shape: tuple[int, ...], of: tuple[int, ...], is_wrong: bool) -> None:
    x = parameter(of)
    plan = plan_of(model(convolution(named(op.tanh(x), "tanh"), random(*shape), "layer"), x), preset="accuracy")
    (weights,) = (entry for entry in plan.quantizers if entry.kind == "weights")
    assert weights.scheme.symmetric == is_wrong == (weights.restriction is not None)


# --------------------------------------------------------------------------------------------------------- around layers


@pytest.mark.parametrize(("pads", "exclude", "is_wrong"), [(1, False, True), (1, True, False), (0, False, False)])
def test_an_average_that_counts_its_padding_is_symmetric(pads: int, exclude: bool, is_wrong: bool) -> None:
    x = parameter(IMAGE)
    average = named(op.avg_pool(x, [1, 1], [pads] * 2, [pads] * 2, [3, 3], exclude), "average")
    plan = plan_of(model(convolution(average, random(3, 4, 1, 1)), x), preset="mixed")
    reason = "symmetric: the CPU pads an asymmetric range with its lowest level instead of zero"
    assert kinds(plan)["average", 0][1:] == (("symmetric", "pertensor", reason) if is_wrong else ("asymmetric", "pertensor", None))
    assert kinds(plan)["conv", 0][1] == "asymmetric"


def test_one_quantizer_for_an_average_and_a_convolution_is_symmetric_for_both() -> None:
    x = parameter(IMAGE)
    relu = named(op.tanh(x), "tanh")
    average = named(op.avg_pool(relu, [1, 1], [1, 1], [1, 1], [3, 3], False), "average")
    plan = plan_of(model([average, convolution(relu, random(3, 4, 1, 1))], x), preset="mixed")
    assert kinds(plan)["conv", 0] == kinds(plan)["average", 0]
    assert kinds(plan)["conv", 0][1] == "symmetric" and kinds(plan)["conv", 0][3] is not None


@pytest.mark.parametrize(
    ("mode", "value", "is_behind"), [("constant", 0.5, True), ("constant", -1.0, True), ("constant", 0.0, False), ("reflect", None, False)]
)
def test_quantizers_stay_behind_a_pad_that_fills_in_something(mode: str, value: float | None, is_behind: bool) -> None:
    x = parameter(IMAGE)
    relu = named(op.relu(x), "relu")
    pad = named(op.pad(relu, [0] * 4, [0, 0, 0, 2], mode, *([] if value is None else [np.float32(value)])), "pad")
    plan = plan_of(model(matmul(pad, random(10, 5)), x))
    assert {entry.source.name for entry in plan.quantizers if entry.kind == "activations"} == {"pad" if is_behind else "relu"}
    reason = "a Pad with another value than zero, which the CPU fills in without quantizing it"
    assert (reasons(plan).get(("pad", None)) == reason) == is_behind


def test_a_pad_without_a_value_fills_in_zero() -> None:
    x = parameter(IMAGE)
    pad = named(op.pad(named(op.relu(x), "relu"), [0] * 4, [0, 0, 0, 2], "constant"), "pad")
    assert faults(model(matmul(pad, random(10, 5)), x)) == {}


def test_a_pad_with_a_computed_value() -> None:
    x, value = parameter(IMAGE), parameter((), "value")
    pad = named(op.pad(named(op.relu(x), "relu"), [0] * 4, [0, 0, 0, 2], "constant", value), "pad")
    assert set(faults(model(matmul(pad, random(10, 5)), x, value))) == {"pad"}


@pytest.mark.parametrize(("amounts", "is_behind"), [((0, 2, 0, 0), True), ((1, 0, 0, 0), True), ((0, 0, 1, 2), False)])
def test_quantizers_stay_behind_a_pad_of_channels(amounts: tuple[int, ...], is_behind: bool) -> None:
    x = parameter(IMAGE)
    pad = named(op.pad(named(op.relu(x), "relu"), [0] * 4, list(amounts), "constant", np.float32(0)), "pad")
    plan = plan_of(model(matmul(pad, random(8 + amounts[3], 5)), x))
    assert {entry.source.name for entry in plan.quantizers if entry.kind == "activations"} == {"pad" if is_behind else "relu"}
    reason = "a Pad of channels, whose zeros the CPU takes for the lowest level in INT8"
    assert (reasons(plan).get(("pad", None)) == reason) == is_behind


@pytest.mark.parametrize("kind", ["NormalizeL2", "MVN"])
@pytest.mark.parametrize(("eps", "is_wrong"), [(0.1, True), (1e-4, True), (1e-5, False), (1e-12, False)])
def test_a_norm_whose_eps_counts_stays_in_floating_point(kind: str, eps: float, is_wrong: bool) -> None:
    x = parameter(IMAGE)
    if kind == "MVN":
        norm = named(op.mvn(x, np.array([1]), True, eps, "inside_sqrt"), "norm")
    else:
        norm = named(op.normalize_l2(x, np.array([1]), eps, "add"), "norm")
    plan = plan_of(model(convolution(norm, random(3, 4, 1, 1)), x))
    reason = "an eps that counts, which the CPU adds to squares of levels in INT8"
    assert (reasons(plan).get(("norm", None)) == reason) == is_wrong


# --------------------------------------------------------------------------------------- constants per channel after products


def scores(
    shape: tuple[int, ...], kind: str = "subtract", of: tuple[int, ...] = (1, 6, 12), between: Any = None, weights: Any = None
) -> ov.Model:
    """xᵀx, or weights times x, scaled by a number; then an element-wise constant."""
    x = parameter(of)
    product = op.matmul(x, x, True, False) if weights is None else op.matmul(*weights(x), False, False)
    scaled = named(op.multiply(named(product, "product"), constant(0.2, "factor")), "scaled")
    middle = scaled if between is None else between(scaled)
    return model(named(getattr(op, kind)(middle, constant(random(*shape), "values")), "last"), x)


LAST = {"last": {"an element-wise constant per channel after a product"}}


@pytest.mark.parametrize("kind", ["subtract", "multiply", "divide"])
def test_a_constant_per_channel_after_a_product_stays_in_floating_point(kind: str) -> None:
    plan = plan_of(scores((1, 12, 1), kind))
    assert reasons(plan)["last", None] == "a constant per channel after a MatMul, which the CPU lays along the last axis in INT8"


@pytest.mark.parametrize(
    ("shape", "of"), [((12, 1), (1, 6, 12)), ((1, 12, 1), (2, 6, 12)), ((1, 3, 1, 1), (1, 3, 6, 12)), ((3, 1, 1), (1, 3, 6, 12))]
)
def test_it_is_known_in_every_shape_that_means_axis_1(shape: tuple[int, ...], of: tuple[int, ...]) -> None:
    assert faults(scores(shape, of=of)) == LAST


@pytest.mark.parametrize(
    ("shape", "of"),
    [
        ((1, 1, 12), (1, 6, 12)),
        ((12,), (1, 6, 12)),
        ((1, 12, 12), (1, 6, 12)),
        ((1,), (1, 6, 12)),
        ((12, 1), (6, 12)),
        ((1, 1, 12, 1), (1, 3, 6, 12)),
    ],
)
def test_other_shapes_are_right(shape: tuple[int, ...], of: tuple[int, ...]) -> None:
    assert faults(scores(shape, of=of)) == {}


def test_functions_between_change_nothing_and_other_operations_do() -> None:
    assert faults(scores((1, 12, 1), between=op.tanh)) == LAST
    assert faults(scores((1, 12, 1), between=lambda y: op.relu(op.add(y, constant(random(1, 1, 12), "row"))))) == LAST
    assert faults(scores((1, 12, 1), between=lambda y: op.softmax(y, 2))) == {}
    assert faults(scores((1, 12, 1), "maximum")) == {}


def test_weights_on_the_right_are_no_product() -> None:
    assert faults(scores((1, 6, 1), weights=lambda x: (x, constant(random(12, 12), "weights")))) == {}
    found = faults(scores((1, 5, 1), weights=lambda x: (constant(random(5, 6), "weights"), x)))
    assert found["last"] == LAST["last"]


# --------------------------------------------------------------------------------------------------------------- the table


def test_where_models_run_elsewhere_the_tables_of_the_cpu_do_not_apply() -> None:
    tested = left(4, 8)
    for rules in RUN_ON_CPU:
        assert "matmul" in faults(tested, rules)
    for rules in ("GPU", "NPU", "GNA"):
        assert faults(tested, rules) == {}
    assert len(plan_of(tested, "gpu").quantizers) == 2


def test_pot_is_followed_but_for_what_computes_garbage() -> None:
    """Where POT's quantizers are followed all the same: recurrent cells, and constants beside shapes."""
    assert {fault.name for fault in FAULTS if fault.like_pot} == {"recurrent cells", "element-wise with values computed from shapes"}
    x = parameter((2, 6))
    sizes = op.convert(op.gather(op.shape_of(x), np.int64(1), np.int64(0)), "f32")
    tested = model(matmul(named(op.multiply(x, op.unsqueeze(sizes, np.array([0]))), "scaled"), random(6, 3)), x)
    assert faults(tested) == {"scaled": {"element-wise with values computed from shapes"}}
    assert faults(tested, pot_compatible=True) == {}
    assert faults(left(4, 8), pot_compatible=True) == faults(left(4, 8)) != {}


def test_an_entry_ends_with_the_release_that_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = next(fault for fault in FAULTS if fault.name == "a constant on the left")
    here = ".".join(str(part) for part in installed())
    for gone, is_there in (("9999.0", True), (here, False), ("2023.0", False), (None, True)):
        monkeypatch.setattr(kernel_faults, "FAULTS", (replace(entry, gone=gone),))
        assert entry.present and replace(entry, gone=gone).present == is_there
        assert (plan_of(left(4, 8), preset="mixed").quantizers == ()) == is_there


def test_releases() -> None:
    assert release("2026.4.1-22982-e213a147257-releases/2026/4") == (2026, 4, 1)
    assert release("2026.4") < release("2026.4.1") < release("2026.10") < release("2027.0")
    assert ZERO_POINTS_IN_BF16.present


def test_every_entry_says_what_it_is_about() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    for fault in FAULTS:
        assert fault.operations and fault.wrong and fault.reason and fault.seen.startswith("2026.")
        assert isinstance(fault.helps, Only) or fault.helps in (kernel_faults.FLOAT, kernel_faults.BEHIND, kernel_faults.PER_MATRIX)


def test_restrictions_are_stored_with_the_plan() -> None:
    plan = plan_of(right(2, 8, 5, of=(2, 6, 8)), preset="accuracy")
    assert plan_from_json(plan_to_json(plan)) == plan
    assert {entry["restriction"] is None for entry in plan_to_json(plan)["quantizers"]} == {True, False}
