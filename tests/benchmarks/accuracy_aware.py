"""Accuracy-aware quantization: this project against NNCF's quantize_with_accuracy_control, in one process and on the same samples.

    pip install -e '.[peers]'
    python -m tests.benchmarks.accuracy_aware                    # both tasks
    python -m tests.benchmarks.accuracy_aware --tasks uneven --validation 500

Two tasks, both with the performance preset:
    text_lines  the bundled example: exact match of a text recogniser, a budget of one point.
    uneven      which way up a line of text is, by a MobileNetV3 in which two channels are so much larger than the others that
                share their range that INT8 loses most of what the net knows; in floating point it computes what it always did.
                A budget of two points.

Four fifths of the validation samples are what both sides may look at; the rest judges what they chose. CPU seconds are those of
this process (user and system), from the model in memory to the chosen one: statistics, ranges, biases, the baseline, the search.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import yaml
from openvino import opset13 as op
from PIL import Image

from stages.configuration import schema
from stages.configuration.target_device import Target, read_target
from stages.measurement.latency import latency, speed_up
from stages.quantization.effect.blocks import multiplications
from stages.quantization.model.graph import read_graph
from stages.quantization.planning import make_plan
from stages.quantization.statistics.collection import collect
from stages.quantization.statistics.points import statistics_points
from stages.quantization.statistics.store import Statistics
from stages.runtime import engine
from stages.runtime.datasets import Sample, Samples, TextLines, model_inputs
from stages.runtime.metrics import Accuracy, ExactMatch, Metric
from stages.runtime.sources import locate, read
from stages.search.candidates import Candidate
from stages.search.evaluator import Rows, build_candidate
from stages.search.journal import Journal
from stages.search.problem import Problem
from stages.search.reversion.budget import Budget, divide, drop_interval, make_goal
from stages.search.reversion.search import Reversion
from stages.search.session import Session

ROOT = Path(__file__).parents[2]
ENGINE = schema.Engine()
CLASSIFIER = (48, 192)  # its input
UNEVEN = (("GroupConvolution_2", "BatchNormalization@5", "Convolution_5"), ("GroupConvolution_3", "BatchNormalization@8", "Convolution_7"))
SCALE = 200.0


@dataclass(frozen=True)
class Task:
    """What is quantized, and how it is judged."""

    model: ov.Model
    calibration: Samples
    search: Samples
    held_out: Samples
    metric: Metric
    maximal_drop: float


@dataclass(frozen=True)
class TailOutputs:
    """What a side chose, and what that cost it."""

    model: ov.Model
    seconds: float
    quantized: frozenset[str]  # operations of the chosen model
    before: frozenset[str]  # operations of the model from which it started


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--calibration", type=int, default=300, help="calibration samples")
    parser.add_argument("--validation", type=int, default=1000, help="validation samples, held-out ones included")
    arguments = parser.parse_args()
    for name in arguments.tasks:
        task = TASKS[name](arguments.calibration, arguments.validation)
        print(
            f"{name}: {len(task.search)} samples to search with, {len(task.held_out)} held out, budget {100 * task.maximal_drop:g} points"
        )
        ours, theirs = _ours(task), _nncf(task)
        _print(task, ours, theirs)


# --------------------------------------------------------------------------------------------------------------- tasks


class Lines:
    """Text lines, rendered once."""

    def __init__(self, count: int, seed: int, made: Callable[[TextLines, int], Sample]) -> None:
        lines = TextLines(count, seed=seed)
        self.samples = [made(lines, index) for index in range(count)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def _text_lines(calibration: int, validation: int) -> Task:
    values = yaml.safe_load((ROOT / "conf/model/ppocrv4_rec.yaml").read_text())
    return _task(_read(values), calibration, validation, lambda lines, index: lines[index], ExactMatch(ignore_space=True), 0.01)


def _uneven(calibration: int, validation: int) -> Task:
    model = _read(yaml.safe_load((ROOT / "conf/experiment/text_direction.yaml").read_text())["model"])
    for depthwise, bias, reader in UNEVEN:
        _scale_channel(model, depthwise, bias, reader)
    return _task(model, calibration, validation, _turned, Accuracy(), 0.02)


def _read(values: dict[str, Any]) -> ov.Model:
    config = schema.Model(**{**values, "package": schema.Package(**values["package"])})
    return read(locate(config), config.input_shape)


def _task(
    model: ov.Model, calibration: int, validation: int, made: Callable[[TextLines, int], Sample], metric: Metric, maximal_drop: float
) -> Task:
    inputs = model_inputs(model)
    metric.bind(model)
    known, judged = Lines(calibration, 1, made), Lines(validation, 2, made)
    parts = divide(validation, 0.2, 1.0, 0)
    search, held_out = (Samples(judged, inputs, list(part), "validation") for part in parts)
    return Task(model, Samples(known, inputs, None, "calibration"), search, held_out, metric, maximal_drop)


def _turned(lines: TextLines, index: int) -> Sample:
    """Every second line upside down."""
    height, width = CLASSIFIER
    picture = Image.fromarray(lines.picture(index)[0]).rotate((0, 180)[index % 2]).resize((width, height))
    pixels = (np.asarray(picture, np.float32)[:, :, ::-1] - 127.5) / 127.5
    return Sample({"": np.ascontiguousarray(pixels.transpose(2, 0, 1))[None]}, index % 2)


def _scale_channel(model: ov.Model, depthwise: str, bias: str, reader: str) -> None:
    """Multiply what the first channel of a convolution computes, and divide what reads it; a ReLU between does not mind."""
    nodes = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
    for name, axis, factor in ((depthwise, 0, SCALE), (bias, 1, SCALE), (reader, 1, 1 / SCALE)):
        port = next(port for port in nodes[name].inputs() if port.get_source_output().get_node().get_type_name() == "Constant")
        values = port.get_source_output().get_node().get_data().copy()
        np.moveaxis(values, axis, 0)[0] *= factor
        port.replace_source_output(op.constant(values).output(0))


TASKS: dict[str, Callable[[int, int], Task]] = {"text_lines": _text_lines, "uneven": _uneven}


# --------------------------------------------------------------------------------------------------------------- sides


def _ours(task: Task) -> TailOutputs:
    started = time.process_time()
    statistics = statistics_of(task)
    base = candidate_of(task, statistics, "performance")
    problem = problem_of(task, statistics)
    budget = _budget(task, problem.fp32)
    settings = schema.AccuracyAware(enabled=True, maximal_drop=task.maximal_drop, acceptance="point")  # as NNCF has it
    with tempfile.TemporaryDirectory() as folder, Journal(problem.key, "search", Path(folder)) as journal:
        search = Reversion(session_of(problem, journal), budget, settings, tuple(range(len(task.search))))
        best = search.run(base, None)
    model = build_candidate(problem, best.candidate)[0]
    seconds = time.process_time() - started
    print(f"  ours: {len(search.trace)} models tried on all samples, {search.stopped or 'the budget holds'}", flush=True)
    return TailOutputs(model, seconds, _operations(best.candidate), _operations(base))


def any_device() -> Target:
    """The target that the project's default is."""
    return read_target(schema.TargetDevice(**yaml.safe_load((ROOT / "conf/target_device/any.yaml").read_text())))


def statistics_of(task: Task) -> Statistics:
    """Of the calibration samples."""

    def infer(instrumented: ov.Model) -> Iterable[list[np.ndarray]]:
        return engine.infer(engine.compile(instrumented, ENGINE, "f32"), task.calibration)

    points = statistics_points(read_graph(task.model), any_device())
    return collect(task.model, points, [1e-4], [], infer, len(task.calibration))


def candidate_of(task: Task, statistics: Statistics, preset: str) -> Candidate:
    """The model of a preset."""
    plan = make_plan(read_graph(task.model), any_device(), schema.Quantization(preset=preset), statistics)
    return Candidate(plan, schema.BiasCorrection())


def problem_of(task: Task, statistics: Statistics) -> Problem:
    """What a search on the samples to search with poses."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        ov.save_model(task.model, path, compress_to_fp16=False)
        xml, weights = path.read_bytes(), path.with_suffix(".bin").read_bytes()
    fp32 = _rows(task, task.model, "f32", task.search)
    key = hashlib.sha256(xml + weights).hexdigest()  # what is remembered of one task's model is not the other's
    return Problem(key, xml, weights, statistics, task.search, {"metric": task.metric}, ENGINE, False, fp32)


def session_of(problem: Problem, journal: Journal) -> Session:
    """A session that evaluates in this thread."""
    from concurrent.futures import Future

    from stages.search.evaluator import evaluate

    def submit(work: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(evaluate(problem, work))
        return future

    return Session(problem, journal, submit)


def _operations(candidate: Candidate) -> frozenset[str]:
    return frozenset(place.name for entry in candidate.plan.quantizers for place in entry.layers or entry.consumers)


def _nncf(task: Task) -> TailOutputs:
    import nncf

    nncf.set_log_level("ERROR")

    def transform(sample: Sample) -> Any:
        return next(iter(sample.inputs.values()))

    def validate(model: ov.CompiledModel, samples: Iterable[Sample]) -> tuple[float, list[float]]:
        found = []
        for sample in samples:
            outputs = list(model(transform(sample)).values())
            found.append(float(engine.metric_row("metric", task.metric, outputs, sample.target, sample.label)[0]))
        return float(np.mean(found)), found

    calibration = nncf.Dataset(list(task.calibration), transform)
    preset = nncf.QuantizationPreset.PERFORMANCE
    started = time.process_time()
    model = nncf.quantize_with_accuracy_control(
        task.model,
        calibration,
        nncf.Dataset(list(task.search)),
        validate,
        max_drop=task.maximal_drop,
        drop_type=nncf.DropType.ABSOLUTE,
        preset=preset,
        subset_size=len(task.calibration),
    )
    seconds = time.process_time() - started
    before = nncf.quantize(task.model, calibration, preset=preset, subset_size=len(task.calibration))
    return TailOutputs(model, seconds, _reading_quantized(model), _reading_quantized(before))


def _reading_quantized(model: ov.Model) -> frozenset[str]:
    """Operations that compute with what a FakeQuantize of activations leaves."""
    found, waiting = set(), [node for node in model.get_ordered_ops() if node.get_type_name() == "FakeQuantize"]
    while waiting:
        for port in (port for output in waiting.pop().outputs() for port in output.get_target_inputs()):
            node = port.get_node()
            if node.get_type_name() in ("Reshape", "Transpose", "MaxPool", "Squeeze", "Unsqueeze", "Concat", "Split"):
                waiting.append(node)
            elif node.get_type_name() != "FakeQuantize":
                found.add(node.get_friendly_name())
    return frozenset(found)


# ------------------------------------------------------------------------------------------------------------- results


def _budget(task: Task, fp32: Rows) -> Budget:
    return Budget((make_goal("metric", task.metric, task.metric.value(fp32["metric"]), task.maximal_drop, "absolute"),))


def _rows(task: Task, model: ov.Model, precision: str, samples: Samples) -> Rows:
    compiled = engine.compile(model, ENGINE, precision)
    return engine.evaluate_metrics({"model": compiled}, samples, {"metric": task.metric})["model"]


def _print(task: Task, ours: TailOutputs, theirs: TailOutputs) -> None:
    graph = read_graph(task.model)
    print(f"  CPU s: ours {ours.seconds:.1f}, NNCF {theirs.seconds:.1f}, ratio {ours.seconds / theirs.seconds:.2f}")
    for name, found in (("ours", ours), ("NNCF", theirs)):
        back = found.before - found.quantized
        cost = sum(multiplications(graph.by_name[layer]) for layer in back if layer in graph.by_name)
        print(
            f"  {name}: {len(back)} of {len(found.before)} operations back in floating point, {cost / 1e6:.1f} M multiplications:", end=" "
        )
        print(", ".join(sorted(back)[:6]) + (", ..." if len(back) > 6 else ""))
    for which, samples in (("search", task.search), ("held-out", task.held_out)):
        fp32 = _rows(task, task.model, "f32", samples)
        goal = _budget(task, fp32).goals[0]
        words = [f"FP32 {100 * goal.baseline:.1f} %"]
        for name, found in (("ours", ours), ("NNCF", theirs)):
            drop = drop_interval(goal, fp32["metric"], _rows(task, found.model, "default", samples)["metric"], 0.95, 0)
            words.append(f"{name} drops by {100 * drop.value:.2f} [{100 * (drop.low or 0.0):.2f}, {100 * (drop.high or 0.0):.2f}]")
        print(f"  {which}: " + ", ".join(words), flush=True)
    compiled = {name: engine.compile(found.model, ENGINE, "default", hint="LATENCY") for name, found in (("ours", ours), ("nncf", theirs))}
    times = latency(compiled, dict(enumerate(next(iter(task.search)).inputs.values())), seconds=10)
    ratio = speed_up(times["nncf"], times["ours"])
    medians = {name: 1e3 * float(np.median(values)) for name, values in times.items()}
    print(f"  latency: ours {medians['ours']:.2f} ms, NNCF {medians['nncf']:.2f} ms; NNCF / ours {ratio.median:.2f}", end=" ")
    print(f"[{ratio.low:.2f}, {ratio.high:.2f}]", flush=True)


if __name__ == "__main__":
    main()
