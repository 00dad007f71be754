"""The MLflow store: where it is, what is wrong with it, and links into it."""

from __future__ import annotations

import sys
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
