"""Tracking: one complete MLflow run per result, however often it is asked for, and never half a run that counts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from stages import track
from stages.configuration.schema import Tune
from stages.tracking import lineage, plots, runs, store
from tests import built

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("config", "prepare", "collect_statistics", "quantize", "correct_bias", "evaluate")


def logged_runs(folder: Path, experiment: str = "quantization") -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id], order_by=["attributes.start_time"])) if found else []


def test_a_run_is_complete(workspace: Path) -> None:
    track.main(built.config())
    (run,) = logged_runs(workspace)
    assert run.info.status == "FINISHED"
    assert run.info.run_name.startswith("performance·") and len(run.info.run_name) <= 20
    assert run.info.end_time - run.info.start_time == 18_000  # the stages' seconds: 0.5 + 1.5 + ... + 5.5

    parameters = run.data.params
    assert parameters["quantization.preset"] == "performance"
    assert parameters["quantization.range_estimator.min.outlier_prob"] == "0.01"
    assert parameters["evaluate.benchmark.enabled"] == "true"
    assert parameters["data.validation"] == "null"
    assert json.loads(parameters["model.input_shape._"]) == [1, 3, 48, -1]  # MLflow allows no asterisk
    assert json.loads(parameters["target_device.operations"]) == {"MatMul": {"weights": "w"}}
    assert not [name for name in parameters if name.startswith("tracking")]

    metrics = run.data.metrics
    assert metrics["int8/value_percent.exact_match"] == pytest.approx(88.1)
    assert metrics["int8/drop_points.exact_match"] == pytest.approx(2.1)
    assert metrics["more/drop_low_points.exact_match"] == pytest.approx(1.1)
    assert metrics["more/relative_drop_percent.exact_match"] == pytest.approx(100 * 0.021 / 0.902)
    assert (metrics["int8/drop.error"], metrics["int8/value.error"]) == (0.04, 0.04)  # no share
    assert metrics["int8/latency_ms"] == 4.0
    assert metrics["int8/speed_up.fp32"] == 3.0
    assert metrics["int8/speed_up.default"] == 1.5
    assert metrics["int8/throughput"] == 500.0
    assert metrics["int8/size_mb"] == 3.1
    assert metrics["more/times_smaller"] == pytest.approx(10.9 / 3.1)
    assert metrics["more/fidelity"] == 0.4
    assert "more/relative_drop.error" not in metrics  # FP32 has no error to be relative to
    for position, stage in enumerate(STAGES):
        assert metrics[f"seconds/{stage}"] == position + 0.5
        assert metrics[f"peak_memory_mb/{stage}"] == 100.0 + position

    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    assert artifacts.is_relative_to(workspace / "mlartifacts")
    files = {path.relative_to(artifacts).as_posix() for path in artifacts.rglob("*") if path.is_file()}
    assert files == {
        "config.json",
        "corrections.json",
        "evaluation.json",
        "layers.json",
        "models/fp32/model.bin",
        "models/fp32/model.xml",
        "models/int8/model.bin",
        "models/int8/model.xml",
        "plots/accuracy_speed.png",
        "plots/effect_per_layer.png",
        "plots/noise_per_layer.png",
        "quantizers.json",
        "report.html",
    }
    assert (artifacts / "models/int8/model.bin").read_text() == "int8 performance bin"
    table = json.loads((artifacts / "layers.json").read_text())
    assert table["columns"][:2] == ["layer", "effect_on"]
    assert len(table["data"]) == len(built.layers())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert rows[0]["layer"] == "/backbone/conv_11/Conv:1"  # the largest effect on the outputs, and noisier than the other input
    effects = [row["effect_on"] for row in rows if row["effect_on"] is not None]
    assert len(effects) > 2 and effects == sorted(effects, reverse=True)
    assert [row["effect_on"] for row in rows[len(effects) :]] == [None] * (len(rows) - len(effects))
    assert "exact_match" in run.data.tags["mlflow.note.content"]


def test_a_run_knows_its_data_and_what_dvc_keeps(workspace: Path) -> None:
    from mlflow.tracking import MlflowClient

    track.main(built.config())
    (run,) = logged_runs(workspace)
    found = {entry.tags[0].value: entry.dataset for entry in run.inputs.dataset_inputs}
    assert {kind: (dataset.name, dataset.digest) for kind, dataset in found.items()} == {
        "calibration": ("lines", "a"),
        "validation": ("lines", "b"),
    }
    assert json.loads(found["validation"].profile) == {"samples": 1000}
    assert "TextLines" in found["calibration"].source
    tags = run.data.tags
    assert {name for name in tags if name.startswith("dvc.")} == {
        f"dvc.{stage}" for stage in ("prepare", "quantize", "correct_bias", "accuracy_aware", "tune")
    }
    experiment = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}").get_experiment_by_name("quantization")
    assert "speed_up.default" in experiment.tags["mlflow.note.content"]


def test_hashes_are_dvcs_own(tmp_path: Path) -> None:
    from dvc.repo import Repo

    folder = tmp_path / "out"
    (folder / "a").mkdir(parents=True)
    for name, text in (("a/one", "1"), ("a-two", "2"), ("three.json", "ä")):
        (folder / name).write_text(text, encoding="utf-8")
    with Repo.init(str(tmp_path), no_scm=True) as repo:
        (stage,) = repo.add(str(folder))
    assert lineage.dvc_hash(folder) == stage.outs[0].hash_info.value


def test_a_search_is_logged_with_its_trials(workspace: Path) -> None:
    key = runs.content_key(built.config())
    built.write_tune(workspace)
    assert runs.content_key(built.config()) != key
    track.main(built.config())
    (run,) = logged_runs(workspace)
    metrics = run.data.metrics
    expected = {
        "accuracy_loss_percent": 0.87,
        "value_percent.exact_match": 89.4,
        "speed_up.default": 1.6,
        "latency_ms": 3.75,
        "float_layers": 1,
        "trials": 4,
    }
    assert {name: metrics[f"tune/{name}"] for name in expected} == pytest.approx(expected)
    assert history(workspace, run, "tune.trials/trial.accuracy_loss_percent") == pytest.approx({1: 2.33, 2: 0.5, 3: 0.87, 4: 50.0})
    assert history(workspace, run, "tune.trials/best.speed_up") == {2: 1.3, 3: 1.6, 4: 1.6}  # none was within the budget before
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    for name in ("trade_off", "best_so_far", "importance"):
        assert (folder / f"plots/{name}.png").stat().st_size > 5000
    assert (folder / "models/tuned/model.bin").read_text() == "tuned bin"
    table = json.loads((folder / "trials.json").read_text())
    assert [row[table["columns"].index("label")] for row in table["data"]] == [row[1] for row in built.TRIALS]


def test_an_accuracy_budget_is_logged_with_its_trace(workspace: Path) -> None:
    key = runs.content_key(built.config())
    built.write_accuracy_aware(workspace)
    assert runs.content_key(built.config()) != key
    track.main(built.config())
    (run,) = logged_runs(workspace)
    expected = {"holds": 1, "reverted_layers": 1, "models_tried": 3, "drop_points.exact_match": 0.8, "limit_points.exact_match": 1.0}
    expected |= {"held_out_drop_points.exact_match": 1.2, "latency_ms": 4.0, "speed_up.int8": 0.96}
    assert {name: run.data.metrics[f"accuracy_aware/{name}"] for name in expected} == pytest.approx(expected)
    assert history(workspace, run, "accuracy_aware.steps/reverted_layers") == {0: 0, 1: 1, 2: 2}
    assert history(workspace, run, "accuracy_aware.steps/drop_points.exact_match") == pytest.approx(
        {0: 3.0, 1: 0.8}
    )  # the last was given up early
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    table = json.loads((folder / "reverted_layers.json").read_text())
    assert table["data"] == [["/backbone/conv_0/Conv", "Convolution", 0, 1]]
    assert [row["why"] for row in json.loads((folder / "accuracy_aware/trace.json").read_text())] == [row[-1] for row in built.STEPS]
    assert (folder / "models/accuracy_aware/model.bin").read_text() == "budget bin"
    assert (folder / "plots/accuracy_budget.png").stat().st_size > 5000


def history(folder: Path, run: Any, metric: str) -> dict[int, float]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    return {entry.step: entry.value for entry in client.get_metric_history(run.info.run_id, metric)}


def test_trials_are_child_runs_on_request(workspace: Path) -> None:
    built.write_tune(workspace)
    track.main(dataclasses.replace(built.config(), tune=Tune(child_runs=True)))
    found = logged_runs(workspace)
    children = [run for run in found if "mlflow.parentRunId" in run.data.tags]
    (parent,) = [run for run in found if run not in children]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert sorted((run.info.run_name, run.data.params["label"]) for run in children) == [
        (f"trial {row[0]}", row[1]) for row in built.TRIALS
    ]
    assert {run.data.metrics["trial/accuracy_loss"] for run in children} == {row[2] for row in built.TRIALS}


def test_the_primary_metric_is_the_first_one_logged(workspace: Path) -> None:
    assert next(iter(runs.metrics_of(built.config()))) == "int8/drop_points.exact_match"


def test_same_result_same_run_and_another_preset_another_run(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    track.main(built.config())
    assert "MLflow: logged as performance·" in capsys.readouterr().out
    track.main(built.config())
    assert "MLflow: already logged as performance·" in capsys.readouterr().out
    built.write_build(workspace, built.config("mixed"), drop=0.01)
    track.main(built.config("mixed"))
    built.write_build(workspace, built.config())  # and back again
    track.main(built.config())
    assert [run.info.run_name.split("·")[0] for run in logged_runs(workspace)] == ["performance", "mixed"]


def test_what_follows_from_the_configuration_counts_too(workspace: Path) -> None:
    """The same settings with other bytes, as after an upgrade of OpenVINO, are another result; timings and records are not."""
    key = runs.content_key(built.config())
    (workspace / "build/evaluate/latency.json").write_text("{}")
    (workspace / "build/records/quantize.json").write_text("{}")
    assert runs.content_key(built.config(experiment="other")) == key
    (workspace / "build/correct_bias/model.bin").write_text("other")
    assert runs.content_key(built.config()) != key


def test_another_experiment_gets_its_own_run(workspace: Path) -> None:
    track.main(built.config())
    track.main(built.config(experiment="other"))
    assert len(logged_runs(workspace)) == len(logged_runs(workspace, "other")) == 1


def test_a_result_restored_elsewhere_is_logged_in_full(
    workspace: Path, empty_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What DVC restores from its cache is build/ alone; times of files and the first run's store are not there."""
    track.main(built.config())
    clone = tmp_path_factory.mktemp("clone")
    shutil.copytree(workspace / "build", clone / "build", copy_function=shutil.copyfile)
    shutil.copy(empty_store, clone / "mlflow.db")
    os.chdir(clone)
    track.main(built.config())
    (here,), (there,) = logged_runs(workspace), logged_runs(clone)
    assert there.data.metrics == here.data.metrics
    assert there.data.params == here.data.params
    assert there.info.run_name == here.info.run_name
    names = [sorted(path.name for path in folder.rglob("mlartifacts/**/*.*")) for folder in (workspace, clone)]
    assert names[0] == names[1]


def test_a_failed_attempt_is_marked_and_repeated(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(plots, "plot_noise", lambda rows, path: (_ for _ in ()).throw(RuntimeError("no ink")))
        with pytest.raises(RuntimeError, match="no ink"):
            track.main(built.config())
    assert [run.info.status for run in logged_runs(workspace)] == ["FAILED"]
    track.main(built.config())
    assert sorted(run.info.status for run in logged_runs(workspace)) == ["FAILED", "FINISHED"]


def test_an_attempt_that_was_killed_does_not_count(workspace: Path) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    client.create_run(client.create_experiment("quantization"), tags={store.KEY_TAG: runs.content_key(built.config())})
    track.main(built.config())
    assert sorted(run.info.status for run in logged_runs(workspace)) == ["FINISHED", "KILLED"]


def test_a_deleted_run_is_logged_again(workspace: Path) -> None:
    from mlflow.tracking import MlflowClient

    track.main(built.config())
    MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}").delete_run(logged_runs(workspace)[0].info.run_id)
    track.main(built.config())
    assert len(logged_runs(workspace)) == 1


def test_models_are_left_out_on_request(workspace: Path) -> None:
    track.main(built.config(log_models=False))
    assert not list(workspace.rglob("mlartifacts/**/model.bin"))
    assert list(workspace.rglob("mlartifacts/**/layers.json"))


def test_without_a_benchmark_there_are_no_speeds(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workspace / "build/evaluate/latency.json").write_text("{}")
    (workspace / "build/evaluate/accuracy_speed.json").write_text("[]")
    track.main(built.config())
    assert not [name for name in logged_runs(workspace)[0].data.metrics if "latency" in name or "speed" in name]
    assert "latency" not in capsys.readouterr().out


def run_stage(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "DVC_"))}
    return subprocess.run(
        [sys.executable, "-m", "stages.track"],
        cwd=folder,
        env=own | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_nothing_new_costs_no_import_of_mlflow(workspace: Path) -> None:
    track.main(built.config())
    heavy = ("mlflow", "numpy", "openvino", "matplotlib", "hydra", "omegaconf", "jinja2")
    code = (
        "import sys; from stages import track; from stages.configuration.loading import load_config; track.main(load_config());"
        f"print('heavy:', [name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=workspace, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert "already logged" in done.stdout
    assert "heavy: []" in done.stdout


def test_disabled_prints_the_summary_only(workspace: Path) -> None:
    built.write_build(workspace, built.config(enabled=False))
    done = run_stage(workspace)
    assert done.returncode == 0, done.stderr
    assert "exact_match" in done.stdout
    assert "MLflow: off" in done.stdout
    assert logged_runs(workspace) == []


def test_a_server_that_does_not_answer_is_one_line_within_seconds(workspace: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.monotonic()
    done = run_stage(workspace, MLFLOW_TRACKING_URI=f"http://user:secret@127.0.0.1:{port}")
    assert time.monotonic() - started < 30
    assert done.returncode == 1
    assert done.stderr.startswith(f"track: error: MLflow at http://***@127.0.0.1:{port}: the server cannot be reached: ")
    assert done.stderr.endswith("Connection refused\n")
    assert done.stderr.count("\n") == 1
    assert "secret" not in done.stderr + done.stdout
    assert "exact_match" in done.stdout  # the result is told first


def test_a_store_that_is_no_database_is_one_line(workspace: Path) -> None:
    (workspace / "mlflow.db").write_text("not a database")
    done = run_stage(workspace)
    assert done.returncode == 1
    assert done.stderr.startswith(f"track: error: MLflow at sqlite:///{workspace}/mlflow.db: ")
    assert "file is not a database" in done.stderr
    assert done.stderr.count("\n") == 1


def change_input(folder: Path, change: str) -> None:
    """Let the record of `prepare` say that a file was used, then change that file."""
    file = folder / "samples.npz"
    file.write_bytes(b"as it was")
    status = file.stat()
    sha256 = hashlib.sha256(b"as it was").hexdigest()
    record = {"path": "samples.npz", "size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sha256}
    path = folder / "build/records/prepare.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "files": [record]}))
    if change == "touched":
        os.utime(file, ns=(1, 1))
    elif change == "edited":
        file.write_bytes(b"different")
    elif change == "removed":
        file.unlink()


@pytest.mark.parametrize(
    ("change", "expected"), [("untouched", None), ("touched", None), ("edited", "has changed"), ("removed", "is gone")]
)
def test_inputs_that_changed_since_are_pointed_out(
    workspace: Path, capsys: pytest.CaptureFixture[str], change: str, expected: str | None
) -> None:
    change_input(workspace, change)
    track.main(built.config(enabled=False))
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WARNING")]
    if expected is None:
        assert warnings == []
    else:
        assert len(warnings) == 1
        assert f"samples.npz {expected}" in warnings[0]
        assert "dvc repro --force prepare" in warnings[0]
