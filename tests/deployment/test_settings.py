"""How a packaged model is to be run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as operations
from openvino.op import util

from stages.configuration.schema import Engine, Shipment
from stages.deployment import settings
from stages.deployment.deployable import Deployable, deployable
from tests import built
from tests.runtime.models import identity, named


def write(model: ov.Model) -> Deployable:
    """The made-up build's INT8 model, replaced by one that can be run."""
    ov.save_model(model, "build/correct_bias/model.xml", compress_to_fp16=False)
    return deployable(built.config(), "int8")


def counter() -> ov.Model:
    """Adds its input to what it has seen before."""
    x = operations.parameter([1, 2], np.float32, name="x")
    info = util.VariableInfo()
    info.data_shape, info.data_type, info.variable_id = ov.PartialShape([1, 2]), ov.Type.f32, "sum"
    variable = util.Variable(info)
    before = operations.read_value(operations.constant(np.zeros((1, 2), np.float32)), variable)
    total = operations.add(x, before)
    total.set_friendly_name("total")
    return named(ov.Model([operations.result(total)], [operations.assign(total, variable)], [x]))


@pytest.mark.parametrize(
    ("model", "name", "expected"),
    [("reader", None, "reader-int8"), ("my net/v2", None, "my-net-v2-int8"), ("../a", None, "a-int8"), ("reader", "lines", "lines")],
)
def test_names_are_file_names(workspace: Path, model: str, name: str | None, expected: str) -> None:
    config = dataclasses.replace(built.config(), package=Shipment(name=name))
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, name=model))
    found = settings.package_name(config, deployable(config, "int8"))
    assert found == expected


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        (Engine(), {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "f32"}),
        (Engine(requests=3), {"PERFORMANCE_HINT_NUM_REQUESTS": 3}),
        (Engine(threads=1), {"INFERENCE_NUM_THREADS": 1}),
    ],
)
def test_settings_are_those_of_the_measurement(workspace: Path, engine: Engine, expected: dict[str, Any]) -> None:
    config = dataclasses.replace(built.config(), engine=dataclasses.replace(engine, inference_precision="f32"))
    model = write(identity(1, 4))
    running = settings.compiled(config, model)
    found = settings.inference(config, "reader-int8", running)
    assert expected.items() <= found["properties"].items()
    assert (found["model"], found["device"]) == ("reader-int8/1/model.xml", "CPU")
    assert found["measured_on"]["device"] == "Test(R) Processor"
    assert found["measured_on"]["streams"] == running.get_property("NUM_STREAMS")  # of a build that has not written it down
    evaluation = json.loads(Path("build/evaluate/evaluation.json").read_text())
    Path("build/evaluate/evaluation.json").write_text(json.dumps(evaluation | {"streams": 17}))
    assert settings.inference(config, "reader-int8", running)["measured_on"]["streams"] == 17


@pytest.mark.parametrize("stateful", [False, True])
def test_a_server_is_told_of_a_state(workspace: Path, stateful: bool) -> None:
    model = write(counter() if stateful else identity(1, 2))
    running = settings.compiled(built.config(), model)
    inference = settings.inference(built.config(), "reader-int8", running)
    (entry,) = settings.server("reader-int8", running, inference)["model_config_list"]
    assert entry["config"].get("stateful", False) is stateful
    assert entry["config"]["base_path"] == "reader-int8"
