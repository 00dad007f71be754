"""What `evaluate` reports, from what it measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from stages.common.units import drop
from stages.configuration.schema import Config
from stages.measurement.baseline import Values
from stages.measurement.confidence import paired_drop
from stages.runtime.metric_values import metric_value
from stages.runtime.metrics import Metric


def is_share(metric: Metric, values: Iterable[float]) -> bool:
    """Whether a metric with these values is shown in percent, and its drop in points."""
    return metric.higher_is_better and all(0.0 <= value <= 1.0 for value in values)


def report_metrics(values: Values, metrics: Mapping[str, Metric], config: Config, *, split: bool = False) -> dict[str, dict[str, Any]]:
    """Each metric of each model, and INT8's drop from FP32 with its confidence interval; the primary metric first.

    Args:
        values: model -> metric -> per-sample rows.
        metrics: By name.
        config: For the order of metrics, the seed and the confidence level.
        split: Whether INT8 runs in the default precision and that is not f32. Then the drop has two parts, each with an interval of
            its own: `precision_drop` from FP32 in f32 to FP32 in the default precision, and `quantization_drop` from there to INT8.

    Raises:
        UserError: a metric's value is not a finite number.
    """
    judged = {}
    for name in sorted(metrics, key=lambda name: name != config.evaluate.primary_metric):  # stable: the others keep their order
        metric = metrics[name]
        result = {model: metric_value(name, metric, rows[name], model) for model, rows in values.items()}
        numbers: dict[str, float | None] = {**result, **_drop(metric, values["fp32"][name], values["int8"][name], config, "drop")}
        if split:
            numbers |= _drop(metric, values["fp32"][name], values["default"][name], config, "precision_drop")
            numbers |= _drop(metric, values["default"][name], values["int8"][name], config, "quantization_drop")
        judged[name] = {
            "higher_is_better": metric.higher_is_better,
            "share": is_share(metric, result.values()),
            **{key: None if value is None else _rounded(value) for key, value in numbers.items()},
        }
    return judged


def _drop(metric: Metric, baseline: Any, candidate: Any, config: Config, key: str) -> dict[str, float | None]:
    drop = paired_drop(
        metric.value,
        baseline,
        candidate,
        higher_is_better=metric.higher_is_better,
        confidence=config.evaluate.confidence,
        generator=np.random.default_rng(config.seed),
    )
    return {key: drop.value, f"{key}_low": drop.low, f"{key}_high": drop.high, f"relative_{key}": drop.relative}


def precision_warnings(judged: Mapping[str, Mapping[str, Any]], precision: str) -> list[str]:
    """What is to be said of metrics that the default precision makes worse without any quantization, as far as the samples can tell."""
    return [
        f"{precision} alone makes {name} worse by {drop(metric, metric, 'precision_drop')}, without any quantization;"
        " engine.inference_precision: f32 avoids it, and costs speed in what stays float"
        for name, metric in judged.items()
        if (metric.get("precision_drop_low") or 0.0) > 0.0
    ]


def accuracy_speed(evaluation: Mapping[str, Any], speed: Mapping[str, Any], config: Config) -> list[dict[str, Any]]:
    """The primary metric and the latency of each model; empty without a benchmark."""
    if not speed:
        return []
    primary, precisions = evaluation["metrics"][config.evaluate.primary_metric], evaluation["precisions"]
    labels = {"fp32": "FP32 (f32)", "default": f"FP32 ({precisions['default']}, default)", "int8": "INT8"}
    if precisions["default"] == "f32":
        del labels["default"]
    return [
        {"model": label, "latency_ms": speed["latency_ms"][model]["median"], "accuracy": primary[model]} for model, label in labels.items()
    ]


def noise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """SQNR per layer and port, the noisiest first."""
    known = [{key: row[key] for key in ("layer", "kind", "sqnr_db")} for row in rows if row["sqnr_db"] is not None]
    return sorted(known, key=lambda row: row["sqnr_db"])


def effect(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each block that was measured does to the outputs, the most harmful first, with the worst noise of its quantizers."""
    blocks: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["effect_on"] is None:
            continue
        name = row["block"] or row["layer"].split(" < ")[0].removesuffix(f":{row['port']}")
        entry = {"layer": name, **{key: row[key] for key in ("effect_on", "effect_off", "agreement_on", "agreement_off", "sqnr_db")}}
        known = [one["sqnr_db"] for one in (entry, blocks.get(name, entry)) if one["sqnr_db"] is not None]
        blocks[name] = entry | {"sqnr_db": min(known, default=None)}
    return sorted(blocks.values(), key=lambda entry: -entry["effect_on"])


def metrics(judged: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """What DVC shows of a quantized model: every metric and its drop, so that a table of all models fits on a screen."""
    return {key: value for name, metric in judged.items() for key, value in ((name, metric["int8"]), (f"{name}.drop", metric["drop"]))}


def _rounded(value: float) -> float:
    """Eight significant digits: what is beyond is noise of the arithmetic."""
    return float(f"{value:.8g}")
