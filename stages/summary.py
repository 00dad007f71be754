"""The result of a pipeline run in about twenty lines, from its artifacts alone."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from stages import artifacts
from stages.schema import Config

WEIGHTED = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul")
NOT_FLOAT = ("computes shapes", "works on integers", "input is computed from shapes")  # never were candidates
MOST_REASONS = 5
MOST_NAMES = 2
STAGES = ("config", "prepare", "collect_statistics", "quantize", "correct_bias", "evaluate")


def summary(config: Config) -> str:
    """What the model lost, gained and kept in floating point; lines without a final newline."""
    evaluation = artifacts.read_json(artifacts.folder("evaluate") / "evaluation.json")
    speed = artifacts.read_json(artifacts.folder("evaluate") / "latency.json")
    quantizers = artifacts.read_json(artifacts.folder("quantize") / "quantizers.json")
    corrections = artifacts.read_json(artifacts.folder("correct_bias") / "corrections.json")
    samples = artifacts.read_json(artifacts.folder("prepare") / "dataset.json")
    lines = [
        f"{config.model.name} on {config.data.name}: preset {config.quantization.preset} for {config.target_device.name},"
        f" {samples['calibration']['count']} calibration and {samples['validation']['count']} validation samples",
        *_overlap(samples),
        "",
        *_table(evaluation, speed),
        "",
        *_quantized(quantizers),
        *_biases(config, corrections),
        *_effort(),
    ]
    return "\n".join(lines)


def _overlap(samples: dict[str, Any]) -> list[str]:
    shared = samples["shared"]
    if not shared:
        return []
    return [f"WARNING: {shared} of the validation samples are calibration samples too, so the drop looks smaller than it is"]


# ------------------------------------------------------------------------------------------------ accuracy, speed, size


def _table(evaluation: dict[str, Any], speed: dict[str, Any]) -> list[str]:
    """One line per metric, then latency, throughput and size, for the three models."""
    default, size = evaluation["precisions"]["default"], evaluation["size_bytes"]
    models = {"fp32": "FP32 (f32)", "default": f"FP32 ({default}, default)", "int8": "INT8"}
    if default == "f32":
        del models["default"]

    def row(name: str, cells: Callable[[str], str], remark: str = "") -> list[str]:
        return [name, *(cells(model) for model in models), remark]

    rows = [row("", lambda model: models[model])]
    for name, metric in evaluation["metrics"].items():
        rows.append(row(name, partial(_metric_value, metric), _drop(metric, evaluation["confidence"])))
    if speed:
        latency, throughput = speed["latency_ms"], speed["throughput"]
        faster = "INT8 is " + ", ".join(
            _ratio(speed["speed_up"][model], name) for model, name in (("fp32", "f32"), ("default", default)) if model in models
        )
        rows.append(row("latency", lambda model: f"{_number(latency[model]['median'])} ms", faster))
        rows.append(row("throughput", lambda model: f"{_number(throughput[model])} /s"))
    smaller = f"{size['fp32'] / size['int8']:.1f}x smaller"
    rows.append(row("size", lambda model: f"{size['int8' if model == 'int8' else 'fp32'] / 1e6:.2f} MB", smaller))
    return _aligned(rows)


def _metric_value(metric: dict[str, Any], model: str) -> str:
    return f"{100 * metric[model]:.2f} %" if metric["share"] else f"{metric[model]:.4g}"


def _drop(metric: dict[str, Any], confidence: float) -> str:
    """`drop 1.20 points, 95 % interval [0.60, 1.90]`; a share is counted in points, anything else in its own unit."""
    factor, form, unit = (100.0, ".2f", " points") if metric["share"] else (1.0, ".4g", "")
    direction = "" if metric["higher_is_better"] else " (lower is better)"
    text = f"drop {factor * metric['drop'] + 0.0:{form}}{unit}{direction}"
    if metric["drop_low"] is None:
        return text
    low, high = (factor * metric[side] + 0.0 for side in ("drop_low", "drop_high"))
    return f"{text}, {100 * confidence:g} % interval [{low:{form}}, {high:{form}}]"


def _ratio(ratio: dict[str, float], name: str) -> str:
    if ratio["low"] <= 1.0 <= ratio["high"]:
        return f"no different from {name}"
    faster = ratio["median"] >= 1.0
    low, high = (ratio["low"], ratio["high"]) if faster else (1 / ratio["high"], 1 / ratio["low"])
    middle = ratio["median"] if faster else 1 / ratio["median"]
    return f"{middle:.2f}x {'faster' if faster else 'SLOWER'} than {name} [{low:.2f}, {high:.2f}]"


# ------------------------------------------------------------------------------------------------ layers


def _quantized(quantizers: dict[str, Any]) -> list[str]:
    kinds = Counter(entry["kind"] for entry in quantizers["quantizers"])
    layers = {layer["name"]: layer["type"] for entry in quantizers["quantizers"] for layer in entry["layers"]}
    left = [entry for entry in quantizers["float"] if entry["reason"] not in NOT_FLOAT]
    lines = [f"quantized: {len(layers)} operations, by {kinds['weights']} weight and {kinds['activations']} activation quantizers"]
    # What users look for first is a convolution or MatMul that did not become INT8.
    groups = _grouped(left, lambda entries: (-sum(entry["type"] in WEIGHTED for entry in entries), -len(entries)))
    operations = len({entry["name"] for entry in left})
    return [*lines, f"left float: {operations} operations" if operations else "left float: nothing", *_listing(groups)]


def _biases(config: Config, corrections: dict[str, Any]) -> list[str]:
    if not config.bias_correction.enabled:
        return ["biases: not corrected (bias_correction.enabled is false)"]
    left = corrections["left"]
    title = f"biases: {len(corrections['corrected'])} corrected, {len(left)} left"
    return [title, *_listing(_grouped(left, lambda entries: (-len(entries),)))]


def _grouped(entries: Iterable[dict[str, Any]], order: Any) -> list[tuple[str, list[dict[str, Any]]]]:
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in entries:
        groups[_general(entry["reason"])].append(entry)
    return sorted(groups.items(), key=lambda group: order(group[1]))


def _general(reason: str) -> str:
    """The reason without what differs from layer to layer: a device's missing types form one group, numbers another."""
    reason = re.sub(r"(has no quantized) \S+$", r"\1 form of it", reason)
    return re.sub(r"[-+]?\d+\.\d+(e[-+]?\d+)?", "…", reason)


def _listing(groups: Sequence[tuple[str, list[dict[str, Any]]]]) -> list[str]:
    lines = []
    for reason, entries in groups[:MOST_REASONS]:
        types = Counter(entry["type"] for entry in entries)
        names = list(dict.fromkeys(entry["name"] for entry in entries))
        # Many operations are named best by their types, few by their names.
        told = [f"{count} {kind}" for kind, count in types.most_common(4)] if len(names) > MOST_NAMES else names
        more = "" if len(names) <= MOST_NAMES or len(types) <= 4 else ", ..."
        lines.append(f"  {len(names):>4} {reason}: {', '.join(told)}{more}")
    if len(groups) > MOST_REASONS:
        rest = sum(len(entries) for _, entries in groups[MOST_REASONS:])
        lines.append(f"  {rest:>4} for other reasons: see build/evaluate/layers.json")
    return lines


# ------------------------------------------------------------------------------------------------ seconds, layout


def _effort() -> list[str]:
    records = [(stage, artifacts.read_json(artifacts.record(stage))) for stage in STAGES if artifacts.record(stage).exists()]
    return ["seconds: " + ", ".join(f"{stage} {record['seconds']:.1f}" for stage, record in records)] if records else []


def _number(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns: the first and the last one to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    sides = ["<", *(">" for _ in widths[2:]), "<"]
    return ["  ".join(f"{text:{side}{width}}" for text, side, width in zip(row, sides, widths, strict=True)).rstrip() for row in rows]
