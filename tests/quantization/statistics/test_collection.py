"""One pass of statistics against numpy on the raw tensors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from stages.common.errors import UserError
from stages.configuration import schema
from stages.quantization.model.graph import read_graph
from stages.quantization.placement.plan import TensorName
from stages.quantization.solution.ranges import range_json
from stages.quantization.solution.solve import Solved, solve
from stages.quantization.statistics.collection import collect
from stages.quantization.statistics.points import statistics_points
from stages.quantization.statistics.store import Statistics, save
from stages.runtime import engine
from stages.runtime.datasets import Sample
from tests.quantization.quantizing import infer, plan_of, statistics_of, tensor
from tests.quantization.reference_runs import target
from tests.quantization.small import constant, convolution, images, matmul, model, named, parameter, random


def whole(x: ov.Node) -> ov.Model:
    """Convolutions of all kinds, a MatMul, an Add; `x` may have dynamic sizes."""
    first = convolution(x, random(4, 3, 3, 3), "first", bias=random(4), pads_begin=[1], pads_end=[1])
    depthwise = convolution(named(op.relu(first), "relu"), random(4, 1, 1, 3, 3), "depthwise")
    pointwise = convolution(depthwise, random(5, 4, 1, 1), "pointwise")
    pooled = named(op.reduce_max(pointwise, np.array([2, 3]), False), "pooled")
    total = named(op.add(pooled, named(op.exp(op.multiply(pooled, constant(0.1, "tenth"))), "exp")), "sum")
    return model(matmul(total, random(5, 2), "last"), x)


@pytest.mark.parametrize("dynamic", [False, True])
def test_one_pass_equals_numpy(dynamic: bool) -> None:
    tested = whole(parameter((1, 3, -1, -1) if dynamic else (1, 3, 8, 8)))
    samples = images(4)
    if dynamic:
        samples = [sample[:, :, : 5 + index, : 8 - index] for index, sample in enumerate(samples)]
    statistics = statistics_of(tested, samples, probabilities=[0.02, 0.05], channel_probabilities=[0.03])
    for name in ("x", "relu", "depthwise", "pooled", "exp", "sum"):
        check_tails(statistics, TensorName(name, 0), tensor(tested, name, samples))
    check_channels(statistics, TensorName("relu", 0), tensor(tested, "relu", samples))
    for layer, source in {"first": "x", "depthwise": "relu", "pointwise": "depthwise"}.items():
        expected = np.mean([values.mean(axis=(0, 2, 3)) for values in tensor(tested, source, samples)], axis=0)
        np.testing.assert_allclose(statistics.input_mean[layer], expected, rtol=1e-5, atol=1e-6)
    expected = np.mean([values.mean(axis=0) for values in tensor(tested, "sum", samples)], axis=0)
    np.testing.assert_allclose(statistics.input_mean["last"], expected, rtol=1e-5)
    for layer, output in {"first": "first/biased", "depthwise": "depthwise"}.items():
        expected = np.mean([values.mean(axis=(0, 2, 3)) for values in tensor(tested, output, samples)], axis=0)
        np.testing.assert_allclose(statistics.output_mean[layer], expected, rtol=1e-5, atol=1e-6)
    assert set(statistics.output_mean) == {"first", "depthwise"}
    assert statistics.input_shape["pointwise"] == tensor(tested, "depthwise", samples[:1])[0].shape


def check_tails(statistics: Statistics, name: TensorName, raw: list[np.ndarray]) -> None:
    low, high, size = statistics.tails(name)
    for position, values in enumerate(raw):
        ordered, length = np.sort(values, axis=None), int(0.05 * (values.size - 1)) + 2
        assert size[position] == values.size
        assert np.isnan(low[position, length:]).all() and np.isnan(high[position, length:]).all()
        np.testing.assert_array_equal(low[position, :length], ordered[:length])
        np.testing.assert_array_equal(high[position, :length], ordered[::-1][:length])


def check_channels(statistics: Statistics, name: TensorName, raw: list[np.ndarray]) -> None:
    low, high = statistics.channel_lowest[name], statistics.channel_highest[name]
    for position, values in enumerate(raw):
        count = values[0, 0].size
        ordered, length = np.sort(values[0].reshape(values.shape[1], -1), axis=1), int(0.03 * (count - 1)) + 2
        assert statistics.channel_size[name][position] == count
        np.testing.assert_array_equal(low[position, :, :length], ordered[:, :length])
        np.testing.assert_array_equal(high[position, :, :length], ordered[:, ::-1][:, :length])


# Exp is above zero, and on 2 x 2 pixels the tails of its channels overlap.
@pytest.mark.parametrize("size", [2, 12])
@pytest.mark.parametrize(
    "config",
    [
        {"activations": schema.Scheme(mode="asymmetric")},
        {"activations": schema.Scheme(mode="symmetric")},
        {"activations": schema.Scheme(mode="asymmetric", granularity="perchannel"), "allow_unsupported": True},
        {"range_estimator": schema.RangeEstimator(preset="quantile", max=schema.Estimator(outlier_prob=0.3))},
        {
            "activations": schema.Scheme(mode="symmetric", granularity="perchannel"),
            "range_estimator": schema.RangeEstimator(preset="quantile", max=schema.Estimator(outlier_prob=0.3)),
            "allow_unsupported": True,
        },
        {"range_estimator": schema.RangeEstimator(min=schema.Estimator(type="abs_max"))},
    ],
    ids=str,
)
def test_no_range_depends_on_the_lowest_values_of_tensors_that_are_never_negative(size: int, config: dict[str, Any]) -> None:
    x = parameter((1, 3, size, size))
    tiny = op.multiply(op.exp(x), constant(1e-4, "tiny"))
    y = op.concat([named(op.exp(x), "exp"), named(op.relu(x), "relu"), named(op.abs(tiny), "small")], 1)
    tested, samples = model(convolution(y, random(4, 9, 2, 2)), x), images(4, (1, 3, size, size))
    plan = plan_of(tested, **config)
    solved = []
    for pot_compatible in (True, False):
        statistics = statistics_of(tested, samples, [0.3], [0.4], every_channel=True, pot_compatible=pot_compatible)
        assert (statistics.lowest[TensorName("exp", 0)] > 0).all() == (pot_compatible or size == 2)
        solved.append(solve(read_graph(tested), statistics, plan, schema.BiasCorrection()))
    assert json.dumps(range_dump(solved[0])) == json.dumps(range_dump(solved[1]))


def range_dump(solved: Solved) -> dict[str, Any]:
    return {name: range_json(borders, doubled=False) for name, borders in solved.ranges.items()}


def test_the_most_frequent_shape_counts() -> None:
    x = parameter((1, 3, -1, -1))
    tested = model(convolution(x, random(2, 3, 3, 3)), x)
    samples = [np.zeros((1, 3, size, 6), np.float32) for size in (5, 7, 7, 9)]
    assert statistics_of(tested, samples).input_shape["conv"] == (1, 3, 7, 6)


def test_several_inputs_and_a_batch() -> None:
    x, y = parameter((2, 3)), parameter((3, 4), "y")
    tested = model(named(op.matmul(x, y, False, False), "product"), x, y)
    samples = [{"x": random(2, 3, seed=seed), "y": random(3, 4, seed=seed)} for seed in range(3)]
    statistics = statistics_of(tested, samples)
    for name in ("x", "y"):
        low, high, _ = statistics.tails(TensorName(name, 0))
        np.testing.assert_array_equal(low[:, 0], [sample[name].min() for sample in samples])
        np.testing.assert_array_equal(high[:, 0], [sample[name].max() for sample in samples])


def test_the_model_stays_as_it_is() -> None:
    tested = whole(parameter())
    before = [(node.get_friendly_name(), node.get_type_name()) for node in tested.get_ordered_ops()]
    statistics_of(tested, images(1))
    assert [(node.get_friendly_name(), node.get_type_name()) for node in tested.get_ordered_ops()] == before


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_before_a_layer(value: float) -> None:
    samples = images(3)
    samples[1][0, 0, 3, 3] = value
    with pytest.raises(UserError, match=r"values that are not finite at first for calibration sample 1$"):
        statistics_of(whole(parameter()), samples)


def test_too_few_samples() -> None:
    tested = whole(parameter())
    points = statistics_points(read_graph(tested), target())
    with pytest.raises(UserError, match="3 calibration samples were read where 4 were expected"):
        collect(tested, points, [], [], lambda instrumented: infer(instrumented, images(3)), 4)


def test_an_unknown_rank_is_named() -> None:
    x = named(op.parameter(ov.PartialShape.dynamic(), np.float32), "x")
    with pytest.raises(UserError, match=r"x: a tensor of unknown rank cannot be quantized; give model.input_shape"):
        statistics_of(model(matmul(x, random(3, 2)), x), images(1))


def test_a_model_without_points_is_not_run() -> None:
    x = parameter()
    tested = model(op.relu(x), x)

    def never(_: ov.Model) -> Iterator[list[np.ndarray]]:
        raise AssertionError("there is nothing to collect")

    points = statistics_points(read_graph(tested), target())
    assert collect(tested, points, [1e-4], [1e-4], never, 3) == Statistics(3)


def test_one_pass_whatever_is_asked() -> None:
    x = parameter()
    first = convolution(x, random(4, 3, 3, 3), "first", bias=random(4))
    pair = model(convolution(first, random(5, 4, 1, 1), "second", bias=random(5)), x)
    passes: list[int] = []

    def counted(instrumented: ov.Model) -> Iterator[list[np.ndarray]]:
        passes.append(1)
        return infer(instrumented, images(2))

    points = statistics_points(read_graph(pair), target(), every_channel=True, pot_compatible=True)
    assert points.pairs
    collect(pair, points, [0.01], [0.01], counted, 2)
    assert len(passes) == 1


@pytest.mark.parametrize("joined", [1, 3, 8])
def test_tensors_leave_in_vectors_of_few(joined: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tested, samples = whole(parameter()), images(3)
    points = statistics_points(read_graph(tested), target())
    at_once = collect(tested, points, [0.05], [0.05], lambda instrumented: infer(instrumented, samples), 3)
    monkeypatch.setattr("stages.quantization.statistics.passes.JOINED", joined)
    lengths: list[int] = []

    def counted(instrumented: ov.Model) -> Iterator[list[np.ndarray]]:
        vectors = [result.input_value(0).get_node() for result in instrumented.get_results()]
        lengths.extend(len(vector.inputs()) for vector in vectors if vector.get_type_name() == "Concat")
        return infer(instrumented, samples)

    statistics = collect(tested, points, [0.05], [0.05], counted, 3)
    assert len(lengths) > 1
    assert lengths[:-1] == [joined] * (len(lengths) - 1)
    assert lengths[-1] <= joined
    for table in ("lowest", "highest", "input_mean"):
        found, expected = getattr(statistics, table), getattr(at_once, table)
        assert found.keys() == expected.keys()
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("count", [1, 63, 64, 65, 128])
def test_samples_are_handed_on_in_chunks_without_loss(count: int) -> None:
    x = parameter()
    tested, samples = model(convolution(x, random(2, 3, 3, 3)), x), images(count)
    _, high, _ = statistics_of(tested, samples).tails(TensorName("x", 0))
    np.testing.assert_array_equal(high[:, 0], [sample.max() for sample in samples])


def attention(x: ov.Node) -> ov.Model:
    """What OpenVINO fuses unless something else reads the tensors between: normalisation, GELU, Multiply and Add."""
    centred = op.subtract(x, op.reduce_mean(x, np.array([-1]), True))
    spread = op.sqrt(op.add(op.reduce_mean(op.multiply(centred, centred), np.array([-1]), True), constant(1e-5, "epsilon")))
    y = op.add(op.multiply(op.divide(centred, spread), constant(random(1, 8), "scale")), constant(random(1, 8, seed=1), "shift"))
    inner = matmul(y, random(8, 16), "inner")
    gelu = op.multiply(
        op.multiply(inner, op.add(op.erf(op.divide(inner, constant(2**0.5, "root"))), constant(1.0, "one"))), constant(0.5, "half")
    )
    return model(matmul(op.add(op.multiply(y, y), matmul(gelu, random(16, 8), "outer")), random(8, 2), "last"), x)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("build", [whole, attention])
def test_many_passes_on_little_memory_give_the_same_bytes(build: Callable[[ov.Node], ov.Model], dynamic: bool, tmp_path: Path) -> None:
    shape, sizes = ((1, 3, 9, 9), (7, 9, 8)) if build is whole else ((1, 9, 8), (7, 9, 8))
    tested = build(parameter((*shape[:2], -1, -1) if dynamic and build is whole else (1, -1, 8) if dynamic else shape))
    data = [random(1, 3, size, size) if build is whole else random(1, size, 8) for size in (sizes if dynamic else (shape[-2],) * 3)]
    points = statistics_points(read_graph(tested), target(), pot_compatible=True)
    passes, written = [], []
    for hint, requests, budget in (("THROUGHPUT", 0, None), ("LATENCY", 1, 1000)):

        def run(instrumented: ov.Model, hint: str = hint, requests: int = requests) -> Iterator[list[np.ndarray]]:
            passes.append(hint)
            return engine.infer(engine.compile(instrumented, schema.Engine(), hint=hint), [Sample({"x": x}) for x in data], requests)

        folder = tmp_path / hint
        folder.mkdir()
        save(collect(tested, points, [0.05], [0.05], run, len(data), budget), folder)
        written.append([(folder / name).read_bytes() for name in ("statistics.npz", "index.json")])
    assert written[0] == written[1]
    assert passes.count("THROUGHPUT") == 1
    assert passes.count("LATENCY") > 4


@pytest.mark.slow
def test_little_memory_is_little() -> None:
    """Pictures of many sizes: whole tensors leave the model, of several samples at once, or a few tensors of one."""
    found = [subprocess.check_output([sys.executable, "-m", "tests.quantization.statistics_memory", mode], text=True) for mode in "01"]
    (fast, one, same), (spared, several, bytes_too) = (text.split() for text in found)
    assert same == bytes_too
    assert (int(one), int(several)) == (1, 5)
    assert int(fast) > 2.5 * int(spared)
