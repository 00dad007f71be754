"""Every parameter of a range and of a bias has its effect in the solved model, on data where another reading would show.

The functions behind them have tests of their own; these would fail if a parameter got lost on its way there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from stages.configuration import schema
from stages.quantization.solution.biases import threshold
from stages.quantization.solution.ranges import Range
from tests.quantization.quantizing import Quantized, nodes, quantized, tensor
from tests.quantization.small import constant, convolution, images, matmul, model, named, parameter, random

SAMPLES = images(5, (2, 6))
WEIGHTS = random(6, 4)


def network(between: Any = lambda x: op.negative(op.elu(x, 0.5))) -> ov.Model:
    """A matrix product of a tensor "source": by default one that reaches further below zero than above it."""
    x = parameter((2, 6))
    return model(matmul(named(between(x), "source"), WEIGHTS, "layer"), x)


def solved(tested: ov.Model, **config: Any) -> dict[str, Range]:
    found = quantized(tested, SAMPLES, probabilities=[0.1], **{"allow_unsupported": True, **config})
    return {quantizer.source.name: found.solved.ranges[quantizer.name] for quantizer in found.plan.quantizers}


def raw(tested: ov.Model) -> np.ndarray:
    return np.stack(tensor(tested, "source", SAMPLES)).astype(np.float64).reshape(len(SAMPLES), -1)


# ------------------------------------------------------------------------------------------------------------ estimators

OF_A_SAMPLE: dict[str, Any] = {
    "max": lambda values: values.max(axis=1),
    "abs_max": lambda values: np.abs(values).max(axis=1),
    "quantile": lambda values: np.quantile(values, 0.9, axis=1),
    "abs_quantile": lambda values: np.quantile(np.abs(values), 0.9, axis=1),
}


@pytest.mark.parametrize("kind", OF_A_SAMPLE)
def test_the_type_of_an_estimator(kind: str) -> None:
    tested, probability = network(), 0.1 if "quantile" in kind else None
    upper = schema.RangeEstimator(max=schema.Estimator(type=kind, outlier_prob=probability))
    high = solved(tested, activations=schema.Scheme(mode="symmetric", range_estimator=upper))["source"].high
    expected = {name: float(define(raw(tested)).mean()) for name, define in OF_A_SAMPLE.items()}
    assert high == pytest.approx(expected[kind], rel=1e-6)
    assert min(abs(expected[kind] - other) for name, other in expected.items() if name != kind) > 0.01 * expected[kind]


@pytest.mark.parametrize("kind", ["histogram", "percentile", "entropy", "sqnr"])
def test_the_types_that_look_at_all_samples_together(kind: str) -> None:
    tested, probability = network(), 0.02 if kind == "percentile" else None
    upper = schema.RangeEstimator(max=schema.Estimator(type=kind, outlier_prob=probability))
    high = float(solved(tested, activations=schema.Scheme(mode="symmetric", range_estimator=upper))["source"].high)
    values = np.sort(np.abs(raw(tested)).reshape(-1))
    if kind == "percentile":  # 2 % of 60 values: one may lie beyond
        assert values[-2] * (1 - 1e-6) <= high < values[-1]
    elif kind == "entropy":  # few values say little of their distribution: only that this is not what a sample's own statistics give
        assert values[-1] / 2 < high <= values[-1]
        assert min(abs(high - define(raw(tested)).mean()) for define in OF_A_SAMPLE.values()) > 0.01 * high
    elif kind == "sqnr":  # of few values none is worth clipping, and the largest is some samples' alone: in between
        assert float(np.abs(raw(tested)).max(axis=1).mean()) < high <= values[-1] * (1 + 1e-6)
    else:
        # Of 60 values none is worth clipping for 255 levels; the mean of the samples' maxima would clip two of five.
        assert high == pytest.approx(values[-1], rel=1e-6)
        assert float(np.abs(raw(tested)).max(axis=1).mean()) < 0.95 * high


def test_the_preset_of_least_error_concerns_activations_and_weights() -> None:
    source = parameter((2, 6))
    weights = WEIGHTS.copy()
    tested = model(matmul(named(op.negative(op.elu(source, 0.5)), "source"), weights, "layer"), source)
    found = quantized(tested, SAMPLES, probabilities=[0.1], range_estimator=schema.RangeEstimator(preset="mse"))
    assert {quantizer.kind: quantizer.estimator.max.type for quantizer in found.plan.quantizers} == {
        "activations": "histogram",
        "weights": "histogram",
    }
    assert all(quantizer.estimator.max.aggregator is None for quantizer in found.plan.quantizers)
    default = quantized(tested, SAMPLES, probabilities=[0.1])
    kept = {q.source.name: q.name for q in default.plan.quantizers}
    assert found.solved.ranges[kept["source"]].high > 1.05 * default.solved.ranges[kept["source"]].high


def test_the_preset_of_largest_sqnr_concerns_activations_alone() -> None:
    source = parameter((2, 6))
    tested = model(matmul(named(op.negative(op.elu(source, 0.5)), "source"), WEIGHTS.copy(), "layer"), source)
    found = quantized(tested, SAMPLES, probabilities=[0.1], range_estimator=schema.RangeEstimator(preset="sqnr"))
    types = {quantizer.kind: (quantizer.estimator.max.type, quantizer.estimator.max.aggregator) for quantizer in found.plan.quantizers}
    assert types == {"activations": ("sqnr", None), "weights": ("abs_max", None)}


def test_a_mean_that_clips_is_widened() -> None:
    tested = network()

    def high(aggregator: str) -> float:
        upper = schema.RangeEstimator(max=schema.Estimator(aggregator=aggregator))
        return float(solved(tested, activations=schema.Scheme(mode="symmetric", range_estimator=upper))["source"].high)

    magnitudes = np.abs(raw(tested))
    assert high("mean") == pytest.approx(magnitudes.max(axis=1).mean(), rel=1e-6)
    assert high("mean_unclipped") == pytest.approx(magnitudes.max(), rel=1e-6)


def test_the_lower_border_of_an_asymmetric_range() -> None:
    for kind, share in (("min", 0.0), ("quantile", 0.1)):
        lower = schema.Estimator(type=kind, outlier_prob=share or None, aggregator="min")
        activations = schema.Scheme(mode="asymmetric", range_estimator=schema.RangeEstimator(min=lower))
        borders, values = solved(network(op.softsign), activations=activations)["source"], raw(network(op.softsign))
        step = float(borders.high - borders.low) / 255
        assert borders.low == pytest.approx(np.quantile(values, share, axis=1).min(), abs=1.01 * step)


@pytest.mark.parametrize("group", ["weights", "activations"])
def test_clipping_values(group: str) -> None:
    """Both borders, of both groups: nothing is wider, and hardly anything narrower."""
    clipped = schema.RangeEstimator(min=schema.Estimator(clipping_value=-0.3), max=schema.Estimator(clipping_value=0.2))
    scheme = schema.Scheme(mode="asymmetric", granularity="pertensor", range_estimator=clipped)
    name = "source" if group == "activations" else "layer/weights"
    found = solved(network(), **{group: scheme})[name]
    assert -0.3001 < found.low < -0.297 and 0.198 < found.high < 0.2001
    free = solved(network(), **{group: schema.Scheme(mode="asymmetric", granularity="pertensor")})[name]
    assert free.low < -0.4 and free.high > 0.3


# ---------------------------------------------------------------------------------------------------------------- levels


@pytest.mark.parametrize(
    ("scheme", "below", "levels"),
    [
        ({}, 128 / 127, 256),
        ({"bits": 4}, 8 / 7, 16),
        ({"bits": 8, "level_low": -64, "level_high": 63}, 64 / 63, 128),
        ({"bits": 8, "level_low": -127, "level_high": 127}, 1.0, 255),
    ],
)
def test_levels_of_activations(scheme: dict[str, Any], below: float, levels: int) -> None:
    low, high = solved(network(), activations=schema.Scheme(mode="symmetric", **scheme))["source"]
    assert low == pytest.approx(-high * below)
    found = quantized(network(), SAMPLES, activations=schema.Scheme(**scheme), allow_unsupported=True)
    assert nodes(found.model)["source/fq_output_0"].get_levels() == levels


def test_levels_of_weights() -> None:
    for scheme, levels in (
        (schema.Scheme(), 255),
        (schema.Scheme(bits=4), 15),
        (schema.Scheme(bits=8, level_low=-128, level_high=127), 256),
    ):
        low, high = solved(network(), weights=scheme)["layer/weights"]
        np.testing.assert_allclose(low, -high * (1.0 if levels % 2 else 128 / 127))
        found = quantized(network(), SAMPLES, weights=scheme, allow_unsupported=True)
        assert nodes(found.model)["layer/fq_weights_1"].get_levels() == levels
    # On 16 levels zero is one of them.
    low, high = solved(network(), weights=schema.Scheme(bits=4, mode="asymmetric"))["layer/weights"]
    zero = -low * 15 / (high - low)
    np.testing.assert_allclose(zero, np.round(zero), atol=1e-9)


def test_levels_below_zero_ask_for_a_sign() -> None:
    positive = network(op.sigmoid)
    assert solved(positive)["source"].low == 0
    low, high = solved(positive, activations=schema.Scheme(level_low=-128, level_high=127))["source"]
    assert low == pytest.approx(-high * 128 / 127)
    assert solved(positive, activations=schema.Scheme(level_low=0, level_high=255))["source"].low == 0


# ------------------------------------------------------------------------------------------------------------------ zero


@pytest.mark.parametrize(("lowest", "ours", "pots"), [(-1e-7, 0.0, -128 / 127), (-1e-3, -128 / 127, -128 / 127), (0.0, 0.0, 0.0)])
def test_how_negative_a_signed_tensor_is(lowest: float, ours: float, pots: float) -> None:
    tested = network(lambda x: op.clamp(x, lowest, 6.0))
    for expected, flag in ((ours, False), (pots, True)):
        low, high = solved(tested, pot_compatible=flag)["source"]
        assert low == pytest.approx(expected * high)


@pytest.mark.parametrize("flag", [False, True])
def test_zero_next_to_a_border(flag: bool) -> None:
    """Nearer than half a step: zero becomes the border, which POT leaves where it is."""
    weights = np.abs(WEIGHTS) + 0.1
    weights[0] = -1e-4
    x = parameter((2, 6))
    tested = model(matmul(named(op.clamp(x, -1e-3, 6.0), "source"), weights, "layer"), x)
    found = solved(tested, preset="accuracy", pot_compatible=flag)
    assert found["source"].low == (pytest.approx(-1e-3) if flag else 0)
    np.testing.assert_allclose(found["layer/weights"].low, -1e-4 if flag else 0)


# ---------------------------------------------------------------------------------------------------------------- biases


def corrected(bias: np.ndarray | None, **config: Any) -> Quantized:
    x = parameter((1, 3, 4, 4))
    layer = convolution(op.add(x, constant(1.0, "one")), random(4, 3, 3, 3), "conv", bias=bias)
    samples = [sample + 1 for sample in images(3, (1, 3, 4, 4))]
    return quantized(
        model(layer, x), samples, weights=schema.Scheme(bits=2), allow_unsupported=True, correction=schema.BiasCorrection(**config)
    )


def outcome(bias: np.ndarray | None, **config: Any) -> tuple[bool, str | None, float | None]:
    (found,) = corrected(bias, **config).solved.corrections
    return found.bias is not None, found.reason, found.largest_relative_shift


def test_the_threshold_of_a_bias() -> None:
    assert threshold(schema.BiasCorrection()) == 2 and threshold(schema.BiasCorrection(use_fast_bias=False)) == 1000
    given = np.ones(4, np.float32)
    _, _, relative = outcome(given, threshold=1e6)
    assert relative is not None and relative > 0.1
    for factor, expected in ((1.9, True), (2.1, False)):  # of two, the default
        accepted, reason, _ = outcome(given * relative / factor)
        assert accepted is expected and (reason is None or reason.endswith("(threshold 2)"))
    for factor, expected in ((0.9, False), (1.1, True)):
        accepted, reason, _ = outcome(given, threshold=relative * factor)
        assert accepted is expected


@pytest.mark.parametrize(("bias", "reason"), [(None, "no bias"), ([0.0, 100.0, 100.0, 100.0], "the bias has zero elements")])
def test_zero_biases(bias: list[float] | None, reason: str) -> None:
    given = None if bias is None else np.array(bias, np.float32)
    assert outcome(given)[:2] == (True, None)
    assert outcome(given, correct_zero_biases=False)[:2] == (False, reason)
    assert outcome(np.full(4, 100.0, np.float32), correct_zero_biases=False)[:2] == (True, None)


def test_bias_correction_can_be_turned_off() -> None:
    assert not corrected(np.ones(4, np.float32), enabled=False).solved.corrections
