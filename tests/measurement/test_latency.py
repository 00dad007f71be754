"""Side-by-side timing: what is timed is what was run, and equal models are not called different."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as operations

from stages.configuration.schema import Engine
from stages.measurement import latency as module
from stages.measurement.latency import (
    benchmark,
    interleave,
    latency,
    node_times,
    precision_of,
    settled,
    side_by_side,
    speed_up,
    spread,
    throughput,
)


def convolutions(count: int, channels: int = 64) -> ov.Model:
    generator = np.random.default_rng(0)
    node = image = operations.parameter([1, channels, 32, 32], np.float32, name="image")
    for index in range(count):
        weights = operations.constant((generator.normal(size=(channels, channels, 3, 3)) / 24).astype(np.float32))
        node = operations.convolution(node, weights, [1, 1], [1, 1], [1, 1], [1, 1])
        node.set_friendly_name(f"conv{index}")
        node = operations.relu(node)
        node.set_friendly_name(f"relu{index}")
    return ov.Model([node], [image])


@pytest.fixture(scope="module")
def compile_model() -> Callable[..., ov.CompiledModel]:
    core = ov.Core()

    def compiled(model: ov.Model, hint: str, **properties: object) -> ov.CompiledModel:
        return core.compile_model(model, "CPU", {"PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": "f32", **properties})

    return compiled


INPUTS = {0: np.ones((1, 64, 32, 32), np.float32)}


def test_spread_is_median_and_range_of_the_rounds() -> None:
    values = np.arange(101.0)
    np.random.default_rng(0).shuffle(values)
    assert spread(values) == (50.0, 10.0, 90.0)


def test_speed_up_compares_within_rounds() -> None:
    """A machine that slows down by rounds changes no ratio, although it would change the ratio of two independent medians."""
    mood = np.array([1.0, 5.0, 2.0, 9.0, 1.0])
    found = speed_up(3.0 * mood, 1.5 * mood)
    assert found == (2.0, 2.0, 2.0)
    assert found.differs_from_one


@pytest.mark.parametrize(("ratios", "differs"), [([0.98, 1.0, 1.02], False), ([1.1, 1.2, 1.3], True), ([0.7, 0.8, 0.9], True)])
def test_a_spread_that_includes_one_is_no_difference(ratios: list[float], differs: bool) -> None:
    assert spread(np.array(ratios)).differs_from_one is differs


def test_rounds_interleave_and_take_turns_in_going_first() -> None:
    calls: list[str] = []

    def runner(name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            calls.append(name)
            time.sleep(seconds)

        return run

    rounds = interleave({"slow": runner("slow", 0.02), "fast": runner("fast", 0.01)}, seconds=0.6)
    assert len(rounds["slow"]) == len(rounds["fast"]) >= 4
    found = speed_up(rounds["slow"], rounds["fast"])
    assert found.median == pytest.approx(2.0, rel=0.2)
    order = [name for position, name in enumerate(calls) if position == 0 or calls[position - 1] != name]
    assert len(order) >= len(rounds["slow"])  # they alternate instead of running one after the other


def test_too_little_time_still_gives_three_rounds() -> None:
    assert len(interleave({"one": lambda: time.sleep(0.001)}, seconds=1e-6)["one"]) == 3


def test_settled_when_the_median_is_known_to_two_hundredths() -> None:
    """Against the chance that another dozen, or hundred, of rounds has a median more than 2 % away."""
    random = np.random.default_rng(5)
    for noise, count, expected in ((0.004, 12, True), (0.004, 11, False), (0.2, 40, False), (0.2, 12, False), (0.04, 100, True)):
        rounds = {"fp32": (2e-3 * random.lognormal(0.0, noise, count)).tolist(), "int8": [1e-3] * count}
        assert settled(rounds) == expected, (noise, count)
    medians = []
    for _ in range(150):
        times = (2e-3 * random.lognormal(0.0, 0.04, 400)).tolist()
        enough = next(count for count in range(12, 401) if settled({"fp32": times[:count], "int8": [1e-3] * count}))
        medians.append(np.median(times[:enough]) / 2e-3)
    assert np.mean(np.abs(np.array(medians) - 1.0) <= 0.02) > 0.9


def test_settled_is_the_last_model_against_each_of_the_others() -> None:
    """Of 100 rounds the median lies between the 41st and the 60th of the sorted ratios: 19 steps, which may be 4 % of it."""
    steps = np.arange(100) - 49.5

    def ratios(width: float) -> list[float]:
        return (1.0 + width / 19 * steps).tolist()

    ones = [1.0] * 100
    assert settled({"fp32": ratios(0.0399), "int8": ones}) and not settled({"fp32": ratios(0.0403), "int8": ones})
    rising, falling = ratios(0.03), ratios(-0.03)
    assert settled({"rising": rising, "falling": falling, "int8": ones})  # although those two differ from each other by twice as much
    assert not settled({"int8": ones, "rising": rising, "falling": falling})
    for others in (("noisy", "quiet"), ("quiet", "noisy")):
        assert not settled({name: ratios(0.1 if name == "noisy" else 0.01) for name in others} | {"int8": ones})


def test_enough_rounds_end_the_measurement() -> None:
    rounds = interleave({"one": lambda: time.sleep(0.001)}, seconds=60.0, enough=lambda rounds: len(rounds["one"]) == 5)
    assert len(rounds["one"]) == 5


def test_latency_and_throughput_see_that_one_model_is_twice_the_other(compile_model: Callable[..., ov.CompiledModel]) -> None:
    models = {"small": convolutions(2), "large": convolutions(8)}
    rounds = latency({name: compile_model(model, "LATENCY") for name, model in models.items()}, INPUTS, 1.0)
    assert speed_up(rounds["large"], rounds["small"]).low > 1.5
    rates = throughput({name: compile_model(model, "THROUGHPUT") for name, model in models.items()}, INPUTS, 1.0)
    assert rates["small"] > 1.5 * rates["large"]
    assert rates["small"] > 0.5 / float(np.median(rounds["small"]))


def test_node_times_name_the_layers_and_what_is_fused(compile_model: Callable[..., ov.CompiledModel]) -> None:
    nodes = node_times(compile_model(convolutions(3), "LATENCY", PERF_COUNT=True), INPUTS, 0.1)
    by_layer = {node.layers[0]: node for node in nodes if node.layers}
    for index in range(3):
        node = by_layer[f"conv{index}"]
        assert f"relu{index}" in node.layers[1:]
        assert node.microseconds > 0
        assert "f32" in node.implementation


def test_what_is_done_once_when_compiling_takes_no_time(compile_model: Callable[..., ov.CompiledModel]) -> None:
    """The runtime's graph has a time for the conversion of weights with a zero point, a single one, as if it came with each inference."""
    generator = np.random.default_rng(0)
    image = operations.parameter([1, 64, 32, 32], np.float32)
    low, high = np.float32(0.0), np.float32(1.0)
    stored = operations.convert(operations.constant(generator.integers(0, 255, (64, 64, 3, 3), np.uint8)), np.float32)
    shifted = operations.subtract(stored, operations.constant(np.float32(100.0)))
    shifted.set_friendly_name("zero_point")
    weights = operations.multiply(shifted, operations.constant(np.full((64, 1, 1, 1), 0.01, np.float32)))
    quantized = operations.fake_quantize(image, low, high, low, high, 256)
    node = operations.convolution(quantized, weights, [1, 1], [1, 1], [1, 1], [1, 1])
    node.set_friendly_name("conv")
    compiled = compile_model(ov.Model([node], [image]), "LATENCY", PERF_COUNT=True)
    executed = {entry.get_friendly_name(): entry.get_rt_info()["execTimeMcs"] for entry in compiled.get_runtime_model().get_ordered_ops()}
    layers = {name for entry in node_times(compiled, INPUTS, 0.05) for name in entry.layers}
    assert "conv" in layers
    assert "zero_point" not in layers
    assert "zero_point" in executed


def test_no_node_times_without_counters(compile_model: Callable[..., ov.CompiledModel]) -> None:
    assert node_times(compile_model(convolutions(1), "LATENCY"), INPUTS, 0.0) == []


def test_benchmark_measures_three_models_and_names_the_layers() -> None:
    found, times = benchmark(convolutions(6), convolutions(2), Engine(inference_precision="f32"), INPUTS, seconds=2.0)
    assert found["latency_ms"].keys() == found["throughput"].keys() == {"fp32", "default", "int8"}
    assert found["speed_up"]["fp32"]["median"] > 1.5  # three times the work
    assert found["speed_up"]["fp32"]["median"] == pytest.approx(
        found["latency_ms"]["fp32"]["median"] / found["latency_ms"]["int8"]["median"], rel=0.3
    )
    assert {"conv0", "conv1"} <= {node.layers[0] for node in times if node.layers} < {f"conv{index}" for index in range(6)}


def test_side_by_side_times_each_model_in_its_own_precision_and_compares_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple[ov.Model, str, str]] = []
    models = {name: (convolutions(1), precision) for name, precision in (("fp32", "f32"), ("default", "default"), ("int8", "bf16"))}
    monkeypatch.setattr(module, "compile", lambda model, engine, precision, hint: compiled.append((model, precision, hint)))
    rounds = {"fp32": [0.008] * 4, "default": [0.006] * 4, "int8": [0.002] * 4}
    monkeypatch.setattr(module, "latency", lambda models, inputs, seconds: {name: np.array(rounds[name]) for name in models})
    found = side_by_side(models, Engine(), INPUTS, 1.0)
    assert compiled == [(*entry, "LATENCY") for entry in models.values()]
    assert found["rounds"] == 4
    assert {name: values["median"] for name, values in found["latency_ms"].items()} == pytest.approx(
        {"fp32": 8.0, "default": 6.0, "int8": 2.0}
    )
    assert {name: values["median"] for name, values in found["speed_up"].items()} == pytest.approx({"fp32": 4.0, "default": 3.0})


def test_the_default_precision_is_the_devices(compile_model: Callable[..., ov.CompiledModel]) -> None:
    assert precision_of(compile_model(convolutions(1), "LATENCY")) == "f32"
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    expected = "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "f32"
    assert precision_of(ov.Core().compile_model(convolutions(1), "CPU")) == expected
