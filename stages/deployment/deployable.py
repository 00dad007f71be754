"""The models that a result offers for deployment, and the one to choose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.common import artifacts
from stages.common.errors import UserError
from stages.configuration.schema import Config
from stages.report import accuracy_aware, search_results, tune
from stages.report.measured import models, to_deploy

BEST = "best"


@dataclass(frozen=True)
class Deployable:
    """A model of build/, with what was measured of it.

    Attributes:
        name: int8, accuracy_aware, tune or fp32.
        title: What it is called.
        folder: Where model.xml and model.bin are.
        metrics: By name, each in the words of evaluation.json; `value` is the model's own.
        latency_ms: Median, and the range of four rounds in five; None without a benchmark.
        speed_up: How many times faster than FP32 in the device's default precision; None without a benchmark.
        throughput: Inferences per second; None where that was not measured.
        fidelity: How far the compiled model is from what its quantizers say; empty where that was not looked at.
        budget: Whether the search's budget holds; None where there is none.
        quantizers: quantizers.json; None where nothing is quantized.
    """

    name: str
    title: str
    folder: Path
    metrics: Mapping[str, Mapping[str, Any]]
    latency_ms: Mapping[str, float] | None
    speed_up: Mapping[str, float] | None
    throughput: float | None
    fidelity: Mapping[str, Any]
    budget: bool | None = None
    quantizers: Path | None = None

    @property
    def size_bytes(self) -> int:
        """Size of the model with its weights."""
        return artifacts.model_bytes(self.folder)


def deployable(config: Config, name: str) -> Deployable:
    """A model of build/; `best` is tune's where its budget holds, else accuracy_aware's where its budget holds, else int8.

    Raises:
        UserError: the stage that makes it is off, or an artifact is missing.
    """
    name = to_deploy(models()).kind if name == BEST else name
    evaluation = artifacts.read_json(artifacts.folder("evaluate") / "evaluation.json")
    speed = artifacts.read_json(artifacts.folder("evaluate") / "latency.json")
    made = _MAKERS[name](config, evaluation, speed)
    for file in ("model.xml", "model.bin"):
        if not (made.folder / file).is_file():
            raise UserError(f"{made.folder / file} is missing; run `dvc repro`")
    return made


def _int8(config: Config, evaluation: Mapping[str, Any], speed: Mapping[str, Any]) -> Deployable:
    return Deployable(
        name="int8",
        title="INT8",
        folder=artifacts.folder("correct_bias"),
        metrics={name: {**metric, "value": metric["int8"]} for name, metric in evaluation["metrics"].items()},
        latency_ms=speed["latency_ms"]["int8"] if speed else None,
        speed_up=speed["speed_up"]["default"] if speed else None,
        throughput=speed["throughput"]["int8"] if speed else None,
        fidelity=evaluation["fidelity"],
        quantizers=artifacts.folder("quantize") / "quantizers.json",
    )


def _fp32(config: Config, evaluation: Mapping[str, Any], speed: Mapping[str, Any]) -> Deployable:
    """In the device's default precision, as whoever deploys it would run it; what that alone costs is its drop."""
    same = evaluation["precisions"]["default"] == "f32"
    metrics = {}
    for name, metric in evaluation["metrics"].items():
        sign = 1 if metric["higher_is_better"] else -1
        drop = 0.0 if same else metric.get("precision_drop", sign * (metric["fp32"] - metric["default"]))
        low, high = (0.0, 0.0) if same else (metric.get(f"precision_drop_{side}") for side in ("low", "high"))
        metrics[name] = {**metric, "value": metric["default"], "drop": drop, "drop_low": low, "drop_high": high}
    return Deployable(
        name="fp32",
        title="FP32",
        folder=artifacts.folder("prepare"),
        metrics=metrics,
        latency_ms=speed["latency_ms"]["default"] if speed else None,
        speed_up={"median": 1.0, "low": 1.0, "high": 1.0} if speed else None,
        throughput=speed["throughput"]["default"] if speed else None,
        fidelity={},
    )


def _accuracy_aware(config: Config, evaluation: Mapping[str, Any], speed: Mapping[str, Any]) -> Deployable:
    """A search that gave no layer back has kept the INT8 model, and measured nothing anew."""
    found = _enabled(accuracy_aware.NAME)
    measured, int8 = accuracy_aware.speed(), _int8(config, evaluation, speed)
    return Deployable(
        name=accuracy_aware.NAME,
        title="accuracy-aware INT8",
        folder=artifacts.folder(accuracy_aware.NAME),
        metrics={name: {**metric, "value": metric["int8"]} for name, metric in found["judged"].items()},
        latency_ms=measured["latency_ms"][accuracy_aware.NAME] if measured else int8.latency_ms,
        speed_up=measured["speed_up"]["default"] if measured else int8.speed_up,
        throughput=None if measured else int8.throughput,
        fidelity=search_results.fidelity(accuracy_aware.NAME) or int8.fidelity,
        budget=found["holds"],
        quantizers=artifacts.folder(accuracy_aware.NAME) / "quantizers.json",
    )


def _tune(config: Config, evaluation: Mapping[str, Any], speed: Mapping[str, Any]) -> Deployable:
    chosen = _enabled(tune.NAME)["best"]
    measured = tune.speed()
    return Deployable(
        name=tune.NAME,
        title="tuned INT8",
        folder=artifacts.folder(tune.NAME),
        metrics={name: {**metric, "value": metric["int8"]} for name, metric in chosen["metrics"].items()},
        latency_ms=measured["latency_ms"]["best"] if measured else None,
        speed_up=measured["speed_up"].get("default") if measured else None,
        throughput=None,
        fidelity=search_results.fidelity(tune.NAME),
        budget=chosen["within_budget"],
        quantizers=artifacts.folder(tune.NAME) / "quantizers.json",
    )


_MAKERS: dict[str, Callable[[Config, Mapping[str, Any], Mapping[str, Any]], Deployable]] = {
    "int8": _int8,
    "accuracy_aware": _accuracy_aware,
    "tune": _tune,
    "fp32": _fp32,
}


def _enabled(stage: str) -> dict[str, Any]:
    found = search_results.result(stage)
    if not found:
        raise UserError(f"there is no model of {stage}: {stage}.enabled is false")
    return found
