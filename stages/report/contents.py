"""What the report says, from the artifacts of the stages alone: every sentence, number and bar, ready to be set."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stages.common import artifacts
from stages.common.units import amount, difference, metric_value, model_names, number, plural
from stages.config import completed
from stages.configuration import user_classes
from stages.configuration.schema import COMPUTED, MISSING, Config
from stages.report import accuracy_aware_section, tune_section
from stages.report.accuracy_aware_section import BudgetSection
from stages.report.calibration import corrected_by, statistics_collected, tuned_from
from stages.report.left_float import Group, by_reason, left_biases, left_float, which
from stages.report.tradeoff import Picture, Point, picture
from stages.report.tune_section import Tuning

STAGES = {
    "config": "checks the configuration",
    "prepare": "imports the model, reads and checks every sample",
    "collect_statistics": "runs the calibration samples",
    "quantize": "decides what is quantized, and the ranges",
    "correct_bias": "shifts biases by the error of quantized weights",
    "evaluate": "measures accuracy, speed and noise",
    "accuracy_aware": "reverts layers until the accuracy budget holds",
    "tune": "searches the fastest configuration within the budget",
}
MOST_NOISY = 15
MOST_COSTLY = 12
TABLES = ("schemes", "operations", "unified_scales", "pass_through")  # of the target device: long, and named by it


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


@dataclass(frozen=True)
class Bar:
    """A line of a bar chart; `width` in percent of the longest."""

    name: str
    note: str
    width: float
    value: str
    kind: str


@dataclass(frozen=True)
class Step:
    """What a stage cost."""

    name: str
    does: str
    width: float
    seconds: str
    cpu_seconds: str
    memory: str


@dataclass(frozen=True)
class Setting:
    """A key of the configuration that is not at its default."""

    key: str
    value: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Kept:
    """Operations that stayed in floating point for one reason."""

    reason: str
    which: str
    count: int
    share: str


@dataclass(frozen=True)
class Commit:
    """The state of the project's repository; `changed` names files that differ from the commit."""

    sha: str
    date: str
    changed: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """Everything on the page, from top to bottom."""

    model: str
    data: str
    preset: str
    device: str
    verdict: str
    warnings: tuple[str, ...]
    figures: tuple[Figure, ...]
    columns: tuple[str, ...]
    results: tuple[Row, ...]
    calibration: int
    validation: int
    confidence: str
    precision: str
    rounds: int | None
    picture: Picture | None
    budget: BudgetSection | None
    tuning: Tuning | None
    noise: tuple[Bar, ...]
    noise_total: int
    noise_samples: int
    quantized: str
    costly: tuple[Bar, ...]
    spent: tuple[Bar, ...]
    kept: tuple[Kept, ...]
    kept_total: str
    kept_free: str
    biases: str
    biases_left: tuple[Kept, ...]
    collected: tuple[str, ...]
    layers: tuple[Mapping[str, Any], ...]
    steps: tuple[Step, ...]
    total_seconds: str
    settings: tuple[Setting, ...]
    commit: Commit | None
    identities: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]
    params: str
    config: str
    key: str
    deployable: str


def contents(config: Config, key: str) -> Report:
    """The report on what is in build/.

    Args:
        config: What was built.
        key: The result's key, which also names its run in MLflow.

    Raises:
        UserError: when an artifact is missing or corrupt.
    """
    folder = artifacts.folder("evaluate")
    evaluation, speed = artifacts.read_json(folder / "evaluation.json"), artifacts.read_json(folder / "latency.json")
    rows = artifacts.read_json(folder / "layers.json")
    quantizers = artifacts.read_json(artifacts.folder("quantize") / "quantizers.json")
    corrections = artifacts.read_json(artifacts.folder("correct_bias") / "corrections.json")
    samples = artifacts.read_json(artifacts.folder("prepare") / "dataset.json")
    model = artifacts.read_json(artifacts.folder("prepare") / "model.json")
    records = {name: artifacts.read_json(artifacts.record(name)) for name in STAGES if artifacts.record(name).exists()}

    count = samples["calibration"]["count"]
    noise = sorted((row for row in rows if row["sqnr_db"] is not None), key=lambda row: row["sqnr_db"])
    kept = by_reason(left_float(rows))
    confidence = f"{100 * evaluation['confidence']:g} %"
    kept_budget = accuracy_aware_section.section()
    tuned = tune_section.tuning(evaluation["precisions"]["default"])
    return Report(
        model=config.model.name,
        data=config.data.name,
        preset=config.quantization.preset,
        device=config.target_device.name,
        verdict=_verdict(config, evaluation, speed),
        warnings=(*_warnings(samples), *evaluation["warnings"]),
        figures=tuple(_figures(config, evaluation, speed)),
        columns=(*model_names(evaluation["precisions"]).values(), *_searched_names(kept_budget, tuned)),
        results=tuple(_results(config, evaluation, speed)),
        calibration=min(count, config.quantization.stat_subset_size or count),
        validation=samples["validation"]["count"],
        confidence=confidence,
        precision=evaluation["precisions"]["default"],
        rounds=speed.get("rounds"),
        picture=_picture(config, evaluation, speed),
        budget=kept_budget,
        tuning=tuned,
        noise=tuple(_noise(noise)),
        noise_total=len(noise),
        noise_samples=min(config.evaluate.noise_samples, samples["validation"]["count"]),
        quantized=_quantized(quantizers),
        costly=tuple(_costly(rows)),
        spent=tuple(_spent(rows)),
        kept=tuple(_kept(group) for group in kept),
        kept_total=plural(sum(group.count for group in kept), "operation"),
        kept_free=_free(kept),
        biases=_biases(config, corrections),
        biases_left=tuple(_kept(group) for group in by_reason(left_biases(corrections))),
        collected=tuple(_collected(corrections)),
        layers=tuple(rows),
        steps=tuple(_steps(records)),
        total_seconds=number(sum(record["seconds"] for record in records.values())),
        settings=tuple(_settings(config)),
        commit=_commit(),
        identities=tuple(_identities(model, samples, kept_budget, tuned)),
        versions=tuple(_versions(evaluation)),
        params=_params(),
        config=yaml.safe_dump(_told(config), sort_keys=False, allow_unicode=True, width=120),
        key=key,
        deployable=str(_deployable(kept_budget, tuned)),
    )


def _searched_names(kept_budget: BudgetSection | None, tuned: Tuning | None) -> list[str]:
    """The columns of the models that searches found."""
    return [*([kept_budget.column] if kept_budget else []), *([tune_section.NAME] if tuned else [])]


def _deployable(kept_budget: BudgetSection | None, tuned: Tuning | None) -> Path:
    """The model of the last stage whose budget holds."""
    if tuned and tuned.within:
        return tuned.model
    return kept_budget.model if kept_budget and kept_budget.holds else artifacts.folder("correct_bias") / "model.xml"


# ------------------------------------------------------------------------------------------------ the result


def _verdict(config: Config, evaluation: Mapping[str, Any], speed: Mapping[str, Any]) -> str:
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


def _warnings(samples: Mapping[str, Any]) -> Iterator[str]:
    if samples["shared"]:
        yield (
            f"{samples['shared']} of the {samples['validation']['count']} validation samples are calibration samples too: "
            "the drop looks smaller than it is."
        )


def _figures(config: Config, evaluation: Mapping[str, Any], speed: Mapping[str, Any]) -> Iterator[Figure]:
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


def _results(config: Config, evaluation: Mapping[str, Any], speed: Mapping[str, Any]) -> Iterator[Row]:
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


def _picture(config: Config, evaluation: Mapping[str, Any], speed: Mapping[str, Any]) -> Picture | None:
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


# ------------------------------------------------------------------------------------------------ layers


def _noise(noise: Sequence[Mapping[str, Any]]) -> Iterator[Bar]:
    """The noisiest inputs; the bar is the noise's share of the signal's amplitude, the longest the noisiest."""
    shown = noise[:MOST_NOISY]
    amplitudes = [_amplitude(row["sqnr_db"]) for row in shown]
    for row, amplitude in zip(shown, amplitudes, strict=True):
        share = f"{100 * amplitude:.2g} %"
        yield Bar(row["layer"], _scheme(row), 100 * amplitude / amplitudes[0], f"{share} · {row['sqnr_db']:.1f} dB", row["kind"])


def _amplitude(sqnr_db: float) -> float:
    """The noise's amplitude as a share of the signal's."""
    return float(10 ** (-sqnr_db / 20))


def _scheme(row: Mapping[str, Any]) -> str:
    """`activations of a Convolution, 8 bits, symmetric, per tensor, mean of abs_max`."""
    granularity = {"pertensor": "per tensor", "perchannel": "per channel"}.get(str(row.get("granularity")), "")
    parts = [
        f"{row['kind']} of {row['type']}" if row.get("type") else row["kind"],
        f"{row['bits']} bits" if row.get("bits") else "",
        row.get("mode") or "",
        granularity,
        row.get("estimator") or "",
    ]
    return ", ".join(part for part in parts if part)


def _quantized(quantizers: Mapping[str, Any]) -> str:
    kinds = [entry["kind"] for entry in quantizers["quantizers"]]
    layers = {layer["name"] for entry in quantizers["quantizers"] for layer in entry["layers"]}
    weights, activations = (plural(kinds.count(f"{word}s"), f"{word} quantizer") for word in ("weight", "activation"))
    return f"{plural(len(layers), 'operation')} by {weights} and {activations}"


def _costly(rows: Sequence[Mapping[str, Any]]) -> Iterator[Bar]:
    """What INT8's time goes to, layer by layer."""
    timed = sorted((row for row in rows if row["run_time_share"]), key=lambda row: -row["run_time_share"])[:MOST_COSTLY]
    for row in timed:
        width = 100 * row["run_time_share"] / timed[0]["run_time_share"]
        kind = "float" if row["kind"] == "float" else "int8"
        state = f"stayed float: {row['float_reason']}" if kind == "float" else "quantized"
        name = row["layer"].split(" < ")[0].removesuffix(f":{row['port']}")
        yield Bar(name, f"{row['type']}, {state}, runs as {row['runs_as']}", width, f"{100 * row['run_time_share']:.1f} %", kind)


def _spent(rows: Sequence[Mapping[str, Any]]) -> Iterator[Bar]:
    """INT8's time by what became of the layers; empty where it was not measured."""
    quantized, kept = (
        sum(row["run_time_share"] or 0.0 for row in rows if (row["kind"] == "float") is left_float) for left_float in (False, True)
    )
    if quantized + kept == 0.0:
        return
    rest = max(0.0, 1.0 - quantized - kept)
    for share, name, kind in (
        (quantized, "quantized operations", "int8"),
        (kept, "operations that stayed float", "float"),
        (rest, "moving and converting data", "rest"),
    ):
        if share >= 0.0005:
            yield Bar(name, "", 100 * share, f"{100 * share:.1f} %", kind)


def _kept(group: Group) -> Kept:
    return Kept(group.reason, which(group.entries), group.count, f"{100 * group.share:.1f} %" if group.share else "–")


def _free(kept: Sequence[Group]) -> str:
    """How much of what stayed float costs nothing; empty where times were not measured."""
    free = sum(group.count for group in kept if not group.share)
    if not free or free == sum(group.count for group in kept):
        return ""
    return f"{free} of them take no time of their own, because the runtime fuses them into other layers."


def _biases(config: Config, corrections: Mapping[str, Any]) -> str:
    if not config.bias_correction.enabled:
        return "Biases were not corrected: bias_correction.enabled is false."
    count = plural(len(corrections["corrected"]), "bias", "biases")
    return f"{count} corrected {corrected_by(corrections)}, {len(corrections['left'])} left as they were."


def _collected(corrections: Mapping[str, Any]) -> Iterator[str]:
    """What the calibration samples were run for, in sentences."""
    texts = [statistics_collected()]
    if "layerwise_tuning" in corrections:
        texts.append(f"layer-wise tuning: {tuned_from(corrections['layerwise_tuning'])}")
    for text in filter(None, texts):
        yield f"{text[0].upper()}{text[1:]}."


# ------------------------------------------------------------------------------------------------ cost, reproduction


def _steps(records: Mapping[str, Mapping[str, Any]]) -> Iterator[Step]:
    longest = max((record["seconds"] for record in records.values()), default=0.0) or 1.0
    for name, record in records.items():
        yield Step(
            name,
            STAGES[name],
            round(100 * record["seconds"] / longest, 2),
            f"{record['seconds']:.1f}",
            f"{record['cpu_seconds']:.1f}",
            f"{record['peak_memory_mb']:.0f}",
        )


def _settings(config: Config) -> Iterator[Setting]:
    """What is not at its default, and does not follow from something else."""
    implied = completed(dataclasses.replace(Config(), quantization=config.quantization, metric=config.metric))
    defaults = dataclasses.replace(Config(), collect_statistics=implied.collect_statistics, evaluate=implied.evaluate)
    for key, value, default, meaning in _values(config, defaults, ""):
        if value != default and key not in COMPUTED:
            yield Setting(key, _text(value), "required" if default == MISSING else _text(default), meaning)


def _values(section: Any, defaults: Any, prefix: str) -> Iterator[tuple[str, Any, Any, str]]:
    """Key, value, default and meaning of everything in a section of the configuration."""
    for field in dataclasses.fields(section):
        value, default, key = getattr(section, field.name), getattr(defaults, field.name), f"{prefix}{field.name}"
        if prefix in ("target_device.", "tracking.") and (field.name in TABLES or prefix == "tracking."):
            continue
        if dataclasses.is_dataclass(value) and dataclasses.is_dataclass(default):
            yield from _values(value, default, f"{key}.")
        else:
            yield key, value, default, field.metadata["meaning"]


def _text(value: Any) -> str:
    """A value as one would write it in YAML, on one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=dataclasses.asdict)


def _told(config: Config) -> dict[str, Any]:
    """The whole configuration but for where it is tracked, which may hold a password and changes nothing."""
    return {name: value for name, value in dataclasses.asdict(config).items() if name != "tracking"}


def _params() -> str:
    path = Path("params.yaml")
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _identities(
    model: Mapping[str, Any], samples: Mapping[str, Any], kept_budget: BudgetSection | None, tuned: Tuning | None
) -> Iterator[tuple[str, str]]:
    if "source" in model:
        yield "FP32 model", model["source"]
    yield "FP32 model, SHA-256", model["sha256"]
    for kind in ("calibration", "validation"):
        yield f"{plural(samples[kind]['count'], kind + ' sample')}, SHA-256", samples[kind]["sha256"]
    for suffix in ("xml", "bin"):
        path = artifacts.folder("correct_bias") / f"model.{suffix}"
        yield f"INT8 model.{suffix}, SHA-256", artifacts.file_sha256(path)
        if kept_budget:
            yield f"{kept_budget.column} model.{suffix}, SHA-256", artifacts.file_sha256(kept_budget.model.with_suffix(f".{suffix}"))
        if tuned:
            yield f"{tune_section.NAME} model.{suffix}, SHA-256", artifacts.file_sha256(tuned.model.with_suffix(f".{suffix}"))


def _versions(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    names = {"device": "measured on", "cores": "CPU cores", "openvino": "OpenVINO", "numpy": "NumPy", "python": "Python"}
    return ((label, str(evaluation[name])) for name, label in names.items() if name in evaluation)


def _commit() -> Commit | None:
    """The commit of the project; None outside a repository, or without git."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout

    with suppress(OSError, subprocess.CalledProcessError):
        sha, date = git("log", "-1", "--format=%H %cs").split()
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".").splitlines()
        return Commit(sha, date, tuple(line[3:] for line in changed))
    return None
