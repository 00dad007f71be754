"""Fixtures of the report's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import built


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a finished build, outside any git repository; it is the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    built.write_build(tmp_path, built.config())
    return tmp_path
