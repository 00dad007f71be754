"""The result of a pipeline run in about twenty lines, from its artifacts alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from stages.common import artifacts
from stages.common.units import amount, difference, metric_value, model_names, number, plural, ratio
from stages.configuration.schema import Config
from stages.report import accuracy_aware, tune
from stages.report.advice import advice
from stages.report.advice import lines as advice_lines
from stages.report.calibration import corrected_by, statistics_collected, tuned_from
from stages.report.facts import facts
from stages.report.left_float import LeftOperation, by_reason, left_biases, left_float, which
from stages.report.measured import INT8, Model, models, to_deploy

MOST_REASONS = 5
STAGES = ("config", "prepare", "collect_statistics", "quantize", "correct_bias", "evaluate", "accuracy_aware", "tune")


def summary(config: Config) -> str:
    """What the model lost, gained and kept in floating point; lines without a final newline."""
    evaluation = artifacts.read_json(artifacts.folder("evaluate") / "evaluation.json")
    speed = artifacts.read_json(artifacts.folder("evaluate") / "latency.json")
    quantizers = artifacts.read_json(artifacts.folder("quantize") / "quantizers.json")
    rows = artifacts.read_json(artifacts.folder("evaluate") / "layers.json")
    corrections = artifacts.read_json(artifacts.folder("correct_bias") / "corrections.json")
    samples = artifacts.read_json(artifacts.folder("prepare") / "dataset.json")
    used = min(samples["calibration"]["count"], config.quantization.stat_subset_size or samples["calibration"]["count"])
    lines = [
        f"{config.model.name} on {config.data.name}: preset {config.quantization.preset} for {config.target_device.name},"
        f" {used} calibration and {samples['validation']['count']} validation samples",
        *_overlap(samples),
        *(f"WARNING: {note}" for note in _notes()),
        "",
        *_table(evaluation, speed, models()),
        *(f"WARNING: {warning}" for warning in (*evaluation["warnings"], *quantizers["warnings"])),
        "",
        *_statistics(),
        *_quantized(quantizers, rows),
        *_restricted(quantizers),
        *_alignment(quantizers),
        *_biases(config, corrections),
        *_tuning(corrections),
        *accuracy_aware.summary_lines(),
        *tune.summary_lines(evaluation["precisions"]["default"]),
        *_effort(),
        *advice_lines(advice(facts())),
    ]
    return "\n".join(lines)


def _overlap(samples: dict[str, Any]) -> list[str]:
    shared = samples["shared"]
    if not shared:
        return []
    return [f"WARNING: {shared} of the validation samples are calibration samples too, so the drop looks smaller than it is"]


def _notes() -> list[str]:
    """What `prepare` found odd about the data."""
    record = artifacts.record("prepare")
    return list(artifacts.read_json(record).get("notes", ())) if record.exists() else []


# ------------------------------------------------------------------------------------------------ accuracy, speed, size


def _table(evaluation: dict[str, Any], speed: dict[str, Any], found: list[Model]) -> list[str]:
    """One line per metric, then latency, throughput and size: a column for each model, and what became of the one to deploy."""
    default, sizes = evaluation["precisions"]["default"], evaluation["size_bytes"]
    floats = {key: name for key, name in model_names(evaluation["precisions"]).items() if key != INT8}
    chosen = to_deploy(found)
    rows = [["", *floats.values(), *(model.name for model in found), ""]]
    for name, metric in evaluation["metrics"].items():
        own = [metric_value(metric, model.metrics[name][INT8]) if name in model.metrics else "-" for model in found]
        remark = _drop(chosen.metrics[name], metric, evaluation) if name in chosen.metrics else ""
        rows.append([name, *(metric_value(metric, metric[key]) for key in floats), *own, remark])
    if speed:
        remark = ""
        if chosen.speed:
            references = [(key, name) for key, name in (("fp32", "f32"), ("default", default)) if key in floats]
            remark = f"{chosen.name} is " + ", ".join(ratio(chosen.speed["speed_up"][key], name) for key, name in references)
        for row, key, unit in (("latency", "latency_ms", " ms"), ("throughput", "throughput", " /s")):
            known = [speed[key][model] for model in floats] + [model.speed.get(key, {}).get(INT8) for model in found]
            cells = [_measured(value["median"] if isinstance(value, dict) else value, unit) for value in known]
            rows.append([row, *cells, remark if row == "latency" else ""])
    factor = sizes["fp32"] / chosen.size
    smaller = f"{factor:.1f}x smaller" if factor >= 1 else f"{1 / factor:.1f}x LARGER"
    rows.append(
        ["size", *(f"{size / 1e6:.2f} MB" for size in [*(sizes["fp32"] for _ in floats), *(model.size for model in found)]), smaller]
    )
    return _aligned(rows)


def _measured(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{number(value)}{unit}"


def _drop(metric: Mapping[str, Any], quantized: Mapping[str, Any], evaluation: dict[str, Any]) -> str:
    """`drop 1.20 points, 95 % interval [0.60, 1.90], bf16 alone 0.30`; a share is counted in points, anything else in its own unit.

    Args:
        metric: Of the model to deploy.
        quantized: The same metric as `evaluate` has it, with what the default precision alone loses.
        evaluation: Content of evaluation.json.
    """
    direction = "" if metric["higher_is_better"] else " (lower is better)"
    text = f"drop {amount(metric, metric['drop'])}{direction}"
    if metric["drop_low"] is None:
        return text
    low, high = (difference(metric, metric[side]) for side in ("drop_low", "drop_high"))
    default = evaluation["precisions"]["default"]
    part = f", {default} alone {difference(metric, quantized['precision_drop'])}" if "precision_drop" in quantized else ""
    return f"{text}, {100 * evaluation['confidence']:g} % interval [{low}, {high}]{part}"


# ------------------------------------------------------------------------------------------------ layers


def _statistics() -> list[str]:
    collected = statistics_collected()
    return [f"statistics: {collected}"] if collected else []


def _quantized(quantizers: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """What became INT8, and what did not and why: what costs most first, then layers with weights, then the many."""
    kinds = Counter(entry["kind"] for entry in quantizers["quantizers"])
    layers = {layer["name"] for entry in quantizers["quantizers"] for layer in entry["layers"]}
    title = f"quantized: {plural(len(layers), 'operation')}, by {kinds['weights']} weight and {kinds['activations']} activation quantizers"
    left = left_float(rows)
    if not left:
        return [title, "left float: nothing"]
    total = sum(entry.share for entry in left)
    measured = f", {100 * total:.1f} % of INT8's run time" if total else ""
    return [title, f"left float: {plural(len({entry.name for entry in left}), 'operation')}{measured}", *_listing(left, shares=total > 0)]


def _restricted(quantizers: dict[str, Any]) -> list[str]:
    """What is quantized in another way than the preset asks for, because the device gets that wrong."""
    reasons = Counter(entry["restriction"] for entry in quantizers["quantizers"] if entry["restriction"] is not None)
    lines = [f" {count:>4} {reason}" for reason, count in reasons.most_common()]
    return [f"not as the preset has it: {plural(sum(reasons.values()), 'quantizer')}", *lines] if lines else []


def _alignment(quantizers: dict[str, Any]) -> list[str]:
    """One line, where there are neighbouring layers whose channels could be aligned."""
    aligned, not_aligned = len(quantizers["aligned"]), quantizers["not_aligned"]
    if not aligned and not not_aligned:
        return []
    reasons = ", ".join(f"{count} as {reason}" for reason, count in Counter(pair["reason"] for pair in not_aligned).most_common())
    line = f"channels: {plural(aligned, 'layer')} aligned with the one before, {len(not_aligned)} left"
    return [f"{line}: {reasons}" if reasons else line]


def _biases(config: Config, corrections: dict[str, Any]) -> list[str]:
    if not config.bias_correction.enabled:
        return ["biases: not corrected (bias_correction.enabled is false)"]
    left = left_biases(corrections)
    return [
        f"biases: {len(corrections['corrected'])} corrected {corrected_by(corrections)}, {len(left)} left",
        *_listing(left, shares=False),
    ]


def _tuning(corrections: dict[str, Any]) -> list[str]:
    """What layer-wise tuning did to the layers, and what had to be collected for it."""
    if "layerwise_tuning" not in corrections:
        return []
    tuning = corrections["layerwise_tuning"]
    shares = [entry["loss_after"] / entry["loss_before"] for entry in tuning["tuned"]]
    smaller = f", their squared error {100 - 100 * median(shares):.0f} % smaller (median)" if shares else ""
    left = [LeftOperation(entry["name"], entry["type"], entry["reason"], 0.0) for entry in tuning["left"]]
    title = f"layer-wise tuning: {plural(len(shares), 'layer')}{smaller}, {len(left)} left; {tuned_from(tuning)}"
    return [title, *_listing(left, shares=False)]


def _listing(left: Sequence[LeftOperation], *, shares: bool) -> list[str]:
    """One line per reason: share of the run time where it is measured, number of operations, which ones."""
    groups = by_reason(left)
    # Where times are known, what takes none (it is fused into a quantized layer) is told in one line.
    free = [entry for group in groups for entry in group.entries if shares and group.free]
    told = [group for group in groups if not (shares and group.free)]
    lines = [_line(f"{group.reason}: {which(group.entries)}", group.entries, shares=shares) for group in told[:MOST_REASONS]]
    if rest := [entry for group in told[MOST_REASONS:] for entry in group.entries]:
        lines.append(_line("for other reasons: see build/evaluate/layers.json", rest, shares=shares))
    if free:
        lines.append(_line(f"that take no time of their own: {which(free)}", free, shares=shares))
    return lines


def _line(text: str, entries: Sequence[LeftOperation], *, shares: bool) -> str:
    share = 100 * sum(entry.share for entry in entries)
    cost = f"{f'{share:.1f} %' if share else '-':>7} " if shares else ""
    return f" {cost}{len({entry.name for entry in entries}):>4} {text}"


# ------------------------------------------------------------------------------------------------ seconds, layout


def _effort() -> list[str]:
    records = [(stage, artifacts.read_json(artifacts.record(stage))) for stage in STAGES if artifacts.record(stage).exists()]
    return ["seconds: " + ", ".join(f"{stage} {record['seconds']:.1f}" for stage, record in records)] if records else []


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns: the first and the last one to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    sides = ["<", *(">" for _ in widths[2:]), "<"]
    return ["  ".join(f"{text:{side}{width}}" for text, side, width in zip(row, sides, widths, strict=True)).rstrip() for row in rows]
