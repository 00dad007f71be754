"""How a packaged model is to be run: the settings that its numbers were measured with, and the configuration of a server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import openvino as ov

from stages.common import artifacts
from stages.configuration.schema import Config
from stages.deployment.deployable import Deployable
from stages.measurement.latency import precision_of, streams_of
from stages.runtime import engine
from stages.runtime.requests import keeps_state

MEASURED = ("device", "cores", "openvino", "numpy", "python")  # of evaluation.json


def package_name(config: Config, model: Deployable) -> str:
    """The package's name, which is that of the model on a server, too."""
    if config.package.name is not None:
        return config.package.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{config.model.name}-{model.name}").lstrip(".-_")


def compiled(config: Config, model: Deployable) -> ov.CompiledModel:
    """The model as its accuracy was measured: in its precision, for throughput."""
    network = engine.read_artifact(model.folder)
    precision = "default" if model.name == "fp32" else engine.int8_precision(network, config.engine)
    return engine.compile(network, config.engine, precision)


def inference(config: Config, name: str, running: ov.CompiledModel) -> dict[str, Any]:
    """What inference.json says of how to run the model: `properties` as accuracy and throughput were measured, and what to change
    for the latency of single requests.

    The precision is named, whatever the device prefers; where it cannot compute in it, OpenVINO falls back to f32. The number of
    streams is left to the performance hint, which suits each device, and named among what was measured.
    """
    properties: dict[str, Any] = {"PERFORMANCE_HINT": "THROUGHPUT"}
    if "INFERENCE_PRECISION_HINT" in running.get_property("SUPPORTED_PROPERTIES"):
        properties["INFERENCE_PRECISION_HINT"] = precision_of(running)
    if config.engine.requests:
        properties["PERFORMANCE_HINT_NUM_REQUESTS"] = config.engine.requests
    if config.engine.threads:
        properties["INFERENCE_NUM_THREADS"] = config.engine.threads
    return {
        "model": f"{name}/{config.package.version}/model.xml",
        "device": config.engine.device,
        "properties": properties,
        "for_latency": {"PERFORMANCE_HINT": "LATENCY"},
        "measured_on": measured_on(running),
    }


def measured_on(running: ov.CompiledModel) -> dict[str, Any]:
    """The machine and versions of the measurement, and how many streams the performance hint chose there."""
    evaluation = artifacts.read_json(artifacts.folder("evaluate") / "evaluation.json")
    return {name: evaluation[name] for name in MEASURED} | {"streams": evaluation.get("streams", streams_of(running))}


def server(name: str, running: ov.CompiledModel, settings: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of OpenVINO Model Server, for a folder `name` beside it with a folder per version in it."""
    model: dict[str, Any] = {"name": name, "base_path": name, "target_device": settings["device"]}
    model["plugin_config"] = {key: str(value) for key, value in settings["properties"].items()}
    if keeps_state(running.create_infer_request()):
        model["stateful"] = True  # clients then send the id of their sequence with each request
    return {"model_config_list": [{"config": model}]}
