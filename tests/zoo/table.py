"""Results of the zoo as Markdown: what quantization cost each model, and what it gained."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.zoo.entries import read
from tests.zoo.pipeline import PRESETS

PEERS = ("performance", "mixed")
ABOUT = """\
# Models of the zoo

Made by `python -m tests.zoo --all --results FOLDER`; `python -m tests.zoo --table FOLDER` prints it again. Every model went
through `dvc repro` as its file in [models/](models) brings it. OpenVINO {openvino}, NNCF {nncf}, {device}; FP32's default
precision: {default_precision}.

"""
ACCURACY = """
## Accuracy

INT8 by preset, ours and `nncf.quantize` of the same calibration samples. *Ours - NNCF*: how much better ours is (performance;
mixed), with the 95 % interval of a paired bootstrap over the validation samples; **bold** where ours is worse beyond it.
"""
COST = """
## Speed, cost and fidelity

Times faster than FP32 in f32: CPU time of an inference on one thread, all models in turns in one process. CPU seconds:
statistics, quantization and bias correction of one preset, ours and NNCF's in one process. Fidelity: how far the compiled INT8
models are from what they say, as a multiple of what rounding explains, preset by preset; **bold** where that is too much.
"""
ACCURACY_HEADER = ("model", "metric", "samples", "FP32", "default", *PRESETS, *(f"NNCF {preset}" for preset in PEERS), "ours - NNCF")
COST_HEADER = ("model", "default", *PRESETS, *(f"NNCF {preset}" for preset in PEERS), "CPU s, ours", "CPU s, NNCF", "fidelity")


def table(folder: Path) -> str:
    """The Markdown of all results in `folder`."""
    results = {file.stem: json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("*.json"))}
    variants = [(f"{name}, {variant}", result) for name, whole in results.items() for variant, result in whole.items()]
    complete = [(title, result) for title, result in variants if result["presets"]]
    keys = ("openvino", "nncf", "device", "default_precision")
    facts = {key: ", ".join(sorted({str(result[key]) for _, result in complete if key in result})) for key in keys}
    failures = [f"- {title} failed: {result['failed']}" for title, result in variants if "failed" in result]
    parts = [
        ABOUT.format(**facts),
        *(f"- **{name}**: {read(name).about}\n" for name in results),
        ACCURACY,
        *_table(ACCURACY_HEADER, ([title, *_accuracy(result)] for title, result in complete)),
        *("\n" + "\n".join(failures) + "\n" if failures else ""),
        COST,
        *_table(COST_HEADER, ([title, *_cost(result)] for title, result in complete)),
    ]
    return "".join(parts)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return ["\n", *(f"| {' | '.join(cells)} |\n" for cells in [header, ["---"] * len(header), *rows])]


def _accuracy(result: dict[str, Any]) -> list[str]:
    ours, theirs = result["presets"], result["peers"]
    own = [_value(ours[preset]["value"], result) if preset in ours else "" for preset in PRESETS]
    peers = [_value(theirs[preset]["value"], result) if "value" in theirs.get(preset, {}) else _why(theirs, preset) for preset in PEERS]
    both = [theirs[preset]["ours_below"] for preset in PEERS if theirs.get(preset, {}).get("ours_below")]
    fp32 = [_value(result[key], result) for key in ("fp32", "default")]
    return [result["metric"], str(result["validation"]), *fp32, *own, *peers, "; ".join(_better(below, result) for below in both)]


def _cost(result: dict[str, Any]) -> list[str]:
    speed, theirs = result.get("speed_up", {}), result["peers"]
    names = ["FP32 default", *(f"ours {preset}" for preset in PRESETS), *(f"NNCF {preset}" for preset in PEERS)]
    faster = [f"{speed[name][0]:.2f}" if name in speed else "" for name in names]
    seconds = "; ".join(f"{peer['cpu_seconds']:.1f}" for peer in theirs.values() if "cpu_seconds" in peer)
    own = f"{result['ours_cpu_seconds']:.1f}" if "ours_cpu_seconds" in result else ""
    fidelity = "; ".join(_fidelity(outcome["fidelity"]) for outcome in result["presets"].values() if outcome.get("fidelity"))
    return [*faster, own, seconds, fidelity]


def _why(peers: dict[str, Any], preset: str) -> str:
    return "fails" if preset in peers else ""


def _value(value: float, result: dict[str, Any]) -> str:
    return f"{100 * value:.1f} %" if result["share"] else f"{value:.3g}"


def _better(below: Sequence[float], result: dict[str, Any]) -> str:
    """How much better ours is, from how much it is below the peer: `[value, low, high]`."""
    scale, kind = (100, "+.1f") if result["share"] else (1, "+.3g")
    value, low, high = (None if number is None else format(-scale * number, kind) for number in (below[0], below[2], below[1]))
    text = f"{value}" if low is None else f"{value} [{low}, {high}]"
    return f"**{text}**" if worse(below) else text


def worse(below: Sequence[float | None]) -> bool:
    """Whether ours is less accurate than its peer beyond the interval `[value, low, high]` of how much it is below it."""
    return below[1] is not None and below[1] > 0


def _fidelity(check: dict[str, Any]) -> str:
    """How many times what rounding explains the compiled model differs, and from which kind of layer on where that is too much."""
    ratio = f"{check['ratio']:g}"
    return ratio if check["ratio"] <= check["limit"] else f"**{ratio}, from {(check['first'] or {}).get('type', 'somewhere')} on**"
