"""Where a result comes from: which files differ from the commit in what counts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from stages.report.provenance import WITH_TIMES, commit
from tests.project import ROOT


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in a folder of a repository, with a dvc.lock as DVC writes it."""
    project = tmp_path / "folder"
    project.mkdir()
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    lock = {
        name: {
            "cmd": stage["cmd"],
            "deps": [{"path": path, "md5": f"1{path}"} for path in stage.get("deps", [])],
            "params": {"build/config.json": {"seed": 0}},
            "outs": [
                {"path": path if isinstance(path, str) else next(iter(path)), "md5": "1"}
                for path in [*stage.get("outs", []), *stage.get("metrics", [])]
            ],
        }
        for name, stage in stages.items()
    }
    (project / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": lock}))
    (project / "params.yaml").write_text("seed: 0\n")
    for command in ("init -q", "add .", "-c user.name=a -c user.email=b commit -qm c"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    monkeypatch.chdir(project)
    return project


def changed(project: Path, *paths: str) -> tuple[str, ...]:
    """What `commit` names after the hashes of `paths` have changed."""
    content = yaml.safe_load((project / "dvc.lock").read_text())
    entries = [entry for stage in content["stages"].values() for entry in (*stage.get("deps", []), *stage["outs"])]
    for path in paths:
        found = [entry for entry in entries if entry["path"] == path]
        assert found, path
        for entry in found:
            entry["md5"] = "2"
    (project / "dvc.lock").write_text(yaml.safe_dump(content))
    state = commit()
    assert state is not None
    return state.changed


def test_other_times_are_no_difference(repository: Path) -> None:
    assert changed(repository) == ()
    times = ("build/records/evaluate.json", "build/records/config.json", "build/evaluate", "build/accuracy_aware", "build/tune")
    assert all(path.startswith(WITH_TIMES) for path in times)
    assert changed(repository, *times) == ()
    (repository / "params.yaml").write_text("seed: 1\n")
    assert changed(repository) == ("folder/params.yaml",)


@pytest.mark.parametrize("path", ["build/reports/metrics.json", "build/quantize", "build/correct_bias", "stages/runtime"])
def test_another_result_is_a_difference(repository: Path, path: str) -> None:
    assert changed(repository, path) == ("folder/dvc.lock",)


def test_other_parameters_are_a_difference(repository: Path) -> None:
    text = (repository / "dvc.lock").read_text()
    (repository / "dvc.lock").write_text(text.replace("seed: 0", "seed: 1", 1))
    assert changed(repository) == ("folder/dvc.lock",)
