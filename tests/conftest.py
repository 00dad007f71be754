"""Fixtures that all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.project import Project, copy_project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """The project's files (what git tracks or would track) in a folder of their own; nothing has run there yet."""
    return copy_project(tmp_path / "project")
