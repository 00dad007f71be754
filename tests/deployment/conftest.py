"""Fixtures of the tests of deployment."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import built


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a finished build of a made-up model; it is the current folder."""
    monkeypatch.chdir(tmp_path)
    built.write_build(tmp_path, built.config())
    return tmp_path
