"""A small search problem, in which one layer is sensitive by construction."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset13 as op

from stages.configuration import schema
from stages.quantization.model.graph import read_graph
from stages.quantization.placement.plan import Plan
from stages.quantization.planning import make_plan
from stages.runtime import engine
from stages.runtime.datasets import ModelInput, Samples
from stages.runtime.metrics import Accuracy, Metric, ReferenceError
from stages.search.candidates import Candidate
from stages.search.problem import Problem
from tests.quantization.quantizing import statistics_of
from tests.quantization.reference_runs import target
from tests.quantization.small import constant, convolution, named, parameter, random

CLASSES, LAYERS = 5, 4


class Drawn:
    """Random inputs, labelled by the FP32 model itself but for every tenth."""

    def __init__(self, count: int, labels: np.ndarray | None = None) -> None:
        self.inputs = np.random.default_rng(7).standard_normal((count, 1, 3, 8, 8)).astype(np.float32)
        self.labels = labels

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.inputs[index], 0 if self.labels is None else int(self.labels[index])


def small_model() -> ov.Model:
    """Four convolutions `conv0`..`conv3` with ReLUs, pooling and a MatMul `head`; `conv2` suffers from quantization.

    One of its output channels is a hundred times the others, which share its activation range afterwards.
    """
    source = parameter(name="x")
    node = source
    for index in range(LAYERS):
        weights = random(8, 3 if index == 0 else 8, 3, 3, seed=index) / 5
        if index == 2:
            weights[0] *= 60
        node = convolution(node, weights, f"conv{index}", bias=random(8, seed=index) / 10, pads_begin=[1], pads_end=[1])
        node = named(op.relu(node), f"relu{index}")
    pooled = named(op.reduce_mean(node, constant([2, 3], "axes", np.int64), keep_dims=False), "pool")
    head = named(op.matmul(pooled, constant(random(8, CLASSES, seed=9), "head/weights"), False, False), "head")
    result = op.result(head)
    head.output(0).set_names({"scores"})
    return ov.Model([result], [source], "small")


@cache
def small_problem(count: int = 60, *, reference: bool = False) -> Problem:
    """The problem of `small_model` on `count` samples, with accuracy (and the error against FP32)."""
    model = small_model()
    inputs = [ModelInput("x", ("x",), (1, 3, 8, 8), np.dtype(np.float32))]
    compiled = engine.compile(model, schema.Engine(), "f32")
    plain = Samples(Drawn(count), inputs, None, "validation")
    labels = np.array([int(np.argmax(outputs[0])) for outputs in engine.infer(compiled, plain)])
    labels[::10] = (labels[::10] + 1) % CLASSES
    samples = Samples(Drawn(count, labels), inputs, None, "validation")
    metrics: dict[str, Metric] = {"accuracy": Accuracy()}
    if reference:
        metrics["error"] = ReferenceError()
    for metric in metrics.values():
        metric.bind(model)
    rows = engine.evaluate_metrics({"fp32": compiled}, samples, metrics)["fp32"]
    return make_problem(model, samples, metrics, rows, f"small-{count}-{reference}")


def make_problem(model: ov.Model, samples: Samples, metrics: dict[str, Metric], fp32: dict[str, np.ndarray], key: str) -> Problem:
    """A problem of a model in memory."""
    with tempfile.TemporaryDirectory() as folder:
        ov.save_model(model, Path(folder) / "model.xml", compress_to_fp16=False)
        xml, weights = ((Path(folder) / name).read_bytes() for name in ("model.xml", "model.bin"))
    calibration = samples[:20]
    return Problem(
        key=key,
        xml=xml,
        weights=weights,
        statistics=statistics_of(model, [dict(sample.inputs) for sample in calibration], (1e-3, 1e-4), (1e-3, 1e-4)),
        samples=samples,
        metrics=metrics,
        engine=schema.Engine(inference_precision="f32"),
        pot_compatible=False,
        fp32=fp32,
        calibration=calibration,
    )


def small_plan(problem: Problem, **settings: object) -> Plan:
    """The plan of a preset."""
    return make_plan(read_graph(problem.model()), target(), schema.Quantization(**settings), problem.statistics)  # type: ignore[arg-type]


def small_candidate(problem: Problem, **settings: object) -> Candidate:
    """The candidate of a preset."""
    return Candidate(small_plan(problem, **settings), label="preset")
