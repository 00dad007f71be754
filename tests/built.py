"""A finished build folder of a made-up model, for tests of what comes after the last computation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import yaml

from stages.quantization.layer_table import COLUMNS
from stages.schema import Config, Data, Estimator, Evaluate, Model, Package, Quantization, RangeEstimator, TargetDevice, Tracking

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
        data=Data(name="lines", calibration={"_target_": "stages.runtime.text_lines.TextLines", "count": 1300}),
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
    _json(root, "prepare/model.json", {"name": settings.model.name, "sha256": "0" * 64})
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
    noise = [{key: row[key] for key in ("layer", "kind", "sqnr_db")} for row in layers() if row["sqnr_db"] is not None]
    _json(root, "reports/noise.json", sorted(noise, key=lambda row: row["sqnr_db"]))
    _json(root, "reports/metrics.json", {"metric": {"exact_match": {"int8": 0.902 - drop}}})
    _json(root, "accuracy_aware/result.json", {"enabled": False})
    _json(root, "accuracy_aware/trace.json", [])
    for seconds, name in enumerate(("config", "prepare", "collect_statistics", "quantize", "correct_bias", "evaluate")):
        _json(
            root, f"records/{name}.json", {"stage": name, "seconds": seconds + 0.5, "cpu_seconds": 1.0, "peak_memory_mb": 100.0 + seconds}
        )
    (root / "build" / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(settings), sort_keys=False))


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
            entries.append({"name": f"{name}/fq_{port}", "kind": kind, "layers": [{"name": name, "type": "Convolution", "port": port}]})
    return {"preset": "performance", "target_device": "ANY", "quantizers": entries, "float": [], "aligned": [], "not_aligned": []}


def layers() -> list[dict[str, Any]]:
    """Content of layers.json: two quantized ports per layer, and a few operations that stay float."""
    rows: list[dict[str, Any]] = [
        {
            **dict.fromkeys(COLUMNS),
            "layer": f"/backbone/conv_{layer}/Conv:{port}",
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
