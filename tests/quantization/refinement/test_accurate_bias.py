"""The accurate BiasCorrection: mean outputs come back in the whole quantized model, on bounded memory, with POT's numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from stages.common.errors import UserError
from stages.configuration import schema
from stages.quantization.build import build
from stages.quantization.planning import make_plan
from stages.quantization.refinement import accurate_bias
from stages.quantization.refinement.accurate_bias import accurate_corrections, used_samples
from stages.quantization.solution.biases import Correction
from stages.runtime import engine
from stages.runtime.datasets import Part, Sample
from tests.quantization import reference_runs
from tests.quantization.quantizing import plan_of, statistics_of, tensor
from tests.quantization.small import constant, convolution, images, matmul, model, named, parameter, random

ACCURATE = schema.BiasCorrection(use_fast_bias=False)
SHAPE = (1, 4, 8, 8)
SAMPLES = images(15, SHAPE)  # three of them are used
COARSE: dict[str, Any] = {"weights": schema.Scheme(bits=4), "allow_unsupported": True, "use_channel_alignment": False}


def samples(arrays: Sequence[np.ndarray]) -> list[Sample]:
    return [Sample({"x": array}) for array in arrays]


def chain(layers: int = 3, bias: bool = True) -> ov.Model:
    """Padded convolutions in a row, then a MatMul; each but the last is read by a Relu and by an Add that skips the next one."""
    x = parameter(SHAPE)
    node, skipped = x, None
    for index in range(layers):
        layer = convolution(
            node,
            random(4, 4, 3, 3, seed=index) / 6,
            f"conv{index}",
            random(4, seed=index) + 3 if bias else None,
            pads_begin=[1],
            pads_end=[1],
        )
        relu = named(op.relu(layer), f"relu{index}")
        node = relu if skipped is None else named(op.add(relu, skipped), f"add{index}")
        skipped = relu
    return model(named(op.relu(matmul(node, random(8, 6), "matmul", random(6) + 3 if bias else None)), "last"), x)


def corrections(
    tested: ov.Model, arrays: Sequence[np.ndarray], correction: schema.BiasCorrection = ACCURATE, **config: Any
) -> list[Correction]:
    statistics, plan = statistics_of(tested, arrays), plan_of(tested, **config)
    flag = config.get("pot_compatible", False)
    return accurate_corrections(tested, statistics, plan, correction, samples(arrays), pot_compatible=flag)


def weights_only(tested: ov.Model, arrays: Sequence[np.ndarray], found: Sequence[Correction], **config: Any) -> ov.Model:
    """The corrected model with quantized weights and floating-point activations."""
    plan = plan_of(tested, **config)
    plan = replace(plan, quantizers=tuple(quantizer for quantizer in plan.quantizers if quantizer.kind == "weights"))
    return build(tested, statistics_of(tested, arrays), plan, corrections=found)[0]


def mean_errors(tested: ov.Model, result: ov.Model, found: Sequence[Correction], arrays: Sequence[np.ndarray]) -> dict[str, float]:
    """How far each layer's mean output is from the floating-point model's, over the samples that the correction used."""
    errors = {}
    for entry in found:
        means = []
        for whole in (tested, result):
            names = {node.get_friendly_name() for node in whole.get_ops()}
            end = next(name for name in (f"{entry.name}/biased", f"{entry.name}/bias", entry.name) if name in names)
            axes = (0, 2, 3) if entry.type != "MatMul" else (0, 1, 2)
            means.append(np.mean([values.mean(axis=axes) for values in tensor(whole, end, arrays[: used_samples(len(arrays))])], axis=0))
        errors[entry.name] = float(np.abs(means[0] - means[1]).max())
    return errors


@pytest.mark.parametrize("bias", [True, False])
def test_mean_outputs_of_all_layers_come_back_at_once(bias: bool) -> None:
    tested = chain(bias=bias)
    found = corrections(tested, SAMPLES, **COARSE)
    assert [entry.name for entry in found] == ["conv0", "conv1", "conv2", "matmul"]
    assert all(entry.bias is not None for entry in found)
    before = mean_errors(tested, weights_only(tested, SAMPLES, [], **COARSE), found, SAMPLES)
    after = mean_errors(tested, weights_only(tested, SAMPLES, found, **COARSE), found, SAMPLES)
    assert min(before.values()) > 0.01 and max(after.values()) < 1e-5


def test_a_layer_makes_up_for_the_one_before() -> None:
    """The first layer may not change: the second one's correction is then more than its own weights ask for."""
    x = parameter(SHAPE)
    first = named(op.relu(convolution(x, random(4, 4, 3, 3), "first")), "relu")
    tested = model(named(op.relu(convolution(first, random(4, 4, 1, 1), "second", bias=random(4) + 3)), "last"), x)
    settings = COARSE | {"saturation_fix": "no"}
    found = corrections(tested, SAMPLES, replace(ACCURATE, correct_zero_biases=False), **settings)
    assert {entry.name: entry.reason for entry in found} == {"first": "no bias", "second": None}
    errors = mean_errors(tested, weights_only(tested, SAMPLES, found, **settings), found, SAMPLES)
    assert errors["first"] > 0.01 and errors["second"] < 1e-5
    # With the first one's weights in floating point, the second one has its own error alone to correct.
    alone = corrections(tested, SAMPLES, ignored=schema.Ignored(scope=["first"]), **settings)
    assert float(np.abs(alone[0].bias - found[1].bias).max()) > 0.01  # type: ignore[operator]
    # POT lets later layers see the floating-point weights of a layer that it leaves alone.
    pots = corrections(tested, SAMPLES, pot_compatible=True, **settings)
    assert {entry.name: entry.reason for entry in pots} == {"first": "no bias", "second": None}
    np.testing.assert_allclose(pots[1].bias, alone[0].bias, atol=1e-5)  # type: ignore[arg-type]


class Parts:
    """What the parts of a model that were run take and give, in bytes of all samples."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inputs: list[list[str]] = []
        self.kept: list[int] = []
        self.operations: list[set[str]] = []
        unpatched = engine.compile

        def noted(part: ov.Model, *arguments: Any, **options: Any) -> ov.CompiledModel:
            self.inputs.append([node.get_friendly_name() for node in part.get_parameters()])
            self.kept.append(sum(4 * int(np.prod(node.get_output_shape(0))) for node in part.get_parameters()))
            self.operations.append({node.get_friendly_name() for node in part.get_ops() if node.get_type_name() == "Convolution"})
            return unpatched(part, *arguments, **options)

        monkeypatch.setattr(engine, "compile", noted)


def test_every_operation_runs_once_and_only_the_frontier_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    tested, parts = chain(layers=12), Parts(monkeypatch)
    found = corrections(tested, SAMPLES, **COARSE)
    assert len(found) == 13
    levels = slice(1, None)  # the first part is the whole floating-point model
    assert parts.operations[levels] == [*({f"conv{index}"} for index in range(12)), set()]
    assert parts.inputs[1] == ["x"] and all("x" not in names for names in parts.inputs[2:])
    # The last layer's output and what skips it, however deep the model is.
    assert [len(names) for names in parts.inputs[levels]] == [1, 1, *[2] * 11]
    assert max(parts.kept) == 2 * 4 * int(np.prod(SHAPE))


@pytest.mark.parametrize("budget", [0, 3 * 4 * 256, 2 * 3 * 4 * 256])
def test_the_same_within_any_memory(monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    """Room for no tensor, for one or for two of all three samples: what is not kept is computed again."""
    tested = chain(layers=5)
    expected = corrections(tested, SAMPLES, **COARSE)
    monkeypatch.setattr(accurate_bias, "STORED_BYTES", budget)
    parts = Parts(monkeypatch)
    found = corrections(tested, SAMPLES, **COARSE)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.bias, theirs.bias, atol=1e-5, err_msg=ours.name)  # type: ignore[arg-type]
    stored = [kept for kept, names in zip(parts.kept, parts.inputs, strict=True) if names != ["x"]]
    assert all(3 * kept <= budget for kept in stored)
    assert 3 * max(stored, default=0) == budget


def test_dynamic_shapes_and_shared_inputs() -> None:
    """Sizes from sample to sample, a shape chain across levels, a second input that is read late, layers side by side."""
    x, late = parameter((1, 4, -1, 8)), parameter((1, 4, 1, 1), "late")
    first = named(op.relu(convolution(x, random(4, 4, 1, 1), "first", bias=random(4) + 3)), "r0")
    sides = [named(op.relu(convolution(first, random(4, 4, 1, 1, seed=seed), f"side{seed}")), f"r1{seed}") for seed in (1, 2)]
    both = op.multiply(op.add(*sides), late)
    flat = op.reshape(
        both,
        op.concat(
            [
                op.gather(op.shape_of(x), constant([0, 1], "which", np.int64), constant(0, "axis", np.int64)),
                constant([-1], "rest", np.int64),
            ],
            0,
        ),
        False,
    )
    heights = op.reshape(flat, op.shape_of(x), False)
    tested = model(named(op.relu(matmul(heights, random(8, 5), "matmul", bias=random(5) + 3)), "r2"), x, late)
    arrays = [{"x": random(1, 4, 3 + index, 8), "late": random(1, 4, 1, 1, seed=index) + 2} for index in range(10)]
    plan, statistics = plan_of(tested, **COARSE), statistics_of(tested, arrays)
    found = accurate_corrections(tested, statistics, plan, ACCURATE, [Sample(entry) for entry in arrays])
    assert {entry.name for entry in found if entry.bias is not None} == {"first", "side1", "side2", "matmul"}
    errors = mean_errors(tested, weights_only(tested, arrays, found, **COARSE), found, arrays)  # type: ignore[arg-type]
    assert max(errors.values()) < 1e-5


def test_half_precision() -> None:
    x = parameter(SHAPE, dtype=np.float16)
    weights, bias = constant(random(4, 4, 3, 3), "w", np.float16), constant(random(1, 4, 1, 1) + 3, "b", np.float16)
    first = named(op.convolution(x, weights, [1, 1], [0, 0], [0, 0], [1, 1]), "conv")
    relu = op.relu(named(op.add(first, bias), "conv/biased"))
    second = named(op.matmul(relu, constant(random(6, 5), "v", np.float16), False, False), "matmul")
    tested = model(named(op.relu(second), "last"), x)
    arrays = [array.astype(np.float16) for array in SAMPLES]
    found = corrections(tested, arrays, **COARSE)
    before = mean_errors(tested, weights_only(tested, arrays, [], **COARSE), found, arrays)
    after = mean_errors(tested, weights_only(tested, arrays, found, **COARSE), found, arrays)
    # What is left is the rounding of these outputs to half precision, in steps of 1/64 from 16 on.
    assert set(after) == {"conv", "matmul"} and min(before.values()) > 0.03 and max(after.values()) <= 1 / 64


def test_all_layers_on_request() -> None:
    """Also those that stay in floating point: they make up for the quantized ones before them."""
    settings = COARSE | {"ignored": schema.Ignored(scope=["conv1"])}
    for everywhere, expected in ((False, ["conv0", "matmul"]), (True, ["conv0", "conv1", "matmul"])):
        found = corrections(chain(2), SAMPLES, replace(ACCURATE, apply_for_all_nodes=everywhere), **settings)
        assert [entry.name for entry in found if entry.bias is not None] == expected


def test_what_cannot_be_corrected_is_named() -> None:
    x = parameter(SHAPE)
    layers = [
        named(op.add(convolution(x, random(8, 4, 1, 1), "odd"), constant(random(1, 1, 8, 1), "rows")), "odd/bias_add"),
        matmul(x, random(1, 4, 8, 5), "batch"),
        convolution(x, random(4, 4, 1, 1), "far", bias=np.full(4, 1e-6, np.float32)),
    ]
    tested = model([named(op.relu(layer), f"r{index}") for index, layer in enumerate(layers)], x)
    # For a device that quantizes several matrices to few bits, which the CPU gets wrong.
    reasons = {entry.name: entry.reason or "" for entry in corrections(tested, SAMPLES, device="gpu", **COARSE)}
    assert reasons["odd"] == "its bias is not one value per channel"
    assert reasons["batch"].startswith("not a convolution")
    assert "(threshold 1000)" in reasons["far"]
    given = corrections(tested, SAMPLES, replace(ACCURATE, threshold=1e9), **COARSE)
    assert {entry.name for entry in given if entry.bias is not None} == {"far"}


def test_values_that_are_not_finite_name_layer_and_sample() -> None:
    arrays = [*SAMPLES]
    statistics, plan = statistics_of(chain(), arrays), plan_of(chain(), **COARSE)
    arrays[1] = np.full(SHAPE, 3e38, np.float32)
    with pytest.raises(UserError, match="not finite at conv0 for calibration sample 1"):
        accurate_corrections(chain(), statistics, plan, ACCURATE, samples(arrays))


def with_state(keeps: bool, initial: bool = True) -> ov.Model:
    """A convolution of the input and of what the last one gave, or of what there is at first."""
    x = parameter(SHAPE)
    first = [named(op.multiply(x, np.float32(0.5)), "halved") if initial else constant(np.zeros(SHAPE), "nothing")]
    given = first if initial else []
    state = named(op.read_value(*given, "state", ov.Type.f32, ov.PartialShape(list(SHAPE))), "state") if keeps else first[0]
    layers = [convolution(named(op.add(x, state), "sum"), random(4, 4, 1, 1) / 2, "first", random(4) + 3)]
    last = named(op.relu(convolution(named(op.relu(layers[0]), "relu"), random(4, 4, 1, 1, seed=1) / 2, "second", random(4) + 3)), "last")
    return ov.Model([op.result(last)], [op.assign(last, "state")] if keeps else [], [x])


@pytest.mark.parametrize("initial", [True, False])
def test_a_state_is_what_it_is_at_first(initial: bool) -> None:
    kept, plain = (corrections(with_state(keeps, initial), SAMPLES, **COARSE) for keeps in (True, False))
    assert [entry.name for entry in kept] == ["first", "second"]
    for one, other in zip(kept, plain, strict=True):
        assert one.bias is not None and other.bias is not None
        np.testing.assert_allclose(one.bias, other.bias, rtol=1e-5)


def test_streams_are_refused() -> None:
    tested = with_state(keeps=True)
    statistics, plan = statistics_of(tested, SAMPLES[:1]), plan_of(tested)
    parts = samples(SAMPLES)
    parts = [sample._replace(part=Part(parts, 0, position)) for position, sample in enumerate(parts)]
    with pytest.raises(UserError, match=r"^a state goes on in streams, .*: set bias_correction.use_fast_bias to true$"):
        accurate_corrections(tested, statistics, plan, ACCURATE, parts)


def test_progress_counts_every_layer() -> None:
    tested = chain()
    counts: list[int] = []
    accurate_corrections(tested, statistics_of(tested, SAMPLES), plan_of(tested), ACCURATE, samples(SAMPLES), advance=counts.append)
    assert sum(counts) == 4


def test_the_model_stays_as_it_is() -> None:
    tested = chain()
    before = tensor(tested, "last", SAMPLES[:1])[0]
    operations = len(tested.get_ops())
    corrections(tested, SAMPLES, **COARSE)
    assert len(tested.get_ops()) == operations
    np.testing.assert_array_equal(tensor(tested, "last", SAMPLES[:1])[0], before)


def test_pots_biases() -> None:
    """POT's own run of DefaultQuantization with use_fast_bias false: the same within 1e-5, no differences."""
    reference = json.loads((reference_runs.FOLDER / "mbv2.accurate_bias.json").read_text())
    config, device = reference_runs.configuration(reference)
    read, graph = reference_runs.model(reference["model"])
    plan, count = make_plan(graph, reference_runs.target(device), config), reference["samples"]
    with np.load(reference_runs.FOLDER / "mbv2.npz") as archive:
        arrays = [image[None] for image in archive["x"][:count]]
    statistics = reference_runs.statistics(reference["model"], count, device)
    found = accurate_corrections(read, statistics, plan, ACCURATE, samples(arrays), pot_compatible=True)
    _, solved = build(read, statistics, plan, ACCURATE, True, found)
    compared = reference_runs.Run(reference, graph, plan, solved)
    assert {entry.name for entry in found if entry.bias is not None} == set(reference["biases"])
    for operation, bias in reference["biases"].items():
        np.testing.assert_allclose(np.ravel(compared.bias(operation)), bias, rtol=1e-5, atol=1e-5, err_msg=operation)
    for theirs, ours in compared.matches():
        for border, key in zip(solved.ranges[ours.name], ("input_low", "input_high"), strict=True):
            np.testing.assert_allclose(np.ravel(border), np.ravel(theirs[key]), rtol=1e-5, err_msg=f"{ours.name} {key}")


def test_used_samples() -> None:
    assert [used_samples(count) for count in (1, 4, 5, 9, 10, 300)] == [1, 1, 1, 1, 2, 60]
