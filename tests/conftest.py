"""Fixtures that all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.project import Outcome, Project, copy_project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """The project's files (what git tracks or would track) in a folder of their own; nothing has run there yet."""
    return copy_project(tmp_path / "project")


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Outcome]:
    """A sweep of three presets, one of which does not exist."""
    from tests.sweeping import sweep, sweep_project

    project = sweep_project(tmp_path_factory.mktemp("swept"))
    return project, sweep(project, "quantization.preset=performance,fast,mixed")
