"""Composition: through `dvc repro`, with overrides, options and experiments, and what is wrong with files in one line."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stages.common import artifacts
from stages.common.errors import ConfigError
from stages.configuration.composition import compose
from stages.configuration.overrides import edited
from stages.configuration.schema import Config
from stages.configuration.validation import checked
from tests.configuration.resolving import EXAMPLE, Resolve
from tests.project import Project

# ------------------------------------------------------------------------------------------------ through `dvc repro`

# One case per kind of mistake: keys of params.yaml, group choices, and what the line says: key, value, what is allowed.
MISTAKES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "value that is not a choice": (
        "quantization: {preset: fast}",
        EXAMPLE,
        ("quantization.preset", "'fast'", "performance, mixed, accuracy"),
    ),
    "value out of range": ("evaluate: {confidence: 1.5}", EXAMPLE, ("evaluate.confidence", "1.5", "above 0.0 and below 1.0")),
    "wrong type": ("quantization: {stat_subset_size: many}", EXAMPLE, ("quantization.stat_subset_size", "'many'", "integer")),
    "unknown key": ("quantization: {presett: mixed}", EXAMPLE, ("quantization.presett", "'mixed'", "did you mean 'preset'")),
    "unknown section": ("bias_corection: {enabled: false}", EXAMPLE, ("bias_corection", "did you mean 'bias_correction'")),
    "wrong group option": ("", ("model: ppocrv5",), ("model", "'ppocrv5'", "local, ppocrv4_rec")),
    "unknown group": ("", ("modell: local",), ("'modell'", "did you mean 'model'")),
    "option instead of a section": ("model: local", EXAMPLE, ("model", "'local'", "override /model: local")),
    "mandatory value missing": ("", ("model: local",), ("model.path", "???", "must be given")),
    "model file missing": ("model: {path: net.onnx}", ("model: local", *EXAMPLE[1:]), ("model.path", "'net.onnx'", "existing file")),
    "data file missing": ("data: {calibration: {path: a.npz}}", (EXAMPLE[0], "data: arrays"), ("data.calibration.path", "'a.npz'")),
    "annotation file missing": (
        "data: {calibration: {path: conf, annotations: a.json}}",
        (EXAMPLE[0], "data: coco"),
        ("data.calibration.annotations", "'a.json'", "existing file"),
    ),
    "path and package": ("model: {path: params.yaml}", EXAMPLE, ("model.path", "model.package.requirement", "only one of the two")),
    "neither path nor package": ("model: {path: null}", ("model: local", *EXAMPLE[1:]), ("model.path", "null", "one of the two")),
    "package without sha256": ("model: {sha256: null}", EXAMPLE, ("model.sha256", "null", "64 hexadecimal digits")),
    "one level of two": ("quantization: {weights: {level_low: -127}}", EXAMPLE, ("weights.level_high", "null", "level_low is -127")),
    "quantile without probability": (
        "quantization: {range_estimator: {max: {type: quantile}}}",
        EXAMPLE,
        ("quantization.range_estimator.max.outlier_prob", "null", "above 0.0 and below 0.5"),
    ),
    "more statistics than samples": (
        "quantization: {stat_subset_size: 300}\ndata: {calibration_size: 200}",
        EXAMPLE,
        ("quantization.stat_subset_size", "300", "data.calibration_size, which is 200"),
    ),
    "streams out of order": ("data: {streams: true, shuffle: true}", EXAMPLE, ("data.shuffle", "true", "false with data.streams")),
    "unknown argument of a class": ("data: {calibration: {cuont: 3}}", EXAMPLE, ("data.calibration.cuont", "3", "did you mean 'count'")),
    "required argument missing": (
        "data: {validation: {_target_: stages.runtime.datasets.Arrays}}",
        (EXAMPLE[0], "data: custom"),
        ("data.calibration._target_", "???"),
    ),
    "class that does not exist": (
        "metric: {exact_match: {_target_: stages.runtime.metrics.ExactMatches}}",
        EXAMPLE,
        ("metric.exact_match._target_", "ExactMatches", "did you mean 'ExactMatch'"),
    ),
    "module that does not exist": ("metric: {m: {_target_: nowhere.M}}", EXAMPLE, ("metric.m._target_", "'nowhere.M'", "no module")),
    "scheme that the target lacks": ("quantization: {weights: {bits: 4}}", EXAMPLE, ("quantization.weights", "bits=4", "8-bit symmetric")),
    "an address for no cluster": ("cluster: {address: 'tcp://a:1'}", EXAMPLE, ("cluster.address", "'tcp://a:1'", "'local'")),
    "no address": ("cluster: {kind: dask, address: a}", EXAMPLE, ("cluster.address", "'a'", "tcp://")),
    "MLflow's file store": ("tracking: {tracking_uri: mlruns}", EXAMPLE, ("tracking.tracking_uri", "'mlruns'", "sqlite:///")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_stops_repro_with_one_line(project: Project, mistake: str) -> None:
    keys, choices, words = MISTAKES[mistake]
    project.params(keys, *choices)
    outcome = project.repro()
    assert outcome.code != 0
    assert len(outcome.errors) == 1, outcome.output
    assert outcome.errors[0].startswith("config: error: ")
    assert [word for word in words if word not in outcome.errors[0]] == [], outcome.errors[0]
    assert outcome.stages == ["config"]
    assert "Traceback" not in outcome.output
    # Nothing is left but the lock.
    assert [path.name for path in (project.root / "build").iterdir()] in ([], [".lock"])


def test_corrected_mistake_builds(project: Project) -> None:
    project.params("quantization: {preset: fast}", *EXAMPLE)
    assert project.repro("config").code != 0
    project.params("quantization: {preset: mixed, saturation_fix: no}", *EXAMPLE)
    outcome = project.repro("config")
    assert (outcome.code, outcome.errors) == (0, []), outcome.output
    written = yaml.safe_load((project.root / artifacts.CONFIG).read_text())
    assert written["quantization"]["preset"] == "mixed"
    # An unquoted `no` is false for YAML, but means POT's "no".
    assert written["quantization"]["saturation_fix"] == "no"


def test_same_configuration_gives_same_bytes(project: Project) -> None:
    assert project.repro("config").code == 0
    first = (project.root / artifacts.CONFIG).read_bytes()
    again = project.repro("config")
    assert (again.code, again.stages) == (0, ["config"])
    assert (project.root / artifacts.CONFIG).read_bytes() == first


def test_broken_yaml_in_conf_names_file_and_line(project: Project) -> None:
    project.write("conf/engine/default.yaml", "device: CPU\nthreads: [1\n")
    outcome = project.repro("config")
    assert outcome.code != 0
    assert len(outcome.errors) == 1
    assert "conf/engine/default.yaml, line 3" in outcome.errors[0]


def test_overrides_come_after_params(resolve: Resolve) -> None:
    config = resolve("quantization: {preset: mixed}", overrides=("quantization.preset=accuracy", "metric=reference_error"))
    assert config.quantization.preset == "accuracy"
    assert list(config.metric) == ["reference_error"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("quantization.presett=mixed", ("quantization.presett", "'mixed'", "did you mean 'preset'")),
        ("metric=texts", ("metric", "'texts'", "accuracy, mean_average_precision")),
        ("quantization.preset==", ("quantization.preset==",)),
        ("sede=1", ("sede", "did you mean 'seed'")),
        ("model.inputshape.x=[1]", ("model.inputshape: unknown key", "did you mean 'input_shape'")),
        ("model.path.x=3", ("model.path.x", "model.path is no section")),
        ("data.calibration.cuont=3", ("data.calibration.cuont", "3", "did you mean 'count'")),
        ("data.calibration=[1,2]", ("data.calibration: a list is not allowed; expected a section",)),
        ("quantization.ignored.scope={a: 1}", ("quantization.ignored.scope: a section is not allowed; expected a list",)),
        ("data=[a]", ("data", "'a'", "arrays, coco, custom, image_folder")),
        ("quantization=3", ("must be a string or a list",)),
    ],
)
def test_wrong_override(resolve: Resolve, override: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as error:
        resolve("", overrides=(override,))
    assert "\n" not in str(error.value)
    assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize(
    ("override", "shape"),
    [
        ("model.input_shape={x: [1, 3, 48, 160]}", {"x": [1, 3, 48, 160]}),
        ("model.input_shape.x=[1, 3, 48, 160]", {"x": [1, 3, 48, 160]}),
        ("model.input_shape.y=[2]", {"x": [1, 3, 48, 320], "y": [2]}),
        ("++model.input_shape.y=[2]", {"x": [1, 3, 48, 320], "y": [2]}),
    ],
)
def test_keys_that_are_the_users_own_need_no_mark(resolve: Resolve, override: str, shape: dict[str, list[int]]) -> None:
    assert resolve("", overrides=(override,)).model.input_shape == shape
    written = yaml.safe_load(edited(Path("params.yaml").read_text(), [override]).text)["model"]["input_shape"]
    assert {**shape, **written} == shape


LIST = "expected keys and their values, as in `quantization: {preset: mixed}`"
FILES: dict[bytes, str] = {
    b"- a\n": f"params.yaml: a list is not allowed; {LIST}",
    b"hello\n": f"params.yaml: 'hello' is not allowed; {LIST}",
    b"seed: 1\nmodel: {name: \xfc}\n": "params.yaml, line 2: byte 0xfc is not UTF-8; expected a text file in UTF-8",
    b"seed: 1\nmodel: {name: a\0b}\n": "params.yaml, line 2: not valid YAML: the character '\\x00' is not allowed",
    b'model: {name: "a\\0b"}\n': "model.name: 'a\\x00b' is not allowed; expected text without the character NUL",
    b"seed: 1\nmodel:\n\tpath: a\n": "params.yaml, line 3: not valid YAML: found character '\\t' that cannot start any token",
    b"seed: 1\nseed: 2\n": "params.yaml, line 2: not valid YAML: found duplicate key seed",
    b"defaults: 3\n": "defaults: 3 is not allowed; expected a list such as [override /model: local, _self_]",
    b"model: [1]\n": "model: [1] is not allowed; expected a section",
    b"tune: {metrics: {name: a}}\n": "tune.metrics: {'name': 'a'} is not allowed; expected a list",
    b"metric: {a: [1]}\n": "metric.a: [1] is not allowed; expected a section",
    b"quantization: {ignored: {scope: {a: 1}}}\n": "quantization.ignored.scope: {'a': 1} is not allowed; expected a list",
}


@pytest.mark.parametrize("content", FILES)
def test_what_is_wrong_with_params_in_one_line(resolve: Resolve, content: bytes) -> None:
    resolve()
    chosen = b"defaults: [override /model: ppocrv4_rec, override /data: text_lines, override /metric: text, _self_]\n"
    Path("params.yaml").write_bytes(chosen + content if content.startswith((b"model: {name", b"metric")) else content)
    with pytest.raises(ConfigError) as error:
        checked(compose())
    assert str(error.value) == FILES[content]


def test_a_package_needs_no_path(resolve: Resolve) -> None:
    package = "{requirement: nets==1.0, member: net.onnx}"
    config = resolve(f"model: {{package: {package}, sha256: {'a' * 64}}}", "model: local", *EXAMPLE[1:])
    assert (config.model.path, config.model.package.member) == (None, "net.onnx")


def test_pipes_are_no_files(resolve: Resolve) -> None:
    resolve()
    os.mkfifo("pipe")
    with pytest.raises(ConfigError, match=r"model\.path: 'pipe' is not allowed; expected an existing file; paths start at"):
        resolve("model: {path: pipe}", "model: local", *EXAMPLE[1:])
    with pytest.raises(ConfigError, match=r"data\.calibration\.path: 'pipe' is not allowed; expected an existing file or folder; paths"):
        resolve("data: {calibration: {path: pipe}}", EXAMPLE[0], "data: arrays", EXAMPLE[2])


def test_files_that_an_experiments_copy_lacks(project: Project, tmp_path: Path) -> None:
    """DVC runs `dvc exp run --temp` in a copy of what git has, and names the project in DVC_ROOT."""
    project.params("model: {path: models/net.xml}", "model: local", *EXAMPLE[1:])
    copy = project.copy(tmp_path / "copy")
    project.write("models/net.xml", "")
    of_copy = " that git or DVC tracks: the project has it, and this temporary copy of DVC's does not"
    for folder, name, more in ((project, "models/no.xml", "; paths start"), (copy, "models/net.xml", of_copy)):
        folder.params(f"model: {{path: {name}}}", "model: local", *EXAMPLE[1:])
        outcome = folder.run(sys.executable, "-m", "stages.config", env={"DVC_ROOT": str(project.root)})
        assert f"is not allowed; expected an existing file{more}" in outcome.output
        assert outcome.output.count("\n") == 1
    assert "`dvc add models/net.xml`, or `dvc exp run --copy-paths models/net.xml`" in outcome.output


def test_every_option_of_every_group_is_valid(resolve: Resolve, project: Project) -> None:
    # What a user has to give, per option.
    for file in ("data/images/cat/1.png", "data/text_direction/0/1.png", "data/pages/1.png", "data/topics.npz", "models/topics.xml"):
        project.write(file, "")
    project.write("data/pages/annotations.json", "{}")
    given = {
        "model: local": "model: {path: params.yaml}",
        "data: arrays": "data: {calibration: {path: params.yaml}}",
        "data: image_folder": "data: {calibration: {path: data/images}, validation: {path: data/images}}",
        "data: coco": "data: {calibration: {path: data/pages, annotations: data/pages/annotations.json}}",
        "data: image_masks": "data: {calibration: {path: data/images, masks: data/images}}",
        "data: custom": "data: {calibration: {_target_: stages.runtime.datasets.TextLines, count: 3}}",
        "tracking: server": "tracking: {tracking_uri: 'http://localhost:5000'}",
    }
    groups = {path.parent.name for path in (project.root / "conf").glob("*/*.yaml")}
    assert groups == {
        *("model", "data", "metric", "engine", "target_device", "quantization"),
        *("bias_correction", "layerwise_tuning", "evaluate", "accuracy_aware", "tune", "cluster", "tracking", "package", "check", "sweep"),
        "experiment",
    }
    for path in sorted((project.root / "conf").glob("*/*.yaml")):
        choice = f"{path.parent.name}: {path.stem}"
        chosen = (yaml.safe_load(path.read_text()) or {}).get("defaults", []) if path.parent.name == "experiment" else []
        set_by_it = [path.parent.name, *(key.removeprefix("override /") for entry in chosen for key in entry)]
        others = [other for other in EXAMPLE if other.split(":")[0] not in set_by_it]
        resolve(given.get(choice, ""), *others, choice)


def test_an_experiment_is_not_half_hidden(resolve: Resolve, project: Project) -> None:
    project.write(
        "conf/experiment/mine.yaml", "# @package _global_\ndefaults: [override /metric: accuracy]\nquantization: {preset: mixed}\n"
    )
    with pytest.raises(
        ConfigError, match=r"^defaults: 'override /metric: text' in params.yaml hides what the experiment 'mine' chooses, 'accuracy'"
    ):
        resolve("", *EXAMPLE, "experiment: mine")
    with pytest.raises(ConfigError, match="hides what the experiment 'mine' chooses"):
        resolve("", *EXAMPLE, overrides=("experiment=mine",))
    config = resolve("", *EXAMPLE[:2], "experiment: mine")
    assert (list(config.metric), config.quantization.preset) == (["accuracy"], "mixed")
    # What is asked for on the command line is no accident.
    assert list(resolve("", *EXAMPLE, overrides=("experiment=mine", "metric=top_k")).metric) == ["top_1", "top_5"]


def test_defaults_in_conf_are_those_of_the_schema(resolve: Resolve) -> None:
    """conf/ shows defaults beside their explanation, the schema decides them: they must agree."""
    composed = resolve()
    for section in ("engine", "quantization", "bias_correction", "accuracy_aware", "tune", "tracking", "package", "check", "sweep"):
        assert getattr(composed, section) == getattr(Config(), section), section
    assert dataclasses.replace(composed.evaluate, primary_metric=None) == Config().evaluate
    data = yaml.safe_load(Path("conf/data/arrays.yaml").read_text())
    shared = {"validation", "calibration_size", "validation_size", "shuffle", "allow_overlap", "streams"}
    assert {key: data[key] for key in shared} == {key: dataclasses.asdict(Config())["data"][key] for key in shared}


def test_configuration_is_checked_before_anything_heavy_is_imported(project: Project) -> None:
    heavy = ("numpy", "openvino", "mlflow", "matplotlib", "PIL")
    code = f"import sys; from stages import config, stage; config.main(); print([name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=project.root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
