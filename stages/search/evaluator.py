"""Evaluate a candidate: build its model in memory, compile it, and judge it on validation samples.

No calibration sample is inferred, no file is written, and no FP32 work is repeated; a trial is edit, compile, evaluate.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice, tee
from typing import Protocol

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from stages.common.errors import UserError
from stages.measurement import latency
from stages.quantization.build import build, compress_weights
from stages.quantization.refinement.accurate_bias import accurate_corrections
from stages.quantization.solution.biases import Correction
from stages.quantization.solution.solve import Solved
from stages.runtime import engine
from stages.search.candidates import Candidate, candidate_key, digest
from stages.search.problem import Problem, code_key

Rows = Mapping[str, NDArray[np.float64]]  # per-sample rows [n, k] by metric


class Stop(Protocol):
    """A rule that gives an evaluation up before all its samples are done. A frozen dataclass: its fields are its identity."""

    @property
    def chunk(self) -> int:
        """How many samples are evaluated between two looks."""

    def hopeless(self, problem: Problem, rows: Rows, positions: Sequence[int]) -> bool:
        """Whether the rest need not be evaluated, from the rows of the first of `positions`, which are all that would be."""


@dataclass(frozen=True)
class OutOfReach:
    """Give up once a metric cannot come to a bar any more even if the candidate did as well as FP32 on all samples that are left.

    Attributes:
        metric: Name of the metric.
        bar: What its mean score (`Metric.score`, higher is better) over all positions must reach.
        chunk: Samples between two looks.
    """

    metric: str
    bar: float
    chunk: int = 32

    def hopeless(self, problem: Problem, rows: Rows, positions: Sequence[int]) -> bool:
        """See `Stop`."""
        score = problem.metrics[self.metric].score
        done = score(rows[self.metric])
        left = score(problem.fp32[self.metric][list(positions[len(done) :])]) if len(done) < len(positions) else np.zeros(0)
        return float(done.sum() + left.sum()) < self.bar * len(positions)


@dataclass(frozen=True)
class Timing:
    """Measure a candidate's latency, interleaved with the FP32 model in the device's default precision.

    Attributes:
        seconds: Measuring time for both models together.
        threads: CPU threads; 0 lets OpenVINO choose.
        streams: Parallel streams; 0 lets the hint choose.
        hint: LATENCY (one request at a time) or THROUGHPUT (time per inference with all requests in flight).
        requests: Parallel requests with THROUGHPUT; 0 lets OpenVINO choose.
        batch: Samples per inference; 0: as the model has it.
    """

    seconds: float = 2.0
    threads: int = 0
    streams: int = 0
    hint: str = "LATENCY"
    requests: int = 0
    batch: int = 0


@dataclass(frozen=True)
class Task:
    """What to evaluate of a candidate.

    Attributes:
        candidate: The configuration.
        positions: Validation samples by position, in the order in which they are evaluated; None: all; empty: only its latency.
        stop: When to give up early.
        timing: How to measure latency; None: not at all.
    """

    candidate: Candidate
    positions: tuple[int, ...] | None = None
    stop: Stop | None = None
    timing: Timing | None = None


@dataclass(frozen=True)
class Outcome:
    """What an evaluation found.

    Attributes:
        key: `task_key` of the task.
        candidate: `candidate_key` of its candidate.
        rows: Per-sample rows [n, k] by metric, of the first n positions of the task.
        complete: Whether all positions were evaluated.
        seconds: Wall time that it took.
        speed_up: How many times faster than FP32 in the default precision (median, low, high), where latency was measured.
        latency_ms: Latency in milliseconds (median, low, high), where it was measured.
    """

    key: str
    candidate: str
    rows: Rows
    complete: bool
    seconds: float
    speed_up: latency.Spread | None = None
    latency_ms: latency.Spread | None = None


def task_key(task: Task) -> str:
    """Hexadecimal identity of a task within its problem."""
    stop = None if task.stop is None else [type(task.stop).__name__, asdict(task.stop)]  # type: ignore[call-overload]
    timing = None if task.timing is None else asdict(task.timing)
    return digest([candidate_key(task.candidate), task.positions, stop, timing])


def all_positions(problem: Problem, task: Task) -> tuple[int, ...]:
    """The positions of a task, written out."""
    return tuple(range(len(problem.samples))) if task.positions is None else task.positions


def evaluate(problem: Problem, task: Task) -> Outcome:
    """Carry out a task.

    Raises:
        UserError: a metric is not a finite number, or this process runs another version of the code than the problem's maker.
    """
    if problem.code != code_key():
        raise UserError("this worker has another version of the project than the stage that sends it work")
    started = time.perf_counter()
    model, _ = build_candidate(problem, task.candidate)
    rows, complete = _evaluate_metrics(problem, model, task) if task.positions != () else ({}, True)
    speed_up, latency_ms = (None, None) if task.timing is None else _time(problem, model, task.timing)
    seconds = time.perf_counter() - started
    return Outcome(task_key(task), candidate_key(task.candidate), rows, complete, seconds, speed_up, latency_ms)


def build_candidate(problem: Problem, candidate: Candidate) -> tuple[ov.Model, Solved]:
    """The candidate's model with its weights compressed, exactly as it would be saved, and its numbers."""
    correction, model = candidate.bias_correction, problem.model()
    corrections = list(candidate.corrections or ())
    if correction.enabled and not correction.use_fast_bias and candidate.corrections is None:
        corrections = _accurate(problem, candidate)
    quantized, solved = build(model, problem.statistics, candidate.plan, correction, problem.pot_compatible, corrections, problem.tuned)
    compress_weights(quantized)
    return quantized, solved


def _accurate(problem: Problem, candidate: Candidate) -> list[Correction]:
    if problem.calibration is None:
        raise ValueError("the accurate BiasCorrection needs the calibration samples")
    return accurate_corrections(
        problem.model(),
        problem.statistics,
        candidate.plan,
        candidate.bias_correction,
        problem.calibration,
        pot_compatible=problem.pot_compatible,
        settings=problem.engine,
    )


def _evaluate_metrics(problem: Problem, model: ov.Model, task: Task) -> tuple[Rows, bool]:
    positions = all_positions(problem, task)
    compiled = engine.compile(model, problem.engine, engine.int8_precision(model, problem.engine))
    rows = _rows(problem, compiled, positions)
    chunk = len(positions) if task.stop is None else task.stop.chunk
    found: list[dict[str, NDArray[np.float64]]] = []
    while len(found) < len(positions):
        found.extend(islice(rows, chunk))
        if task.stop is not None and task.stop.hopeless(problem, _stacked(found), positions):
            rows.close()
            break
    return _stacked(found), len(found) == len(positions)


def _rows(problem: Problem, compiled: ov.CompiledModel, positions: Sequence[int]) -> Generator[dict[str, NDArray[np.float64]], None, None]:
    """Each position's row [k] of every metric."""
    if problem.samples.streams is None:
        yield from _rows_in_order(problem, compiled, positions)
        return
    # Parts of streams in another order would all have to be run from the beginning of theirs.
    order = sorted(positions)
    found = dict(zip(order, _rows_in_order(problem, compiled, order), strict=True))
    yield from (found[position] for position in positions)


def _rows_in_order(
    problem: Problem, compiled: ov.CompiledModel, positions: Sequence[int]
) -> Generator[dict[str, NDArray[np.float64]], None, None]:
    compares = any(metric.uses_reference for metric in problem.metrics.values())
    references = problem.references(positions) if compares else None
    sent, kept = tee(problem.chosen(positions))
    for outputs, sample in zip(engine.infer(compiled, sent), kept, strict=True):
        reference = next(references) if references is not None else None
        yield {
            name: engine.metric_row(name, metric, outputs, reference if metric.uses_reference else sample.target, sample.label)
            for name, metric in problem.metrics.items()
        }


def _stacked(found: Sequence[dict[str, NDArray[np.float64]]]) -> Rows:
    return {name: engine.stack_rows(name, [rows[name] for rows in found]) for name in found[0]}


def _time(problem: Problem, model: ov.Model, timing: Timing) -> tuple[latency.Spread, latency.Spread]:
    rounds = time_models(problem, {"candidate": model}, timing)
    return latency.speed_up(rounds["default"], rounds["candidate"]), latency.spread(1e3 * rounds["candidate"])


def time_models(problem: Problem, models: Mapping[str, ov.Model], timing: Timing) -> dict[str, NDArray[np.float64]]:
    """Seconds of one inference per round, of each model and of the FP32 model in the default precision (`default`).

    Raises:
        UserError: the model cannot take `timing.batch`.
    """
    settings = replace(
        problem.engine, threads=timing.threads or problem.engine.threads, requests=timing.requests or problem.engine.requests
    )
    inputs = dict(enumerate(next(iter(problem.chosen([0]))).inputs.values()))
    if timing.batch:
        inputs = {index: np.repeat(value[:1], timing.batch, axis=0) for index, value in inputs.items()}

    def compiled(model: ov.Model, precision: str) -> ov.CompiledModel:
        return engine.compile(_batched(model, timing.batch), settings, precision, hint=timing.hint, streams=timing.streams)

    default = problem.default_precision(replace(timing, seconds=0.0), lambda model: compiled(model, "default"))
    together = {"default": default} | {
        name: compiled(model, engine.int8_precision(model, problem.engine)) for name, model in models.items()
    }
    return (latency.latency if timing.hint == "LATENCY" else latency.saturated)(together, inputs, timing.seconds)


def _batched(model: ov.Model, batch: int) -> ov.Model:
    """The model (changed in place) with another size of the first dimension of its inputs; 0 leaves it alone."""
    if not batch:
        return model
    try:
        model.reshape({index: [batch, *list(port.get_partial_shape())[1:]] for index, port in enumerate(model.inputs)})
    except RuntimeError as error:
        raise UserError(f"the model cannot run with a batch of {batch}: {engine.last_line(error)}") from error
    return model
