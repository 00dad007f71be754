"""A model with dynamic sizes and a data set class of its own, through every stage that infers: samples of other sizes each time,
in arrays that nobody else keeps.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as operations

from stages.runtime.requests import Requests, infer_once
from tests.project import Project, copy_project
from tests.runtime.models import named

CLASS = """\
import numpy as np

class Fresh:
    def __init__(self, count, seed):
        self.count, self.seed = count, seed

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        random = np.random.default_rng([self.seed, index])
        height, width = 20 + index % 7, 24 + index % 5
        return random.normal(size=(1, 3, height, width)).astype(np.float32), int(random.integers(10))
"""
PARAMS = """\
model: {name: fresh, path: net.xml}
data:
  calibration: {_target_: conf.fresh.Fresh, count: 60, seed: 1}
  validation: {_target_: conf.fresh.Fresh, count: 400, seed: 2}
evaluate: {noise_samples: 64, benchmark: {seconds: 1.0}}
accuracy_aware: {enabled: true, maximal_drop: 0.001, metrics: [{name: reference_error, baseline_value: 0.0}], on_failure: keep}
tune: {enabled: true, accuracy_loss: 1.0, metrics: [{name: reference_error, baseline_value: 0.05}], max_trials: 6}
"""


def network(sizes: list[int]) -> ov.Model:
    """Two convolutions, mean over positions, ten classes."""
    random = np.random.default_rng(0)
    image = operations.parameter(ov.PartialShape(sizes), np.float32, name="image")
    node: ov.Node = image
    for index, (inputs, outputs) in enumerate(((3, 16), (16, 24))):
        weights = operations.constant((random.normal(size=(outputs, inputs, 3, 3)) / 3 / inputs**0.5).astype(np.float32))
        node = operations.relu(operations.convolution(node, weights, [2, 2], [1, 1], [1, 1], [1, 1]))
        node.set_friendly_name(f"relu{index}")
    mean = operations.reduce_mean(node, operations.constant([2, 3]), False)
    scores = operations.matmul(mean, operations.constant(random.normal(size=(24, 10)).astype(np.float32)), False, False)
    scores.set_friendly_name("scores")
    return named(ov.Model([scores], [image]))


def test_every_stage(tmp_path: Path) -> None:
    project: Project = copy_project(tmp_path / "project")
    ov.save_model(network([-1, 3, -1, -1]), project.root / "net.xml", compress_to_fp16=False)
    project.write("conf/fresh.py", CLASS)
    project.params(PARAMS, "model: local", "data: custom", "metric: reference_error", "tracking: disabled")
    outcome = project.repro()
    assert outcome.code == 0, outcome.output
    read = {name: json.loads((project.root / "build" / name).read_text()) for name in ("evaluate/evaluation.json", "tune/trials.json")}
    (metric,) = read["evaluate/evaluation.json"]["metrics"].values()
    assert 0.0 < metric["int8"] < 0.2  # relative error: the samples were what they should be
    assert len(read["tune/trials.json"]) == 6


INFER_ALONE = """\
import numpy as np, openvino as ov
from stages.measurement import latency
from stages.runtime import engine
from stages.runtime.datasets import Samples, model_inputs
from stages.configuration.schema import Engine
from tests.test_dynamic_models import network

class Fresh:
    def __len__(self): return 600
    def __getitem__(self, index): return np.full((1, 3, 64, 64), index, np.float32)

model = network([-1, 3, 64, 64])
samples = Samples(Fresh(), model_inputs(model), range(600), "validation")
compiled = engine.compile(model, Engine())
kept = samples[599].inputs
for outputs in engine.infer(compiled, samples):
    pass
for _ in engine.infer(compiled, [samples[599]]):
    pass
inputs = {0: np.ones((1, 3, 64, 64), np.float32)}
latency.throughput({"model": compiled}, inputs, 2.0)
latency.saturated({"model": compiled}, inputs, 1.0)
latency.latency({"model": compiled}, inputs, 1.0)
assert (kept["image"] == 599).all(), "overwritten"
print("whole")
"""


@pytest.mark.parametrize("attempt", range(3))
def test_arrays_are_neither_copied_into_nor_lost(attempt: int) -> None:
    """In a process of its own: what goes wrong here corrupts the heap."""
    root = Path(__file__).resolve().parent.parent
    result = subprocess.run([sys.executable, "-c", INFER_ALONE], cwd=root, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (0, "whole\n"), result.stderr


def test_requests_finish_in_the_order_of_their_start() -> None:
    model = ov.Core().compile_model(network([-1, 3, -1, -1]), "CPU", {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "THROUGHPUT"})
    images = [np.random.default_rng(index).normal(size=(1, 3, 8 + index, 9)).astype(np.float32) for index in range(3)]
    alone = model.create_infer_request()
    expected = []
    for image in images:
        infer_once(alone, {0: image}, reset=False)
        expected.append(alone.output_tensors[0].data.copy())
    pool = Requests(model, 3)
    assert (len(pool), pool.running) == (3, 0)
    for image in images:
        pool.start({0: image})
    assert (len(pool), pool.running) == (3, 3)
    for scores in expected:
        np.testing.assert_array_equal(pool.finish()[0], scores)
    pool.start({0: images[0]})
    pool.wait()
    assert pool.running == 0
