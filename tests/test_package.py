"""From a build to a package that runs where nothing but OpenVINO and NumPy is, and to a check of it.

The model has two inputs, one of them of integers, dynamic sizes, and a data set class of its own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as operations

from tests.project import Project, copy_project
from tests.runtime.models import named

CLASS = """\
import numpy as np

class Pairs:
    def __init__(self, count, seed):
        self.count, self.seed = count, seed

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        random = np.random.default_rng([self.seed, index])
        label = int(random.integers(4))
        image = random.normal(size=(1, 4, 10 + index % 3, 9)).astype(np.float32)
        image[:, label] += 0.5
        return {"image": image, "channels": np.ones((1, 4), np.int64)}, label
"""
PARAMS = """\
model: {name: "two inputs", path: net.xml}
data:
  calibration: {_target_: conf.pairs.Pairs, count: 40, seed: 1}
  validation: {_target_: conf.pairs.Pairs, count: 120, seed: 2}
evaluate: {benchmark: {seconds: 0.5}}
quantization: {saturation_fix: all}  # whatever the CPU
"""
CHOICES = ("model: local", "data: custom", "metric: accuracy", "tracking: disabled")


def network() -> ov.Model:
    """A convolution, the mean over positions of the channels that the second input lets through, four classes."""
    random = np.random.default_rng(0)
    image = operations.parameter(ov.PartialShape([-1, 4, -1, -1]), np.float32, name="image")
    channels = operations.parameter(ov.PartialShape([-1, 4]), np.int64, name="channels")
    weights = np.zeros((16, 4, 1, 1), np.float32)
    weights[:, :, 0, 0] = np.eye(4).repeat(4, axis=0) + 0.05 * random.normal(size=(16, 4))
    node = operations.relu(operations.convolution(image, operations.constant(weights), [1, 1], [0, 0], [0, 0], [1, 1]))
    mean = operations.reduce_mean(node, operations.constant([2, 3]), False)
    scores = operations.matmul(mean, operations.constant(np.eye(4).repeat(4, axis=0).astype(np.float32) / 4), False, False)
    chosen = operations.multiply(scores, operations.convert(channels, "f32"))
    chosen.set_friendly_name("scores")
    return named(ov.Model([chosen], [image, channels]))


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that was built."""
    project = copy_project(tmp_path_factory.mktemp("shipped") / "project")
    ov.save_model(network(), project.root / "net.xml", compress_to_fp16=False)
    project.write("conf/pairs.py", CLASS)
    project.params(PARAMS, *CHOICES)
    outcome = project.repro("tune")
    assert outcome.code == 0, outcome.output
    return project


@pytest.fixture(scope="module")
def packaged(shipped: Project) -> tuple[Path, list[str]]:
    """Its package."""
    return package(shipped)


def package(project: Project, *arguments: str) -> tuple[Path, list[str]]:
    """The archive, and what was printed."""
    outcome = project.run(sys.executable, "-m", "stages.package", *arguments)
    assert outcome.code == 0, outcome.output
    (archive,) = (project.root / "build/package").glob("*.tar.gz")
    return archive, outcome.output.splitlines()


def test_a_package_reproduces_the_numbers_elsewhere(shipped: Project, packaged: tuple[Path, list[str]], tmp_path: Path) -> None:
    archive, said = packaged
    first = archive.read_bytes()
    assert archive.name == "two-inputs-int8.tar.gz"
    assert package(shipped)[0].read_bytes() == first  # the same to the byte
    with tarfile.open(archive) as content:
        content.extractall(tmp_path, filter="data")
    folder = tmp_path / "two-inputs-int8"
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        "README.md",
        "SHA256SUMS",
        "config.json",
        "inference.json",
        "predict.py",
        "quantizers.json",
        "samples.npz",
        "score.py",
        "two-inputs-int8/1/model.bin",
        "two-inputs-int8/1/model.xml",
    ]
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    done = subprocess.run([sys.executable, "-E", "predict.py"], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0].startswith("8 samples: outputs differ by 0 from those measured")
    value = json.loads((folder / "inference.json").read_text())["samples"]["metrics"][0]["value"]
    assert done.stdout.splitlines()[1] == f"accuracy of them: {value:.4f}, measured {value:.4f}"
    assert 0.5 < value <= 1.0
    assert f"predict.py: {'; '.join(done.stdout.splitlines())}" in said
    assert (folder / "two-inputs-int8/1/model.bin").read_bytes() == (shipped.root / "build/correct_bias/model.bin").read_bytes()


def test_what_is_wrong_with_a_model_is_noticed_where_it_runs(packaged: tuple[Path, list[str]], tmp_path: Path) -> None:
    """Another model in the package, as after a copy that went wrong."""
    archive, _ = packaged
    with tarfile.open(archive) as content:
        content.extractall(tmp_path, filter="data")
    folder = tmp_path / "two-inputs-int8"
    weights = (folder / "two-inputs-int8/1/model.bin").read_bytes()
    (folder / "two-inputs-int8/1/model.bin").write_bytes(weights[::-1])
    done = subprocess.run([sys.executable, "-E", "predict.py"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1
    assert subprocess.run(["sha256sum", "--check", "--status", "SHA256SUMS"], cwd=folder).returncode == 1


def test_a_server_finds_the_model_and_its_settings(shipped: Project, packaged: tuple[Path, list[str]]) -> None:
    archive, _ = packaged
    folder = archive.with_name("two-inputs-int8")
    (entry,) = json.loads((folder / "config.json").read_text())["model_config_list"]
    server = entry["config"]
    # What OpenVINO Model Server's schema of its configuration allows; it refuses anything else.
    assert set(server) <= {"name", "base_path", "target_device", "plugin_config", "stateful", "nireq", "shape", "batch_size"}
    assert all(isinstance(value, str) for value in server["plugin_config"].values())
    (version,) = (folder / server["base_path"]).iterdir()
    assert version.name == "1"
    model = ov.Core().compile_model(version / "model.xml", server["target_device"], server["plugin_config"])
    evaluation = json.loads((shipped.root / "build/evaluate/evaluation.json").read_text())
    assert model.get_property("INFERENCE_PRECISION_HINT").to_string() == evaluation["precisions"]["int8"]
    assert model.get_property("NUM_STREAMS") == evaluation["streams"]


def test_settings_of_the_package(shipped: Project, tmp_path: Path) -> None:
    project = shipped.copy(tmp_path / "project")
    project.params(PARAMS + "package: {name: reader, version: 3, samples: 0, license: MIT, model: fp32}\nengine: {}\n", *CHOICES)
    archive, said = package(project)
    folder = archive.with_name("reader")
    assert archive.name == "reader.tar.gz" and (folder / "reader/3/model.xml").is_file()
    assert {path.name for path in folder.iterdir()} == {"README.md", "SHA256SUMS", "config.json", "inference.json", "reader"}
    assert "license: MIT" in (folder / "README.md").read_text()
    assert not [line for line in said if line.startswith(("predict.py", "licence"))]
    archive, _ = package(project, "--model", "int8")  # replaces the one before it
    assert (folder / "quantizers.json").is_file()


def test_nothing_is_written_where_it_cannot_be_whole(shipped: Project, tmp_path: Path) -> None:
    project = shipped.copy(tmp_path / "project")
    shutil.rmtree(project.root / "build/package", ignore_errors=True)
    for arguments, message in (
        (["--model", "tune"], "package: error: there is no model of tune: tune.enabled is false"),
        ([], "package: error: build/ is stale: conf/pairs.py has changed; run `dvc repro`"),
    ):
        if not arguments:
            project.write("conf/pairs.py", CLASS.replace("+= 0.5", "+= 0.6"))
        outcome = project.run(sys.executable, "-m", "stages.package", *arguments)
        assert (outcome.code, outcome.output.splitlines()) == (1, [message])
        assert not list(project.root.glob("build/*package*"))


def test_predict_that_does_not_reproduce_is_no_package(shipped: Project, tmp_path: Path) -> None:
    project = shipped.copy(tmp_path / "project")
    shutil.rmtree(project.root / "build/package", ignore_errors=True)
    score = project.root / "stages/deployment/predict.py"
    score.write_text(score.read_text().replace("request.reset_state()", "raise SystemExit('no state')"))
    outcome = project.run(sys.executable, "-m", "stages.package")
    assert outcome.code == 1
    assert outcome.errors == ["package: error: package: predict.py does not reproduce what was measured: no state"]
    assert not list(project.root.glob("build/*package*"))


def test_a_check_of_it(shipped: Project, tmp_path: Path) -> None:
    project = shipped.copy(tmp_path / "project")

    def check(*arguments: str) -> tuple[int, list[str]]:
        outcome = project.run(sys.executable, "-m", "stages.check", *arguments)
        return outcome.code, outcome.output.splitlines()

    assert check("--write-baseline", "reports/baseline.json")[0] == 0
    project.params(PARAMS + "check: {maximal_drop: 0.5, baseline: reports/baseline.json}\n", *CHOICES)
    code, lines = check()
    assert code == 0 and len(lines) == 5 and all(line.startswith("check: ok: ") for line in lines)
    project.params(PARAMS + "check: {maximal_size_mb: 0.001}\n", *CHOICES)
    code, lines = check()
    assert code == 1 and len(lines) == 1 and lines[0].startswith("check: FAILED: size: ")
    project.params(PARAMS.replace("saturation_fix", "preset: mixed, saturation_fix"), *CHOICES)
    code, lines = check()
    assert code == 2 and lines[0].startswith("check: error: build/ is stale: quantization.preset is 'mixed' in params.yaml")
    shutil.rmtree(project.root / "build")
    assert check() == (2, ["check: error: build/config.json is missing; run `dvc repro`"])
    assert not (project.root / "build").exists()
