"""The compiled INT8 model against what it says: silent on healthy models, loud on faults, and right about where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from stages.common.errors import UserError
from stages.configuration.schema import Engine
from stages.measurement import fidelity
from stages.measurement.fidelity import LIMIT, check, differences, parts, ratios_of
from stages.measurement.places import Place, compared, ending_at, with_outputs
from stages.quantization.build import compress_weights
from stages.runtime import engine
from stages.runtime.datasets import Sample
from tests.measurement.test_written_out import fake_quantize
from tests.quantization.small import constant, convolution, images, model, named, parameter, random

IMAGE = (1, 4, 8, 8)


def samples(count: int = 3, shape: tuple[int, ...] = IMAGE) -> list[Sample]:
    return [Sample({"x": image}) for image in images(count, shape)]


def quantized_convolution(source: ov.Node, name: str, low: float = -8.0) -> ov.Node:
    """A convolution of which both inputs are quantized, the weights to 7 bits, so that 16-bit sums have room."""
    layer = convolution(
        fake_quantize(source, low, 8.0 * 127 / 128 if low else 8.0, 256, f"{name}/fq"),
        random(4, 4, 3, 3) / 6,
        name,
        pads_begin=[1],
        pads_end=[1],
    )
    weights = layer.input_value(1)
    borders = [constant(value, f"{name}/{value}") for value in (-1.0, 1.0, -2.0, 2.0)]
    halved = constant(layer.input_value(1).get_node().data * 0.5, f"{name}/halved")
    layer.input(1).replace_source_output(named(op.fake_quantize(halved, *borders, 255), f"{name}/fq_weights").output(0))
    del weights
    return layer


def healthy() -> ov.Model:
    x = parameter(IMAGE)
    first = named(op.relu(quantized_convolution(x, "first")), "relu")
    tested = model(named(op.sigmoid(quantized_convolution(first, "second", 0.0)), "end"), x)
    compress_weights(tested)
    return tested


def averaging() -> ov.Model:
    """A fault of OpenVINO 2026.4: it pads with the lowest level instead of with zero."""
    x = parameter(IMAGE)
    average = named(op.avg_pool(fake_quantize(x, -1.0, 3.0 - 4 / 256, 256, "fq"), [1, 1], [1, 1], [1, 1], [3, 3], False), "average")
    return model(named(op.tanh(quantized_convolution(average, "after")), "end"), x)


# --------------------------------------------------------------------------------------------------------------- verdicts


def test_a_healthy_model_is_well_within_the_limit() -> None:
    result = check(healthy(), Engine(), samples(), "f32")
    assert result["ratio"] < LIMIT / 2 and result["first"] is None and not parts(result)
    assert [(entry["hint"], entry["instrumented"]) for entry in result["compilations"]] == [
        ("THROUGHPUT", True),
        ("LATENCY", False),
        ("THROUGHPUT", False),
        ("THROUGHPUT", False),
    ]
    assert (result["samples"], result["precision"], result["uncompared"]) == (3, "f32", 0)


def test_a_fault_is_found_and_named() -> None:
    result = check(averaging(), Engine(), samples(), "f32")
    assert parts(result) and result["ratio"] > 5 * LIMIT
    assert result["first"] == {"layer": "average", "type": "AvgPool", "tensor": "average"}
    assert all(entry["ratio"] > LIMIT for entry in result["compilations"])


def test_nothing_is_quantized() -> None:
    x = parameter(IMAGE)
    result = check(model(convolution(x, random(4, 4, 3, 3)), x), Engine(), samples(), "f32")
    assert result["ratio"] < 0.1 and not parts(result)


def test_no_output_can_be_compared() -> None:
    x = parameter((1, 4))
    result = check(model(named(op.convert(op.relu(x), "i32"), "whole"), x), Engine(), samples(2, (1, 4)), "f32")
    assert result["compilations"] == [] and result["uncompared"] == 1 and not parts(result)


def failing(monkeypatch: pytest.MonkeyPatch, refused: Callable[[ov.Model, dict[str, Any]], bool]) -> None:
    """The device does not compile some models."""
    original = engine.compile

    def compile(given: ov.Model, *arguments: Any, **others: Any) -> ov.CompiledModel:
        if refused(given, others):
            raise UserError("CPU cannot run the model: not enough registers")
        return original(given, *arguments, **others)

    monkeypatch.setattr(engine, "compile", compile)


def test_what_is_written_out_compiles_in_another_way_if_need_be(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, lambda given, others: not is_quantized(given) and "more" not in others)
    assert check(healthy(), Engine(), samples(), "f32")["ratio"] < LIMIT / 2


def test_what_cannot_be_compared_is_said_and_a_model_that_does_not_compile_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, lambda given, _: not is_quantized(given))
    result = check(healthy(), Engine(), samples(), "f32")
    assert result["skipped"] == "CPU cannot run the model: not enough registers" and "ratio" not in result
    assert result["warning"] == f"whether INT8 computes what it says was not checked: {result['skipped']}"
    failing(monkeypatch, lambda *_: True)
    with pytest.raises(UserError, match="not enough registers"):
        check(healthy(), Engine(), samples(), "f32")


def test_a_model_with_a_state() -> None:
    """Every run goes through the samples in their order, with a state of its own."""
    x = parameter((1, 4))
    state = op.read_value(constant(np.zeros((1, 4)), "start"), "state", np.float32, [1, 4])
    total = named(op.add(fake_quantize(x, -4.0, 4.0 * 127 / 128, 256, "fq"), state), "total")
    total.output(0).set_names({"out0"})
    tested = ov.Model([op.result(total)], [op.assign(total, "state")], [x], "memory")
    result = check(tested, Engine(), samples(4, (1, 4)), "f32")
    assert result["ratio"] < 0.1 and result["uncompared"] == 0


Change = Callable[[ov.Model], None]


def deviating(monkeypatch: pytest.MonkeyPatch, change: Change, when: Callable[[ov.Model, str, str], bool]) -> list[str]:
    """Let the device compile something else, where the model and the hint say so; the precision of what was compiled."""
    original, precisions = engine.compile, []

    def compile(given: ov.Model, settings: Engine, precision: str = "f32", *, hint: str = "THROUGHPUT", **others: Any) -> ov.CompiledModel:
        precisions.append(precision)
        if when(given, hint, precision):
            given = given.clone()
            change(given)
        return original(given, settings, "f32", hint=hint, **others)

    monkeypatch.setattr(engine, "compile", compile)
    return precisions


def moved(name: str, amount: float) -> Change:
    """An operation's result is larger by so much."""

    def change(given: ov.Model) -> None:
        node = next(node for node in given.get_ops() if node.get_friendly_name() == name)
        readers = node.output(0).get_target_inputs()
        more = op.add(node, constant(amount, "fault"))
        for reader in readers:
            reader.replace_source_output(more.output(0))

    return change


def is_quantized(given: ov.Model) -> bool:
    return any(node.get_type_name() == "FakeQuantize" for node in given.get_ops())


def has(given: ov.Model, name: str) -> bool:
    return any(node.get_friendly_name() == name for node in given.get_ops())


def test_a_fault_of_one_hint_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    deviating(monkeypatch, moved("second", 3.0), lambda given, hint, _: is_quantized(given) and hint == "THROUGHPUT")
    result = check(healthy(), Engine(), samples(), "f32")
    assert parts(result)
    assert [entry["ratio"] > LIMIT for entry in result["compilations"]] == [True, False, True, True]
    assert result["first"] == {"layer": "second", "type": "Convolution", "tensor": "end"}


def test_a_fault_that_goes_when_quantized_tensors_are_outputs_is_searched_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It shows in models with one output alone; those that end before the layer are right."""
    deviating(
        monkeypatch, moved("first", 3.0), lambda given, _, __: is_quantized(given) and len(given.outputs) == 1 and has(given, "first")
    )
    result = check(healthy(), Engine(), samples(), "f32")
    assert [entry["ratio"] > LIMIT for entry in result["compilations"]] == [False, True, True, True]
    assert result["first"] == {"layer": "first", "type": "Convolution", "tensor": "relu"}


def test_what_is_compiled_already_is_what_is_checked() -> None:
    tested, wrong = healthy(), healthy()
    moved("second", 3.0)(wrong)
    ready = {"THROUGHPUT": engine.compile(wrong, Engine(), "f32")}
    result = check(tested, Engine(), samples(), "f32", ready)
    assert [entry["ratio"] > LIMIT for entry in result["compilations"]] == [False, False, True, False]


def test_what_a_lower_precision_does_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of noise in bf16: a fault in f32, none where the written-out model has it, too."""
    rough = moved("x", 0.3)
    deviating(monkeypatch, rough, lambda given, _, precision: is_quantized(given))
    assert parts(check(healthy(), Engine(), samples(), "f32"))
    monkeypatch.undo()
    precisions = deviating(monkeypatch, rough, lambda given, _, precision: precision == "bf16")
    monkeypatch.setattr(fidelity, "precision_of", lambda compiled: "bf16")
    assert not parts(check(healthy(), Engine(), samples(), "bf16"))
    assert precisions.count("f32") == 1 and precisions.count("bf16") == 5


# --------------------------------------------------------------------------------------------------------------- places


def test_places_are_in_the_order_of_computation_and_name_the_layer() -> None:
    places = compared(healthy())
    assert [(place.tensor, place.layer, place.kind, place.output) for place in places] == [
        ("x", "x", "Parameter", None),
        ("relu", "first", "Convolution", None),
        ("end", "second", "Convolution", 0),
    ]
    np.testing.assert_allclose([place.step for place in places], [(8 + 8 * 127 / 128) / 255, 8 / 255, 0])


def test_behind_what_orders_values_nothing_is_compared_but_before_it() -> None:
    x = parameter((1, 8))
    scores = named(op.softmax(op.relu(fake_quantize(x, -1.0, 1.0, 255, "fq")), 1), "scores")
    best = op.topk(scores, np.int64(3), 1, "max", "value")
    later = fake_quantize(best.output(0), 0.0, 1.0, 256, "later")
    tested = model([named(op.tanh(later), "end"), scores], x)
    places = compared(tested)
    assert [(place.tensor, place.output) for place in places] == [("x", None), ("scores", None), ("scores", 1)]
    result = check(tested, Engine(), samples(2, (1, 8)), "f32")
    assert result["uncompared"] == 1 and not parts(result)


def test_outputs_are_added_behind_the_models_own_and_a_model_can_end_at_each() -> None:
    tested = healthy()
    places = compared(tested)
    assert len(with_outputs(tested, places).outputs) == 3 and len(tested.outputs) == 1
    endings = [ending_at(tested, place) for place in places]
    assert [len(ending.outputs) for ending in endings] == [1, 1, 1]
    assert [has(ending, "first") for ending in endings] == [False, True, True]
    assert [has(ending, "second") for ending in endings] == [False, False, True]


# --------------------------------------------------------------------------------------------------------------- numbers


def test_differences_count_what_is_no_number_and_other_shapes() -> None:
    nan, inf = np.nan, np.inf
    ours = [np.array([1.0, 2.0, nan]), np.array([1.0, nan]), np.array([3.0]), np.array([[1.0]])]
    reference = [np.array([1.5, 0.0, inf]), np.array([1.0, 2.0]), np.array([[3.0]]), np.array([[1.0]])]
    np.testing.assert_equal(differences(ours, reference), [4.25, inf, inf, 0.0])


def test_ratios() -> None:
    ratios = ratios_of(np.array([4.0, 0.0, 1.0, np.inf, 1e-9]), np.array([1.0, 0.0, 0.0, 1.0, 1.0]))
    np.testing.assert_allclose(ratios, [2.0, 0.0, fidelity.HIGHEST, fidelity.HIGHEST, 1e-4**0.5 * 1e-4**0.625], rtol=1e-6)


def test_a_single_value_on_the_next_level_is_no_fault() -> None:
    """Even where no shifted run shows one."""
    step = 0.5
    place = Place("a", "a", "Add", step=step)
    explained = np.array([fidelity.FEW * place.step**2])
    assert ratios_of(np.array([step**2]), explained)[0] < LIMIT / 2


def test_whether_sums_saturate_is_tried_out() -> None:
    assert fidelity.sums_saturate("CPU") in (True, False)
