"""Results in the report: the verdict, the numbers to remember, the table, and the picture of accuracy against latency."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.common.units import amount, difference, drop, metric_value, model_names, number, plural
from stages.configuration import user_classes
from stages.configuration.schema import Config
from stages.report import accuracy_aware_section, tune_section
from stages.report.measured import INT8, Model
from stages.report.tradeoff import Picture, Point, picture


@dataclass(frozen=True)
class Figure:
    """A number that one should remember."""

    value: str
    label: str
    note: str
    tone: str = ""  # lost, gained, or no colour


@dataclass(frozen=True)
class Row:
    """A line of the table of results: one cell per model, and what became of the one to deploy."""

    name: str
    meaning: str
    cells: tuple[str, ...]
    remark: str
    tone: str = ""


def verdict(config: Config, evaluation: Mapping[str, Any], model: Model) -> str:
    """The result in one sentence.

    Args:
        config: What was built.
        evaluation: Content of evaluation.json.
        model: The one to deploy.
    """
    default = evaluation["precisions"]["default"]
    gains = []
    if model.speed:
        gains.append(f"{_faster(model.speed['speed_up']['fp32'])} FP32 in f32")
        if default != "f32":
            gains.append(f"{_faster(model.speed['speed_up']['default'])} FP32 in {default} (this device’s default)")
    gains.append(_smaller(evaluation["size_bytes"]["fp32"], model.size))
    gained = " and ".join([", ".join(gains[:-1]), gains[-1]] if gains[1:] else gains)
    name = _primary(config, evaluation)
    made = f" ({model.name})" if model.kind != INT8 else ""
    return f"In INT8{made}, {config.model.name} is {gained}; it {_change(name, model.metrics[name], evaluation)}."


def _primary(config: Config, evaluation: Mapping[str, Any]) -> str:
    return config.evaluate.primary_metric or str(next(iter(evaluation["metrics"])))


def _faster(ratio: Mapping[str, float]) -> str:
    if ratio["low"] <= 1.0 <= ratio["high"]:
        return "as fast as"
    return f"{ratio['median']:.2f}× faster than" if ratio["median"] > 1.0 else f"{1 / ratio['median']:.2f}× SLOWER than"


def _smaller(before: float, after: float) -> str:
    ratio = before / after
    return f"{ratio:.1f}× smaller" if ratio >= 1 else f"{1 / ratio:.1f}× larger"


def _change(name: str, metric: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """What became of a metric: `loses 2.90 points of top_1 (95 % confidence interval 1.50 to 4.30)`."""
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


def figures(config: Config, evaluation: Mapping[str, Any], times: Mapping[str, Any], model: Model) -> Iterator[Figure]:
    """The numbers to remember of the model to deploy.

    Args:
        config: What was built.
        evaluation: Content of evaluation.json.
        times: Of latency.json `latency_ms`; empty without a benchmark.
        model: The one to deploy.
    """
    default, before_bytes = evaluation["precisions"]["default"], evaluation["size_bytes"]["fp32"]
    name = _primary(config, evaluation)
    metric = model.metrics[name]
    before, after = (metric_value(metric, metric[key]) for key in ("fp32", "int8"))
    signed = f"{'−' if metric['drop'] > 0 else '+'}{difference(metric, abs(metric['drop']))} points" if metric["share"] else after
    yield Figure(signed, name, f"{before} → {after}", tone(metric))
    if model.speed:
        for key, reference in (("fp32", "f32"), ("default", default)):
            if key == "fp32" or default != "f32":
                ratio = model.speed["speed_up"][key]
                middle = "≈ 1×" if ratio["low"] <= 1.0 <= ratio["high"] else f"{ratio['median']:.2f}×"
                note = f"{number(times[key]['median'])} → {number(model.speed['latency_ms'][INT8]['median'])} ms"
                slower = "lost" if ratio["high"] < 1.0 else ""
                yield Figure(middle, f"speed against FP32 in {reference}", note, slower)
    factor = before_bytes / model.size
    shown, word = (factor, "smaller") if factor >= 1 else (1 / factor, "larger")
    yield Figure(f"{shown:.1f}×", word, f"{before_bytes / 1e6:.2f} → {model.size / 1e6:.2f} MB", "" if factor >= 1 else "lost")


def tone(metric: Mapping[str, Any]) -> str:
    """How a drop is coloured: `lost` and `gained` where it is clear, in no colour where it is not."""
    low, high = metric["drop_low"], metric["drop_high"]
    if low is None:
        low = high = metric["drop"]
    return "lost" if low > 0 else "gained" if high < 0 else ""


def table(config: Config, evaluation: Mapping[str, Any], speed: Mapping[str, Any], found: Sequence[Model], chosen: Model) -> Iterator[Row]:
    """Metrics, latency, throughput and size: a cell per model, and below them what became of the one to deploy.

    Args:
        config: What was built.
        evaluation: Content of evaluation.json.
        speed: Content of latency.json.
        found: The quantized models.
        chosen: The one to deploy.
    """
    default, before = evaluation["precisions"]["default"], evaluation["size_bytes"]["fp32"]
    floats = [key for key in model_names(evaluation["precisions"]) if key != INT8]
    confidence = f"{100 * evaluation['confidence']:g} %"
    for name, metric in evaluation["metrics"].items():
        judged = chosen.metrics.get(name, metric)
        remark = f"drop {amount(judged, judged['drop'])}"
        if judged["drop_low"] is not None:
            low, high = (difference(judged, judged[side]) for side in ("drop_low", "drop_high"))
            remark += f", {confidence} interval {low} to {high}"
        if "precision_drop" in metric:
            remark += f"; {drop(metric, metric, 'precision_drop')} from f32 to {default}, which is no quantization"
            if chosen.kind == INT8:
                remark += f", and {drop(metric, metric, 'quantization_drop')} from there to INT8"
        direction = "" if metric["higher_is_better"] else "Lower is better. "
        meaning = direction + user_classes.meaning(config.metric.get(name, {}).get("_target_"))
        own = [metric_value(metric, model.metrics[name][INT8]) if name in model.metrics else "–" for model in found]
        yield Row(name, meaning, (*(metric_value(metric, metric[key]) for key in floats), *own), remark, tone(judged))
    if speed:
        references = [(key, name) for key, name in (("fp32", "f32"), ("default", default)) if key in floats]
        yield _speed_row("latency", "Time of one inference when nothing else runs.", speed, floats, found, _times(chosen, references))
        timed = chosen if "throughput" in chosen.speed else found[0]
        rate = timed.speed["throughput"][INT8]
        remark = f"{timed.name} does " + ", ".join(f"{rate / speed['throughput'][key]:.2f}× as many as {name}" for key, name in references)
        meaning = "Inferences per second when as many run at once as the device likes."
        yield _speed_row("throughput", meaning, speed, floats, found, remark)
    sizes = [*(before for _ in floats), *(model.size for model in found)]
    yield Row("size", "Model file and weights on disk.", tuple(f"{size / 1e6:.2f} MB" for size in sizes), _smaller(before, chosen.size))


def _times(chosen: Model, references: Sequence[tuple[str, str]]) -> str:
    if not chosen.speed:
        return ""
    ratios = [(chosen.speed["speed_up"][key], name) for key, name in references]
    return f"{chosen.name} is " + ", ".join(f"{_faster(ratio)} {name}{_range(ratio)}" for ratio, name in ratios)


def _speed_row(name: str, meaning: str, speed: Mapping[str, Any], floats: Sequence[str], found: Sequence[Model], remark: str) -> Row:
    key, unit = ("latency_ms", "ms") if name == "latency" else ("throughput", "/s")
    values = [*(speed[key][model] for model in floats), *(model.speed.get(key, {}).get(INT8) for model in found)]
    cells = ("–" if value is None else f"{number(value['median'] if isinstance(value, Mapping) else value)} {unit}" for value in values)
    return Row(name, meaning, tuple(cells), remark)


def _range(ratio: Mapping[str, float]) -> str:
    if ratio["low"] <= 1.0 <= ratio["high"]:
        return ""
    low, high = (ratio["low"], ratio["high"]) if ratio["median"] > 1 else (1 / ratio["high"], 1 / ratio["low"])
    return f" ({low:.2f} to {high:.2f})"


def accuracy_against_latency(config: Config, evaluation: Mapping[str, Any], speed: Mapping[str, Any]) -> Picture | None:
    """Accuracy against latency; None without a benchmark."""
    if not speed:
        return None
    name = _primary(config, evaluation)
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
