"""A project with a small network and data of its own, for tests of sweeps: the network outside the project, the data linked."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import openvino as ov

from tests.project import ROOT, Outcome, Project, copy_project

NETWORK = ROOT / "tests" / "quantization" / "reference" / "smallcnn.xml"
CHOICES = ("model: local", "data: arrays", "metric: accuracy")
PARAMS = """\
# What the tests build.
model: {name: net, path: ../files/net.xml} # stays where it is
data: {name: own, calibration: {path: data/samples.npz}, calibration_size: 24}
evaluate: {noise_samples: 2, benchmark: {seconds: 0.3}}
"""
WORK = ("prepare", "collect_statistics", "quantize", "correct_bias", "evaluate", "accuracy_aware", "tune")


def sweep_project(folder: Path, keys: str = PARAMS) -> Project:
    """The project in `folder/project`, with its network in `folder/files`; the labels are what the network says."""
    project = copy_project(folder / "project")
    project.params(keys, *CHOICES)
    (folder / "files").mkdir()
    for suffix in (".xml", ".bin"):
        shutil.copy(NETWORK.with_suffix(suffix), folder / "files" / f"net{suffix}")
    samples = np.load(NETWORK.with_suffix(".npz"))["x"][:48]
    network = ov.Core().compile_model(NETWORK, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    labels = [int(np.argmax(network(sample[None])[0])) for sample in samples]
    (project.root / "data").mkdir()
    np.savez(project.root / "data" / "samples.npz", x=samples, y=np.array(labels))
    return project


def sweep(project: Project, *overrides: str, env: Mapping[str, str] | None = None) -> Outcome:
    """`python -m stages.sweep -m ...`."""
    return project.run(sys.executable, "-m", "stages.sweep", "-m", *overrides, env=env, timeout=550)


def latest(project: Project) -> Path:
    """The folder of the latest sweep."""
    return max((project.root / "multirun").iterdir(), key=lambda path: path.stat().st_mtime)


def stages_run(project: Project) -> Iterator[str]:
    """`0 prepare`, `0 quantize`, ...: what the jobs of the latest sweep ran and did not take from a cache."""
    for log in sorted(latest(project).glob("*.log")):
        yield from (f"{log.stem} {stage}" for stage in Outcome(0, log.read_text()).stages)
