"""Results of the zoo as a Markdown table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.zoo.entries import read

HEADER = (
    "model",
    "metric",
    "FP32",
    "default",
    "performance",
    "mixed",
    "accuracy",
    "NNCF performance",
    "NNCF mixed",
    "ours - NNCF",
    "fidelity",
    "times faster than f32: default; performance, mixed, accuracy; NNCF",
    "CPU s, ours / NNCF",
)
EXPLANATION = """\
# Models of the zoo

Made by `python -m tests.zoo --all --results FOLDER`; `python -m tests.zoo --table FOLDER` prints it again. Every model went through
`dvc repro` as its file in [models/](models) brings it. FP32 in f32 and in the device's default precision ({precisions}); INT8 by preset, ours and
`nncf.quantize` of the same calibration samples. *Ours - NNCF*: how much better our model of the same preset is (performance; mixed), with the 95 %
interval of a paired bootstrap; **bold** where we are worse beyond it. Fidelity: what the pipeline's own check says of the compiled INT8 models.
Latency: how many times faster than FP32 in f32, all models in turns in one process. CPU seconds: statistics, quantization and bias correction, in
one process. OpenVINO {openvino}, NNCF {nncf}, {device}.
"""


def table(folder: Path) -> str:
    """The Markdown of all results in `folder`."""
    results = {file.stem: json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("*.json"))}
    variants = [(name, variant, result) for name, whole in results.items() for variant, result in whole.items()]
    complete = [result for _, _, result in variants if "fp32" in result]
    facts = {key: ", ".join(sorted({str(result[key]) for result in complete if key in result})) for key in ("openvino", "nncf", "device")}
    precisions = ", ".join(sorted({result["default_precision"] for result in complete}))
    lines = [_line(HEADER), _line(["---"] * len(HEADER)), *(_line(_cells(name, variant, result)) for name, variant, result in variants)]
    about = [f"- **{name}**: {read(name).about}" for name in results]
    return "\n".join([EXPLANATION.format(precisions=precisions, **facts), *lines, "", *about, ""])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(name: str, variant: str, result: dict[str, Any]) -> list[str]:
    title = f"{name}, {variant}"
    if "fp32" not in result:
        return [title, f"failed: {result['failed']}", *[""] * (len(HEADER) - 2)]
    ours, peers = result["presets"], result["peers"]
    shown = [_value(ours[preset]["value"], result) if preset in ours else "" for preset in ("performance", "mixed", "accuracy")]
    theirs = [_value(peers[preset]["value"], result) if "value" in peers.get(preset, {}) else _why(peers, preset) for preset in ("performance", "mixed")]
    samples = f"{result['metric']} ({result['validation']} samples)"
    fp32 = [_value(result["fp32"], result), _value(result["default"], result)]
    return [title, samples, *fp32, *shown, *theirs, _against(peers, result), _fidelity(ours), _speed(result), _seconds(result)] + (
        [] if "failed" not in result else []
    )


def _why(peers: dict[str, Any], preset: str) -> str:
    return "fails" if preset in peers else ""


def _value(value: float, result: dict[str, Any]) -> str:
    return f"{100 * value:.1f} %" if result["share"] else f"{value:.3g}"


def _against(peers: dict[str, Any], result: dict[str, Any]) -> str:
    parts = []
    for preset in ("performance", "mixed"):
        below = peers.get(preset, {}).get("ours_below")
        if below is None or None in below:
            continue
        better = [-value for value in (below[0], below[2], below[1])]
        text = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * value for value in better)) if result["share"] else "{:+.3g} [{:+.3g}, {:+.3g}]".format(*better)
        parts.append(f"**{text}**" if worse(below) else text)
    return "; ".join(parts)


def worse(below: Sequence[float]) -> bool:
    """Whether a model is less accurate than its peer beyond the interval `[value, low, high]` of how much it is below it."""
    return below[1] is not None and below[1] > 0


def _fidelity(ours: dict[str, Any]) -> str:
    checks = {preset: outcome["fidelity"] for preset, outcome in ours.items() if outcome.get("fidelity") is not None}
    return "; ".join(f"{preset}: {_short(check)}" for preset, check in checks.items())


def _short(check: Any) -> str:
    """The verdict of a fidelity check, whatever else it holds."""
    if isinstance(check, dict):
        return str(next((check[key] for key in ("verdict", "holds", "worst") if key in check), ", ".join(map(str, check.values()))))
    return str(check)


def _speed(result: dict[str, Any]) -> str:
    speed = {name: f"{values[0]:.2f}" for name, values in result.get("latency", {}).items()}
    ours = ", ".join(value for name, value in speed.items() if name.startswith("ours"))
    theirs = ", ".join(value for name, value in speed.items() if name.startswith("NNCF"))
    return "; ".join([speed["FP32 default"], ours, theirs]) if speed else ""


def _seconds(result: dict[str, Any]) -> str:
    theirs = [peer["cpu_seconds"] for peer in result["peers"].values() if "cpu_seconds" in peer]
    return f"{result['ours_cpu_seconds']} / {', '.join(map(str, theirs))}" if "ours_cpu_seconds" in result else ""
