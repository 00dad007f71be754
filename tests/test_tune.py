"""The stage `tune` through real `dvc repro`: load methods, kills, what is reused and what is not, and its errors."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
import pytest

from stages import config, tune
from stages.common.errors import UserError
from stages.configuration.loading import load_config
from stages.stage import guarded
from tests.project import Project, copy_project
from tests.test_evaluate import tiny_model
from tests.test_pipeline import processes

KEYS = """\
model: {{name: tiny, path: tiny.xml}}
data: {{calibration: {{path: tiny.npz}}, calibration_size: {calibration}}}
evaluate: {{noise_samples: 2, benchmark: {{enabled: false}}}}
tune:
  enabled: true
  benchmark: {{enabled: false}}
  n_initial_point: 5
  quantization_ratio_weight: 0.5
"""
OPTIONS = ("model: local", "data: arrays", "metric: reference_error", "tracking: disabled")
SAMPLES, CALIBRATION = 400, 40


def metrics(baseline: float) -> str:
    """The metric of the budget, as YAML."""
    return f"[{{name: reference_error, baseline_value: {baseline}}}]"


def settings(calibration: int = CALIBRATION, **changes: Any) -> str:
    """Content of params.yaml. changes: keys of `tune`."""
    # Without `mode`: weights with zero points would run in another precision than the rest.
    chosen = {"accuracy_loss": "30.0", "metrics": metrics(0.015), "space": "{tuning_scope: [layer, range_estimator]}"} | changes
    return KEYS.format(calibration=calibration) + "".join(f"  {key}: {value}\n" for key, value in chosen.items())


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
def copy(evaluated: Project, tmp_path: Path) -> Project:
    """A copy of it."""
    return evaluated.copy(tmp_path / "project")


def repro(project: Project, **changes: Any) -> dict[str, Any]:
    """`dvc repro` with these settings; the stage's record."""
    project.params(settings(**changes), *OPTIONS)
    outcome = project.repro("--no-run-cache", "tune")
    assert outcome.code == 0, outcome.output
    return dict(json.loads((project.root / "build/records/tune.json").read_text()))


def run(project: Project, *stages: str, calibration: int = CALIBRATION, **changes: Any) -> dict[str, Any]:
    """The stages in this process, which takes a fraction of the time; what the last of them returns."""
    project.params(settings(calibration, **changes), *OPTIONS)
    found: dict[str, Any] | None = {}
    with contextlib.chdir(project.root):
        config.main()
        for name in stages or ("tune",):
            found = importlib.import_module(f"stages.{name}").main(load_config())
    return found or {}


def rows(project: Project) -> list[dict[str, Any]]:
    """The table of trials, without what took time."""
    table = json.loads((project.root / "build/tune/trials.json").read_text())
    return [{key: value for key, value in row.items() if key != "seconds"} for row in table]


def result(project: Project) -> dict[str, bytes]:
    """Everything that must be the same bytes: the model, what is known of it, and the report."""
    folder = project.root / "build/tune"
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "trials.json"}
    return files | {"report": (project.root / "build/reports/tune.json").read_bytes(), "trials": json.dumps(rows(project)).encode()}


def remembered(project: Project) -> int:
    """How many evaluations are in journals."""
    return sum(path.read_bytes().count(b"\n") for path in (project.root / "build/.journal").rglob("tune.jsonl"))


# ------------------------------------------------------------------------------------------------ load methods


TIGHT: dict[str, Any] = {"metrics": metrics(0.005)}  # no model that is quantized as a whole keeps this budget
SEQUENCE: tuple[dict[str, Any], ...] = (
    {**TIGHT, "max_trials": "6"},
    {**TIGHT, "max_trials": "12", "trials_load_method": "warm_start"},
    {**TIGHT, "max_trials": "12", "trials_load_method": "fine_tune", "space": "{tuning_scope: [range_estimator]}"},
    {**TIGHT, "max_trials": "50", "trials_load_method": "eval"},
)


class Ran(NamedTuple):
    """What a run of the stage left."""

    record: dict[str, Any]
    rows: list[dict[str, Any]]
    result: dict[str, bytes]


@pytest.fixture(scope="module")
def uninterrupted(evaluated: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, list[Ran]]:
    """A project that ran all load methods one after the other, and what each of them left."""
    project = evaluated.copy(tmp_path_factory.mktemp("uninterrupted") / "project")
    return project, [Ran(run(project, **changes), rows(project), result(project)) for changes in SEQUENCE]


@pytest.mark.slow
def test_load_methods(uninterrupted: tuple[Project, list[Ran]]) -> None:
    project, (cold, warm, fine, evaluation) = uninterrupted
    # The best one is evaluated once more, on the samples in their own order.
    assert cold.record == {"enabled": True, "trials": 6, "evaluated": 7, "remembered": 0}
    assert cold.rows[0]["label"] == "fully quantized" and cold.rows[0]["choices"] == ""
    # warm_start: up to more trials in total, ...
    assert warm.record["trials"] == 12 and warm.record["evaluated"] in (6, 7)
    assert warm.rows[:6] == cold.rows
    # fine_tune: a new space, around the best.
    assert [row["label"] for row in fine.rows[:2]] == ["fully quantized", "the last search's best"]
    chosen = {entry.split("=")[0].split(".")[-1] for row in fine.rows[1:] for entry in row["choices"].split("; ") if entry}
    assert chosen == {"preset"}
    best = max((row for row in warm.rows if row["within_budget"]), key=lambda row: (row["speed_up"], -row["accuracy_loss"]))
    assert {row["quantized_layers"] for row in fine.rows[1:]} == {best["quantized_layers"]} != {1.0}
    # eval: only the best of that, whatever else is asked for.
    assert (evaluation.record["trials"], evaluation.record["evaluated"]) == (0, 0)
    assert evaluation.result == fine.result
    # warm_start is just what a longer search from scratch finds, and all is remembered.
    again = run(project, max_trials="12", **TIGHT)
    assert again["evaluated"] == 0
    assert (rows(project), result(project)) == (warm.rows, warm.result)
    # With another seed it keeps what there is, and goes on in another way than a new search begins.
    further = run(project, max_trials="13", trials_load_method="warm_start", seed="9", **TIGHT)
    assert further["trials"] == 13 and rows(project)[:12] == warm.rows
    run(project, max_trials="12", seed="9", **TIGHT)
    assert rows(project) != warm.rows


@pytest.mark.slow
def test_killed_in_the_middle_of_dvc_repro_and_started_again_gives_the_same_bytes(
    copy: Project, uninterrupted: tuple[Project, list[Ran]]
) -> None:
    for changes, expected in zip(SEQUENCE, uninterrupted[1], strict=True):
        before = remembered(copy)
        if changes.get("trials_load_method") == "eval":
            kill(copy, changes, (copy.root / "build/.tune.tmp").exists)  # it has begun to write
            repro(copy, **changes)
        else:
            kill(copy, changes, lambda before=before: remembered(copy) >= before + 2)  # type: ignore[misc]
            done = remembered(copy) - before
            assert repro(copy, **changes)["evaluated"] == expected.record["evaluated"] - done > 0  # what was left to do, and no more
        assert result(copy) == expected.result


def kill(project: Project, changes: dict[str, Any], due: Callable[[], bool]) -> None:
    """Start the stage through DVC, and kill it without a word when it is due."""
    project.params(settings(**changes), *OPTIONS)
    with contextlib.chdir(project.root):
        config.main()
    running = project.start("repro", "--no-run-cache", "--single-item", "tune")
    while running.poll() is None and not due():
        time.sleep(0.002)
    for process in processes(project, "tune"):
        os.kill(process, signal.SIGKILL)
    assert running.wait() != 0


@pytest.mark.slow
def test_plans_alone_end_in_the_same_bytes_after_a_kill_while_noise_is_measured(evaluated: Project, copy: Project) -> None:
    changes: dict[str, Any] = {"strategy": "plan", "plans": "2", "accuracy_loss": "10.0"}

    def measured(project: Project) -> int:
        return sum(path.read_bytes().count(b"\n") for path in (project.root / "build/.journal").rglob("plan.jsonl"))

    kill(copy, changes, lambda: measured(copy) >= 2)
    assert measured(copy) >= 2 and remembered(copy) == 0
    record = repro(copy, **changes)
    found = json.loads((copy.root / "build/tune/result.json").read_text())
    table = json.loads((copy.root / "build/tune/plans.json").read_text())
    assert found["ended"] == "what was planned is evaluated" and found["additivity"] > 0
    assert record["trials"] == found["trials"] <= 5 and {row["label"] for row in rows(copy)} >= {"fully quantized"}
    assert [row["plan"] for row in table] == [f"plan {number}" for number in range(1, len(table) + 1)]
    noise = [row["noise"] for row in table]
    assert noise == sorted(noise, reverse=True)
    assert found["best"]["acceptance"]["confidence"] == 0.95
    whole = evaluated.copy(copy.root.parent / "whole")
    run(whole, **changes)
    assert result(whole) == result(copy)


# ------------------------------------------------------------------------------------------------ what is reused


BEFORE = ("prepare", "collect_statistics", "quantize", "correct_bias", "evaluate", "accuracy_aware")
FEWER: dict[str, Any] = {"max_trials": "6", "trials_load_method": "warm_start"}


@pytest.mark.slow
def test_nothing_is_reused_where_it_does_not_hold(copy: Project, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(copy, max_trials="6")
    # Another space: its own trials, but models that are the same need no second evaluation.
    capsys.readouterr()
    changed = run(copy, **FEWER, space="{tuning_scope: [layer]}")
    assert "there are no earlier trials of this search space to go on with: a new search" in capsys.readouterr().err
    assert (changed["trials"], rows(copy)[0]["choices"]) == (6, "") and 0 < changed["remembered"] < 7
    # Other calibration samples, other statistics: no base for a new search, ...
    run(copy, *BEFORE, calibration=CALIBRATION - 1)
    for method in ("fine_tune", "eval"):
        with pytest.raises(UserError, match=f"'{method}' is not allowed here; expected cold_start, as there is no earlier result"):
            run(copy, calibration=CALIBRATION - 1, trials_load_method=method)
    # ... and no trial, ...
    changed = run(copy, calibration=CALIBRATION - 1, **FEWER)
    assert (changed["remembered"], changed["evaluated"]) == (0, first["evaluated"])
    # ... nor anything for another model.
    text = (copy.root / "tiny.xml").read_text()
    (copy.root / "tiny.xml").write_text(text.replace('name="scores"', 'name="other"'))
    run(copy, *BEFORE)
    changed = run(copy, **FEWER)
    assert (changed["remembered"], changed["evaluated"]) == (0, first["evaluated"])
    # What was found before counts again with the model for which it was.
    (copy.root / "tiny.xml").write_text(text)
    run(copy, *BEFORE)
    assert run(copy, **FEWER)["evaluated"] == 0


# ------------------------------------------------------------------------------------------------ errors


MISTAKES = {
    "tune: {enabled: true, space: {tuning_scope: [bits]}}": "tune.space.tuning_scope: there is nothing to tune",
    "tune: {enabled: true, space: {include: [cnov0]}}": "tune.space.include: 'cnov0' names no quantized layer; nearest names: conv0",
    "tune: {enabled: true, space: {exclude: ['re:nothing.*']}}": "tune.space.exclude: 're:nothing.*' names no quantized layer",
    "tune: {enabled: true, eval_subset_size: 401}": "tune.eval_subset_size: 401 is not allowed; expected at most 360",
    "tune: {enabled: true}\ncluster: {kind: dask, address: 'tcp://127.0.0.1:9'}": "no Dask scheduler answers there",
}


@pytest.mark.slow
def test_mistakes_are_one_line_before_any_work(copy: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    monkeypatch.setattr("stages.search.executors.CONNECT_SECONDS", 1)
    monkeypatch.chdir(copy.root)
    for keys, expected in MISTAKES.items():
        copy.params(settings().split("tune:")[0] + keys, *OPTIONS)
        config.main()
        assert guarded("tune", lambda: tune.main(load_config())) == 1
        (error,) = capsys.readouterr().err.splitlines()
        assert error.startswith("tune: error: ") and expected in error
    assert remembered(copy) == 0 and not Path("build/tune").exists()


@pytest.mark.slow
def test_the_space_is_shown_before_a_long_run(copy: Project) -> None:
    copy.params(settings(space="{tuning_scope: [layer], exclude: [conv1, 're:Reduce.*']}"), *OPTIONS)
    assert copy.run("python", "-m", "stages.config").code == 0
    shown = copy.run("python", "-m", "stages.tune", "--show-space")
    assert shown.code == 0
    assert shown.output.splitlines() == [
        "2 parameters of 2 units, 2 units stay as in the base",
        "conv0",
        "    quantize: quantized, float",
        "scores",
        "    quantize: quantized, float",
    ]
    assert not (copy.root / "build/tune").exists()


def test_disabled_it_says_so_and_loads_nothing(project: Project) -> None:
    project.params("tune: {enabled: false}", "model: ppocrv4_rec", "data: text_lines", "metric: text")
    code = """\
import sys
from stages import config, tune
from stages.configuration.loading import load_config
config.main()
assert tune.main(load_config()) == {"enabled": False}
assert not {"openvino", "numpy", "optuna", "dask", "mlflow"} & set(sys.modules), sorted(sys.modules)
"""
    outcome = project.run("python", "-c", code)
    assert outcome.code == 0, outcome.output
    for name, content in (("tune/result", {"enabled": False}), ("reports/tune", {})):
        assert json.loads((project.root / f"build/{name}.json").read_text()) == content
