"""Preset auto: which mode and estimator it chooses, with what reason, against errors computed from the values themselves."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from stages.configuration import schema
from stages.quantization.placement.plan import Quantizer, plan_from_json, plan_to_json
from stages.quantization.solution.ranges import fake_quantize
from stages.search.candidates import Candidate, candidate_key
from tests.quantization.quantizing import Quantized, plan_of, quantized, statistics_of
from tests.quantization.small import convolution, matmul, model, named, parameter, random


def spread(low: float, high: float, count: int = 8, size: int = 400) -> list[np.ndarray]:
    """Samples whose values lie evenly between two borders, each in another order."""
    draw = np.random.default_rng(5)
    return [draw.permutation(np.linspace(low, high, size)).astype(np.float32).reshape(1, size) for _ in range(count)]


def layer(size: int = 400) -> ov.Model:
    source = parameter((1, size))
    return model(matmul(source, random(size, 4), "layer"), source)


def auto(tested: ov.Model, samples: list[np.ndarray], tail: float = 1e-2, **config: Any) -> Quantized:
    """tail: the share of a sample's values that statistics hold of either side."""
    return quantized(tested, samples, probabilities=[tail], preset="auto", **config)


def of(result: Quantized, name: str = "x") -> Quantizer:
    """The quantizer on an operation's output."""
    return next(quantizer for quantizer in result.plan.quantizers if quantizer.source.name == name)


def error(result: Quantized, samples: list[np.ndarray], name: str = "x") -> float:
    """The mean over the samples of the power in dB of the error that the input's quantizer makes."""
    quantizer = of(result, name)
    differences = [fake_quantize(value, result.solved.ranges[quantizer.name], 256) - value.astype(np.float64) for value in samples]
    return float(np.mean([10 * np.log10(np.mean(difference**2)) for difference in differences]))


# ---------------------------------------------------------------------------------------------------------------- mode


@pytest.mark.parametrize(("low", "mode"), [(-0.1, "asymmetric"), (-0.5, "asymmetric"), (-0.96, "symmetric"), (0.0, "symmetric")])
def test_ranges_are_asymmetric_where_that_gains_enough(low: float, mode: str) -> None:
    """Levels are (1 - low) / 255 apart instead of 2 / 255; those of a tensor that is never negative are the same in both modes."""
    quantizer = of(auto(layer(), spread(low, 1.0)))
    gain = 20 * np.log10(2 / (1 - low)) if low else 0.0
    assert quantizer.scheme.mode == mode
    assert quantizer.estimator.max.aggregator == "mean"
    assert quantizer.choice is not None
    words = quantizer.choice.split()
    if mode == "asymmetric":
        assert [words[0], *words[2:]] == ["asymmetric:", "dB", "less", "error", "than", "symmetric"]
        assert float(words[1]) == pytest.approx(gain, abs=0.15)
    else:
        assert words[:4] + words[5:] == ["symmetric:", "asymmetric", "would", "gain", "dB", "only"]
        assert float(words[4]) == pytest.approx(gain, abs=0.15)


def test_the_expected_gain_is_the_one_that_is_made() -> None:
    samples, tested = spread(-0.1, 1.0), layer()
    symmetric = quantized(tested, samples, preset="performance")
    assert error(symmetric, samples) - error(auto(tested, samples), samples) == pytest.approx(20 * np.log10(2 / 1.1), abs=0.3)


def test_weights_stay_symmetric() -> None:
    source = parameter((1, 400))
    tested = model(matmul(source, np.abs(random(400, 4)), "layer"), source)
    weights = next(quantizer for quantizer in auto(tested, spread(-0.1, 1.0)).plan.quantizers if quantizer.kind == "weights")
    assert (weights.scheme.mode, weights.scheme.granularity, weights.choice) == ("symmetric", "perchannel", None)


def test_channels_of_a_depthwise_convolution() -> None:
    """Each channel has its range: of all together the mean of the squared steps counts."""
    source = parameter((1, 4, 10, 10))
    tested = model(convolution(source, random(4, 1, 1, 3, 3), "layer"), source)
    samples = [sample.reshape(1, 4, 10, 10) for sample in spread(-0.25, 1.0)]
    result = auto(tested, samples)
    quantizer = of(result)
    assert (quantizer.scheme.mode, quantizer.scheme.granularity) == ("asymmetric", "perchannel")
    channels = np.concatenate(samples).transpose(1, 0, 2, 3).reshape(4, -1)
    widths = {"symmetric": 2 * channels.max(axis=1), "asymmetric": channels.max(axis=1) - channels.min(axis=1)}
    gain = 10 * np.log10(np.mean(widths["symmetric"] ** 2) / np.mean(widths["asymmetric"] ** 2))
    assert quantizer.choice is not None
    assert float(quantizer.choice.split()[1]) == pytest.approx(gain, abs=0.15)


def test_what_joins_has_one_mode() -> None:
    """One tensor would gain 5 dB and one nothing: together they share a range, and neither gains."""
    left, right = parameter((1, 2, 10, 20), "left"), parameter((1, 2, 10, 20), "right")
    tested = model(convolution(named(op.concat([left, right], 1), "joined"), random(3, 4, 1, 1), "layer"), left, right)
    pairs = zip(spread(-0.1, 1.0), spread(-1.0, 1.0), strict=True)
    samples = [{"left": a.reshape(1, 2, 10, 20), "right": b.reshape(1, 2, 10, 20)} for a, b in pairs]
    statistics = statistics_of(tested, samples, [1e-2], pot_compatible=False)
    found = [quantizer for quantizer in plan_of(tested, statistics=statistics, preset="auto").quantizers if quantizer.kind == "activations"]
    assert {quantizer.source.name for quantizer in found} == {"left", "right"}
    assert {quantizer.scheme.mode for quantizer in found} == {"symmetric"}


def test_products_of_activations_stay_float_as_with_asymmetric_ranges() -> None:
    source = parameter((1, 4, 20))
    left, right = (matmul(source, random(20, 20, seed=seed), f"layer{seed}") for seed in (1, 2))
    tested = model(named(op.matmul(left, right, False, True), "product"), source)
    samples = [sample.reshape(1, 4, 20) for sample in spread(-0.1, 1.0, size=80)]
    statistics = statistics_of(tested, samples, [1e-2], pot_compatible=False)
    floats = {preset: plan_of(tested, statistics=statistics, preset=preset).floats for preset in ("auto", "mixed", "performance")}
    assert floats["auto"] == floats["mixed"] != floats["performance"]


# ----------------------------------------------------------------------------------------------------------- estimator


def outlying() -> list[np.ndarray]:
    """Samples of few values: the mean of their extremes cuts off those of every second one."""
    draw = np.random.default_rng(6)
    return [(draw.uniform(-1, 1, (1, 40)) * scale).astype(np.float32) for scale in [1.0, 0.5] * 20]


def test_means_of_extremes_that_clip_are_replaced() -> None:
    samples, tested = outlying(), layer(40)
    default, chosen = quantized(tested, samples, preset="performance"), auto(tested, samples, tail=0.45)
    quantizer = of(chosen)
    gain = error(default, samples) - error(chosen, samples)
    assert quantizer.estimator.max.type == "sqnr"
    assert quantizer.choice is not None
    *_, remark = quantizer.choice.split("; ")
    assert remark.startswith("range by SQNR: ")
    assert remark.endswith(" dB less error than by the samples' extremes")
    assert gain > 1.0
    assert float(remark.split()[3]) == pytest.approx(gain, abs=0.7)


def test_an_estimator_that_is_configured_stays() -> None:
    widest = schema.RangeEstimator(max=schema.Estimator(aggregator="max"), min=schema.Estimator(aggregator="min"))
    for config in ({"range_estimator": widest}, {"activations": schema.Scheme(range_estimator=widest)}):
        quantizer = of(auto(layer(40), outlying(), **config))
        assert (quantizer.estimator.max.aggregator, quantizer.estimator.max.type) == ("max", "abs_max")
    assert of(auto(layer(), spread(-0.1, 1.0), range_estimator=widest)).scheme.mode == "asymmetric"


def test_a_mode_that_is_configured_stays() -> None:
    quantizer = of(auto(layer(), spread(-0.1, 1.0), activations=schema.Scheme(mode="symmetric")))
    assert (quantizer.scheme.mode, quantizer.choice) == ("symmetric", None)


# ------------------------------------------------------------------------------------------------------------- as data


def test_without_statistics_it_is_preset_performance() -> None:
    assert plan_of(layer(), preset="auto").quantizers == plan_of(layer(), preset="performance").quantizers


def test_choices_are_stored_and_are_no_part_of_a_models_identity() -> None:
    plan = auto(layer(), spread(-0.1, 1.0)).plan
    again = plan_from_json(json.loads(json.dumps(plan_to_json(plan))))
    assert [quantizer.choice for quantizer in again.quantizers] == [quantizer.choice for quantizer in plan.quantizers]
    mixed = quantized(layer(), spread(-0.1, 1.0), preset="mixed").plan
    assert any(quantizer.choice for quantizer in plan.quantizers)
    assert candidate_key(Candidate(plan)) == candidate_key(Candidate(mixed))
