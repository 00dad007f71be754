"""Signal-to-quantization-noise ratios against theory and against numpy on the raw tensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import yaml
from openvino import opset13 as operations

from stages.configuration import schema
from stages.configuration.target_device import ACTIVATIONS, WEIGHTS, Scheme, read_target
from stages.quantization.model.graph import read_graph
from stages.quantization.noise import ActivationNoise, aligned_model, decibels, ranges_from_json, weight_noise
from stages.quantization.placement.plan import Border, Estimator, Place, Plan, Quantizer, TensorName
from stages.quantization.solution.ranges import Range
from stages.quantization.statistics.collection import collect
from stages.quantization.statistics.points import statistics_points
from tests.quantization import small
from tests.quantization.quantizing import infer, quantized, statistics_of, tensor
from tests.quantization.small import parameter, random

ROOT = Path(__file__).resolve().parents[2]
F32 = {"INFERENCE_PRECISION_HINT": "f32"}


def quantizer(name: str, kind: str, source: str, layer: str, axis: int | None = None, **more: Any) -> Quantizer:
    scheme = more.pop("scheme", Scheme(mode="asymmetric", granularity="pertensor" if axis is None else "perchannel"))
    places = (Place(layer, "Convolution", 0 if kind == ACTIVATIONS else 1),)
    border = Border("max", aggregator="mean")
    return Quantizer(name, kind, TensorName(source, 0), "Any", places, places, scheme, Estimator(border, border), channel_axis=axis, **more)


def scalar(low: float, high: float) -> Range:
    return Range(np.asarray(low), np.asarray(high))


def convolution(source: ov.Output, weights: np.ndarray, name: str, padding: int) -> ov.Node:
    constant = operations.constant(weights.astype(np.float32))
    constant.set_friendly_name(f"{name}_weights")
    node = operations.convolution(source, constant, [1, 1], [padding] * 2, [padding] * 2, [1, 1])
    node.set_friendly_name(name)
    bias = operations.constant(np.linspace(-1, 1, len(weights), dtype=np.float32).reshape(1, -1, 1, 1))
    add = operations.add(node, bias)
    add.set_friendly_name(f"{name}_bias")
    return add


@pytest.fixture(scope="module")
def model() -> ov.Model:
    """Image -> conv -> pointwise -> relu."""
    generator = np.random.default_rng(0)
    image = operations.parameter([1, 3, 16, 16], np.float32, name="image")
    conv = convolution(image.output(0), generator.normal(size=(8, 3, 3, 3)) * np.geomspace(0.1, 10, 8).reshape(-1, 1, 1, 1), "conv", 1)
    pointwise = convolution(conv.output(0), generator.normal(size=(4, 8, 1, 1)), "pointwise", 0)
    relu = operations.relu(pointwise)
    relu.set_friendly_name("relu")
    return ov.Model([relu], [image])


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    return [generator.normal(size=(1, 3, 16, 16)).astype(np.float32) * scale for scale in (0.5, 1.0, 3.0)]


def measured(model: ov.Model, quantizers: list[Quantizer], ranges: dict[str, Range], images: list[np.ndarray]) -> dict[str, float | None]:
    noise = ActivationNoise(model, Plan(tuple(quantizers), ()), ranges)
    compiled = ov.Core().compile_model(noise.model, "CPU", F32)
    return noise.ratios(list(compiled(image).values()) for image in images)


def test_uniform_values_have_six_decibels_per_bit() -> None:
    """The textbook: error power is step² / 12, so uniform values over the whole range have 20 log10(levels - 1) dB."""
    image = operations.parameter([1, 1_000_000], np.float32, name="image")
    model = ov.Model([operations.relu(image)], [image])
    values = np.random.default_rng(2).uniform(-1, 1, (1, 1_000_000)).astype(np.float32)
    for bits in (4, 8):
        found = measured(model, [quantizer("q", ACTIVATIONS, "image", "relu", scheme=Scheme(bits))], {"q": scalar(-1.0, 1.0)}, [values])
        assert found["q"] == pytest.approx(20 * np.log10(2**bits - 1), abs=0.02)


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [
        (100.0, 1.0, 20.0),
        *((1.0, 0.0, None), (0.0, 1.0, None), (0.0, 0.0, None)),
        *((np.inf, 1.0, None), (1.0, np.inf, None), (np.inf, np.inf, None), (np.nan, 1.0, None)),
    ],
)
def test_decibels(signal: float, noise: float, expected: float | None) -> None:
    assert decibels(signal, noise) == expected


def test_activations_equal_numpy_on_the_raw_tensors(model: ov.Model, images: list[np.ndarray]) -> None:
    quantizers = [
        quantizer("q_relu", ACTIVATIONS, "relu", "later"),
        quantizer("q_weights", WEIGHTS, "conv_weights", "conv", 0),
        quantizer("q_image", ACTIVATIONS, "image", "conv", 1, scheme=Scheme(4, "symmetric", "perchannel", -7, 7)),
    ]
    ranges = {"q_relu": scalar(0.0, 8.0), "q_image": Range(np.full(3, -2.0), np.array([1.0, 2.0, 3.0]))}
    raw = ov.Core().compile_model(model, "CPU", F32)
    power = {name: np.zeros(2) for name in ranges}
    for image in images:
        relu = np.asarray(raw(image)[0], np.float64)
        rounded = np.rint(np.clip(relu, 0, 8) / 8 * 255) / 255 * 8
        power["q_relu"] += (relu**2).sum(), ((rounded - relu) ** 2).sum()
        step = (np.array([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1) + 2) / 14  # 15 levels
        rounded = np.rint((np.clip(image, -2, step * 14 - 2) + 2) / step) * step - 2
        power["q_image"] += (image.astype(np.float64) ** 2).sum(), ((rounded - image) ** 2).sum()
    expected = {name: 10 * np.log10(signal / error) for name, (signal, error) in power.items()}
    assert measured(model, quantizers, ranges, images) == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize("magnitude", [1.0, 1e22, 1e29])
def test_the_ratio_does_not_depend_on_the_unit(magnitude: float) -> None:
    """The squares of 1e22 are more than f32 holds."""
    values = np.random.default_rng(5).uniform(-1, 1, (1, 4, 500)).astype(np.float32)
    image = operations.parameter(values.shape, np.float32, name="image")
    noise = ActivationNoise(
        ov.Model([operations.relu(image)], [image]),
        Plan((quantizer("q", ACTIVATIONS, "image", "relu"),), ()),
        {"q": scalar(-magnitude, magnitude)},
    )
    outputs = list(ov.Core().compile_model(noise.model, "CPU", F32)(values * np.float32(magnitude)).values())
    rounded = np.rint((values.astype(np.float64) + 1) / 2 * 255) / 255 * 2 - 1
    error, signal = np.sum((rounded - values) ** 2, axis=(0, 1)), np.sum(values.astype(np.float64) ** 2, axis=(0, 1))
    assert noise.ratios([outputs])["q"] == pytest.approx(10 * np.log10(signal.sum() / error.sum()), abs=0.02)
    assert noise.shares([outputs])["q"] == pytest.approx(np.mean(error / signal), rel=0.02)


def test_what_is_too_large_to_be_measured_has_no_ratio_and_no_share() -> None:
    image = operations.parameter([1, 2, 50], np.float32, name="image")
    noise = ActivationNoise(
        ov.Model([operations.relu(image)], [image]), Plan((quantizer("q", ACTIVATIONS, "image", "relu"),), ()), {"q": scalar(-1.0, 1.0)}
    )
    values = np.full((1, 2, 50), 1e30, np.float32)
    outputs = list(ov.Core().compile_model(noise.model, "CPU", F32)(values).values())
    assert (noise.ratios([outputs]), noise.shares([outputs])) == ({"q": None}, {"q": 0.0})


@pytest.mark.parametrize("channels_last", [False, True])
def test_shares_name_the_tensor_whose_small_channels_drown(channels_last: bool) -> None:
    """Of three channels one is a hundred times as large and one is zero: the small one is lost, and counts as half of what there is."""
    values = np.random.default_rng(4).uniform(-1, 1, (1, 3, 20, 20)).astype(np.float32) * np.array([100, 0.3, 0]).reshape(1, 3, 1, 1)
    values = values.astype(np.float32)
    if channels_last:
        values = values.reshape(1, 3, 400).transpose(0, 2, 1)
    image = operations.parameter(values.shape, np.float32, name="image")
    noise = ActivationNoise(
        ov.Model([operations.relu(image)], [image]), Plan((quantizer("q", ACTIVATIONS, "image", "relu"),), ()), {"q": scalar(-128.0, 127.0)}
    )
    outputs = list(ov.Core().compile_model(noise.model, "CPU", F32)(values).values())
    large = values[..., 0] if channels_last else values[:, 0]
    error = float(np.mean((np.rint(large) - large) ** 2) / np.mean(large**2))
    assert noise.shares([outputs])["q"] == pytest.approx((error + 1) / 2, rel=1e-5)
    ratio = noise.ratios([outputs])["q"]
    assert ratio is not None and ratio > 40  # of the whole tensor nearly nothing is lost


def test_a_tensor_that_is_exact_or_zero_has_no_ratio(model: ov.Model) -> None:
    quantizers, ranges = [quantizer("q", ACTIVATIONS, "image", "conv")], {"q": scalar(0.0, 255.0)}
    image = np.random.default_rng(4).integers(0, 256, (1, 3, 16, 16)).astype(np.float32)
    assert measured(model, quantizers, ranges, [image]) == {"q": None}
    assert measured(model, quantizers, ranges, [np.zeros_like(image)]) == {"q": None}


@pytest.mark.parametrize("doubled", [False, True])
def test_weights_per_channel(model: ov.Model, doubled: bool) -> None:
    weights = next(node for node in model.get_ops() if node.get_friendly_name() == "conv_weights").get_data().astype(np.float64)
    high = np.abs(weights).max(axis=(1, 2, 3))
    levels = 63.5 if doubled else 127  # half of them unused
    step = high.reshape(-1, 1, 1, 1) / levels
    error = np.rint(weights / step) * step - weights
    symmetric = Scheme(8, "symmetric", "perchannel", -127, 127)
    plan = Plan((quantizer("q", WEIGHTS, "conv_weights", "conv", 0, scheme=symmetric, doubled=doubled),), ())
    found = weight_noise(model, plan, {"q": Range(-high, high)})
    assert found["q"] == pytest.approx(10 * np.log10((weights**2).sum() / (error**2).sum()), abs=0.006)


def test_the_aligned_model_computes_the_same_with_equal_channels(model: ov.Model, images: list[np.ndarray]) -> None:
    def infer(instrumented: ov.Model) -> Iterator[list[np.ndarray]]:
        compiled = ov.Core().compile_model(instrumented, "CPU", F32)
        return (list(compiled(image).values()) for image in images)

    target = schema.TargetDevice(**yaml.safe_load((ROOT / "conf/target_device/any.yaml").read_text()))
    points = statistics_points(read_graph(model), read_target(target))
    statistics = collect(model, points, outlier_probs=[1e-4], channel_outlier_probs=[1e-4], infer=infer, samples=len(images))
    plan = Plan((quantizer("q", ACTIVATIONS, "conv_bias", "pointwise"),), (), (("conv", "pointwise"),))
    aligned = aligned_model(model, statistics, plan)
    before, after = (ov.Core().compile_model(each, "CPU", F32) for each in (model, aligned))
    for image in images:
        np.testing.assert_allclose(after(image)[0], before(image)[0], atol=2e-4, rtol=1e-4)
    uneven, even = (np.ptp(between(each, images[1]), axis=(0, 2, 3)) for each in (model, aligned))
    assert even.max() / even.min() < 3 < 30 < uneven.max() / uneven.min()


def test_noise_behind_the_bias_that_alignment_gives(images: list[np.ndarray]) -> None:
    """Neither layer has one: the range belongs to the shifted tensor."""
    x = parameter((1, 3, 16, 16))
    first = small.convolution(x, random(6, 3, 3, 3) + 0.3, "first")
    tested = small.model(small.convolution(first, random(4, 6, 1, 1), "second"), x)
    samples = [np.abs(image) for image in images]  # far from zero on average
    found = quantized(tested, samples)
    assert found.plan.aligned == (("first", "second"),)
    (source,) = (q for q in found.plan.quantizers if q.source.name == "first")
    aligned = aligned_model(tested, statistics_of(tested, samples), found.plan)
    noise = ActivationNoise(aligned, found.plan, found.solved.ranges)
    low, high = (float(border) for border in found.solved.ranges[source.name])
    signal = error = 0.0
    for values in tensor(aligned, "first/bias", samples):
        rounded = low + np.rint(np.clip((values - low) / (high - low), 0, 1) * 255) / 255 * (high - low)
        signal, error = signal + np.sum(values.astype(np.float64) ** 2), error + np.sum((rounded - values).astype(np.float64) ** 2)
    assert noise.ratios(infer(noise.model, samples))[source.name] == pytest.approx(10 * np.log10(signal / error), abs=0.05)


def between(model: ov.Model, image: np.ndarray) -> np.ndarray:
    """The tensor between the two convolutions."""
    node = next(node for node in model.get_ops() if node.get_friendly_name() == "conv_bias")
    return np.asarray(ov.Core().compile_model(ov.Model([node.output(0)], model.get_parameters()), "CPU", F32)(image)[0])


def test_ranges_come_back_from_json_as_scalars_and_channels() -> None:
    data = {
        "quantizers": [
            {"name": "a", "input_low": [-1.0], "input_high": [2.0]},
            {"name": "b", "input_low": [0.0, -1.0], "input_high": [1.0, 1.0]},
        ]
    }
    ranges = ranges_from_json(data)
    assert (ranges["a"].low.shape, ranges["a"].high.item()) == ((), 2.0)
    assert ranges["b"].low.tolist() == [0.0, -1.0]


def test_the_model_itself_stays_as_it_is(model: ov.Model) -> None:
    before = len(model.outputs), len(model.get_ops())
    ActivationNoise(model, Plan((quantizer("q", ACTIVATIONS, "relu", "later"),), ()), {"q": scalar(0.0, 1.0)})
    assert (len(model.outputs), len(model.get_ops())) == before
