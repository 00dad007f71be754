"""What ends in a logarithm is not quantized, and nothing more than that."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from stages.configuration import schema
from stages.quantization.model.graph import read_graph
from stages.quantization.placement import logarithms
from stages.quantization.placement.logarithms import REASON, before_logarithms
from tests.quantization.quantizing import plan_of, quantized
from tests.quantization.reference_runs import target
from tests.quantization.small import constant, convolution, matmul, model, named, parameter, random


def spectrum(x: ov.Node) -> ov.Node:
    """Power of 32 frequencies in 16 bands: [1, 1, n] -> [1, 16, frames], as audio models compute it inside."""
    time = np.arange(64) / 64
    waves = np.concatenate([turn(2 * np.pi * np.outer(np.arange(32), time)) for turn in (np.cos, np.sin)])[:, None].astype(np.float32)
    both = convolution(x, waves * np.hanning(64).astype(np.float32), "waves", strides=[32])
    power = named(op.multiply(both, both), "power")
    bands = np.abs(random(16, 64, 1, seed=3)) * (np.arange(64)[None, :, None] // 4 == np.arange(16)[:, None, None] % 8)
    return convolution(power, bands.astype(np.float32), "bands")


def network(features: ov.Node) -> ov.Node:
    hidden = named(op.relu(convolution(features, random(24, 16, 3) / 7, "first", random(24), pads_begin=[1], pads_end=[1])), "relu")
    return convolution(hidden, random(8, 24, 1) / 5, "second", random(8))


def decibels(x: ov.Node) -> ov.Node:
    return named(op.log(op.maximum(spectrum(x), constant([[[1e-7]]], "floor"))), "log")


def audio(front: Callable[[ov.Node], ov.Node] = decibels) -> ov.Model:
    x = parameter((1, 1, 640))
    return model(network(front(x)), x)


def left(tested: ov.Model) -> set[str]:
    return {node.name for node in before_logarithms(read_graph(tested), target("any"))}


def test_a_front_end_of_audio_stays_float_and_the_network_behind_it_does_not() -> None:
    tested = audio()
    assert left(tested) == {"waves", "power", "bands"}
    plan = plan_of(tested)
    assert {entry.name for entry in plan.floats if entry.reason == REASON} == {"waves", "power", "bands"}
    assert {place.name for quantizer in plan.quantizers for place in quantizer.layers} == {"first", "second"}


def test_pot_quantizes_it() -> None:
    quantized = {place.name for quantizer in plan_of(audio(), pot_compatible=True).quantizers for place in quantizer.layers}
    assert {"waves", "bands", "first", "second"} <= quantized


def one(x: ov.Node) -> ov.Node:
    return named(op.log(op.add(spectrum(x), constant([[[1.0]]], "one"))), "log")


def behind_relu(x: ov.Node) -> ov.Node:
    return named(op.log(op.relu(spectrum(x))), "log")


def behind_clamp(x: ov.Node) -> ov.Node:
    return named(op.log(op.clamp(spectrum(x), 0.0, 6.0)), "log")


def clipped(x: ov.Node) -> ov.Node:
    return named(op.log(op.clamp(spectrum(x), 1e-5, 1e5)), "log")


def probabilities(x: ov.Node) -> ov.Node:
    """A LogSoftmax written out: the logarithm of a sum of exponentials is no small value."""
    scores = spectrum(x)
    return op.subtract(scores, op.log(op.reduce_sum(op.exp(scores), constant([1], "axis", np.int64), True)))


@pytest.mark.parametrize(
    ("front", "names"),
    [(one, set()), (behind_relu, set()), (behind_clamp, set()), (clipped, {"waves", "power", "bands"}), (probabilities, set())],
)
def test_what_hides_small_values_ends_the_search(front: Callable[[ov.Node], ov.Node], names: set[str]) -> None:
    assert left(audio(front)) == names


def test_through_reductions_and_what_moves_data() -> None:
    x = parameter((1, 8, 16))
    mean = op.reduce_mean(op.abs(matmul(x, random(16, 16), "layer")), constant([2], "axis", np.int64), True)
    tested = model(matmul(op.reshape(op.log(op.sqrt(mean)), np.array([1, 8]), False), random(8, 4), "after"), x)
    assert left(tested) >= {"layer"}
    assert "after" not in left(tested)


def test_dynamic_sizes() -> None:
    x = parameter((-1, 1, -1))
    assert left(model(network(decibels(x)), x)) == {"waves", "power", "bands"}


# A mean of extremes would clip the loud ones, which is another matter.
EXTREMES = schema.RangeEstimator(min=schema.Estimator(aggregator="min"), max=schema.Estimator(aggregator="max"))


def test_it_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sounds whose loudness spans five decades: signal to noise at the output, with the rule and without."""
    loudness = 10.0 ** np.linspace(-4, 1, 20)
    sounds = [level * random(1, 1, 640, seed=index) for index, level in enumerate(loudness.astype(np.float32))]

    def decibels_of_signal_to_noise() -> float:
        result = quantized(audio(), sounds, range_estimator=EXTREMES).model
        compiled = [ov.Core().compile_model(net, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}) for net in (audio(), result)]
        exact, rounded = (np.concatenate([net(sound)[0].ravel() for sound in sounds]) for net in compiled)
        return float(10 * np.log10(np.sum(exact**2) / np.sum((exact - rounded) ** 2)))

    assert decibels_of_signal_to_noise() > 20
    monkeypatch.setattr(logarithms, "PROPORTIONAL", frozenset())
    assert decibels_of_signal_to_noise() < 5
