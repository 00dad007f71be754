"""The model card of a package, in Markdown: what the model is for, how to run it, what was measured, with which data, what stays float."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import yaml

from stages.common import artifacts
from stages.common.units import amount, difference, metric_value, number, plural
from stages.configuration import user_classes
from stages.configuration.schema import Config
from stages.deployment.deployable import Deployable
from stages.deployment.samples import Packed
from stages.report import accuracy_aware, tune
from stages.report.left_float import NOT_FLOAT, LeftOperation, by_reason, general, left_float, which

NO_LICENSE = "not stated (`package.license`)"
MOST_REASONS = 6


def card(config: Config, model: Deployable, name: str, settings: Mapping[str, Any], packed: Packed, key: str) -> str:
    """README.md of a package.

    Args:
        config: What was built.
        model: What is packaged.
        name: The package's.
        settings: Content of inference.json.
        packed: The samples in it.
        key: The result's key, by which MLflow knows it.
    """
    prepared = artifacts.read_json(artifacts.folder("prepare") / "model.json")
    samples = artifacts.read_json(artifacts.folder("prepare") / "dataset.json")
    evaluation = artifacts.read_json(artifacts.folder("evaluate") / "evaluation.json")
    sections = {
        "": [config.package.description or "What it is for: not stated (`package.description`).", "", *_opening(config, model, prepared)],
        "Run it": _run(name, settings, packed),
        "What was measured": _measured(config, model, evaluation, settings),
        "Warnings": _warnings(model, evaluation, samples),
        "Inputs and outputs": _ports(prepared),
        "Data": _data(config, samples, evaluation),
        "What is quantized, and what stays in floating point": _quantized(model),
        "Where it comes from": _origin(config, model, prepared, samples, key),
        "Licence": [config.package.license or f"Licence: {NO_LICENSE}."],
    }
    front = yaml.safe_dump(_front(config, model), sort_keys=False, allow_unicode=True)
    lines = [f"---\n{front}---\n\n# {name}\n"]
    for title, content in sections.items():
        if content:
            lines += [*([f"## {title}\n"] if title else []), "\n".join(content) + "\n"]
    return "\n".join(lines)


def _front(config: Config, model: Deployable) -> dict[str, Any]:
    """What model hubs read."""
    front: dict[str, Any] = {"library_name": "openvino", "tags": ["openvino", *([] if model.name == "fp32" else ["int8", "quantized"])]}
    return front | ({"license": config.package.license} if config.package.license else {})


def _opening(config: Config, model: Deployable, prepared: Mapping[str, Any]) -> list[str]:
    source = f", from {prepared['source']}" if "source" in prepared else ""
    size = artifacts.model_bytes(artifacts.folder("prepare"))
    smaller = "" if model.name == "fp32" else f", {size / model.size_bytes:.1f} times smaller than in floating point"
    kind = "in floating point" if model.name == "fp32" else f"({model.title}, after training)"
    return [f"{config.model.name} {kind} for OpenVINO{source}: {model.size_bytes / 1e6:.2f} MB{smaller}."]


# ------------------------------------------------------------------------------------------------ how to run it


def _run(name: str, settings: Mapping[str, Any], packed: Packed) -> list[str]:
    latency = ", ".join(f"{key} {value}" for key, value in settings["for_latency"].items())
    lines = ["```bash"]
    if packed.count:
        lines.append(f"pip install openvino numpy && python predict.py   # runs {plural(packed.count, 'sample')}, compares the outputs")
    lines += [
        "sha256sum --check SHA256SUMS",
        "ovms --config_path config.json --rest_port 8000   # OpenVINO Model Server",
        'docker run --rm -v "$PWD:/models" -p 8000:8000 openvino/model_server --config_path /models/config.json --rest_port 8000',
        "```",
        "",
        f"Settings that accuracy and throughput were measured with ([inference.json](inference.json)), for device {settings['device']}:",
        "",
        *(f"- {key}: {value}" for key, value in settings["properties"].items()),
        "",
        f"One request at a time is fastest with {latency}, as its latency below was measured.",
    ]
    if packed.left:
        left = "; ".join(f"{metric}: {reason}" for metric, reason in packed.left.items())
        lines += ["", f"predict.py does not compute every metric. {left}."]
    return lines


def _ports(prepared: Mapping[str, Any]) -> list[str]:
    rows = [(kind, port["name"], port["type"], port["shape"]) for kind in ("inputs", "outputs") for port in prepared[kind]]
    cells = [f"| {kind[:-1]} | `{name}` | {dtype} | {_shape(shape)} |" for kind, name, dtype, shape in rows]
    return ["| | name | type | shape |", "|---|---|---|---|", *cells]


def _shape(shape: Any) -> str:
    return " × ".join("any" if size == -1 else str(size) for size in shape) if isinstance(shape, list) else str(shape)


# ------------------------------------------------------------------------------------------------ what was measured


def _measured(config: Config, model: Deployable, evaluation: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    confidence = f"{100 * evaluation['confidence']:g} %"
    rows = [f"| metric | FP32 (f32) | this model | drop | {confidence} interval |", "|---|---|---|---|---|"]
    for name, metric in model.metrics.items():
        low, high = metric["drop_low"], metric["drop_high"]
        interval = "" if low is None else f"{difference(metric, low)} to {amount(metric, high)}"
        direction = "" if metric["higher_is_better"] else " (lower is better)"
        values = (metric_value(metric, metric["fp32"]), metric_value(metric, metric["value"]), amount(metric, metric["drop"]), interval)
        rows.append(f"| {name}{direction} | {' | '.join(values)} |")
    meanings = [
        f"- {name}: {meaning}"
        for name, section in config.metric.items()
        if (meaning := user_classes.meaning(section.get("_target_"))) and name in model.metrics
    ]
    place = settings["measured_on"]
    machine = f"{place['device']}, {plural(place['cores'], 'core')}, {plural(place['streams'] or 1, 'stream')}"
    lines = [f"On {plural(evaluation['samples'], 'validation sample')}.", "", *rows, "", *meanings]
    if model.latency_ms is None:
        return [*lines, "", "Speed was not measured."]
    speed = [f"- latency {number(model.latency_ms['median'])} ms"]
    if model.speed_up is not None and model.name != "fp32":
        default, ratio = evaluation["precisions"]["default"], model.speed_up
        speed.append(f"- {ratio['median']:.2f} times as fast as FP32 in {default} ({ratio['low']:.2f} to {ratio['high']:.2f})")
    if model.throughput is not None:
        speed.append(f"- throughput {number(model.throughput)} inferences per second")
    return [*lines, "", f"Speed on {machine}, OpenVINO {_version(place['openvino'])}:", "", *speed]


def _version(text: str) -> str:
    return text.partition("-")[0]


def _warnings(model: Deployable, evaluation: Mapping[str, Any], samples: Mapping[str, Any]) -> list[str]:
    found = [evaluation["fidelity"].get("warning")]
    warnings = [] if model.name == "fp32" else [text for text in evaluation["warnings"] if text not in found]
    if samples["shared"]:
        warnings.append(f"{samples['shared']} validation samples are calibration samples too: the drop looks smaller than it is")
    if model.fidelity.get("warning"):
        warnings.append(model.fidelity["warning"])
    if model.budget is False:
        warnings.append(f"the accuracy budget of {model.name} is not kept")
    return [f"- {text}" for text in warnings]


# ------------------------------------------------------------------------------------------------ data, layers, origin


def _data(config: Config, samples: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[str]:
    count = samples["calibration"]["count"]
    used = min(count, config.quantization.stat_subset_size or count)
    settings = {"calibration": config.data.calibration, "validation": config.data.validation}
    text = yaml.safe_dump({key: value for key, value in settings.items() if value}, sort_keys=False, allow_unicode=True, width=120)
    return [
        f"{config.data.name}: {plural(used, 'sample')} calibrated, {evaluation['samples']} others validated. How they are read, inputs are"
        " prepared likewise:",
        "",
        f"```yaml\n{text}```",
    ]


def _quantized(model: Deployable) -> list[str]:
    if model.quantizers is None:
        return ["Nothing is quantized."]
    quantizers = artifacts.read_json(model.quantizers)
    kinds = Counter(entry["kind"] for entry in quantizers["quantizers"])
    layers = {layer["name"] for entry in quantizers["quantizers"] for layer in entry["layers"]}
    lines = [
        f"{plural(len(layers), 'operation')} in INT8 by {kinds['weights']} weight and {kinds['activations']} activation quantizers, preset"
        f" {quantizers['preset']} for {quantizers['target_device']}; every one of them is in [quantizers.json](quantizers.json).",
    ]
    groups = by_reason(_left(model, quantizers, layers))
    if not groups:
        return [*lines, "", "Nothing else could have been.", *_of_searches(model)]
    measured = any(group.share for group in groups)
    costly = [group for group in groups if not (measured and group.free)]
    lines += ["", "In floating point, and why" + (", with the share of the run time:" if measured else ":"), ""]
    lines += [f"- {_share(group.share) if measured else ''}{group.reason}: {which(group.entries)}" for group in costly[:MOST_REASONS]]
    for words, others in (("for other reasons", costly[MOST_REASONS:]), ("fused into others, at no cost", groups[len(costly) :])):
        if count := sum(group.count for group in others):
            lines.append(f"- {plural(count, 'operation')} {words}")
    return [*lines, *_of_searches(model)]


def _left(model: Deployable, quantizers: Mapping[str, Any], layers: set[str]) -> list[LeftOperation]:
    """What could have been quantized and was not; what that costs is known of the INT8 model alone."""
    if model.name == "int8":
        return left_float(artifacts.read_json(artifacts.folder("evaluate") / "layers.json"))
    return [
        LeftOperation(entry["name"], entry["type"], general(entry["reason"]), 0.0)
        for entry in quantizers["float"]
        if entry["reason"] not in NOT_FLOAT and entry["name"] not in layers
    ]


def _share(share: float) -> str:
    return f"{100 * share:.1f} %: "


def _of_searches(model: Deployable) -> list[str]:
    """What the search that made the model says of it."""
    if model.name == accuracy_aware.NAME:
        return ["", *(line.strip() for line in accuracy_aware.cost(accuracy_aware.result())[:1])]
    return ["", tune.layers(tune.result())] if model.name == tune.NAME else []


def _origin(config: Config, model: Deployable, prepared: Mapping[str, Any], samples: Mapping[str, Any], key: str) -> list[str]:
    identities = {
        "result (content key; MLflow's run name ends in its beginning)": key,
        "source model, SHA-256": prepared["sha256"],
        "calibration samples, SHA-256": samples["calibration"]["sha256"],
        "validation samples, SHA-256": samples["validation"]["sha256"],
        **{f"model.{suffix}, SHA-256": artifacts.file_sha256(model.folder / f"model.{suffix}") for suffix in ("xml", "bin")},
    }
    evaluation = artifacts.read_json(artifacts.folder("evaluate") / "evaluation.json")
    versions = {"OpenVINO": evaluation["openvino"], "NumPy": evaluation["numpy"], "Python": evaluation["python"]}
    rows = [f"| {name} | `{value}` |" for name, value in (identities | versions).items()]
    quantization = "" if model.quantizers is None else f" Quantization: `{json.dumps(_set(config.quantization))}`."
    return [f"Built with DVC from params.yaml.{quantization}", "", "| | |", "|---|---|", *rows]


def _set(section: Any) -> dict[str, Any]:
    """What is not at its default in a section of the configuration."""
    defaults = dataclasses.asdict(type(section)())
    return {key: value for key, value in dataclasses.asdict(section).items() if value != defaults[key]} or {"preset": section.preset}
