"""Compiling models and running samples through them, asynchronously and with results in sample order."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from stages.common.errors import UserError
from stages.common.user_code import user_code
from stages.configuration.schema import Engine
from stages.runtime.datasets import Part, Sample
from stages.runtime.kernel_faults import ZERO_POINTS_IN_BF16
from stages.runtime.metric_values import check_scores, metric_value, numbers, shown
from stages.runtime.metrics import Metric
from stages.runtime.requests import Requests

ZERO_POINTS_IN_F32 = (
    "INT8 runs in f32: its weights have zero points, which OpenVINO's CPU sometimes computes wrongly in bf16;"
    " deploy it with INFERENCE_PRECISION_HINT f32, or use preset mixed"
)
CHUNK = 32  # samples kept in memory while several models run on them


@functools.cache
def core() -> ov.Core:
    """The process's one OpenVINO core: making another costs a quarter of a second."""
    return ov.Core()


def read_artifact(folder: Path) -> ov.Model:
    """The model that a stage wrote to `folder`.

    Raises:
        UserError: it is missing or damaged.
    """
    path = folder / "model.xml"
    if not path.exists():
        raise UserError(f"{path} is missing; run `dvc repro`")
    try:
        return core().read_model(path)
    except RuntimeError as error:
        raise UserError(f"{path} cannot be read ({last_line(error)}); run `dvc repro --force {folder.name}`") from error


def compile(
    model: ov.Model,
    engine: Engine,
    precision: str = "f32",
    *,
    hint: str = "THROUGHPUT",
    counters: bool = False,
    streams: int = 0,
    more: Mapping[str, Any] | None = None,
) -> ov.CompiledModel:
    """Compile `model` for `engine.device`.

    Args:
        precision: "f32", "bf16", "f16", or "default" for what the device prefers. CPUs with AMX or avx512_bf16 prefer bf16
            even for an FP32 model, so statistics and the FP32 baseline must ask for "f32".
        hint: "THROUGHPUT" (as many parallel streams as pay off) or "LATENCY" (one request at a time).
        counters: count the time of every node, which slows the model down a little.
        streams: inferences that run in parallel; 0 lets the hint choose.
        more: other properties of the device.

    Raises:
        UserError: the device does not exist, or cannot run the model in this precision.
    """
    properties: dict[str, Any] = {"PERFORMANCE_HINT": hint, "PERF_COUNT": counters, **(more or {})}
    if precision != "default":
        properties["INFERENCE_PRECISION_HINT"] = precision
    if engine.requests and hint == "THROUGHPUT":
        properties["PERFORMANCE_HINT_NUM_REQUESTS"] = engine.requests
    if streams:
        properties["NUM_STREAMS"] = streams
    if engine.threads:
        properties["INFERENCE_NUM_THREADS"] = engine.threads
    try:
        return core().compile_model(model, engine.device, properties)
    except RuntimeError as error:
        devices = core().available_devices
        # "GPU.1" is a device of its kind, "AUTO:GPU,CPU" a rule that picks one.
        kinds = {device.split(".")[0] for device in devices} | {"AUTO", "HETERO", "MULTI"}
        if re.split("[.:]", engine.device)[0] not in kinds:
            raise UserError(f"engine.device is {engine.device!r}, but the devices here are: {', '.join(devices)}") from error
        raise UserError(f"{engine.device} cannot run the model in precision {precision!r}: {last_line(error)}") from error


def int8_precision(model: ov.Model, engine: Engine) -> str:
    """The precision in which a quantized model runs: `engine.inference_precision`, or f32 where bf16 cannot be trusted.

    OpenVINO's CPU sometimes computes weights with zero points wrongly in bf16 (kernel_faults.ZERO_POINTS_IN_BF16).
    """
    return "f32" if distrusts_zero_points(engine) and has_weight_zero_points(model) else engine.inference_precision


def distrusts_zero_points(engine: Engine) -> bool:
    """Whether models whose weights have zero points run in f32 (`int8_precision`), and slower than they could."""
    return ZERO_POINTS_IN_BF16.present and engine.inference_precision == "default" and engine.device.split(".")[0] == "CPU"


def has_weight_zero_points(model: ov.Model) -> bool:
    """Whether weights are quantized asymmetrically: by a FakeQuantize whose middle is not zero, or folded to unsigned numbers or
    with a Subtract.
    """
    for node in model.get_ops():
        kind = node.get_type_name()
        if kind not in ("FakeQuantize", "Subtract", "Multiply"):
            continue
        data = node.input_value(0).get_node()
        converted = data.get_type_name() == "Convert"
        source = data.input_value(0).get_node() if converted else data
        if source.get_type_name() != "Constant":
            continue
        if kind != "FakeQuantize":
            stored = source.get_element_type()
            if converted and stored.is_integral() and (kind == "Subtract" or not stored.is_signed()):
                return True
            continue
        low, high = (np.asarray(node.input_value(index).get_node().data, np.float64) for index in (3, 4))
        step = (high - low) / (node.get_attributes()["levels"] - 1)
        if np.any(np.abs(low + high) > 1.5 * step):  # one step of asymmetry is that of an even number of levels
            return True
    return False


def infer(compiled: ov.CompiledModel, samples: Iterable[Sample], requests: int = 0) -> Iterator[list[np.ndarray]]:
    """Run samples through a model; yield each sample's outputs, in the order of the samples: see `Runner.infer`.

    Args:
        samples: bound to the model (datasets.Samples). Taken lazily, a few ahead of what is yielded.
        requests: how many samples are under way at once, each with memory of its own for outputs; 0: as many as keep all streams busy.
    """
    return Runner(compiled, requests).infer(samples)


class Runner:
    """Runs samples through a compiled model.

    A model that keeps a state begins each sample with its initial one; a part of a stream with the state that the parts before it
    leave. These are run first, unless they were the last that was run.
    """

    def __init__(self, compiled: ov.CompiledModel, requests: int = 0) -> None:
        self._pool = Requests(compiled, requests)
        self._done: Part | None = None  # of a stream, the part that the state comes from

    def infer(self, samples: Iterable[Sample]) -> Iterator[list[np.ndarray]]:
        """Run samples; yield each sample's outputs, in the order of the samples.

        Requests run in parallel in OpenVINO's threads, but for the parts of a stream; samples are taken and outputs handed out in the
        caller's thread. An error in either therefore simply propagates, and leaving the loop early waits for the few requests under way.

        Yields:
            one array per model output. They are views of OpenVINO's memory, valid until the next one is asked for: copy to keep.
        """
        pool = self._pool
        try:
            for sample in samples:
                if pool.stateful and sample.part is not None:
                    while pool.running:
                        yield pool.finish()
                    yield self._follow(sample, sample.part)
                    continue
                self._done = None
                if pool.running == len(pool):
                    yield pool.finish()
                pool.start(_by_index(sample))
            while pool.running:
                yield pool.finish()
        finally:
            pool.wait()

    def _follow(self, sample: Sample, part: Part) -> list[np.ndarray]:
        """The outputs of a sample that follows others."""
        fresh, before = part.since(self._done)
        self._done = None  # should something go wrong
        for earlier in (*before, sample):
            self._pool.start(_by_index(earlier), fresh=fresh)
            outputs, fresh = self._pool.finish(), False
        self._done = part
        return outputs


def _by_index(sample: Sample) -> dict[int, np.ndarray]:
    return dict(enumerate(sample.inputs.values()))


def evaluate_metrics(
    models: Mapping[str, ov.CompiledModel], samples: Iterable[Sample], metrics: Mapping[str, Metric], reference: str = "fp32"
) -> dict[str, dict[str, np.ndarray]]:
    """Per-sample metric values of several models on the same samples, each sample loaded once.

    Args:
        models: compiled models by name, all with the same inputs and outputs.
        samples: bound to the models.
        metrics: by name, already bound to the model (`Metric.bind`).
        reference: the model whose outputs are the target of metrics that use a reference.

    Returns:
        model name -> metric name -> values [N, k], k being the metric's own number of values per sample (k is 1 for most).

    Raises:
        UserError: there are no samples, or a metric's value is not a finite number.
    """
    needs_reference = any(metric.uses_reference for metric in metrics.values())
    if needs_reference and reference not in models:
        raise ValueError(f"a metric compares with {reference!r}, which is not among the models")
    order = [reference, *(name for name in models if name != reference)] if needs_reference else list(models)
    rows: dict[str, dict[str, list[np.ndarray]]] = {name: {key: [] for key in metrics} for name in models}
    runners = {name: Runner(models[name]) for name in order}
    remaining = iter(samples)
    while chunk := list(islice(remaining, CHUNK)):
        reference_outputs: list[list[np.ndarray]] = []
        for name in order:
            for position, outputs in enumerate(runners[name].infer(chunk)):
                if needs_reference and name == reference:
                    reference_outputs.append([output.copy() for output in outputs])
                sample = chunk[position]
                for key, metric in metrics.items():
                    target = reference_outputs[position] if metric.uses_reference else sample.target
                    rows[name][key].append(metric_row(key, metric, outputs, target, sample.label))
    stacked = {name: {key: stack_rows(key, values) for key, values in by_metric.items()} for name, by_metric in rows.items()}
    for by_metric in stacked.values():
        for key, metric in metrics.items():
            metric_value(key, metric, by_metric[key])
            check_scores(key, metric, by_metric[key])
    return stacked


def metric_row(key: str, metric: Metric, outputs: list[np.ndarray], target: Any, label: str) -> np.ndarray:
    """A metric's row [k] of one sample. UserError when it is no row of finite numbers; `label` names the sample."""
    with user_code(f"metric {key}, {label}: per_sample of {type(metric).__name__}"):
        result = metric.per_sample(outputs, target)
    values = numbers(result)
    if values is None:
        raise UserError(f"metric {key}: per_sample gives {shown(result)} for {label}, but must give a number, or a row of numbers")
    values = np.atleast_1d(values)
    if not np.all(np.isfinite(values)):
        raise UserError(f"metric {key} is not a finite number ({values.ravel()[~np.isfinite(values.ravel())][0]}) for {label}")
    return values


def stack_rows(key: str, rows: list[np.ndarray]) -> np.ndarray:
    """The rows [N, k] of all samples. UserError when there are none, or of different lengths."""
    if not rows:
        raise UserError(f"metric {key}: there are no samples to evaluate")
    if len({row.shape for row in rows}) > 1 or rows[0].ndim != 1:
        raise UserError(f"metric {key} gives arrays of different shapes from sample to sample; per_sample must return one fixed length")
    return np.stack(rows)


def last_line(error: BaseException) -> str:
    """The last line with words of an OpenVINO exception, which is the one that says what is wrong."""
    lines = [line.strip("- \t") for line in str(error).splitlines() if any(character.isalpha() for character in line)]
    return lines[-1] if lines else type(error).__name__
