"""The MLflow store: where it is, what is wrong with it, and links into it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from stages import track
from stages.common.errors import UserError
from stages.tracking import links, store
from tests import built


@pytest.mark.parametrize(
    ("scheme", "driver", "hint"),
    [
        ("postgresql+psycopg", "psycopg", "pip install -e '.[postgresql]'"),
        ("postgresql+pg8000", "pg8000", "install the driver that the address asks for"),
    ],
)
def test_a_driver_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, scheme: str, driver: str, hint: str) -> None:
    monkeypatch.setitem(sys.modules, driver, None)
    address = f"{scheme}://me@127.0.0.1/db"
    with pytest.raises(UserError) as caught, store.mlflow_client(address):
        pass
    assert str(caught.value).startswith(f"MLflow at {scheme}://***@127.0.0.1/db: ") and str(caught.value).endswith(f"; {hint}")
    assert driver in str(caught.value)


def test_a_deleted_experiment_is_one_line(workspace: Path) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    client.delete_experiment(client.create_experiment("quantization"))
    with pytest.raises(UserError, match="experiment 'quantization' is deleted: `mlflow experiments restore -x 1`"):
        track.main(built.config())


def test_a_relative_store_belongs_to_the_project(
    workspace: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC runs queued experiments in a temporary copy and names the project in DVC_ROOT."""
    assert store.tracking_uri(built.config()) == f"sqlite:///{workspace}/mlflow.db"
    monkeypatch.setenv("DVC_ROOT", str(workspace))
    monkeypatch.chdir(tmp_path_factory.mktemp("copy"))
    assert store.tracking_uri(built.config()) == f"sqlite:///{workspace}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000/")
    assert store.tracking_uri(built.config()) == "http://tracking:5000/"


def test_how_to_open_the_comparison(workspace: Path) -> None:
    page = "#/experiments/7/runs?workflowType=machine_learning&compareRunsMode=CHART"
    local = links.comparison(f"sqlite:///{workspace}/mlflow.db", "7")
    assert local.split() == ["mlflow", "ui", "--backend-store-uri", "sqlite:///mlflow.db", f"http://127.0.0.1:5000/{page}"]
    assert links.comparison("http://tracking:5000/", "7") == f"http://tracking:5000/{page}"


@pytest.fixture
def anybody() -> Iterator[Path]:
    """A folder of a user for whom permissions count: not of root, as whom containers run tests."""
    own = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        if own == 0:
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            os.seteuid(own)


@pytest.mark.parametrize("read_only", ["file", "folder"])
def test_a_read_only_store_is_one_line(anybody: Path, read_only: str) -> None:
    path = anybody / "own" / "mlflow.db"
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE runs (name)")
    with store._only_writer(f"sqlite:///{path}"):
        pass
    (path if read_only == "file" else path.parent).chmod(0o555)
    place = "mlflow.db" if read_only == "file" else "own"
    with pytest.raises(UserError, match=rf"mlflow\.db: {place} is read-only") as error, store.mlflow_client(f"sqlite:///{path}"):
        pass
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("how", ["moved", "copied", "elsewhere"])
def test_artifacts_follow_a_project_that_moves(tmp_path: Path, how: str) -> None:
    from mlflow.tracking import MlflowClient

    before, after = tmp_path / "before ü", tmp_path / "after"
    before.mkdir()
    location = (tmp_path / "shared" / store.ARTIFACTS).as_uri() if how == "elsewhere" else None
    uri = f"sqlite:///{before / 'mlflow.db'}"
    if location:
        (tmp_path / "shared" / store.ARTIFACTS).mkdir(parents=True)
        MlflowClient(uri).create_experiment("mine", artifact_location=location)
    with store.mlflow_client(uri) as client:
        experiment = store.experiment_id_of(client, uri, "mine")
        first = client.create_run(experiment).info
        client.log_text(first.run_id, "one", "a.txt")
    (shutil.copytree if how == "copied" else shutil.move)(before, after)
    uri = f"sqlite:///{after / 'mlflow.db'}"
    store.follow_the_project(uri)
    with store.mlflow_client(uri) as client:
        second = client.create_run(store.experiment_id_of(client, uri, "mine")).info
        client.log_text(second.run_id, "two", "a.txt")
        place = tmp_path / "shared" if how == "elsewhere" else after
        assert (place / store.ARTIFACTS / second.run_id / "artifacts" / "a.txt").read_text() == "two"
        # What was logged before is found where it is now.
        assert Path(client.download_artifacts(first.run_id, "a.txt")).read_text() == "one"
        assert client.get_run(first.run_id).info.artifact_uri == (place / store.ARTIFACTS / first.run_id / "artifacts").as_uri()
    assert before.exists() == (how == "copied")
