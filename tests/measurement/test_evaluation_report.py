"""What `evaluate` reports of given per-sample values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stages.common.errors import UserError
from stages.configuration.schema import Config, Evaluate
from stages.measurement import evaluation_report
from stages.runtime.metrics import Metric


class Lower(Metric):
    higher_is_better = False


class Undefined(Metric):
    def value(self, rows: np.ndarray) -> float:
        return float("nan")


CONFIG = Config(evaluate=Evaluate(primary_metric="exact", confidence=0.9))
EXACT = {"fp32": [1, 1, 1, 0, 1], "default": [1, 1, 0, 0, 1], "int8": [1, 0, 0, 0, 1]}
ERROR = {"fp32": [0.0] * 5, "default": [0.01] * 5, "int8": [0.1, 0.2, 0.3, 0.4, 0.5]}
VALUES = {model: {"error": np.array(ERROR[model])[:, None], "exact": np.array(EXACT[model], float)[:, None]} for model in EXACT}


def test_values_and_drops_by_hand() -> None:
    judged = evaluation_report.report_metrics(VALUES, {"error": Lower(), "exact": Metric()}, CONFIG)
    assert list(judged) == ["exact", "error"]  # the primary one first
    exact, error = judged["exact"], judged["error"]
    assert (exact["fp32"], exact["default"], exact["int8"], exact["drop"]) == (0.8, 0.6, 0.4, 0.4)
    assert exact["relative_drop"] == 0.5
    assert exact["share"] is True
    # Of five samples two differ: a resample has binomial(5, 0.4) of them, whose 5th and 95th percentiles are 0 and 4.
    assert (exact["drop_low"], exact["drop_high"]) == (0.0, 0.8)
    assert (error["int8"], error["drop"], error["relative_drop"]) == (0.3, 0.3, None)
    assert error["higher_is_better"] is error["share"] is False
    assert 0.1 < error["drop_low"] < 0.3 < error["drop_high"] < 0.5
    assert evaluation_report.report_metrics(VALUES, {"error": Lower(), "exact": Metric()}, CONFIG) == judged


def test_the_default_precision_and_quantization_have_their_parts_of_the_drop() -> None:
    judged = evaluation_report.report_metrics(VALUES, {"error": Lower(), "exact": Metric()}, CONFIG, split=True)
    exact, error = judged["exact"], judged["error"]
    assert (exact["precision_drop"], exact["quantization_drop"]) == (0.2, 0.2)
    assert (error["precision_drop"], error["precision_drop_low"], error["quantization_drop"]) == (0.01, 0.01, 0.29)
    for metric in (exact, error):
        assert metric["precision_drop"] + metric["quantization_drop"] == pytest.approx(metric["drop"])
    # One sample of five is no proof, an error that every sample has is one.
    (warning,) = evaluation_report.precision_warnings(judged, "bf16")
    assert warning.startswith(
        "bf16 alone makes error worse by 0.01 [0.01, 0.01], without any quantization; engine.inference_precision: f32"
    )
    assert evaluation_report.precision_warnings(evaluation_report.report_metrics(VALUES, {"error": Lower()}, CONFIG), "bf16") == []


def test_an_undefined_metric_is_one_line() -> None:
    with pytest.raises(UserError, match="metric exact is not a finite number for the fp32 model: nan"):
        evaluation_report.report_metrics(VALUES, {"exact": Undefined()}, CONFIG)


def test_metrics_json_holds_every_metric_and_its_drop() -> None:
    judged = evaluation_report.report_metrics(VALUES, {"error": Lower(), "exact": Metric()}, CONFIG)
    assert evaluation_report.metrics(judged) == {"exact": 0.4, "exact.drop": 0.4, "error": 0.3, "error.drop": 0.3}


def test_noise_is_sorted_and_leaves_out_what_has_none() -> None:
    rows = [{"layer": name, "kind": "weights", "sqnr_db": ratio, "bits": 8} for name, ratio in (("a", 30.0), ("b", None), ("c", 10.0))]
    assert evaluation_report.noise(rows) == [
        {"layer": "c", "kind": "weights", "sqnr_db": 10.0},
        {"layer": "a", "kind": "weights", "sqnr_db": 30.0},
    ]


def row(layer: str, port: int, **values: Any) -> dict[str, Any]:
    keys = ("sqnr_db", "block", "effect_on", "effect_off", "agreement_on", "agreement_off")
    return {**dict.fromkeys(keys), "layer": layer, "port": port, **values}


def test_effect_is_by_block_the_worst_first_beside_its_worst_noise() -> None:
    pair = {"block": "add", "effect_on": 0.25, "effect_off": 0.1, "agreement_on": 0.9, "agreement_off": 1.0}
    rows = [
        row("conv:0", 0, effect_on=0.125, sqnr_db=30.0),
        row("conv:1", 1, effect_on=0.125, sqnr_db=20.0),
        row("add:0", 0, sqnr_db=40.0, **pair),
        row("other:0 < source", 0, sqnr_db=None, **pair),
        row("unmeasured:0", 0, sqnr_db=5.0),
    ]
    assert evaluation_report.effect(rows) == [
        {"layer": "add", **{key: value for key, value in pair.items() if key != "block"}, "sqnr_db": 40.0},
        {"layer": "conv", "effect_on": 0.125, "effect_off": None, "agreement_on": None, "agreement_off": None, "sqnr_db": 20.0},
    ]


@pytest.mark.parametrize(("default", "models"), [("bf16", ["FP32 (f32)", "FP32 (bf16, default)", "INT8"]), ("f32", ["FP32 (f32)", "INT8"])])
def test_accuracy_against_speed(default: str, models: list[str]) -> None:
    speed = {"latency_ms": {"fp32": {"median": 4.0}, "default": {"median": 3.0}, "int8": {"median": 1.0}}}
    evaluation = {"metrics": {"exact": {"fp32": 0.8, "default": 0.7, "int8": 0.6}}, "precisions": {"default": default}}
    found = evaluation_report.accuracy_speed(evaluation, speed, CONFIG)
    assert [row["model"] for row in found] == models
    assert found[-1] == {"model": "INT8", "latency_ms": 1.0, "accuracy": 0.6}
    assert evaluation_report.accuracy_speed(evaluation, {}, CONFIG) == []
