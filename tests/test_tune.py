"""The stage `tune` through real `dvc repro`: load methods, kills, what is reused and what is not, and its errors."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from tests.project import Outcome, Project, copy_project
from tests.test_evaluate import tiny_model
from tests.test_pipeline import processes

KEYS = """\
model: {{name: tiny, path: tiny.xml}}
data: {{calibration: {{path: tiny.npz}}, calibration_size: {calibration}}}
evaluate: {{noise_samples: 2, benchmark: {{enabled: false}}}}
tune:
  enabled: true
  accuracy_loss: 30.0
  metrics: [{{name: reference_error, baseline_value: 0.05}}]
  benchmark: {{enabled: false}}
  n_initial_point: 5
  quantization_ratio_weight: 0.5
"""
OPTIONS = ("model: local", "data: arrays", "metric: reference_error", "tracking: disabled")
SAMPLES = 400


def settings(calibration: int = 40, **tune: str) -> str:
    return KEYS.format(calibration=calibration) + "".join(f"  {key}: {value}\n" for key, value in tune.items())


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A tiny model, quantized and evaluated; no search has run yet."""
    project = copy_project(tmp_path_factory.mktemp("tune") / "project")
    ov.save_model(tiny_model(), project.root / "tiny.xml", compress_to_fp16=False)
    images = np.random.default_rng(1).normal(size=(SAMPLES, 3, 12, 12)).astype(np.float32)
    np.savez(project.root / "tiny.npz", x=images)
    project.params(settings(), *OPTIONS)
    outcome = project.repro("accuracy_aware")
    assert outcome.code == 0, outcome.output
    return project


@pytest.fixture
def project(evaluated: Project, tmp_path: Path) -> Project:
    """A copy of it."""
    return copied(evaluated, tmp_path / "project")


def copied(project: Project, target: Path) -> Project:
    shutil.copytree(project.root, target, symlinks=True)
    return Project(target)


def tune(project: Project, calibration: int = 40, **changes: str) -> dict[str, Any]:
    """Run the stage with these settings; its record."""
    outcome = attempt(project, calibration, **changes)
    assert outcome.code == 0, outcome.output
    return dict(json.loads((project.root / "build/records/tune.json").read_text()))


def attempt(project: Project, calibration: int = 40, **changes: str) -> Outcome:
    project.params(settings(calibration, **changes), *OPTIONS)
    return project.repro("--no-run-cache", "tune")


def rows(project: Project) -> list[dict[str, Any]]:
    """The table of trials, without what took time."""
    table = json.loads((project.root / "build/tune/trials.json").read_text())
    return [{key: value for key, value in row.items() if key != "seconds"} for row in table]


def result(project: Project) -> dict[str, bytes]:
    """Everything that must be the same bytes: the model, what is known of it, and the report."""
    folder = project.root / "build/tune"
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "trials.json"}
    return files | {"report": (project.root / "build/reports/tune.json").read_bytes(), "trials": json.dumps(rows(project)).encode()}


# ------------------------------------------------------------------------------------------------ load methods


SEQUENCE: tuple[dict[str, Any], ...] = (
    {"max_trials": "6"},
    {"max_trials": "12", "trials_load_method": "warm_start"},
    {"max_trials": "12", "trials_load_method": "fine_tune", "space": "{tuning_scope: [mode]}"},
    {"max_trials": "50", "trials_load_method": "eval"},
)


@pytest.fixture(scope="module")
def uninterrupted(evaluated: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, list[dict[str, Any]]]:
    """A project that ran all load methods one after the other, and for each its record, its trials and what it wrote."""
    project = copied(evaluated, tmp_path_factory.mktemp("uninterrupted") / "project")
    return project, [{**tune(project, **changes), "rows": rows(project), "result": result(project)} for changes in SEQUENCE]


@pytest.mark.slow
def test_load_methods(uninterrupted: tuple[Project, list[dict[str, Any]]]) -> None:
    project, (cold, warm, fine, evaluation) = uninterrupted
    # The best one is evaluated once more, on the samples in their own order.
    assert (cold["trials"], cold["evaluated"], cold["remembered"]) == (6, 7, 0)
    assert [row["label"] for row in cold["rows"][:3]] == ["fully quantized", "preset mixed", "preset accuracy"]
    # warm_start: up to more trials in total, ...
    assert warm["trials"] == 12 and warm["evaluated"] in (6, 7)
    assert warm["rows"][:6] == cold["rows"]
    # fine_tune: a new space, around the best.
    assert fine["rows"] != warm["rows"] and fine["rows"][0]["label"] == "fully quantized"
    assert fine["rows"][1]["label"] == "the last search's best"
    chosen = {entry.split("=")[0].split(".")[-1] for row in fine["rows"][1:] for entry in row["choices"].split("; ") if entry}
    assert chosen and all(key.startswith("mode") for key in chosen)
    # eval: only the best of that, whatever else is asked for.
    assert (evaluation["trials"], evaluation["evaluated"]) == (0, 0)
    assert evaluation["result"] == fine["result"]
    # ... which is just what a longer search from scratch finds, and all is remembered.
    again = tune(project, max_trials="12")
    assert again["evaluated"] == 0
    assert (rows(project), result(project)) == (warm["rows"], warm["result"])


@pytest.mark.slow
def test_killed_in_the_middle_and_started_again_gives_the_same_bytes(
    project: Project, uninterrupted: tuple[Project, list[dict[str, Any]]]
) -> None:
    journals = project.root / "build/.journal"
    for changes, expected in zip(SEQUENCE, uninterrupted[1], strict=True):
        project.params(settings(**changes), *OPTIONS)
        before, evaluates = lines(journals), changes.get("trials_load_method") != "eval"
        running = project.start("repro", "--no-run-cache", "tune")
        while running.poll() is None and not list(processes(project, "tune")):
            time.sleep(0.002)
        if not evaluates:
            time.sleep(0.5)  # it is about to write
        while running.poll() is None and evaluates and lines(journals) < before + 2:
            time.sleep(0.002)
        for process in processes(project, "tune"):
            os.kill(process, signal.SIGKILL)
        assert running.wait() != 0 or not evaluates
        done = lines(journals) - before
        record = tune(project, **changes)
        assert not evaluates or (done >= 2 and record["evaluated"] > 0)  # something was left to do
        assert result(project) == expected["result"]


def lines(folder: Path) -> int:
    """How many evaluations are remembered."""
    return sum(path.read_bytes().count(b"\n") for path in folder.rglob("tune.jsonl"))


# ------------------------------------------------------------------------------------------------ what is reused


@pytest.mark.slow
def test_nothing_is_reused_where_it_does_not_hold(project: Project) -> None:
    tune(project, max_trials="6")
    # Another space: its own trials, but models that are the same need no second evaluation.
    outcome = attempt(project, max_trials="6", trials_load_method="warm_start", space="{tuning_scope: [layer]}")
    assert "there are no earlier trials of this search space to go on with: a new search" in outcome.output
    assert rows(project)[0]["choices"] == "" and len(rows(project)) == 6
    # Other calibration samples, other statistics: nothing at all, ...
    record = tune(project, 39, max_trials="6")
    assert record["remembered"] == 0 and record["evaluated"] == 7
    # ... neither a base for a new search, ...
    for method in ("fine_tune", "eval"):
        outcome = attempt(project, 38, max_trials="6", trials_load_method=method)
        assert outcome.errors == [
            f"tune: error: tune.trials_load_method: '{method}' is not allowed here; expected cold_start, as there is no earlier result"
            " for this model, data and code"
        ]
    # ... nor for another model.
    model = tiny_model()
    for node in model.get_ops():
        if node.get_friendly_name() == "scores":
            node.set_friendly_name("other")
    ov.save_model(model, project.root / "tiny.xml", compress_to_fp16=False)
    assert project.repro("--force", "prepare").code == 0
    record = tune(project, 40, max_trials="6")
    assert record["remembered"] == 0 and record["evaluated"] == 7


# ------------------------------------------------------------------------------------------------ errors


ERRORS = {
    "tune: {enabled: true, space: {tuning_scope: [bits]}}": "tune.space.tuning_scope: there is nothing to tune",
    "tune: {enabled: true, space: {include: [cnov0]}}": "tune.space.include: 'cnov0' names no quantized layer; nearest names: conv0",
    "tune: {enabled: true, space: {exclude: ['re:nothing.*']}}": "tune.space.exclude: 're:nothing.*' names no quantized layer",
    "tune: {enabled: true, eval_subset_size: 401}": "tune.eval_subset_size: 401 is not allowed; expected at most 400",
    "tune: {enabled: true}\ncluster: {kind: dask, address: 'tcp://127.0.0.1:9'}": "no Dask scheduler answers there",
}


@pytest.mark.slow
def test_mistakes_are_one_line_before_any_work(project: Project) -> None:
    for keys, expected in ERRORS.items():
        project.params(settings().split("tune:")[0] + keys, *OPTIONS)
        assert project.run("python", "-m", "stages.config").code == 0
        outcome = project.run("python", "-m", "stages.tune")
        assert outcome.code == 1
        (error,) = outcome.output.splitlines()
        assert error.startswith("tune: error: ") and expected in error
        assert lines(project.root / "build/.journal") == 0


def test_the_space_is_shown_before_a_long_run(project: Project) -> None:
    project.params(settings(space="{tuning_scope: [layer], exclude: [conv1]}"), *OPTIONS)
    assert project.repro("config").code == 0
    shown = project.run("python", "-m", "stages.tune", "--show-space")
    assert shown.code == 0
    assert shown.output.splitlines() == [
        "2 parameters of 2 units, 1 units stay as in the base",
        "conv0",
        "    quantize: quantized, float",
        "scores",
        "    quantize: quantized, float",
    ]
    assert not (project.root / "build/tune").exists()


def test_disabled_is_done_in_a_moment_and_without_heavy_imports(project: Project) -> None:
    project.params(settings().replace("enabled: true\n  accuracy_loss", "enabled: false\n  accuracy_loss"), *OPTIONS)
    outcome = project.repro("--no-run-cache", "tune")
    assert outcome.code == 0, outcome.output
    assert json.loads((project.root / "build/tune/result.json").read_text()) == {"enabled": False}
    assert json.loads((project.root / "build/reports/tune.json").read_text()) == {"enabled": False}
    checked = "import sys, stages.tune, stages.config; sys.exit(bool({'openvino', 'optuna', 'dask', 'mlflow'} & set(sys.modules)))"
    assert project.run("python", "-c", checked).code == 0
