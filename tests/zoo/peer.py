"""NNCF on what the pipeline built, in one process with our own quantization of the same samples.

Run in the project's folder as: python -m tests.zoo.peer task.json results.json

CPU seconds are those of this process (user and system), with the model in memory and the samples read: statistics,
quantization and bias correction together.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino as ov

from stages.common import artifacts
from stages.configuration.loading import create, load_config
from stages.configuration.schema import Config
from stages.configuration.target_device import read_target
from stages.measurement import baseline
from stages.measurement.confidence import paired_drop
from stages.measurement.latency import speed_up
from stages.quantization.build import build
from stages.quantization.model.graph import read_graph
from stages.quantization.planning import make_plan
from stages.quantization.statistics.collection import collect
from stages.quantization.statistics.points import statistics_points
from stages.runtime import engine
from stages.runtime.datasets import Sample
from stages.runtime.samples import calibration_samples, validation_samples

SECONDS = 10.0  # CPU time for timing all models together
ROUNDS = (5, 40)  # at least and at most
BLOCK = 0.01  # CPU seconds of a model in a round, at least


def main() -> None:
    """Quantize, evaluate, time, and write the results."""
    task = json.loads(Path(sys.argv[1]).read_text())
    config = load_config()
    model = engine.read_artifact(artifacts.folder("prepare"))
    calibration = list(calibration_samples(config))
    theirs: dict[str, ov.Model] = {}
    result: dict[str, Any] = {"nncf": nncf.__version__, "peers": {}, "ours_cpu_seconds": round(own_seconds(config, model, calibration), 1)}
    for preset in task["peers"]:
        started = time.process_time()
        try:
            theirs[preset] = quantized(config, model.clone(), calibration, preset)
        except Exception as error:  # whatever it is: that is the result
            result["peers"][preset] = {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error) else ''}"}
            continue
        result["peers"][preset] = {"cpu_seconds": round(time.process_time() - started, 1)}
    values(config, model, theirs, task["ours"], result["peers"])
    ours = {preset: engine.read_artifact(Path(folder) / "correct_bias") for preset, folder in task["ours"].items()}
    result["speed_up"] = speed_ups(config, model, ours, theirs, validation_samples(config)[0])
    Path(sys.argv[2]).write_text(json.dumps(result, indent=1))


def own_seconds(config: Config, model: ov.Model, samples: Sequence[Sample]) -> float:
    """CPU seconds of our quantization."""

    def infer(instrumented: ov.Model) -> Iterator[list[np.ndarray]]:
        return engine.infer(engine.compile(instrumented, config.engine), samples)

    started = time.process_time()
    target, graph = read_target(config.target_device), read_graph(model)
    statistics = collect(model, statistics_points(graph, target), [1e-4], [], infer, len(samples))
    build(model, statistics, make_plan(graph, target, config.quantization, statistics), config.bias_correction)
    return time.process_time() - started


def quantized(config: Config, model: ov.Model, samples: Sequence[Sample], preset: str) -> ov.Model:
    """The model as `nncf.quantize` makes it of the same samples."""
    nncf.set_log_level("ERROR")
    kind = nncf.ModelType.TRANSFORMER if config.quantization.model_type == "transformer" else None
    dataset = nncf.Dataset(samples, lambda sample: tuple(sample.inputs.values()))
    return nncf.quantize(model, dataset, preset=nncf.QuantizationPreset(preset), subset_size=len(samples), model_type=kind)


def values(config: Config, model: ov.Model, theirs: Mapping[str, ov.Model], ours: Mapping[str, str], results: dict[str, Any]) -> None:
    """Add to NNCF's results its primary metric, and how much less accurate our model of the same preset is, with the interval."""
    metrics = {name: create(section, f"metric.{name}") for name, section in config.metric.items()}
    for metric in metrics.values():
        metric.bind(model)
    compiled = {preset: engine.compile(own, config.engine, engine.int8_precision(own, config.engine)) for preset, own in theirs.items()}
    if any(metric.uses_reference for metric in metrics.values()):
        compiled["fp32"] = engine.compile(model, config.engine, "f32")
    if not theirs:
        return
    rows = engine.evaluate_metrics(compiled, validation_samples(config), metrics)
    name = config.evaluate.primary_metric or next(iter(metrics))
    metric = metrics[name]
    for preset in theirs:
        results[preset]["value"] = metric.value(rows[preset][name])
        results[preset]["others"] = {other: metrics[other].value(rows[preset][other]) for other in metrics if other != name}
        if preset in ours:
            own = baseline.load(Path(ours[preset]) / "evaluate" / "samples.npz", ["int8"], [name])["int8"][name]
            drop = paired_drop(
                metric.value,
                rows[preset][name],
                own,
                higher_is_better=metric.higher_is_better,
                confidence=config.evaluate.confidence,
                generator=np.random.default_rng(0),
            )
            results[preset]["ours_below"] = [drop.value, drop.low, drop.high]


def speed_ups(
    config: Config, model: ov.Model, ours: Mapping[str, ov.Model], theirs: Mapping[str, ov.Model], sample: Sample
) -> dict[str, list[float]]:
    """How many times less CPU time than FP32 in f32 an inference takes on one thread: median and range over rounds.

    All models take turns in every round, and CPU time leaves out what else runs on the machine.
    """
    quantized = {f"ours {preset}": own for preset, own in ours.items()} | {f"NNCF {preset}": own for preset, own in theirs.items()}
    precisions = {name: (own, engine.int8_precision(own, config.engine)) for name, own in quantized.items()}
    precisions |= {"FP32": (model, "f32"), "FP32 default": (model, "default")}
    single = dataclasses.replace(config.engine, threads=1)
    requests = {
        name: engine.compile(own, single, precision, hint="LATENCY").create_infer_request() for name, (own, precision) in precisions.items()
    }
    inputs = dict(enumerate(sample.inputs.values()))
    calls = max(1, round(BLOCK / min(_seconds(request, inputs, 3) for request in requests.values())))
    rounds: dict[str, list[float]] = {name: [] for name in requests}
    started = time.process_time()
    while len(rounds["FP32"]) < ROUNDS[0] or (time.process_time() - started < SECONDS and len(rounds["FP32"]) < ROUNDS[1]):
        for name, request in requests.items():
            _seconds(request, inputs, 1)  # the caches hold another model's weights
            rounds[name].append(_seconds(request, inputs, calls))
    times = {name: np.array(values) for name, values in rounds.items()}
    return {name: list(speed_up(times["FP32"], own)) for name, own in times.items() if name != "FP32"}


def _seconds(request: ov.InferRequest, inputs: Any, calls: int) -> float:
    """CPU seconds of an inference."""
    before = time.process_time()
    for _ in range(calls):
        request.infer(inputs, share_inputs=True)
    return max((time.process_time() - before) / calls, 1e-6)


if __name__ == "__main__":
    main()
