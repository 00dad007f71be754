"""Ranges from stored statistics, against numpy on the raw tensors; and what cannot be solved."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from stages.common.errors import UserError
from stages.configuration import schema
from stages.quantization.build import build
from stages.quantization.model.graph import constant_value
from stages.quantization.placement.plan import TensorName
from stages.quantization.solution.solve import dequantized_weights, quantized_constant
from stages.quantization.statistics.estimators import aggregate
from tests.quantization.quantizing import plan_of, quantized, statistics_of, tensor
from tests.quantization.small import convolution, images, matmul, model, named, parameter, random

SAMPLES = images(6, (1, 4, 8, 8))


def network() -> ov.Model:
    x = parameter((1, 4, 8, 8))
    depthwise = convolution(named(op.tanh(x), "tanh"), random(4, 1, 1, 3, 3), "depthwise", bias=random(4))
    return model(matmul(named(op.sigmoid(depthwise), "sigmoid"), random(6, 5), "last"), x)


def raw(name: str, samples: Any = SAMPLES) -> np.ndarray:
    return np.stack(tensor(network(), name, samples)).astype(np.float64)


def ranges(preset: str = "performance", probabilities: Any = (), samples: Any = SAMPLES, **config: Any) -> dict[str, Any]:
    found = quantized(network(), samples, probabilities=probabilities, channel_probabilities=probabilities, preset=preset, **config)
    return {quantizer.source.name: found.solved.ranges[quantizer.name] for quantizer in found.plan.quantizers}


def test_symmetric_per_tensor() -> None:
    low, high = ranges()["sigmoid"]
    values = raw("sigmoid").reshape(len(SAMPLES), -1)
    assert (low, high) == (0, pytest.approx(np.abs(values).max(axis=1).mean(), rel=1e-6))


def test_asymmetric_per_tensor() -> None:
    low, high = ranges("mixed")["sigmoid"]
    values = raw("sigmoid").reshape(len(SAMPLES), -1)
    assert (low, high) == (0, pytest.approx(values.max(axis=1).mean(), rel=1e-6))


@pytest.mark.parametrize("preset", ["performance", "mixed"])
def test_per_channel(preset: str) -> None:
    low, high = ranges(preset)["tanh"]
    values = np.moveaxis(raw("tanh")[:, 0], 1, 0).reshape(4, -1)
    if preset == "performance":
        np.testing.assert_allclose(high, np.abs(values).max(axis=1), rtol=1e-6)
        np.testing.assert_allclose(low, -high * 128 / 127)
    else:  # one of the borders is moved, by less than a step
        step = (high - low) / 255
        assert np.all((high >= values.max(axis=1) - 1e-6) & (low <= values.min(axis=1) + 1e-6))
        assert np.all((high - values.max(axis=1) < step) & (values.min(axis=1) - low < step))


@pytest.mark.parametrize("aggregator", schema.AGGREGATORS)
@pytest.mark.parametrize("kind", ["quantile", "abs_quantile", "max", "abs_max"])
def test_estimators(aggregator: str, kind: str) -> None:
    quantile = 0.05 if "quantile" in kind else None
    estimator = schema.RangeEstimator(max=schema.Estimator(type=kind, outlier_prob=quantile, aggregator=aggregator))
    _, high = ranges(probabilities=[0.05], range_estimator=estimator, activations=schema.Scheme(mode="symmetric"))["sigmoid"]
    values = raw("sigmoid").reshape(len(SAMPLES), -1)
    values = np.abs(values) if kind.startswith("abs") else values
    per_sample = np.quantile(values, 0.95, axis=1) if quantile else values.max(axis=1)
    expected = float(aggregate(aggregator, per_sample))
    if aggregator == "mean_unclipped" and not quantile:
        expected = float(values.max())  # of so few values none may be cut off
    assert high == pytest.approx(expected, rel=1e-6)


def batches(values: np.ndarray) -> list[np.ndarray]:
    """Four samples, and the two that are left."""
    return [values[:4], values[4:]]


# What POT 2023.3 has of its batches: statistics of a batch as one tensor; quantiles of its samples.
IN_BATCHES: dict[tuple[str, str], Any] = {
    ("abs_max", "mean"): lambda values: np.mean([np.abs(batch).max() for batch in batches(values)]),
    ("max", "mean"): lambda values: np.mean([batch.max() for batch in batches(values)]),
    ("abs_max", "min"): lambda values: min(np.abs(batch).max() for batch in batches(values)),
    ("abs_max", "median"): lambda values: np.median([np.abs(batch).max() for batch in batches(values)]),
    ("abs_quantile", "mean"): lambda values: np.mean([np.quantile(np.abs(batch), 0.95, axis=1).mean() for batch in batches(values)]),
    ("quantile", "mean"): lambda values: np.mean([np.quantile(batch, 0.95, axis=1).mean() for batch in batches(values)]),
    ("abs_quantile", "median"): lambda values: np.median(np.quantile(np.abs(values), 0.95, axis=1)),
    ("abs_quantile", "min"): lambda values: np.quantile(np.abs(values), 0.95, axis=1).min(),
}


@pytest.mark.parametrize(("kind", "aggregator"), IN_BATCHES)
def test_samples_in_batches(kind: str, aggregator: str) -> None:
    quantile = 0.05 if "quantile" in kind else None
    estimator = schema.RangeEstimator(max=schema.Estimator(type=kind, outlier_prob=quantile, aggregator=aggregator))
    config: dict[str, Any] = {"probabilities": [0.05], "range_estimator": estimator, "activations": schema.Scheme(mode="symmetric")}
    low, high = ranges(stat_batch_size=4, **config)["sigmoid"]
    expected = IN_BATCHES[kind, aggregator](raw("sigmoid").reshape(len(SAMPLES), -1))
    assert (low, high) == (0, pytest.approx(expected, rel=1e-6))
    single = ranges(**config)["sigmoid"].high
    per_sample = (kind, aggregator) in {("abs_quantile", "median"), ("abs_quantile", "min")}
    assert (single == high) if per_sample else abs(single - high) > 1e-5


def test_both_borders_in_batches() -> None:
    estimator = schema.RangeEstimator(min=schema.Estimator(aggregator="mean"), max=schema.Estimator(aggregator="mean"))
    activations = schema.Scheme(mode="asymmetric", granularity="pertensor", range_estimator=estimator)
    quiet = [0.1 * sample for sample in SAMPLES]  # or their hyperbolic tangents would all reach 1
    found = ranges(samples=quiet, stat_batch_size=4, activations=activations)["tanh"]
    values = raw("tanh", quiet).reshape(len(SAMPLES), -1)
    low, high = (np.mean([extreme(batch) for batch in batches(values)]) for extreme in (np.min, np.max))
    step = (high - low) / 255
    assert found == pytest.approx((low, high), abs=1.01 * step)  # one of them moves, to bring zero onto a level
    assert values.min(axis=1).mean() - low > 2 * step < high - values.max(axis=1).mean()


def test_channels_in_batches() -> None:
    """They keep their samples, of which the mean alone tells batches apart."""
    for aggregator in ("mean", "median"):
        estimator = schema.RangeEstimator(max=schema.Estimator(aggregator=aggregator))
        found = ranges(stat_batch_size=4, range_estimator=estimator)["tanh"].high
        highest = np.abs(raw("tanh")[:, 0]).reshape(len(SAMPLES), 4, -1).max(axis=2)
        expected = (
            np.mean([batch.mean(axis=0) for batch in batches(highest)], axis=0) if aggregator == "mean" else np.median(highest, axis=0)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_more_samples_in_a_batch_than_there_are() -> None:
    assert ranges(stat_batch_size=100)["sigmoid"].high == pytest.approx(raw("sigmoid").max(), rel=1e-6)


def test_quantiles_per_channel() -> None:
    estimator = schema.RangeEstimator(preset="quantile", max=schema.Estimator(outlier_prob=0.05))
    _, high = ranges(probabilities=[0.05], range_estimator=estimator)["tanh"]
    values = np.abs(raw("tanh")[:, 0].reshape(len(SAMPLES), 4, -1))
    np.testing.assert_allclose(high, np.quantile(values, 0.95, axis=2).max(axis=0), rtol=1e-6)


def test_weights() -> None:
    found = ranges()
    np.testing.assert_allclose(found["last/weights"][1], np.abs(random(6, 5)).max(axis=0))
    depthwise = np.abs(random(4, 1, 1, 3, 3)).reshape(4, -1).max(axis=1)
    np.testing.assert_allclose(found["depthwise/weights"][1], depthwise)
    whole = ranges(weights=schema.Scheme(granularity="pertensor"))
    assert whole["last/weights"][1] == pytest.approx(np.abs(random(6, 5)).max())
    quantile = schema.Scheme(range_estimator=schema.RangeEstimator(preset="quantile", max=schema.Estimator(outlier_prob=0.1)))
    expected = np.quantile(np.abs(random(6, 5)), 0.9, axis=0)
    np.testing.assert_allclose(ranges(weights=quantile)["last/weights"][1], expected, rtol=1e-6)


def test_clipping() -> None:
    estimator = schema.RangeEstimator(max=schema.Estimator(clipping_value=0.5))
    low, high = ranges(activations=schema.Scheme(range_estimator=estimator))["tanh"]
    np.testing.assert_allclose(high, 0.5)
    np.testing.assert_allclose(low, -0.5 * 128 / 127)
    pots_low, pots_high = ranges(activations=schema.Scheme(range_estimator=estimator), pot_compatible=True)["tanh"]
    np.testing.assert_allclose(pots_high, 0.5)
    assert np.all(pots_low < -0.9)  # and zero beside the levels


def test_clipping_values_that_leave_nothing() -> None:
    estimator = schema.RangeEstimator(max=schema.Estimator(clipping_value=-1.0))
    with pytest.raises(UserError, match=r"tanh/fq_output_0: the clipping values None and -1.0 leave no range around zero"):
        ranges(activations=schema.Scheme(range_estimator=estimator))


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"preset": "quantile"}, r"statistics hold no abs_quantile per channel at 0.0001 of tanh \(output 0\); run `dvc repro --force "),
        ({"max": schema.Estimator(type="quantile", outlier_prob=0.3)}, r"statistics hold no quantile per channel at 0.3 of tanh"),
    ],
)
def test_quantiles_that_were_not_collected(config: dict[str, Any], message: str) -> None:
    plan = plan_of(network(), range_estimator=schema.RangeEstimator(**config))
    with pytest.raises(UserError, match=message):
        build(network(), statistics_of(network(), SAMPLES), plan)


def test_a_tensor_that_was_not_collected() -> None:
    statistics = statistics_of(network(), SAMPLES)
    del statistics.lowest[TensorName("sigmoid", 0)]
    with pytest.raises(UserError, match=r"statistics hold no min of sigmoid \(output 0\)"):
        build(network(), statistics, plan_of(network()))


def test_infinite_values_matter_only_where_they_are_quantized() -> None:
    """Such as the mask of an attention, -inf before a softmax."""
    x, mask = parameter((4, 4)), parameter((4, 4), "mask")
    scores = named(op.add(named(op.exp(x), "exp"), mask), "scores")
    tested = model(matmul(named(op.softmax(scores, 1), "softmax"), random(4, 8)), x, mask)
    samples = [{"x": random(4, 4, seed=seed), "mask": np.where(np.eye(4) * seed, -np.inf, 0).astype(np.float32)} for seed in range(3)]
    with pytest.raises(
        UserError, match=r"mask \(output 0\) takes values that are not finite for calibration sample 1; quantization.ignored"
    ):
        # a plan that knows nothing of the samples
        build(tested, statistics_of(tested, samples), plan_of(tested, pot_compatible=True))
    result = quantized(tested, samples)  # nothing to gain at the mask
    assert {q.source.name for q in result.plan.quantizers} == {"softmax", "matmul/weights"}


# ------------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("preset", ["performance", "accuracy"])
@pytest.mark.parametrize("saturation_fix", ["no", "all"])
def test_dequantized_weights_are_those_that_the_model_computes_with(preset: str, saturation_fix: str) -> None:
    x = parameter((1, 4, 8, 8))
    kernel = op.reshape(op.constant(random(6, 2, 3, 3)), np.array([2, 3, 2, 3, 3]), False)
    kernel.input_value(0).get_node().set_friendly_name("grouped/weights")
    layers = [
        convolution(x, random(3, 4, 2, 2), "plain"),
        named(op.group_convolution(x, kernel, [1, 1], [0, 0], [0, 0], [1, 1]), "grouped"),
        named(op.convolution_backprop_data(x, op.constant(random(4, 5, 2, 2)), [2, 2]), "up"),
        matmul(x, random(8, 3), "product"),
        matmul(x, random(1, 4, 8, 3), "batch"),
    ]
    result = quantized(
        model([named(op.relu(layer), f"r{i}") for i, layer in enumerate(layers)], x), SAMPLES, preset=preset, saturation_fix=saturation_fix
    )
    checked = 0
    for quantizer in (q for q in result.plan.quantizers if q.kind == "weights"):
        stored = constant_value(quantized_constant(result.graph, quantizer))
        found = dequantized_weights(result.graph, quantizer, stored, result.solved.ranges[quantizer.name])
        assert found.shape == stored.shape and quantizer.doubled == (saturation_fix == "all")
        (computed,) = tensor(result.model, quantizer.name, [SAMPLES[0]])
        step = np.max(np.abs(stored)) / (63 if quantizer.doubled else 127)
        difference = np.abs(found.reshape(computed.shape) - computed)
        assert difference.max() < 1.01 * step and np.mean(difference > 1e-3 * step) < 0.02  # but for values between two levels
        assert np.abs(found - stored).max() < 0.51 * step * 1.02
        checked += 1
    assert checked == len(layers)
