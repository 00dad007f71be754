"""Results in the report: the verdict, the numbers to remember, the table, and the picture of accuracy against latency."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.common.units import amount, difference, drop, metric_value, model_names, number, plural
from stages.configuration import user_classes
from stages.configuration.schema import Config
from stages.report import accuracy_aware_section, tune_section
from stages.report.tradeoff import Picture, Point, picture


@dataclass(frozen=True)
class Figure:
    """A number that one should remember."""

    value: str
    label: str
    note: str


@dataclass(frozen=True)
class Row:
    """A line of the table of results: one cell per model."""

    name: str
    meaning: str
    cells: tuple[str, ...]
    remark: str


def verdict(config: Config, evaluation: Mapping[str, Any], speed: Mapping[str, Any]) -> str:
    """The result in one sentence."""
    size, default = evaluation["size_bytes"], evaluation["precisions"]["default"]
    gains = []
    if speed:
        gains.append(f"{_faster(speed['speed_up']['fp32'])} FP32 in f32")
        if default != "f32":
            gains.append(f"{_faster(speed['speed_up']['default'])} FP32 in {default} (this device’s default)")
    gains.append(_smaller(size))
    gained = " and ".join([", ".join(gains[:-1]), gains[-1]] if gains[1:] else gains)
    name = config.evaluate.primary_metric or next(iter(evaluation["metrics"]))
    return f"In INT8, {config.model.name} is {gained}; it {_change(name, evaluation)}."


def _faster(ratio: Mapping[str, float]) -> str:
    if ratio["low"] <= 1.0 <= ratio["high"]:
        return "as fast as"
    return f"{ratio['median']:.2f}× faster than" if ratio["median"] > 1.0 else f"{1 / ratio['median']:.2f}× SLOWER than"


def _smaller(size: Mapping[str, float]) -> str:
    ratio = size["fp32"] / size["int8"]
    return f"{ratio:.1f}× smaller" if ratio >= 1 else f"{1 / ratio:.1f}× larger"


def _change(name: str, evaluation: Mapping[str, Any]) -> str:
    """What became of a metric: `loses 2.90 points of top_1 (95 % confidence interval 1.50 to 4.30)`."""
    metric = evaluation["metrics"][name]
    drop, low, high = (metric[key] for key in ("drop", "drop_low", "drop_high"))
    interval = "" if low is None else f"{_interval(evaluation)} {difference(metric, low)} to {amount(metric, high)}"
    if low is not None and low <= 0.0 <= high:
        return f"keeps its {name} within what {plural(evaluation['samples'], 'sample')} can tell (drop {amount(metric, drop)}, {interval})"
    bracket = f" ({interval})" if interval else ""
    if metric["share"]:
        return f"{'loses' if drop > 0 else 'gains'} {amount(metric, abs(drop))} of {name}{bracket}"
    before, after = (metric_value(metric, metric[model]) for model in ("fp32", "int8"))
    direction = "higher" if metric["higher_is_better"] else "lower"
    return f"changes {name} from {before} to {after}, {direction} is better{' (' + 'drop ' + interval + ')' if interval else ''}"


def _interval(evaluation: Mapping[str, Any]) -> str:
    return f"{100 * evaluation['confidence']:g} % confidence interval"


def figures(config: Config, evaluation: Mapping[str, Any], speed: Mapping[str, Any]) -> Iterator[Figure]:
    default, size = evaluation["precisions"]["default"], evaluation["size_bytes"]
    name = config.evaluate.primary_metric or next(iter(evaluation["metrics"]))
    metric = evaluation["metrics"][name]
    before, after = (metric_value(metric, metric[model]) for model in ("fp32", "int8"))
    if metric["share"]:
        signed = f"{'−' if metric['drop'] > 0 else '+'}{difference(metric, abs(metric['drop']))} points"
    else:
        signed = after
    yield Figure(signed, name, f"{before} → {after}")
    if speed:
        for model, reference in (("fp32", "f32"), ("default", default)):
            if model == "fp32" or default != "f32":
                ratio, times = speed["speed_up"][model], speed["latency_ms"]
                middle = "≈ 1×" if ratio["low"] <= 1.0 <= ratio["high"] else f"{ratio['median']:.2f}×"
                note = f"{number(times[model]['median'])} → {number(times['int8']['median'])} ms"
                yield Figure(middle, f"speed against FP32 in {reference}", note)
    yield Figure(f"{size['fp32'] / size['int8']:.1f}×", "smaller", f"{size['fp32'] / 1e6:.2f} → {size['int8'] / 1e6:.2f} MB")


def table(config: Config, evaluation: Mapping[str, Any], speed: Mapping[str, Any]) -> Iterator[Row]:
    default, size = evaluation["precisions"]["default"], evaluation["size_bytes"]
    models = list(model_names(evaluation["precisions"]))
    confidence = f"{100 * evaluation['confidence']:g} %"
    searched = [found for found in (accuracy_aware_section.cells(evaluation), tune_section.cells(evaluation)) if found]

    def row(name: str, meaning: str, cells: Sequence[str], remark: str) -> Row:
        return Row(name, meaning, (*cells, *(found.get(name, "–") for found in searched)), remark)

    for name, metric in evaluation["metrics"].items():
        remark = f"drop {amount(metric, metric['drop'])}"
        if metric["drop_low"] is not None:
            low, high = (difference(metric, metric[side]) for side in ("drop_low", "drop_high"))
            remark += f", {confidence} interval {low} to {high}"
        if "precision_drop" in metric:
            remark += f"; of that {drop(metric, metric, 'precision_drop')} from f32 to {default}, which is no quantization, and"
            remark += f" {drop(metric, metric, 'quantization_drop')} from there to INT8"
        direction = "" if metric["higher_is_better"] else "Lower is better. "
        meaning = direction + user_classes.meaning(config.metric.get(name, {}).get("_target_"))
        yield row(name, meaning, [metric_value(metric, metric[model]) for model in models], remark)
    if speed:
        times, rates = speed["latency_ms"], speed["throughput"]
        references = [("fp32", "f32"), ("default", default)][: len(models) - 1]
        remark = ", ".join(f"{_faster(speed['speed_up'][model])} {name}{_range(speed['speed_up'][model])}" for model, name in references)
        cells = [f"{number(times[model]['median'])} ms" for model in models]
        yield row("latency", "Time of one inference when nothing else runs.", cells, f"INT8 is {remark}")
        cells = [f"{number(rates[model])} /s" for model in models]
        yield row("throughput", "Inferences per second when as many run at once as the device likes.", cells, "")
    cells = [f"{size['int8' if model == 'int8' else 'fp32'] / 1e6:.2f} MB" for model in models]
    yield row("size", "Model file and weights on disk.", cells, _smaller(size))


def _range(ratio: Mapping[str, float]) -> str:
    if ratio["low"] <= 1.0 <= ratio["high"]:
        return ""
    low, high = (ratio["low"], ratio["high"]) if ratio["median"] > 1 else (1 / ratio["high"], 1 / ratio["low"])
    return f" ({low:.2f} to {high:.2f})"


def accuracy_against_latency(config: Config, evaluation: Mapping[str, Any], speed: Mapping[str, Any]) -> Picture | None:
    """Accuracy against latency; None without a benchmark."""
    if not speed:
        return None
    name = config.evaluate.primary_metric or next(iter(evaluation["metrics"]))
    metric = evaluation["metrics"][name]
    factor = 100.0 if metric["share"] else 1.0
    sign = 1.0 if metric["higher_is_better"] else -1.0
    points = []
    for model, label in model_names(evaluation["precisions"]).items():
        time, value = speed["latency_ms"][model], metric[model]
        interval = None
        if model == "int8" and metric["drop_low"] is not None:
            low, high = (factor * (metric["fp32"] - sign * metric[side]) for side in ("drop_high", "drop_low"))
            interval = (low, high)
        text = f"{metric_value(metric, value)}, {number(time['median'])} ms"
        points.append(Point(label, model, time["median"], factor * value, text, (time["low"], time["high"]), interval))
    default_ms = speed["latency_ms"]["default"]["median"]
    points += accuracy_aware_section.points(name, metric, default_ms)
    named, trials = tune_section.points(metric, default_ms)
    points += [point for point in named if point.kind not in {known.kind for known in points}]
    return picture(points, trials, name, "%" if metric["share"] else "", higher_is_better=metric["higher_is_better"])
