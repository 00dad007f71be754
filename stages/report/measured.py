"""The quantized models of a result with what was measured of each: that of correct_bias, then what the searches made of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.common import artifacts
from stages.report import search_results

INT8 = "int8"
NAMES = {INT8: "INT8", "accuracy_aware": "budget kept", "tune": "tuned"}
FAILED = {"accuracy_aware": "closest to the budget", "tune": "tuned"}  # what it is called where it is beyond the budget


@dataclass(frozen=True)
class Model:
    """A quantized model and its measurements, all of them in the words of evaluation.json and latency.json.

    Attributes:
        kind: int8, or the stage that made it.
        name: What its column is called.
        folder: Where its model.xml is.
        metrics: By name, on all validation samples; this model's value is `int8`.
        speed: `latency_ms` and `throughput` of this model, as far as they were measured; `speed_up` over `fp32` and `default`, each with
            median, low and high. Empty without a benchmark.
        size: Bytes.
        kept: Whether a search's budget holds; None of what no search has made.
        fidelity: Whether the device computes what the model says; empty where nobody has looked.
    """

    kind: str
    name: str
    folder: Path
    metrics: Mapping[str, Mapping[str, Any]]
    speed: Mapping[str, Any]
    size: int
    kept: bool | None
    fidelity: Mapping[str, Any]

    @property
    def path(self) -> Path:
        return self.folder / "model.xml"


def models(build: Path = artifacts.BUILD) -> list[Model]:
    """All of them, in the order of stages.

    Args:
        build: The project's, or that of a copy.

    Raises:
        UserError: an artifact is missing or corrupt.
    """
    evaluation = artifacts.read_json(build / "evaluate" / "evaluation.json")
    speed = artifacts.read_json(build / "evaluate" / "latency.json")
    own = {key: {INT8: speed[key][INT8]} for key in ("latency_ms", "throughput") if key in speed}
    first = Model(
        INT8,
        NAMES[INT8],
        build / "correct_bias",
        evaluation["metrics"],
        {**own, "speed_up": speed["speed_up"]} if speed else {},
        evaluation["size_bytes"][INT8],
        None,
        evaluation.get("fidelity", {}),
    )
    return [first, *_searched(build, first)]


def to_deploy(found: list[Model]) -> Model:
    """The model of the last search whose budget holds, else the quantized one."""
    return next((model for model in reversed(found) if model.kept), found[0])


def _searched(build: Path, first: Model) -> Iterator[Model]:
    for stage in ("accuracy_aware", "tune"):
        result = search_results.result(stage, build)
        if not result:
            continue
        best = result["best"] if stage == "tune" else result
        kept = bool(best["within_budget"] if stage == "tune" else best["holds"])
        measured = search_results.speed(stage, build)
        same = stage == "accuracy_aware" and not result["reverted"] and not measured  # correct_bias's own model, to the byte
        yield Model(
            stage,
            (NAMES if kept else FAILED)[stage],
            build / stage,
            best["metrics" if stage == "tune" else "judged"],
            first.speed if same else related(measured, "best" if stage == "tune" else stage, first.speed),
            artifacts.model_bytes(build / stage),
            kept,
            search_results.fidelity(stage, build) or (first.fidelity if same else {}),
        )


def related(measured: Mapping[str, Any], model: str, quantized: Mapping[str, Any]) -> dict[str, Any]:
    """A search's latency.json in the words of evaluate's.

    What was timed only beside FP32 in the default precision is related to f32 by what evaluate measured of the two.

    Args:
        measured: Content of latency.json; empty without a benchmark.
        model: The model's name in it.
        quantized: `Model.speed` of the quantized model.
    """
    if not measured:
        return {}
    ratios = {name: ratio for name, ratio in measured["speed_up"].items() if name in ("fp32", "default")}
    if "fp32" not in ratios and "default" in ratios and quantized:
        scale = quantized["speed_up"]["fp32"]["median"] / quantized["speed_up"]["default"]["median"]
        ratios["fp32"] = {side: scale * value for side, value in ratios["default"].items()}
    if "default" not in ratios and "fp32" in ratios:
        ratios["default"] = ratios["fp32"]
    return {"latency_ms": {INT8: measured["latency_ms"][model]}, "speed_up": ratios}
