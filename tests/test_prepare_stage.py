"""`prepare` as a stage: what stops it is one line, and what was there comes back."""

from __future__ import annotations

import json
import sys

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as operations
from PIL import Image

from tests.project import Outcome, Project
from tests.runtime import models

PARAMS = """\
model: {name: net, path: net.xml}
data: {name: own, calibration: {_target_: stages.runtime.datasets.ImageFolder, path: images, size: [2, 2]}, calibration_size: 4}
tracking: {enabled: false}
"""


@pytest.fixture
def own(project: Project) -> Project:
    """The project with a model and a folder of images of its own, prepared."""
    project.params(PARAMS, "model: local", "data: custom", "metric: accuracy")
    x = operations.parameter([1, 3, 2, 2], np.float32, name="x")
    flat = operations.reshape(x, np.array([1, 12]), False)
    ov.serialize(models.named(ov.Model([flat], [x])), project.root / "net.xml")
    generator = np.random.default_rng(0)
    for index in range(8):
        path = project.root / "images" / ("ab"[index % 2]) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)).save(path)
    outcome = project.repro("prepare")
    assert outcome.code == 0, outcome.output
    return project


def prepared(project: Project) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (project.root / "build" / "prepare").iterdir()}


def again(project: Project) -> Outcome:
    """Run `prepare` through DVC although nothing that DVC watches has changed."""
    return project.repro("--force", "--single-item", "prepare")


@pytest.mark.parametrize("problem", ["image", "model", "empty"])
def test_bad_input_is_one_line_and_the_outputs_come_back(own: Project, problem: str) -> None:
    before = prepared(own)
    if problem == "image":
        (own.root / "images" / "b" / "5.png").write_bytes(b"no image")
        message = "prepare: error: cannot read image images/b/5.png: cannot identify image file"
    elif problem == "model":
        (own.root / "net.xml").write_bytes(b"no model")
        message = "prepare: error: net.xml is corrupt or no .xml model"
    else:
        for path in (own.root / "images").rglob("*.png"):
            path.unlink()
        message = "prepare: error: data.calibration: image folder images has no images"
    outcome = again(own)
    assert outcome.code != 0
    (line,) = outcome.errors
    assert line.startswith(message)
    assert "Traceback" not in outcome.output
    assert not list((own.root / "build").glob(".prepare*"))
    restored = own.run(sys.executable, "-m", "dvc", "checkout", "build/prepare")
    assert restored.code == 0, restored.output
    assert prepared(own) == before


def test_preparing_again_gives_the_same_bytes(own: Project) -> None:
    before = prepared(own)
    assert again(own).code == 0
    assert prepared(own) == before
    labels = [entry["label"] for entry in json.loads(before["dataset.json"])["validation"]["samples"]]
    assert labels == ["images/b/1.png", "images/b/3.png", "images/b/5.png", "images/b/7.png"]
