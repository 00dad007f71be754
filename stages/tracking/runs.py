"""What is logged of a result: one run per result, known by a key of its content."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common import artifacts
from stages.common.units import logged
from stages.configuration.schema import APART, Config
from stages.report import accuracy_aware, page, tune
from stages.report.summary import summary
from stages.tracking.lineage import DESCRIPTION, data_inputs, dvc_tags, worst_first
from stages.tracking.logged_model import is_registered, log_model, register, set_champion
from stages.tracking.store import KEY_TAG, Run, experiment_id_of, find_in_sqlite, follow_the_project, mlflow_client

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

LONGEST_VALUE = 6000  # of a parameter in MLflow
BATCH = 100  # parameters that MLflow takes at once
LATER = "TRACK_LATER"  # in the environment of a sweep's jobs: the sweep itself logs their results
REVERTED = ("model.bin", "model.xml", "quantizers.json", "result.json", "trace.json")  # of accuracy_aware
COMPARISON = "comparison.html"


def log(config: Config, uri: str, label: str = "") -> tuple[Run, bool]:
    """Log the result in build/ unless it is there already: its run, and whether it is new.

    Args:
        config: What the result was made from.
        uri: From `tracking_uri`.
        label: What a new run is called, beside a part of its key; the preset where it is empty.

    Raises:
        UserError: MLflow refuses or cannot be reached.
    """
    follow_the_project(uri)
    key = content_key(config)
    logged, name = find_in_sqlite(uri, config.tracking.experiment, key), config.tracking.register
    if logged is not None and (name is None or is_registered(uri, name, logged.id)):
        return logged, False
    with mlflow_client(uri) as client:
        run, new = _log(client, config, uri, key, label)
        if name is not None:
            register(client, config, run.experiment_id, run.id)
        return run, new


def champion(config: Config, uri: str, run: Run) -> None:
    """Let the alias `champion` of `tracking.register` name the model of a run.

    Raises:
        UserError: MLflow refuses or cannot be reached.
    """
    with mlflow_client(uri) as client:
        set_champion(client, config, run.experiment_id, run.id)


def content_key(config: Config) -> str:
    """Hexadecimal key of a result: the configuration that it depends on, and all bytes that follow from it."""
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in APART}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    folders = [artifacts.folder("prepare"), artifacts.folder("quantize"), artifacts.folder("correct_bias"), artifacts.REPORTS]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    # Not what was measured of it, which is never the same twice.
    files += [path for name in REVERTED if (path := artifacts.folder("accuracy_aware") / name).is_file()]
    files += [path for name in tune.MODEL if (path := artifacts.folder(tune.NAME) / name).is_file()]
    for path in sorted(files):
        digest.update(f"\n{path.relative_to(artifacts.BUILD).as_posix()} {artifacts.file_sha256(path)}".encode())
    return digest.hexdigest()[:32]


def log_sweep(uri: str, experiment: str, name: str, summary: str, html: str, content: str) -> str:
    """Log a sweep's comparison as a run of its own, unless the same one is there already; the page of the UI that shows it.

    It stands in an experiment beside the results' own, where it is in the way of none of their charts.

    Args:
        uri: From `tracking_uri`.
        experiment: Of the results.
        name: What a new run is called.
        summary: Shown as the run's description.
        html: The comparison, a page that needs nothing but itself.
        content: What makes it another one than those that are logged already.

    Raises:
        UserError: MLflow refuses or cannot be reached.
    """
    key = hashlib.sha256(content.encode()).hexdigest()[:32]
    experiment = f"{experiment} sweeps"
    run = find_in_sqlite(uri, experiment, key)
    if run is None:
        with mlflow_client(uri) as client:
            from mlflow.entities import RunStatus

            experiment_id = experiment_id_of(client, uri, experiment)
            tags = {KEY_TAG: key, "mlflow.source.name": "stages.sweep", "mlflow.note.content": f"```\n{summary}\n```", **_git_commit()}
            run_id = client.create_run(experiment_id, run_name=name, tags=tags).info.run_id
            client.log_text(run_id, html, COMPARISON)
            client.set_terminated(run_id, RunStatus.to_string(RunStatus.FINISHED))
            run = Run(name, experiment_id, run_id)
    return f"#/experiments/{run.experiment_id}/runs/{run.id}/artifacts/{COMPARISON}?workflowType=machine_learning"


def _log(client: MlflowClient, config: Config, uri: str, key: str, label: str) -> tuple[Run, bool]:
    """Log through MLflow, unless it has the result already; the run, and whether it is new."""
    experiment_id = experiment_id_of(client, uri, config.tracking.experiment, DESCRIPTION)
    same_key = client.search_runs([experiment_id], f"tags.{KEY_TAG} = '{key}'")
    for found in same_key:
        if found.info.status == "FINISHED":
            return Run(found.info.run_name or found.info.run_id, experiment_id, found.info.run_id), False
        if found.info.status == "RUNNING":  # its process was killed
            client.set_terminated(found.info.run_id, "KILLED")
    return _log_run(client, config, experiment_id, key, label), True


def _log_run(client: MlflowClient, config: Config, experiment_id: str, key: str, label: str) -> Run:
    """One new run; FAILED when anything goes wrong, so that the next attempt logs it again."""
    from mlflow.entities import Metric, Param, RunStatus

    end = int(1000 * time.time())
    # The duration that MLflow shows is that of the stages, also when DVC restored them from its cache.
    start = end - int(1000 * sum(record["seconds"] for record in _records().values()))
    name = f"{label or config.quantization.preset}·{key[:6]}"
    tags = {KEY_TAG: key, "mlflow.source.name": "dvc repro", "mlflow.note.content": f"```\n{summary(config)}\n```"}
    tags |= _git_commit() | dvc_tags()
    run_id = client.create_run(experiment_id, start_time=start, run_name=name, tags=tags).info.run_id
    status = RunStatus.to_string(RunStatus.FAILED)
    try:
        parameters = [Param(name, value) for name, value in parameters_of(config).items()]
        for first in range(0, len(parameters), BATCH):
            client.log_batch(run_id, params=parameters[first : first + BATCH])
        client.log_batch(run_id, metrics=[Metric(name, value, end, 0) for name, value in metrics_of(config).items()])
        client.log_inputs(run_id, data_inputs(config))
        found = (*accuracy_aware.steps(), *tune.steps())
        steps = [Metric(_allowed(name), value, end, step) for name, value, step in found]
        for first in range(0, len(steps), BATCH):
            client.log_batch(run_id, metrics=steps[first : first + BATCH])
        if config.tune.child_runs:
            _log_trials(client, experiment_id, run_id, end)
        _log_files(client, experiment_id, run_id, config)
        status = RunStatus.to_string(RunStatus.FINISHED)
    finally:
        client.set_terminated(run_id, status, end_time=end)
    return Run(name, experiment_id, run_id)


def _log_files(client: MlflowClient, experiment_id: str, run_id: str, config: Config) -> None:
    from stages.tracking import plots

    quantize, correct_bias, evaluate = (artifacts.folder(name) for name in ("quantize", "correct_bias", "evaluate"))
    rows = worst_first(artifacts.read_json(evaluate / "layers.json"))
    if rows:
        client.log_table(run_id, {column: [row[column] for row in rows] for column in rows[0]}, "layers.json")
    details = (artifacts.CONFIG, quantize / "quantizers.json", correct_bias / "corrections.json", evaluate / "evaluation.json")
    for path in (page.REPORT, *details):
        client.log_artifact(run_id, str(path))
    if accuracy_aware.result():
        _log_budget(client, run_id)
    if tune.result():
        _log_tuning(client, run_id, config)
    with tempfile.TemporaryDirectory() as folder:
        if noise := artifacts.read_json(artifacts.REPORTS / "noise.json"):
            plots.plot_noise(noise, Path(folder) / "noise_per_layer.png")
        if effect := artifacts.read_json(artifacts.REPORTS / "effect.json"):
            plots.plot_effect(effect, Path(folder) / "effect_per_layer.png")
        if models := artifacts.read_json(evaluate / "accuracy_speed.json"):
            metrics = artifacts.read_json(evaluate / "evaluation.json")["metrics"]
            primary = config.evaluate.primary_metric or next(iter(metrics))
            plots.plot_accuracy_speed(models, primary, Path(folder) / "accuracy_speed.png", share=metrics[primary]["share"])
        client.log_artifacts(run_id, folder, "plots")
    if config.tracking.log_models:
        sources = {"fp32": artifacts.folder("prepare"), "int8": correct_bias}
        if accuracy_aware.result():
            sources[accuracy_aware.NAME] = artifacts.folder(accuracy_aware.NAME)
        if tune.result():
            sources["tuned"] = artifacts.folder(tune.NAME)
        for model, source in sources.items():
            for path in (source / "model.xml", source / "model.bin"):
                client.log_artifact(run_id, str(path), f"models/{model}")
        log_model(client, config, experiment_id, run_id)


def _log_budget(client: MlflowClient, run_id: str) -> None:
    """What keeping the accuracy budget took: the layers that were reverted as a table, and the models that were tried."""
    from stages.tracking import plots

    found, name = accuracy_aware.result(), accuracy_aware.NAME
    for file in ("result.json", "trace.json", "quantizers.json"):
        client.log_artifact(run_id, str(artifacts.folder(name) / file), name)
    if reverted := found["reverted"]:
        client.log_table(run_id, {column: [row[column] for row in reverted] for column in reverted[0]}, "reverted_layers.json")
    metric, judged = next(iter(found["metrics"].items()))
    with tempfile.TemporaryDirectory() as folder:
        plots.plot_accuracy_budget(accuracy_aware.trace(), metric, Path(folder) / "accuracy_budget.png", share=judged["share"])
        client.log_artifacts(run_id, folder, "plots")


def _log_tuning(client: MlflowClient, run_id: str, config: Config) -> None:
    """The search's files, its table of trials, and its pictures."""
    from stages.tracking import plots

    place = artifacts.folder(tune.NAME)
    for name in ("result.json", "quantizers.json"):
        client.log_artifact(run_id, str(place / name), tune.NAME)
    rows = tune.table("trials")
    client.log_table(run_id, {column: [row[column] for row in rows] for column in rows[0]}, "trials.json")
    metrics = artifacts.read_json(artifacts.folder("evaluate") / "evaluation.json")["metrics"]
    primary = config.evaluate.primary_metric or next(iter(metrics))
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder)
        plots.plot_trade_off(tune.table("trade_off"), primary, target / "trade_off.png", share=metrics[primary]["share"])
        plots.plot_best_so_far(rows, tune.table("best_so_far"), target / "best_so_far.png")
        if importance := tune.table("importance"):
            plots.plot_importance(importance, target / "importance.png")
        client.log_artifacts(run_id, folder, "plots")


def _log_trials(client: MlflowClient, experiment_id: str, run_id: str, end: int) -> None:
    """Every trial as a run below the result's (tune.child_runs)."""
    from mlflow.entities import Metric, Param, RunStatus

    for row in tune.table("trials"):
        tags = {"mlflow.parentRunId": run_id, "mlflow.source.name": "dvc repro"}
        child = client.create_run(experiment_id, start_time=end, run_name=f"trial {row['trial']}", tags=tags).info.run_id
        numbers = {f"trial/{name}": float(value) for name, value in row.items() if isinstance(value, int | float) and name != "trial"}
        metrics = [Metric(_allowed(name), value, end, 0) for name, value in numbers.items()]
        client.log_batch(child, metrics=metrics, params=[Param(name, row[name][:LONGEST_VALUE]) for name in ("label", "choices")])
        client.set_terminated(child, RunStatus.to_string(RunStatus.FINISHED), end_time=end + int(1000 * row["seconds"]))


def parameters_of(config: Config) -> dict[str, str]:
    """Every value of the configuration under its dotted key; lists, and the tables of the target device, as JSON."""

    def leaves(value: Any, key: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict) and value and key not in ("target_device.schemes", "target_device.operations"):
            for name, item in value.items():
                yield from leaves(item, f"{key}.{name}" if key else str(name))
        else:
            yield _allowed(key), (value if isinstance(value, str) else json.dumps(value))[:LONGEST_VALUE]

    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in APART}
    return dict(leaves(settings, ""))


def metrics_of(config: Config) -> dict[str, float]:
    """Everything that was measured, the primary metric's drop first: MLflow's comparison plots the first one.

    MLflow makes groups of charts of what stands before a slash, sorts them by name with those that have none at the end, cuts off names
    that are long, and rounds: what one looks at first is in the short group `int8`, with what differs at the front, shares are in percent
    and their differences in points. Searches have groups of the same names.
    """
    folder = artifacts.folder("evaluate")
    evaluation, speed = artifacts.read_json(folder / "evaluation.json"), artifacts.read_json(folder / "latency.json")
    metrics: dict[str, float | None] = {}
    details: dict[str, float | None] = {}
    for name, metric in evaluation["metrics"].items():
        metrics |= logged(metric, name, {"drop": metric["drop"], "value": metric["int8"]})
        more = ("fp32", "default", "drop_low", "drop_high", "relative_drop", "precision_drop", "quantization_drop")
        details |= logged(metric, name, {key: metric.get(key) for key in more})
    if speed:
        for model, ratio in speed["speed_up"].items():
            metrics[f"speed_up.{model}"] = ratio["median"]
            details |= {f"speed_up_{side}.{model}": ratio[side] for side in ("low", "high")}
        latency = {model: time["median"] for model, time in speed["latency_ms"].items()}
        for name, values in (("latency_ms", latency), ("throughput", speed["throughput"])):
            metrics[name] = values["int8"]
            details |= {f"{name}.{model}": values[model] for model in ("fp32", "default")}
    size = evaluation["size_bytes"]
    metrics["size_mb"] = size["int8"] / 1e6
    details |= {
        "fidelity": evaluation["fidelity"].get("ratio"),
        "size_mb.fp32": size["fp32"] / 1e6,
        "times_smaller": size["fp32"] / size["int8"],
    }
    named = {f"int8/{name}": value for name, value in metrics.items()} | {f"more/{name}": value for name, value in details.items()}
    named |= accuracy_aware.metrics()
    named |= tune.metrics()
    for name, record in _records().items():
        named |= {f"seconds/{name}": record["seconds"], f"peak_memory_mb/{name}": record["peak_memory_mb"]}
    return {_allowed(name): float(value) for name, value in named.items() if value is not None}


def _records() -> dict[str, dict[str, Any]]:
    """What each stage before this one cost, by stage."""
    paths: Iterable[Path] = sorted(artifacts.RECORDS.glob("*.json"))
    return {path.stem: artifacts.read_json(path) for path in paths if path != artifacts.record("track")}


def _git_commit() -> dict[str, str]:
    """The commit of the project as MLflow's tag; nothing outside a repository."""
    with suppress(OSError, subprocess.CalledProcessError):
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        return {"mlflow.source.git.commit": done.stdout.strip()}
    return {}


def _allowed(name: str) -> str:
    """A parameter's or metric's name with what MLflow does not allow replaced."""
    return re.sub(r"[^\w\-. /:]", "_", name)
