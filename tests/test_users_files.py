"""What a user changes under the pipeline's feet: every kind of model and data set, through real `dvc repro`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as operations
from PIL import Image

from tests.project import Project, copy_project
from tests.runtime.models import named

IMPORTED = Path(__file__).resolve().parent / "runtime" / "imported"
TOP = "tracking: {enabled: false}\nevaluate: {noise_samples: 0, benchmark: {enabled: false}}\n"
CLASS = """\
import numpy as np
from conf.scale import SCALE

class Own:
    def __init__(self, folder="data"):
        self.folder = folder

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return SCALE * np.load("hidden.npy")[index, None] + np.load(f"{self.folder}/x.npy")[index, None]
"""


def dense(factor: float) -> ov.Model:
    x = operations.parameter([1, 4], np.float32, name="x")
    weights = operations.constant((factor * np.arange(12).reshape(4, 3)).astype(np.float32))
    return named(ov.Model([operations.matmul(x, weights, False, False)], [x]))


def own_class(project: Project) -> None:
    """An IR, and a data set class that imports another file and opens one without being told."""
    ov.save_model(dense(1.0), project.root / "net.xml", compress_to_fp16=False)
    project.write("conf/own.py", CLASS)
    project.write("conf/scale.py", "SCALE = 1.0\n")
    (project.root / "data").mkdir()
    random = np.random.default_rng(0)
    for name in ("hidden.npy", "data/x.npy"):
        np.save(project.root / name, random.normal(size=(12, 4)).astype(np.float32))
    keys = "model: {name: net, path: net.xml}\ndata: {calibration: {_target_: conf.own.Own, folder: data}, calibration_size: 6}\n"
    project.params(keys + TOP, "model: local", "data: custom", "metric: reference_error")


def external_weights(project: Project) -> None:
    """An ONNX model with its weights in another file, and arrays."""
    for name in ("external.onnx", "external.weights"):
        shutil.copy(IMPORTED / name, project.root / name)
    x = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    np.savez(project.root / "x.npz", x=x)
    keys = "model: {name: net, path: external.onnx, input_shape: {'*': [1, 4]}}\ndata: {calibration: {path: x.npz}, calibration_size: 6}\n"
    project.params(keys + TOP, "model: local", "data: arrays", "metric: reference_error")


def images(project: Project) -> None:
    """A folder of images and COCO's JSON."""
    x = operations.parameter([1, 3, 8, 8], np.float32, name="x")
    weights = operations.constant(np.random.default_rng(0).normal(size=(192, 3)).astype(np.float32))
    flat = operations.reshape(x, np.array([1, 192]), False)
    ov.save_model(named(ov.Model([operations.matmul(flat, weights, False, False)], [x])), project.root / "net.xml", compress_to_fp16=False)
    random = np.random.default_rng(0)
    for index in range(12):
        path = project.root / "images" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    data = "data: {calibration: {path: images, size: [8, 8], resize_to: 8}, validation: null, calibration_size: 6}\n"
    keys = f"model: {{name: net, path: net.xml}}\n{data}"
    project.params(keys + TOP, "model: local", "data: image_folder", "metric: accuracy")


def retrain(root: Path) -> None:
    """Other weights for the same net: net.xml stays as it is."""
    ov.save_model(dense(2.0), root / "other.xml", compress_to_fp16=False)
    (root / "other.bin").replace(root / "net.bin")


def reweigh(root: Path) -> None:
    weights = np.fromfile(root / "external.weights", np.uint8)
    weights[3] ^= 1
    weights.tofile(root / "external.weights")


def other_array(root: Path) -> None:
    with np.load(root / "x.npz") as data:
        np.savez(root / "x.npz", x=data["x"] + 1)


def repaint(root: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / "images" / "a" / "0.png")


def rescale(root: Path) -> None:
    (root / "conf/scale.py").write_text("SCALE = 1.5\n")


def other_data(root: Path) -> None:
    np.save(root / "data" / "x.npy", np.load(root / "data/x.npy") + 1)


@pytest.mark.parametrize(
    ("make", "changes"),
    [(own_class, [retrain, rescale, other_data]), (external_weights, [reweigh, other_array]), (images, [repaint])],
)
def test_what_has_changed_runs_again(tmp_path: Path, make: Callable[[Project], None], changes: list[Callable[[Path], None]]) -> None:
    project = copy_project(tmp_path / "project")
    make(project)
    outcome = project.repro("prepare")
    assert outcome.code == 0, outcome.output

    def prepared() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (project.root / "build" / "prepare").iterdir()}

    assert project.repro("prepare").stages == ["config"]
    for change in changes:
        before = prepared()
        change(project.root)
        outcome = project.repro("prepare")
        assert (outcome.code, outcome.stages) == (0, ["config", "prepare"]), (change, outcome.output)
        assert prepared() != before, change


def test_a_file_that_nothing_names_is_warned_of(tmp_path: Path) -> None:
    project = copy_project(tmp_path / "project")
    own_class(project)
    outcome = project.repro()
    assert outcome.code == 0, outcome.output
    assert "has changed" not in outcome.output
    files = json.loads((project.root / "build/records/prepare.json").read_text())["files"]
    assert [file["path"] for file in files] == ["hidden.npy"]
    np.save(project.root / "hidden.npy", np.load(project.root / "hidden.npy") + 1)
    outcome = project.repro()
    assert outcome.stages == ["config", "track"]
    assert "WARNING: hidden.npy has changed since it was used" in outcome.output
