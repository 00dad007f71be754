"""The per-layer table: one row per layer and port, and the run time counted once."""

from __future__ import annotations

from typing import Any

import pytest

from stages.measurement.latency import NodeTime
from stages.quantization.layer_table import COLUMNS, Row, layer_table


def quantizer(
    name: str, kind: str, layers: list[tuple[str, str, int]], low: list[float], high: list[float], **estimator: Any
) -> dict[str, Any]:
    border = {"type": "max", "aggregator": "mean"} if kind == "activations" else {"type": "abs_max"}
    return {
        "name": name,
        "kind": kind,
        "source": {"name": f"source of {name}", "port": 0, "type": "Any"},
        "layers": [{"name": layer, "type": type_, "port": port} for layer, type_, port in layers],
        "bits": 8,
        "mode": "asymmetric" if estimator else "symmetric",
        "granularity": "perchannel" if len(low) > 1 else "pertensor",
        "levels": 255,
        "estimator": {"min": border, "max": border, **estimator},
        "input_low": low,
        "input_high": high,
    }


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    quantizers = {
        "quantizers": [
            quantizer("w1", "weights", [("conv1", "Convolution", 1)], [-1.0, -3.0], [1.0, 3.0]),
            quantizer("a1", "activations", [("conv1", "Convolution", 0), ("add", "Add", 0)], [0.0], [6.0]),
            quantizer(
                "left",
                "activations",
                [("conv2", "Convolution", 0)],
                [-1.0],
                [1.0],
                min={"type": "quantile", "outlier_prob": 0.01, "aggregator": "median"},
                max={"type": "max", "aggregator": "max", "clipping_value": 6.0},
            ),
            quantizer("right", "activations", [("conv2", "Convolution", 0)], [-2.0], [2.0]) | {"choice": "symmetric: nothing to gain"},
            quantizer("w2", "weights", [("conv2", "Convolution", 1)], [-1.0], [1.0]),
        ],
        "float": [
            {"name": "softmax", "type": "SoftMax", "port": None, "reason": "not quantizable"},
            {"name": "add", "type": "Add", "port": 1, "reason": "ignored"},
        ],
        "aligned": [["conv0", "conv1"]],
        "not_aligned": [{"first": "conv1", "second": "conv2", "reason": "padded"}],
    }
    corrections = {
        "corrected": [{"name": "conv1", "type": "Convolution"}],
        "left": [{"name": "conv2", "type": "Convolution", "reason": "no bias"}],
    }
    times = [
        NodeTime(("conv1", "add"), 30.0, "int8_kernel"),
        NodeTime((), 10.0, "reorder"),
        NodeTime(("conv2",), 40.0, "int8_kernel"),
        NodeTime(("softmax",), 15.0, "f32_kernel"),
        NodeTime(("softmax/DequantizationMultiply", "relu/fq_output_0"), 3.0, "f32_kernel"),
        NodeTime(("relu/fq_output_0", "softmax", "conv2"), 2.0, "f32_kernel"),
    ]
    order = ["conv1", "add", "relu", "conv2", "softmax"]
    effects: dict[str, dict[str, Any]] = {
        "conv1": {"block": "conv1", "effect_on": 0.25},
        "add": {"block": "conv1", "effect_on": 0.25},
        "conv2": {"effect_missing": "why"},
    }
    table = layer_table(quantizers, corrections, {"w1": 40.0, "a1": 30.5, "left": None}, times, order, effects)
    assert all(tuple(row) == COLUMNS for row in table)
    found = {row["layer"]: row for row in table}
    assert len(found) == len(table)  # the first column is a key
    return found


def test_one_row_per_layer_and_port(rows: dict[str, Row]) -> None:
    assert list(rows) == [
        "conv1:0",
        "conv1:1",
        "add:0",
        "add:1",
        "conv2:0 < source of left",
        "conv2:0 < source of right",
        "conv2:1",
        "softmax",
    ]


def test_ranges_are_the_widest_over_channels_and_noise_is_the_quantizers(rows: dict[str, Row]) -> None:
    assert (rows["conv1:1"]["low"], rows["conv1:1"]["high"], rows["conv1:1"]["sqnr_db"]) == (-3.0, 3.0, 40.0)
    assert rows["conv1:0"]["sqnr_db"] == rows["add:0"]["sqnr_db"] == 30.5
    assert rows["conv2:0 < source of left"]["sqnr_db"] is rows["conv2:1"]["sqnr_db"] is None


def test_effects_are_those_of_the_layers_block(rows: dict[str, Row]) -> None:
    assert [rows[name]["effect_on"] for name in ("conv1:0", "conv1:1", "add:0")] == [0.25] * 3
    assert [rows[name]["block"] for name in ("conv1:0", "add:0", "conv2:1")] == ["conv1", "conv1", None]
    assert rows["conv2:0 < source of left"]["effect_missing"] == rows["conv2:1"]["effect_missing"] == "why"
    assert rows["add:1"]["effect_on"] is rows["softmax"]["effect_on"] is None  # float


def test_run_time_counts_once_per_layer_and_shares_add_up(rows: dict[str, Row]) -> None:
    shares = {name: row["run_time_share"] for name, row in rows.items() if row["run_time_share"] is not None}
    assert shares == {"conv1:0": 0.3, "conv2:0 < source of left": 0.4, "softmax": 0.2}  # the reorder belongs to no layer
    assert rows["add:0"]["runs_as"] == "in conv1"
    assert rows["conv1:0"]["runs_as"] == "int8_kernel"


def test_estimators_in_words(rows: dict[str, Row]) -> None:
    assert rows["conv1:1"]["estimator"] == "abs_max"
    assert rows["conv1:0"]["estimator"] == "mean of max"
    assert rows["conv2:0 < source of left"]["estimator"] == "median of quantile 0.01 / max of max <= 6"


def test_the_choice_of_preset_auto_goes_with_its_quantizer(rows: dict[str, Row]) -> None:
    said = {name: row["choice"] for name, row in rows.items() if row["choice"] is not None}
    assert said == {"conv2:0 < source of right": "symmetric: nothing to gain"}


def test_biases_and_reasons(rows: dict[str, Row]) -> None:
    assert rows["conv1:1"]["bias"] == "corrected"
    assert rows["conv2:1"]["bias"] == "left: no bias"
    assert rows["conv1:0"]["bias"] is None
    assert (rows["softmax"]["kind"], rows["softmax"]["port"], rows["softmax"]["float_reason"]) == ("float", None, "not quantizable")
    assert rows["add:1"]["float_reason"] == "ignored"


def test_alignment_is_told_with_the_weights(rows: dict[str, Row]) -> None:
    assert rows["conv1:1"]["alignment"] == "aligned with conv0"
    assert rows["conv2:1"]["alignment"] == "not with conv1: padded"
    assert {row["alignment"] for name, row in rows.items() if name not in ("conv1:1", "conv2:1")} == {None}
