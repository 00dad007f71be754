"""Whether build/ is what params.yaml says is noticed before anything is shipped or checked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from stages.common import artifacts
from stages.common.errors import ConfigError, UserError
from stages.deployment.freshness import CHAIN, first_difference, fresh_config
from tests.project import ROOT, Project

PARAMS = "model: {name: net, path: net.onnx}\ndata: {calibration: {path: samples.npz}}\n"
CHOICES = ("model: local", "data: arrays", "metric: accuracy", "tracking: disabled")


@pytest.fixture
def built_project(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with the configuration and the chain of hashes of a build; it is the current folder."""
    from stages import config

    monkeypatch.chdir(project.root)
    project.write("net.onnx", "a model")
    np.savez(project.root / "samples.npz", x=np.zeros((4, 2), np.float32), y=np.zeros(4, np.int64))
    project.params(PARAMS, *CHOICES)
    config.main()
    for stage, before in zip(CHAIN, ("", *CHAIN[:-1]), strict=True):
        folder = artifacts.folder(stage)
        artifacts.write_text(folder / "result", stage)
        if before:
            artifacts.write_inputs(folder, before)
    return project


def test_what_was_built_is_fresh(built_project: Project) -> None:
    assert fresh_config().model.name == "net"


def test_what_changes_no_result_may_have_changed(built_project: Project) -> None:
    keys = "package: {license: MIT}\ncheck: {maximal_drop: 0.02}\ntracking: {experiment: other}\ncluster: {workers: 2}\n"
    built_project.params(PARAMS + keys, *CHOICES)
    config = fresh_config()
    assert (config.package.license, config.check.maximal_drop) == ("MIT", 0.02)  # as they are now


def test_nothing_is_built(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root)
    with pytest.raises(UserError, match=r"^build/config.json is missing; run `dvc repro`$"):
        fresh_config()


def test_params_have_changed(built_project: Project) -> None:
    built_project.params(PARAMS + "quantization: {preset: mixed}\n", *CHOICES)
    expected = "build/ is stale: quantization.preset is 'mixed' in params.yaml, and 'performance' in build/config.json; run `dvc repro`"
    with pytest.raises(UserError) as error:
        fresh_config()
    assert str(error.value) == expected


def test_params_are_wrong(built_project: Project) -> None:
    built_project.params(PARAMS + "quantization: {preset: mxied}\n", *CHOICES)
    with pytest.raises(ConfigError, match=r"^quantization.preset: 'mxied'"):
        fresh_config()


@pytest.mark.parametrize("file", ["net.onnx", "samples.npz"])
def test_a_users_file_has_changed(built_project: Project, file: str) -> None:
    (built_project.root / file).write_bytes(b"other")
    with pytest.raises(UserError, match=rf"^build/ is stale: {file} has changed; run `dvc repro`$"):
        fresh_config()


def test_the_configuration_alone_was_written_again(built_project: Project) -> None:
    """By `python -m stages.config`, after an edit of params.yaml: what DVC knows of the stages is older."""
    recorded = {"quantization": json.loads(artifacts.CONFIG.read_text())["quantization"]}
    stages = {"quantize": {"cmd": "python -m stages.quantize", "params": {"build/config.json": recorded}}}
    built_project.write("dvc.lock", yaml.safe_dump({"schema": "2.0", "stages": stages}))
    fresh_config()
    built_project.params(PARAMS + "quantization: {preset: mixed}\n", *CHOICES)
    from stages import config

    config.main()
    with pytest.raises(UserError, match=r"^build/ is stale: the stage quantize ran with another quantization than params.yaml has now;"):
        fresh_config()


@pytest.mark.parametrize("stage", CHAIN[:-1])
def test_a_stage_was_built_again_alone(built_project: Project, stage: str) -> None:
    artifacts.write_text(artifacts.folder(stage) / "result", "another")
    after = CHAIN[CHAIN.index(stage) + 1]
    with pytest.raises(UserError, match=rf"^build/ is stale: {stage} has been built again after {after}; run `dvc repro`$"):
        fresh_config()


def test_the_first_difference() -> None:
    assert first_difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == ("a.c", 2, 3)
    assert first_difference({"a": 1}, {"a": 1, "b": None}) is None  # a key of a later version, at its default of nothing
    assert first_difference({"a": [1]}, {"a": [1, 2]}) == ("a", [1], [1, 2])
    assert first_difference({"check": 1, "a": {"check": 1}}, {"check": 2, "a": {"check": 2}}) == ("a.check", 1, 2)


def test_looking_imports_nothing_heavy(built_project: Project) -> None:
    heavy = ("numpy", "openvino", "mlflow", "matplotlib", "PIL", "dvc")
    code = f"import sys, stages.check as check; check.fresh_config(); print([name for name in {heavy} if name in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=built_project.root, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert Path("build/config.json").is_file()
