"""The model to deploy as one of MLflow's own: with a signature, loadable by `mlflow.pyfunc.load_model`, registered on request."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common import artifacts
from stages.configuration.schema import Config
from stages.report import search_results
from stages.report.measured import models, to_deploy
from stages.tracking.store import SQLITE

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from mlflow.tracking import MlflowClient

CHAMPION = "champion"  # alias of the version that `promote` has chosen
FOLDERS = {"int8": "correct_bias"}  # others are called as the stage
TYPES = {"f16": "float16", "f32": "float32", "f64": "float64", "boolean": "bool"} | {
    f"{sign}{bits}": f"{name}{bits}" for sign, name in (("i", "int"), ("u", "uint")) for bits in (8, 16, 32, 64)
}


def log_model(client: MlflowClient, config: Config, experiment_id: str, run_id: str) -> str:
    """Log the model to deploy with a run's result; its id."""
    from mlflow.entities import LoggedModelOutput

    name = to_deploy(models()).kind
    logged = client.create_logged_model(experiment_id, name=name, source_run_id=run_id, model_type="openvino")
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), config, name, logged.model_id, run_id)
        client.log_model_artifacts(logged.model_id, folder)
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])
    return str(logged.model_id)


def _write(folder: Path, config: Config, name: str, model_id: str, run_id: str) -> None:
    """A model in MLflow's layout, the bytes of build/ in it."""
    from mlflow.models import Model
    from mlflow.version import VERSION

    evaluation = artifacts.read_json(artifacts.folder("evaluate") / "evaluation.json")
    source, data = artifacts.folder(FOLDERS.get(name, name)), folder / "data"
    data.mkdir()
    for file in ("model.xml", "model.bin"):
        shutil.copyfile(source / file, data / file)
    artifacts.write_json(data / "inference.json", _settings(config, name, evaluation))
    loader = Path(__file__).with_name("openvino_model.py")
    (folder / "code").mkdir()
    shutil.copyfile(loader, folder / "code" / loader.name)
    versions = {"mlflow": VERSION, "numpy": evaluation["numpy"], "openvino": evaluation["openvino"].partition("-")[0]}
    artifacts.write_text(folder / "requirements.txt", "".join(f"{package}=={version}\n" for package, version in versions.items()))
    environment = f"python: {evaluation['python']}\nbuild_dependencies: [pip]\ndependencies: [-r requirements.txt]\n"
    artifacts.write_text(folder / "python_env.yaml", environment)
    model = Model(run_id=run_id, model_id=model_id, signature=_signature())
    model.add_flavor(
        "python_function",
        loader_module=loader.stem,
        python_version=evaluation["python"],
        data="data",
        code="code",
        env={"virtualenv": "python_env.yaml"},
    )
    model.save(folder / "MLmodel")


def _settings(config: Config, name: str, evaluation: dict[str, Any]) -> dict[str, Any]:
    """How the loader runs the model: as its accuracy was measured, in the same precision."""
    ports = _ports()
    precision = _precision(config, name, evaluation)
    properties = {"PERFORMANCE_HINT": "THROUGHPUT"} | ({} if precision is None else {"INFERENCE_PRECISION_HINT": precision})
    return {
        "device": config.engine.device,
        "properties": properties,
        "inputs": [port["name"] for port in ports["inputs"]],
        "outputs": [port["name"] for port in ports["outputs"]],
        "one_by_one": _one_by_one(ports["inputs"]),
    }


def _precision(config: Config, name: str, evaluation: dict[str, Any]) -> str | None:
    """The precision of what stays float; None where a device other than a CPU or GPU has no choice."""
    if config.engine.device.split(".")[0] not in ("CPU", "GPU"):
        return None
    if name == "accuracy_aware":
        return str(search_results.result(name)["precision"])
    if name == "tune" and config.engine.inference_precision == "default":
        return str(evaluation["precisions"]["default"])  # its weights have no zero points then
    return str(evaluation["precisions"]["int8"])


def _one_by_one(inputs: list[dict[str, Any]]) -> bool:
    """Whether the model takes one sample at a time, and no more."""
    return bool(inputs) and all(isinstance(port["shape"], list) and port["shape"][:1] == [1] for port in inputs)


def _ports() -> dict[str, list[dict[str, Any]]]:
    found = artifacts.read_json(artifacts.folder("prepare") / "model.json")
    return {kind: found[kind] for kind in ("inputs", "outputs")}


def _signature() -> ModelSignature | None:
    """Names, types and shapes; a batch that is run one by one may have any size. None where a rank is not known."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    ports = _ports()
    if not all(isinstance(port["shape"], list) and port["shape"] for kind in ports.values() for port in kind):
        return None
    free = _one_by_one(ports["inputs"])

    def schema(kind: str) -> Schema:
        return Schema(
            [
                TensorSpec(
                    np.dtype(TYPES.get(port["type"], port["type"])),
                    (-1, *port["shape"][1:]) if free else tuple(port["shape"]),
                    port["name"],
                )
                for port in ports[kind]
            ]
        )

    return ModelSignature(schema("inputs"), schema("outputs"))


# ------------------------------------------------------------------------------------------------ registry


def is_registered(uri: str, name: str, run_id: str) -> bool:
    """Whether a version of a registered model comes from a run, as far as an SQLite file tells without MLflow."""
    path = Path(uri.removeprefix(SQLITE))
    if uri.startswith(SQLITE) and path.exists():
        with suppress(sqlite3.Error), closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5)) as database:
            query = "SELECT 1 FROM model_versions WHERE name = ? AND run_id = ?"
            return database.execute(query, (name, run_id)).fetchone() is not None
    return False


def register(client: MlflowClient, config: Config, experiment_id: str, run_id: str) -> str:
    """The version of the registered model that comes from a run; it is made where there is none."""
    from mlflow.exceptions import MlflowException

    name = config.tracking.register
    assert name is not None
    if known := client.search_model_versions(f"name = '{name}' AND run_id = '{run_id}'"):
        return str(known[0].version)
    models = client.search_logged_models([experiment_id], filter_string=f"source_run_id = '{run_id}'")
    ready = [model.model_id for model in models if model.status == "READY"]
    model_id = ready[0] if ready else log_model(client, config, experiment_id, run_id)
    with suppress(MlflowException):  # there is one
        client.create_registered_model(name)
    version = client.create_model_version(name, f"models:/{model_id}", run_id, model_id=model_id).version
    print(f"MLflow: registered as {name}, version {version}: models:/{name}/{version}")
    return str(version)


def set_champion(client: MlflowClient, config: Config, experiment_id: str, run_id: str) -> None:
    """Let the alias `champion` of the registered model name the version that comes from a run."""
    version = register(client, config, experiment_id, run_id)
    client.set_registered_model_alias(config.tracking.register, CHAMPION, version)
    print(f"MLflow: {config.tracking.register} version {version} is now models:/{config.tracking.register}@{CHAMPION}")
