"""Measure what quantization cost and gained: accuracy, speed, size, noise per layer, and what that does to the outputs.

Three models are compared: FP32 in f32, FP32 in the precision that the device prefers (bf16 on CPUs with AMX), and INT8.

Examples:
    dvc repro evaluate               # with everything before it
    dvc repro --force evaluate       # measure again, for example on a quiet machine
    dvc metrics show --md            # what it measured
"""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING, Any

from stages.common import artifacts
from stages.configuration.loading import create
from stages.configuration.schema import Config
from stages.stage import run

if TYPE_CHECKING:
    import openvino as ov

    from stages.measurement.baseline import Values
    from stages.quantization.solution.tuned import Tuned
    from stages.runtime.datasets import Samples
    from stages.runtime.metrics import Metric

NAME = "evaluate"


def main(config: Config) -> dict[str, Any]:
    """Write build/evaluate, and metrics.json, noise.json and effect.json in build/reports."""
    import numpy as np
    import openvino as ov

    from stages.common.progress import progress
    from stages.measurement import baseline, chance, evaluation_report, fidelity, latency
    from stages.quantization.layer_table import layer_table
    from stages.quantization.solution.tuned import load_tuned, with_tuned_ranges
    from stages.runtime import engine
    from stages.runtime.samples import validation_samples

    paths = {"fp32": artifacts.folder("prepare"), "int8": artifacts.folder("correct_bias")}
    models = {name: engine.read_artifact(folder) for name, folder in paths.items()}
    samples = validation_samples(config)

    metrics = {name: create(section, f"metric.{name}") for name, section in config.metric.items()}
    for metric in metrics.values():
        metric.bind(models["fp32"])
    int8_precision = engine.int8_precision(models["int8"], config.engine)
    compiled = {
        "fp32": engine.compile(models["fp32"], config.engine, "f32"),
        "default": engine.compile(models["fp32"], config.engine, "default"),
        "int8": engine.compile(models["int8"], config.engine, int8_precision),
    }
    precisions = {name: latency.precision_of(model) for name, model in compiled.items()}
    forced = precisions["default"] != "f32" and int8_precision != config.engine.inference_precision
    if precisions["default"] == "f32":
        del compiled["default"]  # the same as fp32
    key = baseline.baseline_key(config, metrics.values())
    values = baseline.evaluate(compiled, progress(samples, NAME, total=len(samples)), metrics, key)
    values = {name: values.get(name, values["fp32"]) for name in precisions}

    speed: dict[str, Any] = {}
    times: list[latency.NodeTime] = []
    if config.evaluate.benchmark.enabled:
        inputs = dict(enumerate(samples[0].inputs.values()))
        seconds = config.evaluate.benchmark.seconds
        speed, times = latency.benchmark(models["fp32"], models["int8"], config.engine, inputs, seconds, compiled)
    compared: dict[str, Any] = {}
    if config.evaluate.fidelity_samples:
        few = list(samples[: config.evaluate.fidelity_samples])
        compared = fidelity.check(models["int8"], config.engine, few, int8_precision, {"THROUGHPUT": compiled["int8"]})
    streams = latency.streams_of(compiled["int8"])
    compiled.clear()  # their memory is needed for the noise

    quantizers = artifacts.read_json(artifacts.folder("quantize") / "quantizers.json")
    corrections = artifacts.read_json(artifacts.folder("correct_bias") / "corrections.json")
    if (tuned := load_tuned(artifacts.folder("correct_bias"))) is not None:
        quantizers = with_tuned_ranges(quantizers, tuned)
    order = [node.get_friendly_name() for node in models["fp32"].get_ordered_ops()]
    aligned = _aligned(models["fp32"], quantizers)
    noise = _noise(config, aligned, quantizers, tuned, samples)
    effects, effect_summary = _effects(config, aligned, models["int8"], quantizers, noise, metrics, samples, values)
    rows = layer_table(quantizers, corrections, noise, times, order, effects)
    split = precisions["int8"] == precisions["default"] != "f32"
    judged = evaluation_report.report_metrics(values, metrics, config, split=split)
    evaluation = {
        "metrics": judged,
        "samples": len(samples),
        "confidence": config.evaluate.confidence,
        "precisions": precisions,
        "streams": streams,
        "warnings": [
            *chance.warnings(values, metrics, samples.targets(), config.evaluate.confidence),
            *([engine.ZERO_POINTS_IN_F32] if forced else []),
            *filter(None, [compared.get("warning")]),
            *evaluation_report.precision_warnings(judged, precisions["default"]),
        ],
        "fidelity": compared,
        "effect": effect_summary,
        "size_bytes": {name: artifacts.model_bytes(folder) for name, folder in paths.items()},
        "device": engine.core().get_property(config.engine.device, "FULL_DEVICE_NAME"),
        "cores": os.cpu_count(),
        "openvino": ov.get_version(),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    with artifacts.writing(artifacts.folder(NAME)) as folder:
        artifacts.write_inputs(folder, "correct_bias")
        baseline.save(values, folder / "samples.npz")
        artifacts.write_json(folder / "evaluation.json", evaluation)
        artifacts.write_json(folder / "latency.json", speed)
        artifacts.write_json(folder / "layers.json", rows)
        artifacts.write_json(folder / "accuracy_speed.json", evaluation_report.accuracy_speed(evaluation, speed, config))
    artifacts.write_json(artifacts.REPORTS / "noise.json", evaluation_report.noise(rows))
    artifacts.write_json(artifacts.REPORTS / "effect.json", evaluation_report.effect(rows))
    artifacts.write_json(artifacts.REPORTS / "metrics.json", evaluation_report.metrics(evaluation["metrics"]))
    return {"samples": len(samples)}


def _aligned(model: ov.Model, data: dict[str, Any]) -> ov.Model:
    """The floating-point model that the quantized one was made of."""
    from stages.quantization.noise import aligned_model
    from stages.quantization.placement.plan import plan_from_json
    from stages.quantization.statistics.store import load

    plan = plan_from_json(data)
    return aligned_model(model, load(artifacts.folder("collect_statistics")), plan) if plan.rewrites else model


def _effects(
    config: Config,
    model: ov.Model,
    int8: ov.Model,
    data: dict[str, Any],
    noise: dict[str, float | None],
    metrics: dict[str, Metric],
    samples: Samples,
    values: Values,
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """What each block of quantizers does to the outputs: by layer, and as a whole."""
    from stages.common.progress import Progress
    from stages.quantization.effect.blocks import blocks_of
    from stages.quantization.effect.measure import allowed_inferences, measure, noise_of, telling
    from stages.quantization.effect.switched import Pair
    from stages.quantization.model.graph import read_graph
    from stages.quantization.placement.plan import plan_from_json

    if not config.evaluate.effect_samples:
        return {}, {}
    plan = plan_from_json(data)
    blocks = blocks_of(read_graph(model), plan, "activations_and_weights")
    primary = config.evaluate.primary_metric or next(iter(metrics))
    metric = metrics[primary]
    allowed = allowed_inferences(config.evaluate.effect_inferences, len(samples))
    before, after = (metric.score(values[model][primary]) for model in ("fp32", "int8"))
    few = [samples[position] for position in telling(before - after, config.evaluate.effect_samples)]
    with Progress(f"{NAME}: effect of blocks on the outputs", unit="inferences") as advance:
        effects = measure(Pair(int8, model, plan), blocks, noise_of(blocks, noise), metric, few, config.engine, allowed, advance)
    return effects.columns(blocks), effects.summary(blocks)


def _noise(config: Config, model: Any, data: dict[str, Any], tuned: Tuned | None, samples: Any) -> dict[str, float | None]:
    """SQNR by quantizer name: of the weights by arithmetic, of the activations over the first validation samples."""
    from stages.quantization.noise import ActivationNoise, ranges_from_json, weight_noise
    from stages.quantization.placement.plan import plan_from_json
    from stages.runtime import engine

    if not config.evaluate.noise_samples:
        return {}
    plan, ranges = plan_from_json(data), ranges_from_json(data)
    noise = weight_noise(model, plan, ranges, tuned.weights() if tuned else None)
    activations = ActivationNoise(model, plan, ranges)
    if activations.names:
        compiled = engine.compile(activations.model, config.engine, "f32")
        noise |= activations.ratios(engine.infer(compiled, samples[: config.evaluate.noise_samples]))
    return noise


if __name__ == "__main__":
    run(NAME, main)
