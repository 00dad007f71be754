"""Running models: order, errors, and what several models share."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as operations

from stages.common.errors import UserError
from stages.configuration.schema import Engine
from stages.quantization.build import compress_weights
from stages.runtime import engine
from stages.runtime.datasets import Sample, Samples, model_inputs
from stages.runtime.kernel_faults import ZERO_POINTS_IN_BF16
from stages.runtime.metrics import Accuracy, Metric, ReferenceError
from tests.runtime import models


def samples_of(values: np.ndarray, targets: Sequence[Any] | None = None) -> list[Sample]:
    """One sample [1, n] per row."""
    chosen = [None] * len(values) if targets is None else targets
    return [Sample({"x": row[None]}, target, f"sample {i}") for i, (row, target) in enumerate(zip(values, chosen, strict=True))]


def noted(rows: np.ndarray, taken: list[Sample]) -> Iterator[Sample]:
    """The samples, each put down when it is taken."""
    for sample in samples_of(rows):
        taken.append(sample)
        yield sample


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(257, 8)).astype(np.float32)


WEIGHTS = np.random.default_rng(1).normal(size=(8, 5)).astype(np.float32)


def test_outputs_come_in_the_order_of_the_samples(rows: np.ndarray) -> None:
    compiled = engine.compile(models.linear(WEIGHTS), Engine(requests=7))
    outputs = [output[0].copy() for output in engine.infer(compiled, samples_of(rows))]
    np.testing.assert_allclose(np.concatenate(outputs), rows @ WEIGHTS, rtol=1e-5, atol=1e-5)


def test_asynchronous_equals_synchronous_bit_for_bit() -> None:
    generator = np.random.default_rng(2)
    image = operations.parameter([1, 3, 16, 16], np.float32, name="x")
    kernel = operations.constant(generator.normal(size=(8, 3, 3, 3)).astype(np.float32))
    node = operations.relu(operations.convolution(image, kernel, [1, 1], [1, 1], [1, 1], [1, 1]))
    compiled = engine.compile(models.named(ov.Model([node], [image])), Engine())
    data = generator.normal(size=(40, 3, 16, 16)).astype(np.float32)
    outputs = [output[0].copy() for output in engine.infer(compiled, samples_of(data))]
    request = compiled.create_infer_request()
    for row, output in zip(data, outputs, strict=True):
        request.infer({0: row[None]})
        np.testing.assert_array_equal(request.get_output_tensor(0).data, output)


def test_several_inputs_are_given_in_the_models_order() -> None:
    model = models.two_inputs()
    data = [{"tokens": np.full((1, 2 + i), i), "image": np.full((1, 2, 3), 0.5)} for i in range(9)]
    samples = Samples(data, model_inputs(model))
    totals = [float(output[0][0]) for output in engine.infer(engine.compile(model, Engine()), samples)]
    assert totals == [3.0 + i * (2 + i) for i in range(9)]


def test_f32_is_f32_even_where_the_device_prefers_less() -> None:
    """1 + 2^-12 needs more than bf16's 8 bits of mantissa."""
    compiled = engine.compile(models.linear(np.full((512, 512), 1 + 2.0**-12)), Engine(), "f32")
    ones = np.ones((1, 512), np.float32)
    (output,) = next(engine.infer(compiled, [Sample({"x": ones})]))
    np.testing.assert_allclose(output, 512 * (1 + 2.0**-12), rtol=1e-6)


def test_samples_are_taken_only_a_few_ahead(rows: np.ndarray) -> None:
    taken: list[Sample] = []
    compiled = engine.compile(models.linear(WEIGHTS), Engine(requests=2))
    streams = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
    for position, _ in enumerate(engine.infer(compiled, noted(rows, taken))):
        assert len(taken) <= position + 2 * streams + 1
    assert len(taken) == len(rows)


@pytest.mark.timeout(60)
def test_an_error_while_loading_stops_at_once(rows: np.ndarray) -> None:
    taken: list[int] = []

    def failing() -> Iterator[Sample]:
        for position, sample in enumerate(samples_of(rows)):
            taken.append(position)
            if position == 20:
                raise UserError("sample 20 cannot be read")
            yield sample

    threads = threading.active_count()
    with pytest.raises(UserError, match="sample 20 cannot be read"):
        for _ in engine.infer(engine.compile(models.linear(WEIGHTS), Engine()), failing()):
            pass
    assert taken[-1] == 20
    assert threading.active_count() == threads


@pytest.mark.timeout(60)
def test_an_error_in_the_callers_loop_leaves_the_model_usable(rows: np.ndarray) -> None:
    compiled = engine.compile(models.linear(WEIGHTS), Engine())

    def stop() -> None:
        for position, _ in enumerate(engine.infer(compiled, samples_of(rows))):
            if position == 3:
                raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        stop()
    assert sum(1 for _ in engine.infer(compiled, samples_of(rows))) == len(rows)


def test_no_samples_give_no_outputs() -> None:
    assert list(engine.infer(engine.compile(models.linear(WEIGHTS), Engine()), [])) == []


def test_an_unknown_device_is_named_with_those_that_exist() -> None:
    with pytest.raises(UserError, match=r"engine\.device is 'TPU', but the devices here are: .*CPU"):
        engine.compile(models.linear(WEIGHTS), Engine(device="TPU"))


# ------------------------------------------------------------------------------------------------ metrics of models


class Largest(Metric):
    """Counts how often it is asked."""

    asked = 0

    def per_sample(self, outputs: Sequence[np.ndarray], target: Any) -> float:
        self.asked += 1
        return float(outputs[0].max())


def test_metrics_of_two_models_on_samples_loaded_once(rows: np.ndarray) -> None:
    loaded: list[Sample] = []
    compiled = {name: engine.compile(models.linear(WEIGHTS * scale), Engine()) for name, scale in (("int8", 1.5), ("fp32", 1.0))}
    metric = Largest()
    values = engine.evaluate_metrics(compiled, noted(rows, loaded), {"largest": metric})
    assert list(values) == ["int8", "fp32"]
    np.testing.assert_allclose(values["fp32"]["largest"], (rows @ WEIGHTS).max(axis=1, keepdims=True), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(values["int8"]["largest"], 1.5 * values["fp32"]["largest"], rtol=1e-4, atol=1e-5)
    assert len(loaded) == len(rows)
    assert metric.asked == 2 * len(rows)


def test_a_reference_metric_sees_the_fp32_outputs_of_the_same_sample(rows: np.ndarray) -> None:
    noise = np.random.default_rng(3).normal(size=WEIGHTS.shape).astype(np.float32) / 10
    metric = ReferenceError("relative")
    model = models.linear(WEIGHTS)
    metric.bind(model)
    compiled = {"int8": engine.compile(models.linear(WEIGHTS + noise), Engine()), "fp32": engine.compile(model, Engine())}
    values = engine.evaluate_metrics(compiled, samples_of(rows), {"error": metric})
    expected = np.linalg.norm(rows @ noise, axis=1) / np.linalg.norm(rows @ WEIGHTS, axis=1)
    np.testing.assert_allclose(values["int8"]["error"][:, 0], expected, rtol=1e-3)
    np.testing.assert_array_equal(values["fp32"]["error"], 0.0)


def test_labels_and_references_together(rows: np.ndarray) -> None:
    model = models.linear(WEIGHTS)
    best = (rows @ WEIGHTS).argmax(axis=1)
    targets = [int(label) if i % 4 else int((label + 1) % 5) for i, label in enumerate(best)]
    metrics: dict[str, Metric] = {"accuracy": Accuracy(), "error": ReferenceError()}
    for metric in metrics.values():
        metric.bind(model)
    values = engine.evaluate_metrics({"fp32": engine.compile(model, Engine())}, samples_of(rows, targets), metrics)["fp32"]
    assert metrics["accuracy"].value(values["accuracy"]) == 1 - len(rows[::4]) / len(rows)
    assert metrics["error"].value(values["error"]) == 0


class Broken(Metric):
    """Gives what it is told for the third sample."""

    def __init__(self, wrong: Any) -> None:
        self.wrong = wrong
        self.seen = 0

    def per_sample(self, outputs: Sequence[np.ndarray], target: Any) -> Any:
        self.seen += 1
        return self.wrong if self.seen == 3 else 0.5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (float("nan"), r"metric mine is not a finite number \(nan\) for sample 2"),
        (np.array([1.0, np.inf]), r"metric mine is not a finite number \(inf\) for sample 2"),
        (np.array([1.0, 2.0]), "metric mine gives arrays of different shapes"),
        (None, r"metric mine: per_sample gives nothing \(None\) for sample 2, but must give a number, or a row of numbers"),
        ("0.5", r"per_sample gives str '0\.5' for sample 2"),
        ({"iou": 0.5}, r"per_sample gives dict \{'iou': 0\.5\} for sample 2"),
        (0.5j, r"per_sample gives complex 0\.5j for sample 2"),
        ([0.5, [1.0]], r"per_sample gives list \[0\.5, \[1\.0\]\] for sample 2"),
    ],
)
def test_what_a_metric_must_not_return(rows: np.ndarray, wrong: Any, message: str) -> None:
    compiled = {"fp32": engine.compile(models.linear(WEIGHTS), Engine())}
    with pytest.raises(UserError, match=message):
        engine.evaluate_metrics(compiled, samples_of(rows[:5]), {"mine": Broken(wrong)})


class Wrong(Largest):
    """Gives something else than a number in one place."""

    def __init__(self, place: str, wrong: Any) -> None:
        self.place = place
        self.wrong = wrong

    def _at(self, place: str, right: Any) -> Any:
        if place != self.place:
            return right
        if isinstance(self.wrong, BaseException):
            raise self.wrong
        return self.wrong

    def per_sample(self, outputs: Sequence[np.ndarray], target: Any) -> Any:
        return self._at("per_sample", 0.5)

    def value(self, rows: np.ndarray) -> Any:
        return self._at("value", 0.5)

    def score(self, rows: np.ndarray) -> Any:
        return self._at("score", rows[:, 0])


@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        ("value", None, r"metric mine: value gives nothing \(None\), but must give a number"),
        ("value", np.ones(2), r"metric mine: value gives an array of shape \[2\], but must give a number"),
        ("value", float("inf"), "metric mine is not a finite number: inf"),
        ("score", 0.5, r"metric mine: score gives float 0\.5 for 5 samples, but must give a number for each"),
        ("score", np.ones((5, 1)), r"metric mine: score gives an array of shape \[5, 1\] for 5 samples"),
        ("per_sample", KeyError("boxes"), r"metric mine, sample 0: per_sample of Wrong: KeyError: 'boxes' \(tests/runtime/test_engine\.py"),
        ("value", ZeroDivisionError(), "metric mine: value of Wrong: ZeroDivisionError"),
        ("score", SystemExit(0), r"metric mine: score of Wrong: it ends the program, with sys\.exit\(0\)"),
    ],
)
def test_a_metric_of_the_wrong_type(rows: np.ndarray, place: str, wrong: Any, message: str) -> None:
    compiled = {"fp32": engine.compile(models.linear(WEIGHTS), Engine())}
    with pytest.raises(UserError, match=f"^{message}"):
        engine.evaluate_metrics(compiled, samples_of(rows[:5]), {"mine": Wrong(place, wrong)})


def test_no_samples_to_evaluate() -> None:
    compiled = {"fp32": engine.compile(models.linear(WEIGHTS), Engine())}
    with pytest.raises(UserError, match="no samples to evaluate"):
        engine.evaluate_metrics(compiled, [], {"largest": Largest()})


def test_a_reference_metric_needs_the_reference() -> None:
    compiled = {"int8": engine.compile(models.linear(WEIGHTS), Engine())}
    with pytest.raises(ValueError, match="'fp32', which is not among the models"):
        engine.evaluate_metrics(compiled, [], {"error": ReferenceError()})


@pytest.mark.parametrize("precision", ["f32", "default"])
def test_results_do_not_depend_on_the_number_of_requests(rows: np.ndarray, precision: str) -> None:
    def run(requests: int) -> list[bytes]:
        compiled = engine.compile(models.linear(WEIGHTS), Engine(requests=requests), precision)
        return [output[0].tobytes() for output in engine.infer(compiled, samples_of(rows))]

    assert run(1) == run(8)


def test_last_line_finds_the_reason() -> None:
    error = RuntimeError("Exception from src/a.cpp:1:\nCheck 'x' failed at src/b.cpp:2:\nthe reason\n\n---\n")
    assert engine.last_line(error) == "the reason"
    assert engine.last_line(RuntimeError("")) == "RuntimeError"


def quantized_layer(low: float, high: float, levels: int, folded: bool) -> ov.Model:
    x = operations.parameter([1, 8], np.float32, name="x")
    borders = [operations.constant(np.full((8, 1), border, np.float32)) for border in (low, high, low, high)]
    weights = operations.fake_quantize(operations.constant(WEIGHTS), *borders, levels)
    model = ov.Model([operations.matmul(x, weights, False, False)], [x])
    if folded:
        compress_weights(model)
    return model


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize(
    ("low", "high", "levels", "expected"),
    [(-2.0, 2.0, 255, "default"), (-2.0 * 128 / 127, 2.0, 256, "default"), (-1.0, 3.0, 256, "f32"), (0.0, 3.0, 256, "f32")],
)
def test_weights_with_zero_points_run_in_f32(low: float, high: float, levels: int, expected: str, folded: bool) -> None:
    model = quantized_layer(low, high, levels, folded)
    assert engine.int8_precision(model, Engine()) == expected
    assert engine.int8_precision(model, Engine(inference_precision="bf16")) == "bf16"  # what is asked for, is done
    assert engine.int8_precision(model, Engine(device="GPU")) == "default"


def test_zero_points_are_trusted_once_a_release_has_mended_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantized_layer(-1.0, 3.0, 256, folded=True)
    for gone, expected in (("2023.0", "default"), ("9999.0", "f32")):
        monkeypatch.setattr(engine, "ZERO_POINTS_IN_BF16", dataclasses.replace(ZERO_POINTS_IN_BF16, gone=gone))
        assert engine.int8_precision(model, Engine()) == expected


def test_a_floating_point_model_has_no_zero_points() -> None:
    x = operations.parameter([1, 8], np.float32, name="x")
    shifted = operations.subtract(operations.matmul(x, operations.constant(WEIGHTS), False, False), operations.constant(np.float32(1)))
    assert not engine.has_weight_zero_points(ov.Model([shifted], [x]))
