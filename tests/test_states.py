"""Models that keep a state from one inference to the next, through the whole project, brought as a user would."""

from __future__ import annotations

import json

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from tests.project import Project
from tests.runtime.models import named

pytestmark = pytest.mark.slow

WIDTH = 16
CLASS = f"""\
import numpy as np

class Recordings:
    \"\"\"Recordings of ten frames each; a frame of [1, {WIDTH}] is told from the ones before it.\"\"\"

    def __init__(self, count, seed):
        self.count, self.seed = count, seed

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return np.random.default_rng([self.seed, index]).normal(size=(1, {WIDTH})).astype(np.float32)

    def stream(self, index):
        return f"recording {{index // 10}}"
"""
PARAMS = """\
model: {name: recurrent, path: net.xml}
data:
  calibration: {_target_: conf.recordings.Recordings, count: 40, seed: 1}
  validation: {_target_: conf.recordings.Recordings, count: 120, seed: 2}
  streams: STREAMS
quantization:
  saturation_fix: all # where CPUs add up in 16 bits
  range_estimator: {min: {aggregator: min}, max: {aggregator: max}} # a frame has few values: the mean of their extremes clips
evaluate: {benchmark: {seconds: 0.5}}
accuracy_aware: {enabled: true, maximal_drop: 0.001, metrics: [{name: reference_error, baseline_value: 0.0}], on_failure: keep}
tune: {enabled: true, accuracy_loss: 1.0, metrics: [{name: reference_error, baseline_value: 0.05}], max_trials: 5}
"""


def recurrent() -> ov.Model:
    """A recurrent cell written out, before a layer: what it gives depends on all frames so far."""
    random = np.random.default_rng(0)

    def layer(source: ov.Node, name: str) -> ov.Node:
        node = op.matmul(source, op.constant((random.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float32)), False, True)
        node.set_friendly_name(name)
        return node

    frame = op.parameter(ov.PartialShape([-1, WIDTH]), np.float32, name="frame")
    state = op.read_value(np.zeros((1, WIDTH), np.float32), "hidden", ov.Type.f32, ov.PartialShape([-1, WIDTH]))
    hidden = op.tanh(op.add(layer(frame, "reads"), layer(state, "remembers")))
    scores = layer(hidden, "scores")
    scores.output(0).set_names({"scores"})
    return named(ov.Model([op.result(scores)], [op.assign(hidden, "hidden")], [frame]))


@pytest.mark.parametrize("streams", [False, True])
def test_every_stage(project: Project, streams: bool) -> None:
    ov.save_model(recurrent(), project.root / "net.xml", compress_to_fp16=False)
    project.write("conf/recordings.py", CLASS)
    params = PARAMS.replace("STREAMS", str(streams).lower())
    project.params(params, "model: local", "data: custom", "metric: reference_error", "tracking: disabled")
    outcome = project.repro()
    assert outcome.code == 0, outcome.output
    assert ("every sample begins" in outcome.output) == (not streams)
    evaluation, aware = (
        json.loads((project.root / "build" / name).read_text()) for name in ("evaluate/evaluation.json", "accuracy_aware/result.json")
    )
    # FP32 agrees with its own answers whatever runs beside it; INT8 is as far off as eight bits are.
    assert evaluation["metrics"]["reference_error"]["fp32"] == 0.0
    assert 0.0 < evaluation["metrics"]["reference_error"]["int8"] < 0.05
    # The search's samples, in its own order, give what all samples in theirs give.
    assert aware["judged"]["reference_error"]["int8"] == pytest.approx(0.0, abs=0.05)
    assert evaluation["fidelity"]["ratio"] < evaluation["fidelity"]["limit"]
