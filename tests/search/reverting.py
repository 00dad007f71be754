"""Nets with one culprit by construction, and searches on them in this process."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

from stages.configuration import schema
from stages.runtime import engine
from stages.runtime.datasets import ModelInput, Samples
from stages.runtime.metrics import Accuracy, Metric, ReferenceError
from stages.search.candidates import Candidate
from stages.search.evaluator import Task, evaluate
from stages.search.journal import Journal
from stages.search.problem import Problem
from stages.search.reversion.budget import Budget, make_goal
from stages.search.reversion.search import Reversion
from stages.search.reversion.trace import State
from stages.search.session import Session
from tests.quantization.small import constant, convolution, named, parameter, random
from tests.search.problems import CLASSES, Drawn, make_problem, small_candidate

LAYERS = 6


def culprit_model(culprit: int = 3) -> ov.Model:
    """Six convolutions `conv0`.. with ReLUs, pooling and a MatMul `head`; only the input of conv<culprit> suffers from INT8.

    One of its input channels is 300 times the others, so that they share few levels, and does not count in what it computes.
    """
    source = parameter(name="x")
    node = source
    for index in range(LAYERS):
        weights = random(8, 3 if index == 0 else 8, 3, 3, seed=index) / 4
        if index == culprit - 1:
            weights[0] *= 300
        if index == culprit:
            weights[:, 0] = 0
        node = convolution(node, weights, f"conv{index}", bias=random(8, seed=index) / 10, pads_begin=[1], pads_end=[1])
        node = named(op.relu(node), f"relu{index}")
    flat = named(op.reshape(node, constant([1, -1], "shape", np.int64), False), "flat")
    head = named(op.matmul(flat, constant(random(8 * 64, CLASSES, seed=9), "head/weights"), False, False), "head")
    result = op.result(head)
    head.output(0).set_names({"scores"})
    return ov.Model([result], [source], "culprit")


@cache
def culprit_problem(count: int = 80, culprit: int = 3) -> Problem:
    """The problem of `culprit_model`, with accuracy against the FP32 model's own classes, and the error of its outputs."""
    return problem_of(culprit_model(culprit), count, f"culprit-{count}-{culprit}")


def problem_of(model: ov.Model, count: int, key: str) -> Problem:
    """The problem of a classifier, judged against its own classes in FP32."""
    inputs = [ModelInput("x", ("x",), (1, 3, 8, 8), np.dtype(np.float32))]
    compiled = engine.compile(model, schema.Engine(), "f32")
    plain = Samples(Drawn(count), inputs, None, "validation")
    labels = np.array([int(np.argmax(outputs[0])) for outputs in engine.infer(compiled, plain)])
    samples = Samples(Drawn(count, labels), inputs, None, "validation")
    metrics: dict[str, Metric] = {"accuracy": Accuracy(), "error": ReferenceError()}
    for metric in metrics.values():
        metric.bind(model)
    return make_problem(model, samples, metrics, engine.evaluate_metrics({"fp32": compiled}, samples, metrics)["fp32"], key)


def budget_of(problem: Problem, **drops: float) -> Budget:
    """An absolute budget by metric."""
    return Budget(
        tuple(
            make_goal(name, problem.metrics[name], problem.metrics[name].value(problem.fp32[name]), drop, "absolute")
            for name, drop in drops.items()
        )
    )


@dataclass
class Searched:
    """A finished search."""

    search: Reversion
    best: State
    session: Session

    @property
    def steps(self) -> list[tuple[str, tuple[str, ...], bool]]:
        """Phase, layers and whether it was accepted, of every step."""
        return [(step.phase, step.layers, step.accepted) for step in self.search.trace]


@contextmanager
def session_of(problem: Problem, journal: Path | None = None, evaluated: Callable[[Task], Any] = lambda task: None) -> Iterator[Session]:
    """A session that evaluates in this thread; `evaluated` is called before each evaluation."""
    from concurrent.futures import Future

    def submit(task: Task) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            evaluated(task)
            future.set_result(evaluate(problem, task))
        except BaseException as error:
            future.set_exception(error)
        return future

    with tempfile.TemporaryDirectory() as folder, Journal(problem.key, "test", journal or Path(folder)) as opened:
        yield Session(problem, opened, submit)


def searched(
    problem: Problem,
    budget: Budget,
    base: Candidate | None = None,
    *,
    journal: Path | None = None,
    mixed: Candidate | None = None,
    positions: tuple[int, ...] | None = None,
    evaluated: Callable[[Task], Any] = lambda task: None,
    advance: Callable[[int], Any] = lambda count: None,
    **settings: Any,
) -> Searched:
    """Search from a base, the performance preset by default. settings: keys of accuracy_aware."""
    with session_of(problem, journal, evaluated) as session:
        chosen = positions or tuple(range(len(problem.samples)))
        search = Reversion(
            session, budget, schema.AccuracyAware(enabled=True, **{"acceptance": "point"} | settings), chosen, advance=advance
        )
        return Searched(search, search.run(base or small_candidate(problem), None, mixed), session)
