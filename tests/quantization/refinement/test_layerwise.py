"""Layer-wise tuning of whole models: what is recorded is what the built model computes, and nothing depends on memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from stages.common.errors import UserError
from stages.configuration import schema
from stages.quantization.build import build
from stages.quantization.refinement import tunable_layers
from stages.quantization.refinement.layerwise import Record, tune_layers
from stages.quantization.solution.tuned import FILE, Tuned, load_tuned, save_tuned
from stages.runtime.datasets import Sample
from tests.quantization.quantizing import plan_of, statistics_of, tensor
from tests.quantization.small import constant, convolution, matmul, model, named, parameter, random

SHAPE = (1, 4, 8, 8)
# Channels alike, or rounding each weight to its nearest level would be best already.
SAMPLES = [0.4 * random(*SHAPE, seed=100 + index) + 0.8 * random(1, 1, 8, 8, seed=index) for index in range(20)]
TUNING = schema.LayerwiseTuning(use_layerwise_tuning=True, seed=0, positions_per_sample=1000, num_samples_for_tuning=3200, batch_size=64)
COARSE: dict[str, Any] = {"weights": schema.Scheme(bits=4), "allow_unsupported": True}


def chain() -> ov.Model:
    """Padded, grouped and pointwise convolutions, then a MatMul without a bias; the second input is read twice."""
    x = parameter(SHAPE)
    first = named(op.relu(convolution(x, random(8, 4, 3, 3) / 6, "first", random(8) + 1, pads_begin=[1], pads_end=[1])), "relu1")
    grouped = named(op.relu(convolution(first, random(2, 3, 4, 3, 3, seed=1) / 6, "grouped", random(6) + 1, strides=[2])), "relu2")
    sides = [convolution(grouped, random(4, 6, 1, 1, seed=seed), f"side{seed}", random(4, seed=seed)) for seed in (2, 3)]
    return model(named(op.relu(matmul(named(op.relu(named(op.add(*sides), "added")), "sum"), random(3, 5), "matmul")), "last"), x)


def tuned(
    tested: ov.Model, arrays: Sequence[np.ndarray] = SAMPLES, config: schema.LayerwiseTuning = TUNING, **quantization: Any
) -> tuple[Tuned, Record]:
    settings = COARSE | quantization
    samples = [Sample({"x": array}) for array in arrays]
    return tune_layers(tested, statistics_of(tested, arrays), plan_of(tested, **settings), config, samples)


def written(result: Tuned, folder: Path) -> bytes:
    folder.mkdir(exist_ok=True)
    save_tuned(result, folder)
    return (folder / FILE).read_bytes()


def test_the_record_is_what_the_built_model_computes() -> None:
    """With all positions sampled, the losses of the first layer are the errors of its output on the held-out samples."""
    tested = chain()
    found, record = tuned(tested, saturation_fix="all")
    statistics, plan = statistics_of(tested, SAMPLES), plan_of(tested, **COARSE, saturation_fix="all")
    entry = next(entry for entry in record.layers if entry.name == "first")
    # The last fifth of the samples in their order: all of them are used.
    exact = np.stack(tensor(tested, "first/biased", SAMPLES[16:]))
    errors = []
    for given in (None, found):
        built, _ = build(tested, statistics, plan, tuned=given)
        name = "first/biased"
        errors.append(float(np.mean((np.stack(tensor(built, name, SAMPLES[16:])) - exact) ** 2)))
    assert entry.reason is None and entry.loss_after is not None
    assert errors == pytest.approx([entry.loss_before, entry.loss_after], rel=1e-3)
    assert errors[1] < 0.95 * errors[0]


def test_layers_with_aligned_channels_learn_from_their_aligned_biases() -> None:
    """Alignment moves the offset of the tensor between them into the second one's bias, which then is another one."""
    x = parameter(SHAPE)
    offsets = np.array([40.0, -30.0, 20.0, 0.0, 10.0, -50.0], np.float32)
    first = convolution(x, random(6, 4, 3, 3) / 6, "first", offsets, pads_begin=[1], pads_end=[1])
    tested = model(named(op.relu(convolution(first, random(5, 6, 1, 1), "second", random(5))), "relu"), x)
    statistics, plan = statistics_of(tested, SAMPLES), plan_of(tested, **COARSE)
    assert plan.aligned == (("first", "second"),)
    found, record = tuned(tested)
    exact = np.stack(tensor(tested, "second/biased", SAMPLES[16:]))  # alignment changes nothing of it
    alone = replace(plan, quantizers=tuple(quantizer for quantizer in plan.quantizers if quantizer.layers[0].name == "second"))
    errors = []
    for given in (None, found):
        kept = given and Tuned(tuple(layer for layer in given.layers if layer.name == "second"))
        built, _ = build(tested, statistics, alone, tuned=kept)
        errors.append(float(np.mean((np.stack(tensor(built, "second/biased", SAMPLES[16:])) - exact) ** 2)))
    entry = next(entry for entry in record.layers if entry.name == "second")
    assert errors == pytest.approx([entry.loss_before, entry.loss_after], rel=1e-3)


def test_every_layer_is_tuned_or_has_a_reason() -> None:
    found, record = tuned(chain())
    assert [entry.name for entry in record.layers] == ["first", "grouped", "side2", "side3", "matmul"]
    for entry in record.layers:
        assert entry.reason or (entry.loss_after or 0) < (entry.loss_before or 0)
    assert {layer.name for layer in found.layers} == {entry.name for entry in record.layers if not entry.reason} != set()
    # A range that serves two layers stays.
    assert {layer.input_quantizer for layer in found.layers if "side" in layer.name} == {None}
    assert all(layer.input_quantizer is not None for layer in found.layers if layer.name in ("first", "grouped"))


def test_repeatable_seeded_and_the_same_within_any_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tested = chain()
    result, record = tuned(tested)
    first = written(result, tmp_path / "a")
    assert written(tuned(tested)[0], tmp_path / "b") == first
    assert written(tuned(tested, config=replace(TUNING, seed=1, positions_per_sample=4))[0], tmp_path / "c") != first
    monkeypatch.setattr(tunable_layers, "TENSOR_BYTES", 1)
    again, passes = tuned(tested)
    assert (record.passes, passes.passes) == (1, 5) and written(again, tmp_path / "d") == first
    # Where even one layer's rows would not fit, fewer are drawn.
    monkeypatch.setattr(tunable_layers, "STORED_BYTES", 20 * 1000)
    assert all(entry.rows == 20 * (1000 // 312) for entry in tuned(tested)[1].layers if entry.name == "grouped")


def test_samples_and_positions() -> None:
    config = replace(TUNING, calibration_indices_pool=10, positions_per_sample=3)
    _, record = tuned(chain(), config=config)
    assert record.samples == 10 and {entry.rows for entry in record.layers} == {30}


def test_inputs_of_the_quantized_model_are_taken_layer_after_layer() -> None:
    found, record = tuned(chain(), config=replace(TUNING, use_only_fp_inputs=False))
    assert record.passes == 4  # the two sides together
    assert found.layers


def test_progress_comes_to_a_hundred_percent() -> None:
    percents: list[int] = []
    tested, samples = chain(), [Sample({"x": array}) for array in SAMPLES]
    tune_layers(tested, statistics_of(tested, SAMPLES), plan_of(tested), TUNING, samples, advance=percents.append)
    assert sum(percents) == 100


def test_stored_and_read_again(tmp_path: Path) -> None:
    assert load_tuned(tmp_path) is None
    result, _ = tuned(chain())
    content = written(result, tmp_path)
    read = load_tuned(tmp_path)
    assert read is not None and written(read, tmp_path / "again") == content
    for name, borders in result.ranges().items():
        assert [np.shape(border) for border in read.ranges()[name]] == [np.shape(border) for border in borders]
    plan, statistics = plan_of(chain(), **COARSE), statistics_of(chain(), SAMPLES)
    build(chain(), statistics, plan, tuned=read)  # searches do
    (tmp_path / FILE).write_bytes(content[:100])
    with pytest.raises(UserError, match="cannot be read"):
        load_tuned(tmp_path)


def test_layers_that_a_plan_quantizes_otherwise_go_back() -> None:
    tested = chain()
    result, _ = tuned(tested)
    names = {layer.name for layer in result.layers}
    assert {layer.name for layer in result.fitting(plan_of(tested, **COARSE)).layers} == names
    assert not result.fitting(plan_of(tested)).layers  # 8 bits
    plan = plan_of(tested, **COARSE)
    floats = tuple(quantizer for quantizer in plan.quantizers if quantizer.consumers[0].name != "grouped")
    left = result.fitting(replace(plan, quantizers=floats))
    assert {layer.name for layer in left.layers} == names - {"grouped"}


def test_values_that_are_not_finite_name_layer_and_sample() -> None:
    arrays = [*SAMPLES]
    statistics, plan = statistics_of(chain(), arrays), plan_of(chain(), **COARSE)
    arrays[1] = np.full(SHAPE, 3e38, np.float32)
    with pytest.raises(UserError, match="not finite at first for calibration sample 1"):
        tune_layers(chain(), statistics, plan, TUNING, [Sample({"x": array}) for array in arrays])


# ----------------------------------------------------------------------------------------------------- kinds of models


def test_inputs_of_changing_size() -> None:
    x = parameter((-1, 4, -1, -1))
    first = named(op.relu(convolution(x, random(6, 4, 3, 3) / 6, "first", random(6) + 1, auto_pad="same_upper")), "relu")
    tested = model(convolution(first, random(5, 6, 1, 1), "second", random(5)), x)
    arrays = [np.tile(sample, (1 + index % 2, 1, 1, 2))[:, :, : 3 + index % 4, : 5 + index % 7] for index, sample in enumerate(SAMPLES)]
    found, record = tuned(tested, arrays)
    assert [entry.name for entry in record.layers] == ["first", "second"] and found.layers
    assert all(entry.reason or (entry.loss_after or 0) < (entry.loss_before or 0) for entry in record.layers)


def test_weights_in_half_precision() -> None:
    """As files have them, to be converted; and a model that computes in it."""
    x = parameter(SHAPE)
    weights, bias = constant(random(6, 4, 3, 3) / 6, "half", np.float16), constant(random(1, 6, 1, 1) + 1, "bias", np.float16)
    layer = op.convolution(x, op.convert(weights, "f32"), [1, 1], [0, 0], [0, 0], [1, 1])
    stored = model(named(op.add(named(layer, "conv"), op.convert(bias, "f32")), "biased"), x)
    y = parameter(SHAPE, dtype=np.float16)
    layer = op.convolution(y, constant(random(6, 4, 3, 3) / 6, "half", np.float16), [1, 1], [0, 0], [0, 0], [1, 1])
    computed = model(named(op.add(named(layer, "conv"), constant(random(1, 6, 1, 1) + 1, "bias", np.float16)), "biased"), y)
    for tested, dtype in ((stored, np.float32), (computed, np.float16)):
        arrays = [sample.astype(dtype) for sample in SAMPLES]
        found, record = tuned(tested, arrays)
        (entry,) = record.layers
        assert entry.reason is None and (entry.loss_after or 0) < (entry.loss_before or 0)
        built, _ = build(tested, statistics_of(tested, arrays), plan_of(tested, **COARSE), tuned=found)
        exact, before, after = (
            np.stack(tensor(version, "biased", arrays)).astype(np.float64)
            for version in (tested, build(tested, statistics_of(tested, arrays), plan_of(tested, **COARSE))[0], built)
        )
        assert np.mean((after - exact) ** 2) < np.mean((before - exact) ** 2)


@pytest.mark.parametrize("quantized_inputs", [False, True])
def test_a_model_that_keeps_a_state_learns_as_one_that_has_its_initial_state(quantized_inputs: bool) -> None:
    """Every sample begins afresh: the state is what the model gives it first."""

    def network(keeps: bool) -> ov.Model:
        x = parameter(SHAPE)
        halved = named(op.multiply(x, np.float32(0.5)), "halved")
        state = op.read_value(halved, "state", ov.Type.f32, ov.PartialShape(list(SHAPE))) if keeps else halved
        layer = convolution(named(op.add(named(state, "state") if keeps else state, x), "sum"), random(4, 4, 1, 1), "conv")
        end = named(op.relu(layer), "end")
        return ov.Model([op.result(end)], [op.assign(end, "state")] if keeps else [], [x])

    config = replace(TUNING, use_only_fp_inputs=not quantized_inputs)
    kept, plain = (tuned(network(keeps), config=config)[1].layers for keeps in (True, False))
    assert kept == plain and kept[0].loss_after is not None
