"""The FP32 models are evaluated once, and again when anything that their values follow from has changed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as operations

from stages.configuration.schema import Config, Data, Engine, Model
from stages.measurement import baseline
from stages.runtime.datasets import Sample
from stages.runtime.metrics import Metric, ReferenceError


class Offset(Metric):
    """How far the output is from the target; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def per_sample(self, outputs: Sequence[np.ndarray], target: Any) -> float:
        self.calls += 1
        return float(outputs[0].sum()) - target


SAMPLES = [Sample({"x": np.full((1, 2), value, np.float32)}, 0.0, "") for value in (1.0, 2.0, 3.0)]


@pytest.fixture(scope="module")
def compiled() -> dict[str, ov.CompiledModel]:
    """x, 2x and 3x."""

    def times(factor: float) -> ov.CompiledModel:
        parameter = operations.parameter([1, 2], np.float32, name="x")
        model = ov.Model([operations.multiply(parameter, operations.constant(np.float32(factor)))], [parameter])
        return ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    return {"fp32": times(1), "default": times(2), "int8": times(3)}


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sums(values: baseline.Values, metric: str) -> dict[str, list[float]]:
    return {name: rows[metric][:, 0].tolist() for name, rows in values.items()}


def test_only_the_candidate_runs_again(compiled: dict[str, ov.CompiledModel]) -> None:
    metric = Offset()
    first = baseline.evaluate(compiled, SAMPLES, {"offset": metric}, "key")
    assert sums(first, "offset") == {"fp32": [2.0, 4.0, 6.0], "default": [4.0, 8.0, 12.0], "int8": [6.0, 12.0, 18.0]}
    assert metric.calls == 9
    second = baseline.evaluate(compiled, SAMPLES, {"offset": metric}, "key")
    assert metric.calls == 12
    assert sums(second, "offset") == sums(first, "offset")
    baseline.evaluate(compiled, SAMPLES, {"offset": metric}, "other key")
    assert metric.calls == 21


def test_a_metric_that_compares_with_fp32_runs_it(compiled: dict[str, ov.CompiledModel]) -> None:
    metrics: dict[str, Metric] = {"offset": Offset(), "error": ReferenceError()}
    metrics["error"].indices = [0]  # type: ignore[attr-defined]
    for _ in range(2):
        values = baseline.evaluate(compiled, SAMPLES, metrics, "key")
        assert sums(values, "error") == {"fp32": [0.0] * 3, "default": [1.0] * 3, "int8": [2.0] * 3}


@pytest.mark.parametrize("damage", [b"", b"no zip file at all"])
def test_damage_costs_another_evaluation_and_no_more(compiled: dict[str, ov.CompiledModel], workspace: Path, damage: bytes) -> None:
    metric = Offset()
    baseline.evaluate(compiled, SAMPLES, {"offset": metric}, "key")
    (file,) = (workspace / baseline.FOLDER).rglob("*.npz")
    file.write_bytes(damage)
    values = baseline.evaluate(compiled, SAMPLES, {"offset": metric}, "key")
    assert metric.calls == 18
    assert sums(values, "offset")["fp32"] == [2.0, 4.0, 6.0]
    baseline.evaluate(compiled, SAMPLES, {"offset": metric}, "key")  # whole again
    assert metric.calls == 21


def test_the_key_knows_model_samples_metric_code_and_engine(workspace: Path) -> None:
    folder = workspace / "build/prepare"
    folder.mkdir(parents=True)
    for name in ("model.xml", "model.bin"):
        (folder / name).write_text(name)
    dataset = {"validation": {"sha256": "v"}, "calibration": {"sha256": "c"}}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    config = Config(model=Model(name="m"), data=Data(name="d"), metric={"offset": {"_target_": "here.Offset"}}, engine=Engine())
    metrics = [Offset()]
    key = baseline.baseline_key(config, metrics)
    assert baseline.baseline_key(dataclasses.replace(config, seed=5), metrics) == key
    (folder / "dataset.json").write_text(json.dumps(dataset | {"calibration": {"sha256": "other"}}))
    assert baseline.baseline_key(config, metrics) == key

    assert baseline.baseline_key(dataclasses.replace(config, metric={"offset": {"_target_": "here.Offset", "k": 2}}), metrics) != key
    assert baseline.baseline_key(dataclasses.replace(config, user_code={"my.py": "0"}), metrics) != key
    assert baseline.baseline_key(config, [ReferenceError()]) != key  # its code is in another file
    (folder / "dataset.json").write_text(json.dumps(dataset | {"validation": {"sha256": "other"}}))
    assert baseline.baseline_key(config, metrics) != key
    (folder / "dataset.json").write_text(json.dumps(dataset))
    (folder / "model.bin").write_text("other")
    assert baseline.baseline_key(config, metrics) != key


def test_saving_is_reproducible(workspace: Path) -> None:
    values = {"fp32": {"a": np.arange(3.0)[:, None]}}
    for name in ("one.npz", "two.npz"):
        baseline.save(values, workspace / name)
    assert (workspace / "one.npz").read_bytes() == (workspace / "two.npz").read_bytes()
