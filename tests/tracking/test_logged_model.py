"""The model to deploy in MLflow: loaded by MLflow it runs on OpenVINO, with the bytes of build/; registered once, and crowned."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from stages import promote, track
from stages.common import artifacts
from stages.configuration.schema import Config
from stages.sweeps import job
from stages.tracking import runs, store
from tests import built
from tests.runtime.models import two_inputs

DYNAMIC = [1, -1]


def write(workspace: Path, config: Config) -> None:
    """The made-up build with a model that can be run: an image and tokens, summed up."""
    built.write_build(workspace, config)
    for folder in ("correct_bias", "prepare"):
        ov.save_model(two_inputs(), workspace / "build" / folder / "model.xml", compress_to_fp16=False)
    ports = {
        "inputs": [{"name": "image", "shape": [1, 2, 3], "type": "float32"}, {"name": "tokens", "shape": DYNAMIC, "type": "int64"}],
        "outputs": [{"name": "total", "shape": [1], "type": "f32"}],
    }
    path = workspace / "build/prepare/model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | ports))


@pytest.fixture
def client(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """MLflow on the workspace's store, for its functions that know of no client as well."""
    import mlflow
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{workspace / 'mlflow.db'}"
    write(workspace, built.config())
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    yield MlflowClient(uri)
    mlflow.set_tracking_uri(before)


def logged(client: Any) -> Any:
    """The logged model."""
    (found,) = client.search_logged_models([client.get_experiment_by_name("quantization").experiment_id])
    return found


def inputs(count: int, tokens: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    random = np.random.default_rng(0)
    image, words = random.normal(size=(count, 2, 3)).astype(np.float32), random.integers(0, 9, size=(count, tokens))
    return {"image": image, "tokens": words}, image.sum((1, 2)) + words.sum(1)


def test_mlflow_loads_and_runs_it(workspace: Path, client: Any) -> None:
    import mlflow

    track.main(built.config())
    model = logged(client)
    assert (model.name, str(model.status).rpartition(".")[2]) == ("int8", "READY")
    loaded = mlflow.pyfunc.load_model(f"models:/{model.model_id}")
    for count, tokens in ((1, 4), (5, 7)):  # the model takes one at a time
        given, expected = inputs(count, tokens)
        np.testing.assert_allclose(loaded.predict(given)["total"], expected, rtol=1e-5)
    with pytest.raises(mlflow.MlflowException, match="image"):
        loaded.predict({"tokens": inputs(1, 4)[0]["tokens"]})
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{model.model_id}"))
    for suffix in ("xml", "bin"):
        assert (folder / f"data/model.{suffix}").read_bytes() == (workspace / f"build/correct_bias/model.{suffix}").read_bytes()
    settings = json.loads((folder / "data/inference.json").read_text())
    assert settings["properties"] == {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "bf16"}
    assert "openvino==2026.4.1\n" in (folder / "requirements.txt").read_text()


def test_the_model_of_a_search_is_the_one(workspace: Path, client: Any) -> None:
    built.write_tune(workspace)
    for suffix in ("xml", "bin"):
        shutil.copy(workspace / f"build/correct_bias/model.{suffix}", workspace / f"build/tune/model.{suffix}")
    track.main(built.config())
    assert logged(client).name == "tune"


def test_without_models_there_is_none(workspace: Path, client: Any) -> None:
    track.main(built.config(log_models=False))
    assert list(client.search_logged_models([client.get_experiment_by_name("quantization").experiment_id])) == []


def test_registered_once_on_request(workspace: Path, client: Any, capsys: pytest.CaptureFixture[str]) -> None:
    import mlflow

    track.main(built.config())
    assert client.search_registered_models() == []
    named = built.config(register="reader")
    for _ in range(2):  # of a result that is logged already, and again
        track.main(named)
    assert capsys.readouterr().out.count("MLflow: registered as reader, version 1: models:/reader/1") == 1
    (version,) = client.search_model_versions("name = 'reader'")
    assert version.run_id == client.search_runs(["1"])[0].info.run_id
    given, expected = inputs(2, 3)
    np.testing.assert_allclose(mlflow.pyfunc.load_model("models:/reader/1").predict(given)["total"], expected, rtol=1e-5)
    other = built.config("mixed", register="reader")
    write(workspace, other)
    (workspace / "build/quantize/quantizers.json").write_text(json.dumps(built.quantizers() | {"preset": "mixed"}))
    track.main(other)
    assert sorted(int(version.version) for version in client.search_model_versions("name = 'reader'")) == [1, 2]


def test_promote_makes_it_the_champion(workspace: Path, client: Any, capsys: pytest.CaptureFixture[str]) -> None:
    config = built.config(register="reader")
    uri = f"sqlite:///{workspace / 'mlflow.db'}"
    folder = workspace / "multirun/presets/0"
    folder.mkdir(parents=True)
    shutil.copytree(workspace / "build", folder / "build")
    (workspace / "params.yaml").write_text("seed: 1\n")
    (folder.parent / "params.yaml").write_text("seed: 1\n")
    (folder / "params.yaml").write_text("seed: 2\n")
    os.chdir(folder)
    artifacts.write_json(artifacts.CONFIG, dataclasses.asdict(config))
    artifacts.write_text(artifacts.BUILD / "report.html", "a page")
    run, _ = runs.log(config, uri)
    os.chdir(workspace)
    job.write(folder.parent, job.Job(0, (), (), (), tracking_uri=uri))
    job.write_result(folder.parent, 0, job.Result(None, 1.0, (), store.Run(*run)))
    assert promote.main(["multirun/presets/0"]) == 0
    assert "MLflow: reader version 1 is now models:/reader@champion" in capsys.readouterr().out
    assert client.get_model_version_by_alias("reader", "champion").run_id == run.id
    assert promote.main(["multirun/presets/0"]) == 0  # nothing to change in params.yaml
    assert (workspace / "params.yaml").read_text() == "seed: 2\n"
