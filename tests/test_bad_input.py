"""Bad input through real `dvc repro`: one line, an exit code, nothing half-written, and `dvc checkout` brings the results back."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from tests.project import Outcome, Project
from tests.runtime import models
from tests.sweeping import sweep

PARAMS = """\
model: {{name: net, path: {model}}}
data: {{name: own, calibration: {{path: data.npz}}, calibration_size: 12}}
tracking: {{enabled: false}}
"""


def write_data(project: Project, poison: float = 0.0, label: int = 0) -> None:
    """20 labelled samples of 4 features for 3 classes; sample 7 and label 15 may be spoilt."""
    x = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    y = np.arange(20) % 3
    x[7, 2] += poison
    y[15] += label
    np.savez(project.root / "data.npz", x=x, y=y)


def write_model(project: Project, width: int = 4) -> None:
    """A classifier of 4 features; `width` only makes its file larger."""
    generator = np.random.default_rng(1)
    x = op.parameter([1, 4], np.float32, name="x")
    hidden = op.relu(op.matmul(x, op.constant(generator.normal(size=(4, width)).astype(np.float32)), False, False))
    scores = op.matmul(hidden, op.constant(generator.normal(size=(width, 3)).astype(np.float32)), False, False)
    ov.serialize(models.named(ov.Model([scores], [x])), project.root / "net.xml")


@pytest.fixture
def own(project: Project) -> Project:
    """A project with model and data of its own, prepared."""
    project.params(PARAMS.format(model="net.xml"), "model: local", "data: arrays", "metric: accuracy")
    write_model(project)
    write_data(project)
    outcome = project.repro("prepare")
    assert outcome.code == 0, outcome.output
    return project


def prepared(project: Project) -> dict[str, bytes]:
    """The files that `prepare` wrote."""
    return {path.name: path.read_bytes() for path in (project.root / "build" / "prepare").iterdir()}


def check_refused(project: Project, before: dict[str, bytes], message: str) -> Outcome:
    """`prepare` fails with one line and leaves nothing; `dvc checkout` restores what was there."""
    outcome = project.repro("--force", "prepare")
    assert outcome.code != 0
    (line,) = outcome.errors
    assert message in line
    assert "Traceback" not in outcome.output
    left = {path.name for path in (project.root / "build").iterdir()}
    assert not left & {"prepare", ".prepare.tmp"}
    restored = project.run(sys.executable, "-m", "dvc", "checkout", "build/prepare")
    assert restored.code == 0, restored.output
    assert prepared(project) == before
    return outcome


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_sample_that_is_not_a_number(own: Project, poison: float) -> None:
    before = prepared(own)
    write_data(own, poison=poison)
    check_refused(own, before, "calibration sample 7")


def test_a_label_out_of_range(own: Project) -> None:
    before = prepared(own)
    write_data(own, label=3)
    check_refused(own, before, "is out of range: the model has 3 classes, 0 to 2")


def test_a_corrupt_onnx(own: Project) -> None:
    before = prepared(own)
    own.params(PARAMS.format(model="net.onnx"), "model: local", "data: arrays", "metric: accuracy")
    (own.root / "net.onnx").write_bytes(b"\x08\x07garbage that is no protobuf")
    check_refused(own, before, "net.onnx is corrupt or no .onnx model")


X = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
Y = np.arange(20) % 3
MISFITS: list[tuple[dict[str, np.ndarray], str]] = [
    ({"x": X[:, :3], "y": Y}, "calibration sample 0: input x has shape [1, 3], but the model expects [1, 4]"),
    ({"x": X[:0], "y": Y[:0]}, "data.calibration: the data set has no samples"),
    ({"x": X, "y": Y[:15]}, "data.calibration: the arrays of data.npz differ in length: x has 20, y has 15"),
    ({"x": X, "y": np.array(list("abc"))[Y]}, "validation sample 12: Accuracy needs a class index as label, not str 'a'"),
    (
        {"x": X, "y": np.eye(3)[Y]},
        "validation sample 12: Accuracy needs a class index as label, not an array of float64 [3]; of one-hot labels give the argmax",
    ),
    (
        {"a": X, "b": X, "y": Y},
        "calibration sample 0 has an input 'a', 'b', but the model's inputs are: x; `inputs` beside `path` maps them, e.g. inputs: {x: a}",
    ),
]


def test_data_and_weights_that_do_not_fit(own: Project) -> None:
    """Without DVC, which would take away what is there."""
    before = prepared(own)

    def check_refused_alone(message: str) -> None:
        outcome = own.run(sys.executable, "-m", "stages.prepare")
        assert (outcome.code, outcome.output) == (1, f"prepare: error: {message}\n")
        assert prepared(own) == before

    for arrays, message in MISFITS:
        np.savez(own.root / "data.npz", **arrays)  # type: ignore[arg-type]
        check_refused_alone(message)
    write_data(own)
    weights = own.root / "net.bin"
    weights.write_bytes(weights.read_bytes()[:20])
    check_refused_alone("net.xml cannot be imported: Incorrect weights in bin file! (its weights: net.bin, 20 bytes)")


@contextmanager
def file_system(folder: Path, options: str) -> Iterator[None]:
    """Have a file system in memory in an empty folder; skip the test where that is not allowed."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def small_disk(own: Project) -> Iterator[Project]:
    """The prepared project with its build/ on a file system of one megabyte."""
    build = own.root / "build"
    copied = own.root / "copied"
    build.rename(copied)
    build.mkdir()
    with file_system(build, "size=1m"):
        shutil.copytree(copied, build, dirs_exist_ok=True)
        yield own


@pytest.mark.parametrize(
    ("options", "message"), [("ro,size=1m", ": Read-only file system"), ("size=100k", "sweep: error: disk full while writing multirun/")]
)
def test_a_sweep_without_room_for_its_jobs(project: Project, options: str, message: str) -> None:
    (project.root / "multirun").mkdir()
    with file_system(project.root / "multirun", options):
        outcome = sweep(project, "quantization.preset=performance,mixed")
    assert outcome.code == 1
    (line,) = outcome.errors
    assert line.startswith("sweep: error: ") and message in line
    assert "Traceback" not in outcome.output


def test_a_build_folder_that_cannot_be_written(project: Project) -> None:
    (project.root / "build").mkdir()
    with file_system(project.root / "build", "ro,size=1m"):
        outcome = project.repro("config")
    assert outcome.code != 0
    assert outcome.errors == ["config: error: build/.lock: Read-only file system"]
    assert "Traceback" not in outcome.output


def test_a_full_disk(small_disk: Project) -> None:
    before = prepared(small_disk)
    write_model(small_disk, width=200_000)
    check_refused(small_disk, before, "disk")
