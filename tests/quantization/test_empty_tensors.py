"""Branches that some samples leave without a single row, such as a second stage behind what a detector finds."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from stages.common.errors import UserError
from stages.configuration import schema
from stages.quantization.build import build
from stages.quantization.model.graph import read_graph
from stages.quantization.noise import ActivationNoise, aligned_model
from stages.quantization.placement.plan import TensorName
from stages.quantization.refinement.accurate_bias import accurate_corrections
from stages.quantization.refinement.layerwise import tune_layers
from stages.quantization.statistics.collection import collect
from stages.quantization.statistics.masks import EMPTY, STAND_IN
from stages.quantization.statistics.points import statistics_points
from stages.quantization.statistics.store import empty_tensors, load, save
from stages.runtime.datasets import Sample
from tests.quantization.quantizing import compressed, infer, plan_of, quantized, same, statistics_of, tensor
from tests.quantization.reference_runs import target
from tests.quantization.small import constant, convolution, matmul, model, named, parameter, random

ROWS = 6
COUNTS = [3, 0, 2, 0, 6, 1, 4, 0]  # rows that are found in each sample
KINDS = ["matmul", "images", "element-wise", "volumes"]


def two_stages(kind: str = "matmul") -> ov.Model:
    """A first layer, and layers for those of its rows whose `m` is positive."""
    x, m = parameter((ROWS, 8)), parameter((ROWS,), "m")
    features = named(op.relu(matmul(x, random(8, 8, seed=1), "first", bias=random(8))), "features")
    places = op.transpose(op.non_zero(op.greater(m, np.float32(0)), "i64"), np.array([1, 0]))
    rows = named(op.gather_nd(features, places), "rows")
    if kind == "matmul":
        hidden = named(op.relu(matmul(rows, random(8, 8, seed=2), "second", bias=random(8))), "hidden")
        out = matmul(hidden, random(8, 3, seed=3), "last")
    elif kind == "element-wise":
        both = named(op.add(rows, matmul(rows, random(8, 8, seed=4), "inner")), "second")
        out = matmul(named(op.multiply(both, constant(random(1, 8), "factors")), "scaled"), random(8, 3), "last")
    else:
        spatial = (2, 2) if kind == "images" else (2, 2, 1)
        pictures = named(op.reshape(rows, np.array([-1, 2, *spatial]), False), "pictures")
        hidden = convolution(pictures, random(4, 2, *[1] * len(spatial)), "second", bias=random(4))
        hidden = convolution(hidden, random(4, 4, *[1] * len(spatial), seed=5), "third")
        out = convolution(named(op.relu(hidden), "hidden"), random(4, 1, 1, *spatial), "last")
    return model([out, matmul(features, random(8, 2), "head")], x, m)


def samples(counts: list[int]) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    return [
        {"x": generator.standard_normal((ROWS, 8)).astype(np.float32), "m": np.where(np.arange(ROWS) < count, 1, -1).astype(np.float32)}
        for count in counts
    ]


def test_what_is_collected_is_that_of_the_others() -> None:
    tested, given = two_stages(), samples(COUNTS)
    statistics = statistics_of(tested, given, [0.1], [0.1], every_channel=True)
    values = tensor(tested, "rows", given)
    assert [len(value) for value in values] == COUNTS
    name = TensorName("rows", 0)
    np.testing.assert_array_equal(statistics.size[name], np.multiply(COUNTS, 8))
    np.testing.assert_array_equal(statistics.channel_size[name], COUNTS)
    for place, value in enumerate(values):
        if not len(value):
            assert np.isnan(statistics.lowest[name][place]).all() and np.isnan(statistics.channel_highest[name][place]).all()
            continue
        assert statistics.highest[name][place, 0] == value.max()
        np.testing.assert_array_equal(statistics.channel_lowest[name][place][:, 0], value.min(axis=0))
    filled = [value.mean(axis=0, dtype=np.float64) for value in values if len(value)]
    np.testing.assert_allclose(statistics.input_mean["second"], np.mean(filled, axis=0), rtol=1e-5)
    outputs = [value.mean(axis=0, dtype=np.float64) for value in tensor(two_stages("images"), "third", given) if len(value)]
    means = statistics_of(two_stages("images"), given).input_mean["last"]
    assert len(outputs) == 5 and means.shape == (4,)
    assert empty_tensors(statistics)[name] == 3 and TensorName("features", 0) not in empty_tensors(statistics)


def test_with_little_memory_the_same_is_collected() -> None:
    tested, given = two_stages("images"), samples(COUNTS)
    points = statistics_points(read_graph(tested), target(), pot_compatible=True)
    kept = [collect(tested, points, [0.01], [], lambda part: infer(part, given), len(given), budget) for budget in (None, 1000)]
    for quantity in ("lowest", "highest", "size", "input_mean", "output_mean"):
        first, second = (getattr(entry, quantity) for entry in kept)
        assert first.keys() == second.keys() and first
        for key in first:
            np.testing.assert_array_equal(first[key], second[key], err_msg=f"{quantity} {key}")
    assert kept[0].input_shape == kept[1].input_shape


def test_ranges_are_those_of_the_others() -> None:
    tested, given = two_stages(), samples(COUNTS)
    largest = [float(value.max()) for value in tensor(tested, "hidden", given) if value.size]

    def high(**config: Any) -> float:
        found = quantized(tested, given, probabilities=[0.1], **config)
        return float(found.solved.ranges["hidden/fq_output_0"].high)

    assert high() == pytest.approx(np.mean(largest))
    for aggregator, expected in {"max": max(largest), "min": min(largest), "median": float(np.median(largest))}.items():
        border = schema.Estimator(type="abs_max", aggregator=aggregator)
        assert high(range_estimator=schema.RangeEstimator(max=border)) == pytest.approx(expected)
    quantiles = [float(np.quantile(value, 0.9)) for value in tensor(tested, "hidden", given) if value.size]
    border = schema.Estimator(type="quantile", outlier_prob=0.1)
    assert high(range_estimator=schema.RangeEstimator(max=border)) == pytest.approx(np.mean(quantiles))
    # Samples 0 and 1 are one batch, of which 1 is empty; so are 2 and 3, 6 and 7.
    batches = [largest[0], largest[1], max(largest[2:4]), largest[4]]
    assert high(stat_batch_size=2) == pytest.approx(np.mean(batches))
    by_channel = quantized(tested, given, activations=schema.Scheme(granularity="perchannel"), allow_unsupported=True, every_channel=True)
    columns = np.concatenate([value for value in tensor(tested, "hidden", given) if len(value)]).max(axis=0)
    np.testing.assert_allclose(by_channel.solved.ranges["hidden/fq_output_0"].high, np.maximum(columns, columns.max() / 100), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", [{}, {"preset": "mixed"}, {"preset": "accuracy"}, {"pot_compatible": True}], ids=str)
def test_every_stage_takes_them(kind: str, config: dict[str, Any]) -> None:
    tested, given = two_stages(kind), samples(COUNTS)
    found = quantized(tested, given, correction=schema.BiasCorrection(), **config)
    assert {"first", "second", "last"} <= {place.name for quantizer in found.plan.quantizers for place in quantizer.layers}
    for version in (found.model, compressed(found.model)):
        assert [len(outputs[0]) for outputs in infer(version, given)] == COUNTS
    aligned = aligned_model(tested, statistics_of(tested, given), found.plan)
    same(aligned, tested, given)
    noise = ActivationNoise(aligned, found.plan, found.solved.ranges)
    ratios = noise.ratios(infer(noise.model, given))
    assert all(ratio is not None and 5 < ratio < 80 for name, ratio in ratios.items() if not name.startswith("m/"))
    shares = noise.shares(infer(noise.model, given))
    assert shares.keys() == ratios.keys() and all(0 <= share < 0.3 for share in shares.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", [{}, {"preset": "accuracy"}, {"pot_compatible": True}], ids=str)
def test_what_no_sample_fills_stays_in_floating_point(kind: str, config: dict[str, Any]) -> None:
    tested, given = two_stages(kind), samples([0, 0, 0])
    found = quantized(tested, given, probabilities=[1e-4], correction=schema.BiasCorrection(), **config)
    assert {found.floats()[name, None] for name in ("second", "last")} == {EMPTY}
    assert {"first", "head"} <= {place.name for quantizer in found.plan.quantizers for place in quantizer.layers}
    # What is found later is computed as before.
    later = samples([4, 0])
    assert [len(outputs[0]) for outputs in infer(found.model, later)] == [4, 0]
    noise = ActivationNoise(tested, found.plan, found.solved.ranges)
    assert all(ratio is not None for name, ratio in noise.ratios(infer(noise.model, given)).items() if not name.startswith("m/"))


def test_a_plan_for_what_no_sample_fills_is_one_line() -> None:
    tested = two_stages()
    with pytest.raises(UserError, match=r"^hidden \(output 0\) is empty for all samples; quantization.ignored.scope can leave"):
        build(tested, statistics_of(tested, samples([0, 0])), plan_of(tested))


def test_they_survive_on_disk(tmp_path: Any) -> None:
    tested, given = two_stages(), samples(COUNTS)
    statistics = statistics_of(tested, given)
    save(statistics, tmp_path)
    again = load(tmp_path)
    assert empty_tensors(again) == empty_tensors(statistics) != {}
    np.testing.assert_array_equal(again.lowest[TensorName("rows", 0)], statistics.lowest[TensorName("rows", 0)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("counts", [COUNTS, [0, 0, 0, 0, 1, 0], [0] * 6], ids=str)
def test_the_algorithms_that_infer_take_them(kind: str, counts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.quantization.refinement.accurate_bias.SHARE", 1.0)
    tested, given = two_stages(kind), samples(counts)
    bound = [Sample(dict(sample)) for sample in given]
    statistics = statistics_of(tested, given)
    plan = plan_of(tested, statistics=statistics)
    corrections = accurate_corrections(tested, statistics, plan, schema.BiasCorrection(use_fast_bias=False), bound)
    names = {"first", "head"} | ({"last"} if any(counts) else set())
    assert names <= {entry.name for entry in corrections if entry.bias is not None}
    assert all(np.isfinite(entry.bias).all() for entry in corrections if entry.bias is not None)
    for only_fp in (True, False):
        config = schema.LayerwiseTuning(seed=0, use_only_fp_inputs=only_fp, num_samples_for_tuning=320, batch_size=32)
        _, record = tune_layers(tested, statistics, plan, config, bound)
        assert names <= {entry.name for entry in record.layers}
        assert all(entry.loss_before is None or np.isfinite(entry.loss_before) for entry in record.layers)


def test_layers_of_which_no_sample_has_a_row_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.quantization.refinement.accurate_bias.SHARE", 1.0)
    tested = two_stages()
    statistics = statistics_of(tested, samples(COUNTS))
    plan = plan_of(tested, statistics=statistics)
    others = [Sample(dict(sample)) for sample in samples([0, 0, 0])]  # not those of the statistics
    corrections = accurate_corrections(tested, statistics, plan, schema.BiasCorrection(use_fast_bias=False), others)
    assert {entry.name for entry in corrections if entry.reason == "it has no output for any sample"} == {"second", "last"}
    _, record = tune_layers(tested, statistics, plan, schema.LayerwiseTuning(seed=0, num_samples_for_tuning=320, batch_size=32), others)
    assert {entry.name for entry in record.layers if entry.reason == "the samples have no row of it"} == {"second", "last"}


def test_the_largest_of_nothing_stands_for_infinity_and_is_no_part_of_a_mean() -> None:
    """Where a model takes it, OpenVINO gives the lowest number of f32; one such sample would be all that is left of the mean."""
    x, m = parameter((ROWS, 8)), parameter((ROWS,), "m")
    places = op.transpose(op.non_zero(op.greater(m, np.float32(0)), "i64"), np.array([1, 0]))
    largest = named(op.reduce_max(op.gather_nd(x, places), np.array([0]), True), "largest")
    layer = matmul(op.maximum(named(op.add(largest, constant(random(1, 8), "offsets")), "moved"), np.float32(-100)), random(8, 3), "layer")
    tested, given = model(layer, x, m), samples(COUNTS)
    as_pot = quantized(tested, given, correction=schema.BiasCorrection(), pot_compatible=True)
    assert as_pot.floats()["moved", None] == STAND_IN
    found = quantized(tested, given, correction=schema.BiasCorrection())
    assert found.floats()["moved", None] == "nothing to gain: an operand comes from no layer with weights"
    assert "layer" in {place.name for quantizer in found.plan.quantizers for place in quantizer.layers}
    (correction,) = found.solved.corrections
    assert correction.bias is not None and np.abs(correction.bias).max() < 10
    wide = statistics_of(model(matmul(largest, random(8, 3), "layer"), x, m), given)
    values = [value for value in tensor(tested, "largest", given) if np.abs(value).max() < 1e30]
    assert len(values) == 5
    np.testing.assert_allclose(wide.input_mean["layer"], np.mean([value[0] for value in values], axis=0), rtol=1e-5)
