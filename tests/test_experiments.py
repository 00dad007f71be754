"""DVC's own experiments, which run in a temporary copy of the project: they see one configuration, and their results are kept."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.repository import commit, dvc, git, repository

pytestmark = pytest.mark.slow


def test_an_experiment_in_a_temporary_copy(tmp_path: Path) -> None:
    project = repository(tmp_path, "quantization: {preset: performance}\n")
    (project.root / ".gitignore").write_text((project.root / ".gitignore").read_text() + "/home/\n")  # this test's own
    commit(project)
    outcome = dvc(project, "exp", "run", "--temp", "--name", "other", "--set-param", "quantization.preset=accuracy")
    assert "MLflow: logged as accuracy·" in outcome.output
    assert git(project, "status", "--porcelain") == ""  # the workspace is as it was

    # The result went into the project's store, and not into that of the temporary copy.
    with sqlite3.connect(project.root / "mlflow.db") as database:
        ((name, place),) = database.execute("SELECT name, artifact_uri FROM runs WHERE status = 'FINISHED'").fetchall()
    assert name.startswith("accuracy·")
    assert Path(place.removeprefix("file://")).is_relative_to(project.root / "mlartifacts")
    assert (Path(place.removeprefix("file://")) / "report.html").is_file()

    shown = dvc(project, "exp", "show", "--json").output
    (found,) = [rows for rows in experiments(json.loads(shown)) if rows["name"] == "other"]
    data = found["revs"][0]["data"]
    assert data["params"]["build/config.json"]["data"]["quantization"]["preset"] == "accuracy"
    assert 0 < data["metrics"]["build/reports/metrics.json"]["data"]["accuracy"] <= 1

    dvc(project, "exp", "apply", "other")
    assert "preset: accuracy" in (project.root / "params.yaml").read_text()
    outcome = dvc(project, "repro")
    assert outcome.stages == ["config", "track"], outcome.output
    assert "MLflow: already logged as accuracy·" in outcome.output


def experiments(shown: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All experiments of all commits."""
    return [experiment for commit in shown for experiment in commit["experiments"] or ()]
