"""Quantized models: what they compute, what they are made of, and that the same inputs give the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from stages.configuration import schema
from stages.quantization.build import build, compress_weights, corrections_json, quantizers_json, save_model
from stages.quantization.placement.plan import Plan
from stages.quantization.statistics.store import Statistics
from tests.quantization.quantizing import (
    Quantized,
    close,
    compressed,
    described,
    infer,
    nodes,
    quantized,
    same,
    tensor,
)
from tests.quantization.reference_runs import core
from tests.quantization.small import constant, convolution, images, matmul, model, named, parameter, random

ON = schema.BiasCorrection()
IMAGES = images(3, (1, 4, 8, 8))


def network() -> ov.Model:
    """A bit of everything: aligned pair, depthwise, residual Add, Concat, layers without bias, MatMul."""
    x = parameter((1, 4, 8, 8))
    first = convolution(x, random(4, 4, 3, 3), "first", bias=random(4), pads_begin=[1], pads_end=[1])
    second = named(op.relu(convolution(first, random(4, 4, 1, 1), "second")), "relu")
    depthwise = convolution(second, random(4, 1, 1, 3, 3), "depthwise", pads_begin=[1], pads_end=[1])
    total = named(op.add(named(op.tanh(depthwise), "tanh"), second), "sum")
    joined = op.concat([named(op.sigmoid(total), "sigmoid"), named(op.relu(total), "relu2")], 1)
    third = convolution(joined, random(5, 8, 1, 1), "third")
    return model([matmul(named(op.relu(third), "relu3"), random(8, 3), "last"), third], x)


# ------------------------------------------------------------------------------------------------------ what it computes


@pytest.mark.parametrize("preset", schema.PRESETS)
@pytest.mark.parametrize("pot_compatible", [False, True])
def test_it_computes_nearly_the_same(preset: str, pot_compatible: bool) -> None:
    tested = network()
    close(quantized(tested, IMAGES[-1:], correction=ON, preset=preset, pot_compatible=pot_compatible), tested, IMAGES[-1:])


def test_the_floating_point_model_stays_as_it_is() -> None:
    tested = network()
    before, outputs = described(tested), next(infer(tested, IMAGES))
    quantized(tested, IMAGES, correction=ON)
    assert described(tested) == before
    for one, other in zip(next(infer(tested, IMAGES)), outputs, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("preset", schema.PRESETS)
def test_compressed_weights_compute_what_their_quantizers_do(preset: str) -> None:
    tested = quantized(network(), IMAGES, correction=ON, preset=preset)
    small = compressed(tested.model)
    weights = {q.name for q in tested.plan.quantizers if q.kind == "weights"}
    assert weights and all(nodes(tested.model)[name].get_type_name() == "FakeQuantize" for name in weights)
    left = [node for node in small.get_ops() if node.get_type_name() == "FakeQuantize"]
    assert {node.get_friendly_name() for node in left} == {q.name for q in tested.plan.quantizers if q.kind == "activations"}
    for quantizer in (q for q in tested.plan.quantizers if q.kind == "weights"):
        (first,), (second,) = (tensor(version, quantizer.name, IMAGES[:1]) for version in (tested.model, small))
        step = np.abs(first).max() / 127
        assert np.mean(np.abs(first - second) > 1e-3 * step) < 0.02  # values between two levels may go either way


def test_a_compressed_model_in_memory_is_what_is_read_from_its_file(tmp_path: Path) -> None:
    """Else evaluations of candidates would be wrong now and then: see `compress_weights`."""

    def marks(found: ov.Model) -> list[tuple[str, str, list[str]]]:
        nodes = [node for node in found.get_ordered_ops() if node.get_type_name() != "Constant"]
        return sorted((node.get_friendly_name(), node.get_type_name(), sorted(node.get_rt_info().keys())) for node in nodes)

    made = quantized(network(), IMAGES).model
    save_model(made, tmp_path)
    before = marks(made)
    compress_weights(made)
    assert marks(made) == marks(core().read_model(tmp_path / "model.xml")) != before


def test_activations_between_layers_lie_on_levels() -> None:
    result = quantized(network(), IMAGES)
    for quantizer in (q for q in result.plan.quantizers if q.kind == "activations" and q.channel_axis is None):
        low, high = (float(border) for border in result.solved.ranges[quantizer.name])
        (values,) = tensor(result.model, quantizer.name, IMAGES[:1])
        places = (values - low) / (high - low) * 255
        assert len(np.unique(np.round(places))) <= 256 and np.abs(places - np.round(places)).max() < 1e-3


# ---------------------------------------------------------------------------------------------------------- what it is


def test_every_quantizer_of_the_plan_is_there_with_its_range() -> None:
    result = quantized(network(), IMAGES, preset="mixed")
    found = nodes(result.model)
    for quantizer in result.plan.quantizers:
        node = found[quantizer.name]
        assert node.get_type_name() == "FakeQuantize" and node.get_attributes()["levels"] == quantizer.scheme.levels(quantizer.kind)
        for port, border in enumerate(result.solved.ranges[quantizer.name], start=1):
            stored = node.input_value(port).get_node().data
            np.testing.assert_allclose(stored.reshape(-1), np.reshape(border, -1), rtol=1e-6)
            output = node.input_value(port + 2).get_node().data
            np.testing.assert_array_equal(output, stored * 2 if quantizer.doubled else stored)
    placed = {quantizer.source.name for quantizer in result.plan.quantizers if quantizer.kind == "activations"}
    assert placed == {"x", "first/biased", "relu", "tanh", "sigmoid", "relu2", "relu3"}


def test_names_are_unique_also_when_ours_are_taken() -> None:
    x = parameter()
    taken = named(op.relu(convolution(x, random(3, 3, 1, 1))), "conv/bias")
    other = named(op.relu(taken), "conv/new_bias")
    tested = model(convolution(other, random(3, 3, 1, 1), "second"), x)
    result = quantized(tested, images(2), correction=ON)
    for version in (result.model, compressed(result.model)):
        found = [node.get_friendly_name() for node in version.get_ops()]
        assert len(set(found)) == len(found)
    assert {"conv/bias", "conv/bias_"} <= set(nodes(result.model))
    close(result, tested, images(2)[-1:])


def test_a_new_bias_comes_before_everything_that_reads_the_layer() -> None:
    x = parameter()
    layer = convolution(x, random(4, 3, 3, 3), "conv")
    after = convolution(layer, random(2, 4, 3, 3), "after")
    tested = model([layer, named(op.relu(after), "relu"), named(op.exp(layer), "exp")], x)
    result = quantized(tested, images(), correction=ON)
    found = nodes(result.model)
    readers = {name: [value.get_node().get_friendly_name() for value in found[name].input_values()] for name in found}
    assert readers["conv/bias"][0] == "conv" and "conv/fq_weights_1" in readers["conv"]
    assert readers["conv/fq_output_0"][0] == readers["exp"][0] == readers["result0"][0] == "conv/bias"
    assert readers["after"][0] == "conv/fq_output_0" and readers["after/bias"][0] == "after" and readers["relu"] == ["after/bias"]
    bias = result.solved.biases["conv"]
    np.testing.assert_allclose(found["conv/new_bias"].data.reshape(-1), bias, rtol=1e-6)
    # Without correction there is no Add.
    assert "conv/bias" not in nodes(quantized(tested, images()).model)


def test_names_and_order_of_inputs_and_outputs_survive() -> None:
    x, y = parameter(), parameter(name="y")
    layer = convolution(op.add(named(op.exp(x), "exp"), y), random(4, 3, 3, 3), "conv")
    layer.output(0).set_names({"features", "also features"})
    flat = named(op.reshape(named(op.relu(layer), "relu"), np.array([1, -1]), False), "flat")
    tested = model([matmul(flat, random(144, 4)), flat, layer], x, y)
    tested.outputs[2].set_names({"features", "also features"})
    result = quantized(tested, [{"x": a, "y": b} for a, b in zip(images(), images(seed=2), strict=True)], correction=ON)
    assert "conv/bias" in nodes(result.model) and "relu/fq_output_0" in nodes(result.model)
    for version in (result.model, compressed(result.model)):
        assert [value.get_names() for value in version.inputs] == [{"x"}, {"y"}]
        assert [value.get_names() for value in version.outputs] == [value.get_names() for value in tested.outputs]
        assert version.output("also features").get_node().get_friendly_name() == "result2"
        assert [list(value.get_partial_shape()) for value in version.outputs] == [
            list(value.get_partial_shape()) for value in tested.outputs
        ]


# ------------------------------------------------------------------------------------------------------- constants


def test_half_precision_weights_stay_small(tmp_path: Path) -> None:
    x = parameter((1, 4, 8, 8))
    weights = op.convert(constant(random(64, 4, 3, 3), "weights", np.float16), "f32")
    bias = op.convert(constant(random(1, 64, 1, 1), "bias", np.float16), "f32")
    layer = named(op.convolution(x, weights, [1, 1], [0, 0], [0, 0], [1, 1]), "conv")
    shared = op.convert(constant(random(1, 64, 1, 1, seed=1), "factors", np.float16), "f32")
    scaled = named(op.multiply(named(op.tanh(op.add(layer, bias)), "tanh"), shared), "scaled")
    tested = model(convolution(scaled, random(2, 64, 1, 1), "last"), x)
    result = quantized(tested, IMAGES[-1:], correction=ON)
    assert {q.source.name for q in result.plan.quantizers if q.kind == "weights"} == {"weights", "factors", "last/weights"}
    close(result, tested, IMAGES[-1:])
    save_model(result.model, tmp_path)
    assert (tmp_path / "model.bin").stat().st_size < 64 * 4 * 9 + 2000
    same(core().read_model(tmp_path / "model.xml"), result.model, IMAGES, tolerance=0.02)


def test_a_model_in_half_precision() -> None:
    x = parameter((1, 4, 8, 8), dtype=np.float16)
    weights = constant(random(6, 4, 3, 3), "weights", np.float16)
    layer = named(op.convolution(x, weights, [1, 1], [0, 0], [0, 0], [1, 1]), "conv")
    tested = model(named(op.relu(layer), "relu"), x)
    samples = [sample.astype(np.float16) for sample in IMAGES]
    result = quantized(tested, samples, correction=ON)
    assert result.names() == {"x/fq_output_0", "conv/fq_weights_1"} and "conv/bias" in nodes(result.model)
    assert result.model.outputs[0].get_element_type() == ov.Type.f16
    assert [node.get_output_element_type(0) for node in compressed(result.model).get_ops() if node.get_friendly_name() == "conv"] == [
        ov.Type.f16
    ]
    close(result, tested, samples[-1:])
    close(Quantized(result.graph, result.plan, result.solved, compressed(result.model)), tested, samples[-1:])


@pytest.mark.parametrize("reshaped", [False, True])
@pytest.mark.parametrize("depthwise", [False, True])
def test_grouped_convolutions(reshaped: bool, depthwise: bool) -> None:
    x = parameter((1, 4, 8, 8))
    shape = (4, 1, 1, 3, 3) if depthwise else (2, 3, 2, 3, 3)
    values = random(*shape) * np.geomspace(0.1, 10, shape[0] * shape[1]).reshape(*shape[:2], 1, 1, 1).astype(np.float32)
    stored = constant(values.reshape(-1, *shape[2:]) if reshaped else values, "weights")
    kernel = op.reshape(stored, np.array(shape), False) if reshaped else stored
    tested = model(named(op.relu(op.group_convolution(x, kernel, [1, 1], [0, 0], [0, 0], [1, 1])), "relu"), x)
    result = quantized(tested, IMAGES[-1:], correction=ON)
    (weights,) = (q for q in result.plan.quantizers if q.kind == "weights")
    assert np.size(result.solved.ranges[weights.name].high) == shape[0] * shape[1]
    close(result, tested, IMAGES[-1:], share=0.03)
    same(compressed(result.model), result.model, IMAGES, tolerance=0.01)


def test_weights_kept_in_another_shape() -> None:
    x = parameter((1, 4, 8, 8))
    values = random(6, 4, 3, 3) * np.geomspace(0.1, 10, 6).reshape(6, 1, 1, 1).astype(np.float32)
    kernel = op.reshape(constant(values.reshape(2, 108), "weights"), np.array([6, 4, 3, 3]), False)
    tested = model(named(op.relu(named(op.convolution(x, kernel, [1, 1], [0, 0], [0, 0], [1, 1]), "conv")), "relu"), x)
    result = quantized(tested, IMAGES[-1:], correction=ON)
    np.testing.assert_allclose(result.solved.ranges["conv/fq_weights_1"].high, np.abs(values).max(axis=(1, 2, 3)))
    close(result, tested, IMAGES[-1:], share=0.03)


def test_one_constant_for_two_layers_along_different_axes() -> None:
    x, weights = parameter((1, 6)), constant(random(6, 6), "shared")
    first = named(op.matmul(x, weights, False, False), "first")
    second = named(op.matmul(named(op.relu(first), "relu"), weights, False, True), "second")
    tested = model(second, x)
    samples = images(1, (1, 6))
    result = quantized(tested, samples, correction=ON)
    axes = {q.consumers[0].name: q.channel_axis for q in result.plan.quantizers if q.kind == "weights"}
    assert axes == {"first": 1, "second": 0}
    np.testing.assert_allclose(result.solved.ranges["first/fq_weights_1"].high, np.abs(random(6, 6)).max(axis=0))
    np.testing.assert_allclose(result.solved.ranges["second/fq_weights_1"].high, np.abs(random(6, 6)).max(axis=1))
    close(result, tested, samples, share=0.2)


def test_one_constant_halved_for_one_layer_only() -> None:
    x = parameter()
    kernel = constant(random(3, 3, 1, 1), "shared")
    first = named(op.convolution(x, kernel, [1, 1], [0, 0], [0, 0], [1, 1]), "first")
    second = named(op.convolution(named(op.relu(first), "relu"), kernel, [1, 1], [0, 0], [0, 0], [1, 1]), "second")
    tested = model(second, x)
    result = quantized(tested, images()[-1:])
    assert {q.consumers[0].name: q.doubled for q in result.plan.quantizers if q.kind == "weights"} == {"first": True, "second": False}
    close(result, tested, images()[-1:])


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("leading", [(), (1,), (3,), (1, 4)], ids=str)
def test_matrix_products_in_all_shapes(transpose: bool, leading: tuple[int, ...]) -> None:
    """OpenVINO's CPU plugin computes garbage for a batch of matrices with a range per column, and for matrices on the left."""
    x = parameter((*leading, 8, 8))
    left = named(
        op.matmul(constant(random(*leading, 8, 5) if transpose else random(*leading, 5, 8), "left/w"), x, transpose, False), "left"
    )
    right = matmul(x, random(*leading, 5, 8) if transpose else random(*leading, 8, 5), "right", transpose_b=transpose)
    tested, samples = model([named(op.relu(left), "r1"), named(op.relu(right), "r2")], x), images(1, (*leading, 8, 8))
    result = quantized(tested, samples, correction=ON)
    sizes = {q.consumers[0].name: np.size(result.solved.ranges[q.name].high) for q in result.plan.quantizers if q.kind == "weights"}
    assert sizes == {"right": 5 if np.prod(leading) == 1 else leading[0]}  # a constant on the left stays in floating point
    close(result, tested, samples, share=0.05)
    same(compressed(result.model), result.model, samples, tolerance=0.02)


# ----------------------------------------------------------------------------------------------------------- the bytes


def save(folder: Path, result: Quantized) -> dict[str, bytes]:
    folder.mkdir(exist_ok=True)
    save_model(result.model, folder)
    texts = {
        "quantizers.json": quantizers_json(result.plan, result.solved, "performance", "ANY"),
        "corrections.json": corrections_json(result.solved),
    }
    for name, data in texts.items():
        (folder / name).write_text(json.dumps(data, allow_nan=False))
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from openvino import opset13 as op
[op.constant(np.float32(0)) for _ in range(int(sys.argv[1]))]  # nodes count on
from tests.quantization.quantizing import quantized
from tests.quantization.small import images
from tests.quantization.test_build import ON, save
from tests.quantization.reference_runs import core
save(Path(sys.argv[3]), quantized(core().read_model(sys.argv[2]), images(2, (1, 4, 8, 8)), correction=ON))
"""


def test_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    ov.serialize(network(), str(tmp_path / "source.xml"))
    saved = []
    for already, name in ((0, "a"), (1234, "b")):
        arguments = [str(already), str(tmp_path / "source.xml"), str(tmp_path / name)]
        subprocess.run([sys.executable, "-c", PROGRAM, *arguments], check=True, cwd=Path(__file__).parents[2])
        saved.append({path.name: path.read_bytes() for path in sorted((tmp_path / name).iterdir())})
    assert set(saved[0]) == {"model.xml", "model.bin", "quantizers.json", "corrections.json"}
    assert saved[0] == saved[1]


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("mode", schema.MODES)
@pytest.mark.parametrize("kind", ["convolution", "grouped", "deconvolution", "matmul", "element-wise"])
def test_the_same_bytes_where_an_odd_number_of_weights_leaves_half_a_byte(tmp_path: Path, kind: str, mode: str, bits: int) -> None:
    """The half byte behind the last of 4-bit weights held whatever was in memory before."""
    x = parameter((1, 3, 5, 5))
    layer = {
        "convolution": lambda: convolution(x, random(5, 3, 3, 3), "layer"),
        "grouped": lambda: convolution(x, random(3, 1, 1, 3, 3), "layer"),
        "deconvolution": lambda: named(op.convolution_backprop_data(x, constant(random(3, 5, 1, 1), "layer/weights"), [1, 1]), "layer"),
        "matmul": lambda: matmul(x, random(5, 7), "layer"),
        "element-wise": lambda: named(op.multiply(named(op.relu(x), "relu"), constant(random(1, 3, 1, 5), "layer/weights")), "layer"),
    }[kind]()
    scheme = schema.Scheme(bits=bits, mode=mode, granularity="perchannel")
    result = quantized(model(layer, x), images(2, (1, 3, 5, 5)), weights=scheme, allow_unsupported=True, pot_compatible=True)
    compact = compressed(result.model)
    packed = [node for node in compact.get_ops() if node.get_type_name() == "Constant" and node.get_element_type().bitwidth == 4]
    # OpenVINO 2026.4's CPU computes deconvolutions with zero points wrongly: they have none, and no weights in less than a byte.
    odd = [] if (kind, mode) == ("deconvolution", "asymmetric") else [(1, 0)]
    assert [(np.prod(node.shape) % 2, node.data.view(np.uint8)[-1] // 16) for node in packed] == odd
    generator, memory, saved = np.random.default_rng(0), [b""] * 40, set()
    for count in range(25):
        memory[count % 40] = generator.bytes(int(generator.integers(10, 80)))  # other content in the memory that is used next
        saved.add(tuple(save(tmp_path, result).items()))
    assert len(saved) == 1


@pytest.mark.parametrize("bits", [3, 4, 5, 8])
@pytest.mark.parametrize("sign", [-1, 1, 0])
def test_weights_of_few_bits_keep_their_zero_points(sign: int, bits: int) -> None:
    """-15 with a zero point of 0 does not fit in 4 bits, and came out as 1."""
    x = parameter((1, 5))
    weights = random(5, 3) + np.float32(5 * sign)  # a zero point at either end of the levels, or between them
    weights[:, 0] = -np.abs(weights[:, 0])
    tested = model(matmul(x, weights), x)
    scheme = schema.Scheme(bits=bits, mode="asymmetric", granularity="perchannel")
    result = quantized(tested, images(2, (1, 5)), weights=scheme, allow_unsupported=True, saturation_fix="no")
    (quantizer,) = (quantizer for quantizer in result.plan.quantizers if quantizer.kind == "weights")
    low, high = result.solved.ranges[quantizer.name]
    step = (high - low) / (2**bits - 1)
    for version in (result.model, compressed(result.model)):
        (computed,) = tensor(version, quantizer.name, images(1, (1, 5)))
        np.testing.assert_array_less(np.abs(computed - weights), 0.501 * step + np.zeros_like(weights))


def test_packed_constants_of_the_model_itself_stay_as_they_are() -> None:
    x = parameter((1, 3))
    packed = ov.Tensor(ov.Type.u4, ov.Shape([1, 5]))
    packed.data[:] = [0x21, 0x43, 0xF5]
    brought = named(op.constant(packed), "brought")
    summed = op.add(matmul(x, random(3, 5), "layer"), op.multiply(op.convert(brought, "f32"), np.float32(0.5)))
    result = quantized(model(named(summed, "sum"), x), images(2, (1, 3)))
    assert nodes(compressed(result.model))["brought"].data.tolist() == [0x21, 0x43, 0xF5]


def test_json_holds_what_was_written() -> None:
    result = quantized(network(), IMAGES, correction=ON, preset="mixed")
    data = quantizers_json(result.plan, result.solved, "mixed", "ANY")
    assert (data["preset"], data["target_device"], data["aligned"]) == ("mixed", "ANY", [["first", "second"]])
    for entry, quantizer in zip(data["quantizers"], result.plan.quantizers, strict=True):
        node = nodes(result.model)[entry["name"]]
        assert entry["levels"] == node.get_attributes()["levels"]
        for port, key in enumerate(("input_low", "input_high"), start=1):
            assert entry[key] == node.input_value(port).get_node().data.reshape(-1).tolist()
        assert ("output_low" in entry) == quantizer.doubled
    corrections = corrections_json(result.solved)
    assert {entry["name"] for entry in corrections["corrected"]} | {entry["name"] for entry in corrections["left"]} == {
        "first",
        "second",
        "depthwise",
        "third",
        "last",
    }


def test_empty_statistics_and_plan_give_a_copy() -> None:
    tested = network()
    result, _ = build(tested, Statistics(), Plan((), ()))
    assert described(result) == described(tested)
