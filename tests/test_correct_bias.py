"""`correct_bias` in a real pipeline, with the accurate BiasCorrection and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from tests.project import Project, copy_project
from tests.test_evaluate import tiny_model

KEYS = """\
model: {{name: tiny, path: tiny.xml}}
data: {{calibration: {{path: tiny.npz}}, calibration_size: 20}}
quantization: {{weights: {{bits: 4}}, allow_unsupported: true, stat_subset_size: 10}}
bias_correction: {{use_fast_bias: {fast}}}
engine: {{threads: {threads}}}
"""
OPTIONS = ("model: local", "data: arrays", "metric: reference_error", "tracking: disabled")
COMPUTES = ["collect_statistics", "correct_bias"]


# Every process that DVC starts for a stage stops when it asks for the network, or imports what is not declared. A hook comes
# before every connection and look-up of a name, and cannot be taken back.
ALONE = """
import os, sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        os.write(2, f"the network was asked for: {event} {arguments}".encode())
        os._exit(3)
    if event == "import" and arguments[0].partition(".")[0] in ("nncf", "onnx", "tensorflow", "torch"):
        os.write(2, f"{arguments[0]} was imported".encode())
        os._exit(3)

if "DVC_STAGE" in os.environ:
    sys.addaudithook(refuse)
"""


def corrections(project: Project) -> dict[str, Any]:
    return json.loads((project.root / "build/correct_bias/corrections.json").read_text())


def test_both_algorithms(tmp_path: Path) -> None:
    project = copy_project(tmp_path / "project")
    ov.save_model(tiny_model(), project.root / "tiny.xml", compress_to_fp16=False)
    images = np.random.default_rng(1).normal(size=(30, 3, 12, 12)).astype(np.float32)
    np.savez(project.root / "tiny.npz", x=images)

    project.write("alone/sitecustomize.py", ALONE)

    def repro(fast: str, threads: int) -> list[str]:
        project.params(KEYS.format(fast=fast, threads=threads), *OPTIONS)
        outcome = project.repro("correct_bias", env={"PYTHONPATH": str(project.root / "alone")})
        assert outcome.code == 0, outcome.output
        return outcome.stages

    repro("false", 1)
    accurate = corrections(project)
    # A fifth of the ten samples that `stat_subset_size` leaves.
    assert (accurate["algorithm"], accurate["samples"]) == ("BiasCorrection", 2)
    assert [entry["name"] for entry in accurate["corrected"]] == ["conv0", "conv1", "scores"] and accurate["left"] == []

    # The engine's settings concern it, ...
    assert [stage for stage in repro("false", 2) if stage in COMPUTES] == COMPUTES
    for ours, before in zip(corrections(project)["corrected"], accurate["corrected"], strict=True):
        np.testing.assert_allclose(ours["bias"], before["bias"], atol=1e-5)

    assert repro("true", 2) == ["config", "correct_bias"]
    fast = corrections(project)
    assert fast["algorithm"] == "FastBiasCorrection" and "samples" not in fast
    biases = {entry["name"]: entry["bias"] for entry in accurate["corrected"]}
    assert {entry["name"] for entry in fast["corrected"] + fast["left"]} == set(biases) and fast["corrected"], fast["left"]
    assert all(np.abs(np.subtract(entry["bias"], biases[entry["name"]])).max() > 1e-4 for entry in fast["corrected"]), fast["left"]


def test_layerwise_tuning(tmp_path: Path) -> None:
    """On: tuned values in the model and beside it, the same bytes again; off: as before."""
    project = copy_project(tmp_path / "project")
    ov.save_model(tiny_model(), project.root / "tiny.xml", compress_to_fp16=False)
    images = np.random.default_rng(1).normal(size=(30, 3, 12, 12)).astype(np.float32)
    np.savez(project.root / "tiny.npz", x=images + images.mean(axis=1, keepdims=True))
    folder = project.root / "build/correct_bias"

    def repro(more: str, *arguments: str) -> bytes:
        project.params(KEYS.format(fast="true", threads=1) + f"layerwise_tuning: {{{more}}}\n", *OPTIONS)
        outcome = project.repro(*arguments, "correct_bias")
        assert outcome.code == 0, outcome.output
        return (folder / "model.bin").read_bytes()

    plain = repro("use_layerwise_tuning: false")
    assert "layerwise_tuning" not in corrections(project) and not (folder / "tuned.npz").exists()
    tuned = repro("use_layerwise_tuning: true, positions_per_sample: 20")
    record = corrections(project)["layerwise_tuning"]
    assert (record["samples"], record["passes"]) == (10, 1) and record["tuned"], record
    assert {entry["name"] for entry in record["tuned"] + record["left"]} == {"conv0", "conv1", "scores"}
    assert all(entry["loss_after"] < entry["loss_before"] for entry in record["tuned"])
    values = (folder / "tuned.npz").read_bytes()
    assert tuned != plain
    assert repro("use_layerwise_tuning: true, positions_per_sample: 20", "--force") == tuned
    assert (folder / "tuned.npz").read_bytes() == values
