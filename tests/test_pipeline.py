"""The bundled example through `dvc repro`, small: what re-runs, what comes back, what survives being killed."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.common.artifacts import file_sha256
from tests.project import Project, copy_project

pytestmark = pytest.mark.slow

EXAMPLE = ("model: ppocrv4_rec", "data: text_lines", "metric: text")
SMALL = """\
data: {calibration: {count: 8}, validation: {count: 8}}
evaluate: {noise_samples: 2, benchmark: {enabled: false}}
"""
WORK = ["prepare", "collect_statistics", "quantize", "correct_bias", "evaluate", "accuracy_aware", "tune"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The example, built once."""
    project = copy_project(tmp_path_factory.mktemp("built") / "project")
    project.params(SMALL, *EXAMPLE)
    outcome = project.repro()
    assert (outcome.code, outcome.stages) == (0, ["config", *WORK, "track"]), outcome.output
    return project


@pytest.fixture
def project(built: Project, tmp_path: Path) -> Project:
    """A copy of the built example with all that DVC knows of it."""
    copy = built.copy(tmp_path / "project")
    # The copy's files are new to DVC: let it look at them once.
    assert copy.repro().stages == ["config", "track"]
    return copy


def results(project: Project) -> dict[str, str]:
    """SHA-256 of every result that must not depend on when and where it was computed."""
    build = project.root / "build"
    folders = ["prepare", "collect_statistics", "quantize", "correct_bias", "reports"]
    files = [path for folder in folders for path in (build / folder).rglob("*") if path.is_file()]
    return {path.relative_to(build).as_posix(): file_sha256(path) for path in [*files, build / "config.json"]}


def edit(project: Project, path: str) -> None:
    """Change a source file without changing what it does."""
    file = project.root / path
    file.write_text(file.read_text() + "\n# edited\n")


def test_same_bytes_in_another_folder(built: Project, tmp_path: Path) -> None:
    other = copy_project(tmp_path / "elsewhere" / "project")
    other.params(SMALL, *EXAMPLE)
    assert other.repro().code == 0
    assert results(other) == results(built)


def test_only_what_a_change_concerns_runs_again(project: Project) -> None:
    project.params(SMALL + "quantization: {preset: mixed}", *EXAMPLE)
    assert project.repro().stages == ["config", "quantize", "correct_bias", "evaluate", "accuracy_aware", "tune", "track"]
    project.params(SMALL + "quantization: {preset: mixed}\ntracking: {experiment: other}", *EXAMPLE)
    assert project.repro().stages == ["config", "track"]
    edit(project, "stages/track.py")
    assert project.repro().stages == ["config", "track"]
    edit(project, "stages/correct_bias.py")
    # The same bytes come out, so nothing follows.
    assert project.repro().stages == ["config", "correct_bias", "track"]


def test_what_was_built_before_comes_back_from_the_cache(project: Project, built: Project) -> None:
    project.params(SMALL + "quantization: {preset: mixed}", *EXAMPLE)
    assert project.repro().code == 0
    assert results(project) != results(built)
    project.params(SMALL, *EXAMPLE)
    assert project.repro().stages == ["config", "track"]
    assert results(project) == results(built)


def test_mistake_after_a_success_loses_nothing(project: Project, built: Project) -> None:
    project.params(SMALL + "quantization: {preset: fast}", *EXAMPLE)
    assert project.repro().stages == ["config"]
    assert project.run(sys.executable, "-m", "dvc", "checkout").code == 0
    assert results(project) == results(built)


def processes(project: Project, stage: str) -> Iterator[int]:
    """The processes that run a stage of this very project."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, place = (folder / "cmdline").read_bytes().split(b"\0"), (folder / "cwd").readlink()
        except OSError:
            continue
        if f"stages.{stage}".encode() in command and b"-m" in command and place == project.root:
            yield int(folder.name)


# Searches are off here: test_accuracy_aware and test_tune kill them while they search.
@pytest.mark.parametrize("stage", [stage for stage in WORK if stage not in ("accuracy_aware", "tune")])
def test_killed_at_any_moment_and_completed(project: Project, built: Project, stage: str) -> None:
    killed = 0
    for longest in (0.2, 0.8, 1.6, 2.4):
        running = project.start("repro", "--force", "--single-item", stage)
        while running.poll() is None and not list(processes(project, stage)):
            time.sleep(0.01)
        time.sleep(random.Random(stage).uniform(longest / 2, longest))
        for process in processes(project, stage):
            os.kill(process, signal.SIGKILL)
        killed += running.wait() != 0
    assert killed
    outcome = project.repro("--no-run-cache")
    assert outcome.code == 0, outcome.output
    assert results(project) == results(built)
    assert list((project.root / "build").rglob(".*.tmp")) == []
