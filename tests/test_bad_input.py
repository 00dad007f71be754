"""Bad input through real `dvc repro`: one line, an exit code, nothing half-written, and `dvc checkout` brings the results back."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from tests.project import Outcome, Project
from tests.runtime import models

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


@pytest.fixture
def small_disk(own: Project) -> Iterator[Project]:
    """The prepared project with its build/ on a file system of one megabyte."""
    build = own.root / "build"
    copied = own.root / "copied"
    build.rename(copied)
    build.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", build], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        shutil.copytree(copied, build, dirs_exist_ok=True)
        yield own
    finally:
        subprocess.run(["umount", "-l", build], check=True)


def test_a_full_disk(small_disk: Project) -> None:
    before = prepared(small_disk)
    write_model(small_disk, width=200_000)
    check_refused(small_disk, before, "disk")
