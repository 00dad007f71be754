"""Hydra's habits: the composed configuration, how it came about, and TAB."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.common.errors import ConfigError
from stages.configuration.composition import compose
from stages.configuration.display import completion, completions, composed, composition_info
from stages.configuration.overrides import combinations
from tests.project import Project

OPTIONS = ("model: local", "data: arrays", "metric: accuracy")
PARAMS = "model: {path: net.xml}\nquantization: {stat_subset_size: 7}\ntarget_device: {name: mine}\n"


@pytest.fixture
def folder(project: Project, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project with params.yaml of its own, as the current folder."""
    project.params(PARAMS, *OPTIONS)
    monkeypatch.chdir(project.root)
    return project.root


def shown(own: Sequence[str], kind: str = "job", package: str | None = None) -> list[Any]:
    return [yaml.safe_load(text) for text in composed(own, [], combinations(own), kind, package)]


def test_the_configuration_of_a_job_is_what_it_would_build(folder: Path) -> None:
    (values,) = shown(["quantization.preset=mixed"])
    assert values == compose(["quantization.preset=mixed"])
    assert (values["quantization"]["preset"], values["quantization"]["stat_subset_size"]) == ("mixed", 7)
    (device,) = shown(["target_device=npu"], package="target_device.name")
    assert device == "NPU"  # an option that is chosen wins over params.yaml, as in a sweep


def test_each_job_of_a_sweep_is_shown(folder: Path) -> None:
    texts = list(composed(own := ["quantization.preset=mixed,accuracy"], [], combinations(own), "job", "quantization.preset"))
    assert texts == [
        "# job 0: preset=mixed\n# @package quantization.preset\nmixed\n",
        "# job 1: preset=accuracy\n# @package quantization.preset\naccuracy\n",
    ]


def test_secrets_of_the_environment_stay_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_KEY", "hunter2")
    (folder / "params.yaml").write_text((folder / "params.yaml").read_text() + "data: {calibration: {api_key: '${oc.env:STORE_KEY}'}}\n")
    for kind in ("job", "all"):
        assert "hunter2" not in "".join(composed([], [], combinations([]), kind, None))


def test_hydras_own(folder: Path) -> None:
    (values,) = shown([], "hydra")
    assert list(values) == ["hydra"] and "launcher" in values["hydra"]
    (everything,) = shown(["seed=3"], "all")
    assert everything["seed"] == 3 and "hydra" in everything
    text = "".join(composed([], ["hydra/launcher=basic"], combinations([]), "hydra", "hydra.launcher"))
    assert "BasicLauncher" in text


@pytest.mark.parametrize(
    ("own", "package", "message"),
    [
        (["quantization.presett=mixed"], None, "quantization.presett"),
        ([], "quantizatio", "--package: there is no section 'quantizatio'; did you mean 'quantization'?"),
        ([], "quantization.preset.x", "--package: there is no section 'quantization.preset.x'"),
    ],
)
def test_mistakes(folder: Path, own: list[str], package: str | None, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        shown(own, package=package)
    assert str(error.value).startswith(message)


def test_how_it_is_composed(folder: Path) -> None:
    text = composition_info("defaults", ["quantization.preset=mixed"], [])
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if line.startswith("|")]
    paths = [row[0] for row in rows]
    assert paths[-1] == "params" and paths.index("config") < paths.index("quantization/default") < paths.index("params")
    assert composition_info("defaults", [], []) == text  # not every line once more
    assert "data: arrays" in composition_info("defaults-tree", ["data=arrays"], [])


# ------------------------------------------------------------------------------------------------ completion


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("quant", ["quantization.", "quantization="]),
        ("-m quantization.preset=", ["performance", "mixed", "accuracy"]),
        ("quantization.preset=mixed,a", ["mixed,accuracy"]),
        ("tune.enabled=", ["true", "false"]),
        ("data=arrays,c", ["arrays,coco", "arrays,custom"]),
        ("target_device=npu data.calibration_s", ["data.calibration_size="]),
        ("hydra/launcher=ba", ["basic"]),
        ("nothing.like.it=", []),
    ],
)
def test_a_word_is_completed(folder: Path, line: str, expected: list[str]) -> None:
    key, separator, _ = line.split(" ")[-1].partition("=")
    found = completions(line)
    assert ([name.removeprefix(f"{key}=") for name in found] if separator else found)[: len(expected) or 1] == expected


def test_a_shell_completes(folder: Path) -> None:
    """The function that bash gets, called as bash calls it."""
    script = completion("install=bash", "", "stages.sweep")
    line = f"{sys.executable} -m stages.sweep -m quantization.preset=m"
    call = f"{script}\nCOMP_LINE={line!r} COMP_POINT={len(line)} COMP_WORDS=({line}); _stages_sweep; echo ${{COMPREPLY[@]}}"
    environment = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    done = subprocess.run(["bash", "-c", call], cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["quantization.preset=mixed"], done.stderr
    other = call.replace(f"COMP_LINE={line!r}", f"COMP_LINE={line.replace('sweep', 'track')!r}")  # nothing of ours
    done = subprocess.run(["bash", "-c", other], cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
    assert "complete -r" in completion("uninstall=bash", "", "stages.sweep")


def test_another_shell_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--shell-completion: 'install=fish' is not allowed; expected install=bash or uninstall=bash"):
        completion("install=fish", "", "stages.sweep")
