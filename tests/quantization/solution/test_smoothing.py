"""Smoothing of what MatMuls read: its arithmetic, and that a model computes the same with it and loses less when it is quantized."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from stages.common.errors import UserError
from stages.configuration import schema
from stages.measurement.written_out import written_out
from stages.quantization.build import build, quantizers_json
from stages.quantization.model.graph import read_graph
from stages.quantization.noise import ActivationNoise, aligned_model, weight_noise
from stages.quantization.placement.plan import TensorName, plan_from_json
from stages.quantization.refinement.accurate_bias import accurate_corrections
from stages.quantization.refinement.layerwise import tune_layers
from stages.quantization.solution.smoothing import expected_errors, smooth, smoothing_factors
from stages.quantization.statistics.store import load, save
from stages.runtime.datasets import Sample
from tests.quantization.quantizing import infer, plan_of, statistics_of
from tests.quantization.small import matmul, model, named, parameter, random

FEATURES = 32
LOUD = 5  # the feature that is a hundred times the others


def samples(count: int = 12, rows: int = 20) -> list[np.ndarray]:
    """Rows [1, n, F], n different for each sample, with one loud feature."""
    generator = np.random.default_rng(3)
    values = [generator.normal(size=(1, rows + index % 4, FEATURES)).astype(np.float32) for index in range(count)]
    for value in values:
        value[..., LOUD] *= 100
    return values


def network(dtype: Any = np.float32) -> ov.Model:
    """Two MatMuls that read the same, with weights that hardly use the loud feature, and a third one behind."""
    generator = np.random.default_rng(1)

    def weights(outputs: int) -> np.ndarray:
        return (generator.normal(size=(FEATURES, outputs)) / FEATURES**0.5).astype(np.float32)

    x = parameter((1, -1, FEATURES), dtype=dtype)
    words = named(op.negative(x), "words")
    query, key = matmul(words, weights(FEATURES), "query", random(FEATURES)), matmul(words, weights(FEATURES), "key")
    return model(matmul(named(op.tanh(op.multiply(query, key)), "product"), weights(4), "last", random(4)), x)


CONFIG: dict[str, Any] = {"model_type": "transformer"}


def relative_error(tested: ov.Model, exact: ov.Model, arrays: list[np.ndarray]) -> float:
    pairs = zip(infer(tested, arrays), infer(exact, arrays), strict=True)
    error, power = np.sum([(np.sum((a[0] - b[0]) ** 2), np.sum(b[0] ** 2)) for a, b in pairs], axis=0)
    return float(np.sqrt(error / power))


# ---------------------------------------------------------------------------------------------------------- arithmetic


def test_expected_error_is_that_of_rounding() -> None:
    """Against rounding itself, of values that are spread as the formula takes them to be."""
    generator = np.random.default_rng(0)
    x, w = generator.uniform(-1, 1, (4000, 16)) * np.linspace(1, 30, 16), generator.normal(size=(10, 16))
    features = np.stack([x.min(axis=0), x.max(axis=0)])[None]
    step, steps = 2 * np.abs(x).max() / 255, 2 * np.abs(w).max(axis=1, keepdims=True) / 254
    rounded = np.round(x / step) * step @ (np.round(w / steps) * steps).T
    measured = np.mean((rounded - x @ w.T) ** 2, axis=0).sum()
    (expected,) = expected_errors(features, w, [np.ones(16)])
    assert expected == pytest.approx(measured, rel=0.15)


def test_loud_features_are_divided_by_powers_of_two() -> None:
    x = np.concatenate(samples(), axis=1)[0]
    features, weights = np.stack([x.min(axis=0), x.max(axis=0)])[None].astype(np.float64), random(6, FEATURES).astype(np.float64)
    factors = smoothing_factors(features, weights)
    assert factors is not None
    others = np.delete(factors, LOUD)
    assert factors[LOUD] >= 16 * np.median(others)
    mantissas, _ = np.frexp(factors)
    assert set(mantissas) == {0.5}
    smoothed, plain = expected_errors(features, weights, [factors, np.ones(FEATURES)])
    assert smoothed < 0.1 * plain


def test_even_features_stay() -> None:
    features = np.stack([-np.ones(8), np.ones(8)])[None]
    assert smoothing_factors(features, np.ones((3, 8))) is None
    assert smoothing_factors(0 * features, np.ones((3, 8))) is None
    assert smoothing_factors(np.full((2, 2, 8), np.nan), np.ones((3, 8))) is None  # empty for all samples


def test_statistics_are_those_of_the_divided_tensor() -> None:
    tested, arrays = network(), samples()
    statistics, plan = statistics_of(tested, arrays), plan_of(tested, **CONFIG)
    graph, name = read_graph(tested), TensorName("words", 0)
    smoothed = smooth(graph, statistics, plan, {})
    factors = smoothed.factors[name].astype(np.float32)
    divided = [-array / factors for array in arrays]
    low, high, _ = smoothed.statistics.tails(name)
    np.testing.assert_array_equal(low[:, 0], [value.min() for value in divided])
    np.testing.assert_array_equal(high[:, 0], [value.max() for value in divided])
    mean = np.mean([value.mean(axis=(0, 1)) for value in divided], axis=0)
    for reader in ("query", "key"):
        np.testing.assert_allclose(smoothed.statistics.input_mean[reader], mean, rtol=1e-3, atol=1e-6)
        weights = weights_of(tested, reader) * factors[:, None]
        np.testing.assert_array_equal(smoothed.weights[f"{reader}/weights"], weights)


def test_what_derives_from_the_tensor_stays_what_it_is() -> None:
    """A tensor that is only stored by way of the smoothed one, from which its values are computed."""
    x = parameter((1, -1, FEATURES))
    above = named(op.negative(x), "above")
    words = named(op.multiply(above, np.float32(2.0)), "words")
    total = named(op.add(above, named(op.tanh(x), "other")), "sum")
    tested = model([matmul(words, random(FEATURES, 4), "query"), total], x)
    statistics = statistics_of(tested, samples(4))
    plan = plan_of(tested, **CONFIG)
    if TensorName("above", 0) not in statistics.derived:
        pytest.fail("the test is about a derived tensor")
    before = statistics.tails(TensorName("above", 0))
    found = smooth(read_graph(tested), statistics, plan, {})
    assert TensorName("words", 0) in found.factors
    for one, other in zip(before, found.statistics.tails(TensorName("above", 0)), strict=True):
        np.testing.assert_array_equal(one, other)


def weights_of(tested: ov.Model, reader: str) -> np.ndarray:
    return np.asarray(next(node.data for node in tested.get_ops() if node.get_friendly_name() == f"{reader}/weights"))


def test_features_are_stored(tmp_path: Any) -> None:
    tested, arrays = network(), samples(3)
    save(statistics_of(tested, arrays), tmp_path)
    features = load(tmp_path).features[TensorName("words", 0)]
    expected = [np.stack([(-array).min(axis=(0, 1)), (-array).max(axis=(0, 1))]) for array in arrays]
    np.testing.assert_array_equal(features, np.stack(expected))


def test_statistics_without_features_say_what_to_run() -> None:
    tested = network()
    statistics = statistics_of(tested, samples(2))
    statistics.features.clear()
    with pytest.raises(UserError, match="no features of words; run `dvc repro --force collect_statistics`"):
        build(tested, statistics, plan_of(tested, **CONFIG))


# --------------------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_floating_point_model_computes_the_same(dtype: Any) -> None:
    tested = network()
    arrays = samples(4)
    smoothed = aligned_model(tested, statistics_of(tested, arrays), plan_of(tested, **CONFIG))
    assert "words/smoothed" in {node.get_friendly_name() for node in smoothed.get_ops()}
    for one, other in zip(infer(tested, arrays), infer(smoothed, arrays), strict=True):
        np.testing.assert_allclose(one[0], other[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("preset", ["performance", "mixed"])
def test_quantized_it_loses_less(preset: str) -> None:
    tested, arrays = network(), samples()
    statistics = statistics_of(tested, arrays)
    errors = []
    for use in (True, False):
        result, _ = build(tested, statistics, plan_of(tested, preset=preset, use_smooth_quant=use, **CONFIG), schema.BiasCorrection())
        errors.append(relative_error(written_out(result), tested, arrays))
    assert errors[0] < errors[1] / 3


def test_the_compiled_model_computes_what_it_says() -> None:
    tested, arrays = network(), samples()
    plan = plan_of(tested, saturation_fix="all", **CONFIG)
    result, _ = build(tested, statistics_of(tested, arrays), plan)
    assert relative_error(result, written_out(result), arrays) < 0.02


def test_noise_is_that_of_the_smoothed_tensors() -> None:
    tested, arrays = network(), samples()
    statistics = statistics_of(tested, arrays)
    decibels = {}
    for use in (True, False):
        plan = plan_of(tested, use_smooth_quant=use, **CONFIG)
        _, solved = build(tested, statistics, plan)
        rewritten = aligned_model(tested, statistics, plan)
        noise = ActivationNoise(rewritten, plan, solved.ranges)
        decibels[use] = noise.shares(infer(noise.model, arrays))["words/fq_output_0"]
        of_weights = weight_noise(rewritten, plan, solved.ranges)["query/fq_weights_1"]
        assert of_weights is not None and of_weights > 35
    assert decibels[True] < decibels[False] / 10


def test_biases_and_layers_are_corrected_on_the_smoothed_model() -> None:
    tested, arrays = network(), samples(1) * 20
    statistics = statistics_of(tested, arrays)
    plan = plan_of(tested, weights=schema.Scheme(bits=4), allow_unsupported=True, **CONFIG)
    _, solved = build(tested, statistics, plan, schema.BiasCorrection())
    fast = {entry.name: entry.bias for entry in solved.corrections}
    bound = [Sample({"x": array}) for array in arrays]
    accurate = accurate_corrections(tested, statistics, plan, schema.BiasCorrection(use_fast_bias=False), bound)
    for entry in accurate:
        if entry.name == "query":  # nothing quantized is above it: both restore the same mean
            assert entry.bias is not None and fast["query"] is not None
            np.testing.assert_allclose(entry.bias, fast["query"], atol=1e-3)
    _, record = tune_layers(tested, statistics, plan, schema.LayerwiseTuning(seed=0), bound)
    tuned = {entry.name: entry for entry in record.layers}
    assert tuned["query"].loss_before is not None and tuned["query"].loss_after is not None
    assert tuned["query"].loss_after <= tuned["query"].loss_before


def test_the_plan_is_data() -> None:
    tested, arrays = network(), samples(3)
    plan = plan_of(tested, **CONFIG)
    _, solved = build(tested, statistics_of(tested, arrays), plan)
    data = quantizers_json(plan, solved, "performance", "CPU")
    assert plan_from_json(data) == plan
    words, product = data["smoothed"]
    assert words["readers"] == ["key", "query"] and len(words["factors"]) == FEATURES and product["factors"] is None
