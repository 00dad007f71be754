"""A git repository with the project, a small network and samples: for what DVC and git do together."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from tests.project import Outcome, Project
from tests.sweeping import sweep_project

PARAMS = """\
model: {name: net, path: data/net.xml}
data: {name: own, calibration: {path: data/samples.npz}, calibration_size: 24}
evaluate: {noise_samples: 2, benchmark: {enabled: false}}
"""


def repository(folder: Path, keys: str = "") -> Project:
    """The repository in `folder/project`, nothing built; `keys` are further YAML of its params.yaml."""
    project = sweep_project(folder, PARAMS + keys)
    (project.root / ".dvc/config.local").unlink()  # a repository, not a copy without git
    for file in (folder / "files").iterdir():
        file.rename(project.root / "data" / file.name)
    git(project, "init", "--quiet")
    commit(project)
    return project


def commit(project: Project) -> None:
    """Commit everything that is not ignored."""
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message=all")


def git(project: Project, *arguments: str) -> str:
    """What git prints; it must succeed."""
    return _succeeding(project.run("git", "-c", "user.name=me", "-c", "user.email=me@example", *arguments)).output


def dvc(project: Project, *arguments: str, env: Mapping[str, str] | None = None) -> Outcome:
    """`dvc`, which must succeed."""
    author = {"GIT_AUTHOR_NAME": "me", "GIT_AUTHOR_EMAIL": "me@example", "GIT_COMMITTER_NAME": "me", "GIT_COMMITTER_EMAIL": "me@example"}
    return _succeeding(project.run(sys.executable, "-m", "dvc", *arguments, env=author | dict(env or {}), timeout=600))


def _succeeding(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.output
    return outcome
