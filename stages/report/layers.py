"""Layers in the report: the noisiest, the costliest, those that stayed in floating point, and their biases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.common.units import plural
from stages.configuration.schema import Config
from stages.report.calibration import corrected_by, statistics_collected, tuned_from
from stages.report.left_float import Group, which

MOST_NOISY = 15
MOST_COSTLY = 12


@dataclass(frozen=True)
class Bar:
    """A line of a bar chart; `width` in percent of the longest."""

    name: str
    note: str
    width: float
    value: str
    kind: str


@dataclass(frozen=True)
class FloatGroup:
    """Operations that stayed in floating point for one reason."""

    reason: str
    which: str
    count: int
    share: str


def noise(noise: Sequence[Mapping[str, Any]]) -> Iterator[Bar]:
    """The noisiest inputs; the bar is the noise's share of the signal's amplitude, the longest the noisiest."""
    shown = noise[:MOST_NOISY]
    amplitudes = [_amplitude(row["sqnr_db"]) for row in shown]
    for row, amplitude in zip(shown, amplitudes, strict=True):
        share = f"{100 * amplitude:.2g} %"
        yield Bar(row["layer"], _scheme(row), 100 * amplitude / amplitudes[0], f"{share} · {row['sqnr_db']:.1f} dB", row["kind"])


def effects(effect: Sequence[Mapping[str, Any]]) -> Iterator[Bar]:
    """The blocks that change the outputs most when they alone are quantized; the bar is the relative error, the longest the worst."""
    shown = [row for row in effect[:MOST_NOISY] if row["effect_on"] > 0]
    for row in shown:
        noise = "" if row["sqnr_db"] is None else f"noise {row['sqnr_db']:.1f} dB"
        agreement = "" if row["agreement_on"] is None else f"predictions as FP32's: {100 * row['agreement_on']:.1f} %"
        gain = row["effect_off"]
        without = "" if gain is None else f"INT8's error without it: {'less' if gain >= 0 else 'more'} by {100 * abs(gain):.2g} points"
        note = ", ".join(part for part in (noise, agreement, without) if part)
        yield Bar(row["layer"], note, 100 * row["effect_on"] / shown[0]["effect_on"], f"{100 * row['effect_on']:.2g} %", "int8")


def effect_missing(effect: Mapping[str, Any]) -> str:
    """Why the effect of some blocks, or of any, was not measured, in a sentence; empty where all were."""
    if not effect:
        return "The effect on the outputs was not measured: evaluate.effect_samples is 0."
    if not effect["missing"]:
        return ""
    left = effect["blocks"] - effect["alone"]
    return f"{plural(left, 'block')} of {effect['blocks']} not measured: {effect['missing']}."


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


def quantized(quantizers: Mapping[str, Any]) -> str:
    kinds = [entry["kind"] for entry in quantizers["quantizers"]]
    layers = {layer["name"] for entry in quantizers["quantizers"] for layer in entry["layers"]}
    weights, activations = (plural(kinds.count(f"{word}s"), f"{word} quantizer") for word in ("weight", "activation"))
    return f"{plural(len(layers), 'operation')} by {weights} and {activations}"


def slowest_layers(rows: Sequence[Mapping[str, Any]]) -> Iterator[Bar]:
    """What INT8's time goes to, layer by layer."""
    timed = sorted((row for row in rows if row["run_time_share"]), key=lambda row: -row["run_time_share"])[:MOST_COSTLY]
    for row in timed:
        width = 100 * row["run_time_share"] / timed[0]["run_time_share"]
        kind = "float" if row["kind"] == "float" else "int8"
        state = f"stayed float: {row['float_reason']}" if kind == "float" else "quantized"
        name = row["layer"].split(" < ")[0].removesuffix(f":{row['port']}")
        yield Bar(name, f"{row['type']}, {state}, runs as {row['runs_as']}", width, f"{100 * row['run_time_share']:.1f} %", kind)


def time_spent(rows: Sequence[Mapping[str, Any]]) -> Iterator[Bar]:
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


def left_group(group: Group) -> FloatGroup:
    return FloatGroup(group.reason, which(group.entries), group.count, f"{100 * group.share:.1f} %" if group.share else "–")


def free_of_cost(kept: Sequence[Group]) -> str:
    """How much of what stayed float costs nothing; empty where times were not measured."""
    free = sum(group.count for group in kept if not group.share)
    if not free or free == sum(group.count for group in kept):
        return ""
    return f"{free} of them take no time of their own, because the runtime fuses them into other layers."


def biases(config: Config, corrections: Mapping[str, Any]) -> str:
    if not config.bias_correction.enabled:
        return "Biases were not corrected: bias_correction.enabled is false."
    count = plural(len(corrections["corrected"]), "bias", "biases")
    return f"{count} corrected {corrected_by(corrections)}, {len(corrections['left'])} left as they were."


def calibration_runs(corrections: Mapping[str, Any]) -> Iterator[str]:
    """What the calibration samples were run for, in sentences."""
    texts = [statistics_collected()]
    if "layerwise_tuning" in corrections:
        texts.append(f"layer-wise tuning: {tuned_from(corrections['layerwise_tuning'])}")
    for text in filter(None, texts):
        yield f"{text[0].upper()}{text[1:]}."
