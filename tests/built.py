"""A finished build folder of a made-up model, for tests of what comes after the last computation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from stages.configuration.schema import (
    Config,
    Data,
    Estimator,
    Evaluate,
    Model,
    Package,
    Quantization,
    RangeEstimator,
    TargetDevice,
    Tracking,
)
from stages.measurement.evaluation_report import effect
from stages.quantization.layer_table import COLUMNS

LAYERS = 12


def config(preset: str = "performance", **tracking: Any) -> Config:
    """A valid configuration, not the project's own."""
    return Config(
        model=Model(
            name="reader",
            package=Package(requirement="readers==1.0.0", member="readers/reader.onnx"),
            sha256="0" * 64,
            input_shape={"*": [1, 3, 48, -1]},
        ),
        data=Data(name="lines", calibration={"_target_": "stages.runtime.datasets.TextLines", "count": 1300}),
        metric={
            "exact_match": {"_target_": "stages.runtime.metrics.ExactMatch"},
            "error": {"_target_": "stages.runtime.metrics.ReferenceError"},
        },
        target_device=TargetDevice(schemes={"w": [{"bits": 8}]}, operations={"MatMul": {"weights": "w"}}),
        quantization=Quantization(preset=preset, range_estimator=RangeEstimator(min=Estimator(type="quantile", outlier_prob=0.01))),
        evaluate=Evaluate(primary_metric="exact_match"),
        tracking=Tracking(**tracking),
    )


def write_build(root: Path, settings: Config, drop: float = 0.021, milliseconds: float = 4.0) -> None:
    """Everything in build/ that `track` reads."""
    ports = {
        "inputs": [{"name": "x", "aliases": ["x"], "shape": [1, 3, 48, -1], "type": "float32"}],
        "outputs": [{"name": "scores", "aliases": ["scores"], "shape": [1, -1, 97], "type": "f32"}],
    }
    _json(root, "prepare/model.json", {"name": settings.model.name, "sha256": "0" * 64, **ports})
    samples = {"calibration": {"count": 300, "sha256": "a"}, "validation": {"count": 1000, "sha256": "b"}, "shared": 0}
    _json(root, "prepare/dataset.json", samples)
    _json(root, "quantize/quantizers.json", quantizers())
    _json(root, "correct_bias/corrections.json", CORRECTIONS)
    for folder, content in (("prepare", "fp32"), ("correct_bias", f"int8 {settings.quantization.preset}")):
        for suffix in ("xml", "bin"):
            (root / "build" / folder / f"model.{suffix}").write_text(f"{content} {suffix}")
    _json(root, "evaluate/evaluation.json", evaluation(drop))
    _json(root, "evaluate/latency.json", latency(milliseconds))
    _json(root, "evaluate/layers.json", layers())
    models = (("FP32 (f32)", 12.0, 0.902), ("FP32 (bf16, default)", 6.0, 0.901), ("INT8", milliseconds, 0.902 - drop))
    _json(root, "evaluate/accuracy_speed.json", [{"model": name, "latency_ms": speed, "accuracy": value} for name, speed, value in models])
    _json(root, "reports/effect.json", effect(layers()))
    noise = [{key: row[key] for key in ("layer", "kind", "sqnr_db")} for row in layers() if row["sqnr_db"] is not None]
    _json(root, "reports/noise.json", sorted(noise, key=lambda row: row["sqnr_db"]))
    _json(root, "reports/metrics.json", {"exact_match": 0.902 - drop, "exact_match.drop": drop})
    for seconds, name in enumerate(("config", "prepare", "collect_statistics", "quantize", "correct_bias", "evaluate")):
        more = {"samples": 300, "tensors": 64, "passes": 1} if name == "collect_statistics" else {}
        record = {"stage": name, "seconds": seconds + 0.5, "cpu_seconds": 1.0, "peak_memory_mb": 100.0 + seconds, **more}
        _json(root, f"records/{name}.json", record)
    write_accuracy_aware(root, enabled=False)
    write_tune(root, enabled=False)
    _json(root, "config.json", dataclasses.asdict(settings))


def write_accuracy_aware(root: Path, *, enabled: bool = True, holds: bool = True) -> None:
    """What the stage `accuracy_aware` leaves that gave one of two layers back for good."""
    _json(root, "accuracy_aware/result.json", {"enabled": enabled})
    _json(root, "accuracy_aware/trace.json", [])
    _json(root, "reports/accuracy_aware.json", {})
    if not enabled:
        return
    drop = 0.008 if holds else 0.015

    def numbers(value: float, spread: float) -> dict[str, Any]:
        return {
            "baseline": 0.9,
            "limit": 0.01,
            "value": 0.9 - value,
            "drop": value,
            "drop_low": value - spread,
            "drop_high": value + spread,
        }

    judged = {"higher_is_better": True, "share": True, **numbers(drop, 0.009), "held_out": numbers(0.012, 0.02)}
    reverted = [{"layer": "/backbone/conv_0/Conv", "type": "Convolution", "block": 0, "step": 1}]
    short = "" if holds else "exact_match drops by 1.50 points where 1.00 is allowed; no further reversion helps"
    found: dict[str, Any] = {"enabled": True, "holds": holds, "confirmed": True, "shortfall": short, "stopped": "", "acceptance": None}
    everywhere = {
        name: metric | {"int8": value, "drop": abs(metric["fp32"] - value), "drop_low": low, "drop_high": high}
        for (name, metric), value, low, high in zip(
            evaluation(0.021)["metrics"].items(), (0.893, 0.0321), (0.001, 0.031), (0.017, 0.033), strict=True
        )
    }
    found |= {"judged": everywhere}
    found |= {"metrics": {"exact_match": judged}, "before": {"exact_match": 0.03}, "values": {"exact_match": 0.893, "error": 0.0321}}
    found |= {
        "precision": "bf16",
        "confidence": 0.95,
        "samples": {"search": 800, "held_out": 200},
        "start": "performance preset",
        "bias_correction": "fast",
    }
    _json(root, "accuracy_aware/result.json", found | {"models_tried": 3, "quantized": 11, "reverted": reverted})
    _json(root, "accuracy_aware/trace.json", [_step(*row) for row in STEPS])
    names = ("fp32", "default", "int8", "accuracy_aware")
    ratios = {"fp32": _spread(3.1), "default": _spread(1.5), "int8": {"median": 0.96, "low": 0.95, "high": 0.98}}
    times = {name: _spread(value) for name, value in zip(names, (12.4, 6.0, 3.84, 4.0), strict=True)}
    _json(root, "accuracy_aware/latency.json", {"rounds": 40, "latency_ms": times, "speed_up": ratios})
    _json(root, "accuracy_aware/quantizers.json", quantizers())
    _json(root, "accuracy_aware/corrections.json", CORRECTIONS)
    for suffix in ("xml", "bin"):
        (root / "build" / "accuracy_aware" / f"model.{suffix}").write_text(f"budget {suffix}")


# iteration, phase, layers, reverted, drop, accepted, why
STEPS: tuple[tuple[int, str, list[str], int, float | None, bool, str], ...] = (
    (0, "base", [], 0, 0.03, True, "exceeds the budget"),
    (1, "revert", ["/backbone/conv_0/Conv"], 1, 0.008, True, "keeps the budget"),
    (2, "revert", ["/backbone/conv_1/Conv"], 2, None, False, "worse: undone, given up early"),
)


def _step(iteration: int, phase: str, layers: list[str], reverted: int, drop: float | None, accepted: bool, why: str) -> dict[str, Any]:
    """A row of trace.json."""
    row: dict[str, Any] = {"iteration": iteration, "phase": phase, "layers": layers, "reverted_layers": reverted, "drop": drop}
    return row | {"drops": None if drop is None else {"exact_match": drop}, "limit": 0.01, "accepted": accepted, "why": why}


def write_tune(root: Path, *, enabled: bool = True, within: bool = True) -> None:
    """What the stage `tune` leaves, of four trials: the third is best, the last was given up."""
    for name in ("trials", "trade_off", "best_so_far", "importance"):
        _json(root, f"tune/{name}.json", [])
    _json(root, "tune/result.json", {"enabled": enabled})
    _json(root, "reports/tune.json", {})
    if not enabled:
        return
    judged = {name: metric | {"int8": metric["int8"] + 0.013} for name, metric in evaluation(0.021)["metrics"].items()}
    best: dict[str, Any] = {"trial": 3, "label": "without /backbone/conv_0/Conv", "accuracy_loss": 0.0087 if within else 0.02}
    best |= {
        "accuracy_loss_in_search": 0.0087,
        "within_budget": within,
        "target_met": within,
        "quantized_layers": 0.9,
        "layers": 12,
        "acceptance": None,
    }
    best |= {"float_layers": ["/backbone/conv_0/Conv"], "changed": "/backbone/conv_0/Conv.quantize=float", "metrics": judged}
    best |= {"speed_up": _spread(1.6), "latency_ms": _spread(3.75)}
    asked = {"accuracy_loss": 0.01, "latency_reduce": 1.0, "metrics": ["exact_match"], "samples": 300, "all_samples": 1000}
    found = {"enabled": True, "ended": "4 trials", "trials": 4, "given_up": 1, "parameters": 31, "budget": asked, "best": best}
    _json(root, "tune/result.json", found)
    _json(root, "tune/trials.json", [_trial(*row) for row in TRIALS])
    rows = [
        {"model": label, "trial": number, "speed_up": speed, "accuracy": 0.902 * (1 - loss), "kind": "trial"}
        for number, label, loss, speed in TRIALS[:3]
    ]
    rows[2] |= {"model": "tuned", "kind": "frontier"}
    _json(
        root,
        "tune/trade_off.json",
        [*rows, {"model": "FP32 (f32)", "trial": None, "speed_up": 0.5, "accuracy": 0.902, "kind": "reference"}],
    )
    speeds = (None, 1.3, 1.6, 1.6)
    _json(
        root,
        "tune/best_so_far.json",
        [{"trial": place, "loss": 80.0 - place, "speed_up": speed} for place, speed in enumerate(speeds, start=1)],
    )
    _json(
        root,
        "tune/importance.json",
        [{"parameter": "/backbone/conv_0/Conv.quantize", "importance": 0.4, "best_choice": "float", "trials": 4}],
    )
    ratios = {"default": _spread(1.6), "fully quantized": {"median": 0.99, "low": 0.97, "high": 1.02}}
    times = {"default": _spread(6.0), "fully quantized": _spread(3.7), "best": _spread(3.75)}
    _json(root, "tune/latency.json", {"rounds": 40, "latency_ms": times, "speed_up": ratios})
    _json(root, "tune/quantizers.json", quantizers())
    for suffix in ("xml", "bin"):
        (root / "build" / "tune" / f"model.{suffix}").write_text(f"tuned {suffix}")


# number, label, loss of accuracy, speed-up
TRIALS = ((1, "fully quantized", 0.0233, 1.62), (2, "preset mixed", 0.005, 1.3), (3, "without conv_0", 0.0087, 1.6), (4, "TPE", 0.5, 1.0))


def _trial(number: int, label: str, loss: float, speed_up: float) -> dict[str, Any]:
    """A row of trials.json."""
    timed = number < 4
    row: dict[str, Any] = {"trial": number, "label": label, "loss": 80.0 - number, "accuracy_loss": loss, "speed_up": speed_up}
    row |= {"speed_up_low": speed_up - 0.1 if timed else None, "speed_up_high": speed_up + 0.1 if timed else None}
    row |= {"latency_ms": 6.0 / speed_up if timed else None, "quantized_layers": 0.9, "within_budget": loss <= 0.01}
    return row | {"samples": 300 if timed else 50, "exact_match": 0.902 * (1 - loss), "error": 0.03, "seconds": 2.5, "choices": ""}


def _spread(value: float) -> dict[str, float]:
    return {"median": value, "low": 0.95 * value, "high": 1.05 * value}


def evaluation(drop: float) -> dict[str, Any]:
    """Content of evaluation.json."""
    shown: dict[str, Any] = {"higher_is_better": True, "share": True, "fp32": 0.902, "default": 0.901, "int8": 0.902 - drop}
    shown |= {"drop": drop, "drop_low": drop - 0.01, "drop_high": drop + 0.01, "relative_drop": drop / 0.902}
    error: dict[str, Any] = {"higher_is_better": False, "share": False, "fp32": 0.0, "default": 0.001, "int8": 0.04, "drop": 0.04}
    error |= {"drop_low": 0.039, "drop_high": 0.0412, "relative_drop": None}
    return {
        "metrics": {"exact_match": shown, "error": error},
        "samples": 1000,
        "confidence": 0.95,
        "precisions": {"fp32": "f32", "default": "bf16", "int8": "bf16"},
        "warnings": [],
        "fidelity": {"ratio": 0.4, "limit": 2.0, "first": None, "warning": None},
        "effect": {"samples": 16, "blocks": LAYERS, "alone": LAYERS, "left_out": 10, "missing": None, "quantized": {"error": 0.1}},
        "size_bytes": {"fp32": 10_900_000, "int8": 3_100_000},
        "device": "Test(R) Processor",
        "cores": 2,
        "openvino": "2026.4.1",
        "numpy": "2.4.0",
        "python": "3.11.9",
    }


def latency(milliseconds: float) -> dict[str, Any]:
    """Content of latency.json."""
    times = {"fp32": 12.0, "default": 6.0, "int8": milliseconds}
    ratios = {model: {"median": times[model] / milliseconds, "low": times[model] / milliseconds * 0.9} for model in ("fp32", "default")}
    for ratio in ratios.values():
        ratio["high"] = ratio["median"] * 1.1
    return {
        "rounds": 40,
        "latency_ms": {model: {"median": time, "low": time * 0.9, "high": time * 1.1} for model, time in times.items()},
        "throughput": {model: 2000 / time for model, time in times.items()},
        "speed_up": ratios,
    }


def quantizers() -> dict[str, Any]:
    """Content of quantizers.json, with what the summary and the table need."""
    entries = []
    for layer in range(LAYERS):
        name = f"/backbone/conv_{layer}/Conv"
        for port, kind in ((0, "activations"), (1, "weights")):
            layers = [{"name": name, "type": "Convolution", "port": port}]
            entries.append({"name": f"{name}/fq_{port}", "kind": kind, "layers": layers, "restriction": None})
    lists: dict[str, Any] = {"warnings": [], "quantizers": entries, "float": [], "aligned": [], "not_aligned": []}
    return {"preset": "performance", "target_device": "ANY", **lists}


def layers() -> list[dict[str, Any]]:
    """Content of layers.json: two quantized ports per layer, and a few operations that stay float."""
    rows: list[dict[str, Any]] = [
        {
            **dict.fromkeys(COLUMNS),
            "layer": f"/backbone/conv_{layer}/Conv:{port}",
            "effect_on": 0.01 * 2 ** (layer - LAYERS),
            "effect_off": 0.005 if layer == LAYERS - 1 else None,
            "agreement_on": 0.9375,
            "sqnr_db": 45.0 - 2.5 * layer - 7 * port,
            "kind": kind,
            "bits": 8,
            "mode": "symmetric",
            "granularity": "pertensor",
            "levels": 256,
            "estimator": "mean of abs_max",
            "low": -1.5,
            "high": 1.5,
            "type": "Convolution",
            "port": port,
        }
        for layer in range(LAYERS)
        for port, kind in ((0, "activations"), (1, "weights"))
    ]
    rows += [left_float(f"/head/relu_{index}", "ReLU", "ANY has no quantized ReLU") for index in range(7)]
    rows += [left_float(f"/head/softmax_{index}", "SoftMax", "ANY has no quantized SoftMax") for index in range(3)]
    return [
        *rows,
        left_float("/se/fc", "Convolution", "ignored block: squeeze and excitation"),
        left_float("/shape", "Gather", "computes shapes"),
    ]


def left_float(name: str, kind: str, reason: str, share: float | None = None) -> dict[str, Any]:
    """A row of layers.json."""
    return {**dict.fromkeys(COLUMNS), "layer": name, "kind": "float", "type": kind, "float_reason": reason, "run_time_share": share}


CORRECTIONS: dict[str, Any] = {
    "algorithm": "FastBiasCorrection",
    "corrected": [{"name": f"/backbone/conv_{layer}/Conv", "type": "Convolution"} for layer in range(LAYERS - 2)],
    "left": [
        {"name": "/backbone/conv_10/Conv", "type": "Convolution", "reason": "the shift is 2.31 times the bias"},
        {"name": "/backbone/conv_11/Conv", "type": "Convolution", "reason": "the shift is 7.9 times the bias"},
    ],
}


def _json(root: Path, path: str, content: object) -> None:
    target = root / "build" / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(content))
