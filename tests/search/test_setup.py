"""What is remembered of a problem counts for that problem only."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openvino as ov
import pytest

from stages.configuration.schema import BiasCorrection, Cluster, Config, Engine, Quantization, Tracking, Tune
from stages.quantization.solution import tuned
from stages.search import setup
from stages.search.problem import Problem
from tests.built import config as built_config
from tests.search.problems import small_problem

SETS = {name: {"sha256": name} for name in ("calibration", "validation")}
ERROR = {"error": {"_target_": "stages.runtime.metrics.ReferenceError"}}
PREPARE, STATISTICS, CORRECTED = (Path("build", stage) for stage in ("prepare", "collect_statistics", "correct_bias"))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A configuration, and what the problem's identity is read from."""
    problem = small_problem(60, reference=True)
    monkeypatch.chdir(tmp_path)
    for folder in (PREPARE, STATISTICS, CORRECTED):
        folder.mkdir(parents=True)
    (PREPARE / "model.xml").write_bytes(problem.xml)
    (PREPARE / "model.bin").write_bytes(problem.weights)
    (PREPARE / "dataset.json").write_text(json.dumps(SETS))
    for name in ("statistics.npz", "index.json"):
        (STATISTICS / name).write_text(name)
    monkeypatch.setattr(setup, "load", lambda folder: problem.statistics)
    monkeypatch.setattr(setup, "load_tuned", lambda folder: None)
    monkeypatch.setattr(setup, "validation_samples", lambda config: problem.samples)
    monkeypatch.setattr(setup, "calibration_samples", lambda config: problem.calibration)
    monkeypatch.setattr(setup, "evaluated", lambda model, metrics: {name: problem.fp32[name] for name in metrics})
    return dataclasses.replace(built_config(), metric=ERROR, evaluate=dataclasses.replace(built_config().evaluate, primary_metric="error"))


def renamed_layer() -> None:
    model = ov.Core().read_model(PREPARE / "model.xml")
    next(node for node in model.get_ops() if node.get_friendly_name() == "head").set_friendly_name("other")
    ov.save_model(model, "other.xml", compress_to_fp16=False)
    (PREPARE / "model.xml").write_bytes(Path("other.xml").read_bytes())


def other_set(name: str) -> None:
    (PREPARE / "dataset.json").write_text(json.dumps(SETS | {name: {"sha256": "other"}}))


FILES: dict[str, Callable[[], object]] = {
    "model": renamed_layer,
    "weights": lambda: (PREPARE / "model.bin").write_bytes(bytes(len((PREPARE / "model.bin").read_bytes()))),
    "calibration samples": lambda: other_set("calibration"),
    "validation samples": lambda: other_set("validation"),
    "statistics": lambda: (STATISTICS / "statistics.npz").write_text("other"),
    "index of the statistics": lambda: (STATISTICS / "index.json").write_text("other"),
    "layers that were tuned": lambda: (CORRECTED / tuned.FILE).write_text("something"),
}


@pytest.mark.parametrize("what", FILES)
def test_another_file_makes_another_problem(config: Config, what: str) -> None:
    before = setup.make_problem(config).key
    assert setup.make_problem(config).key == before
    FILES[what]()
    assert setup.make_problem(config).key != before


OTHERS: tuple[dict[str, Any], ...] = (
    {"metric": {"error": ERROR["error"] | {"kind": "mean_squared"}}},
    {"metric": {"top": {"_target_": "stages.runtime.metrics.Accuracy"}} | ERROR},
    {"user_code": {"conf/mine.py": "0" * 64}},
    {"engine": Engine(inference_precision="f32")},
    {"engine": Engine(threads=1)},
    {"quantization": Quantization(pot_compatible=True)},
)
# These are part of a candidate, of a task, or of what is asked for; or they change nothing.
SAME: tuple[dict[str, Any], ...] = (
    {"quantization": Quantization(preset="mixed")},
    {"bias_correction": BiasCorrection(enabled=False)},
    {"tune": Tune(enabled=True, seed=3)},
    {"tracking": Tracking(experiment="other")},
    {"cluster": Cluster(workers=3)},
    {"seed": 4},
)


@pytest.mark.parametrize("changes", OTHERS, ids=str)
def test_another_setting_makes_another_problem(config: Config, changes: dict[str, Any]) -> None:
    small = small_problem(60, reference=True)
    if "top" in changes.get("metric", {}):
        small.fp32["top"] = small.fp32["accuracy"]  # type: ignore[index]
    assert setup.make_problem(dataclasses.replace(config, **changes)).key != setup.make_problem(config).key


@pytest.mark.parametrize("changes", SAME, ids=str)
def test_what_does_not_matter_keeps_what_is_remembered(config: Config, changes: dict[str, Any]) -> None:
    assert setup.make_problem(dataclasses.replace(config, **changes)).key == setup.make_problem(config).key


def test_other_code_makes_another_problem(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    before = setup.make_problem(config).key
    monkeypatch.setattr(setup, "code_key", lambda: "other")
    assert setup.make_problem(config).key != before


def test_the_primary_metric_comes_first(config: Config) -> None:
    def made(primary: str) -> Problem:
        both = {"accuracy": {"_target_": "stages.runtime.metrics.Accuracy"}} | ERROR
        return setup.make_problem(
            dataclasses.replace(config, metric=both, evaluate=dataclasses.replace(config.evaluate, primary_metric=primary))
        )

    assert made("accuracy").primary == "accuracy"
    assert made("error").primary == "error"


def test_calibration_samples_travel_only_where_they_are_needed(config: Config) -> None:
    assert setup.make_problem(config).calibration is None
    assert setup.make_problem(config, calibration=True).calibration is not None
