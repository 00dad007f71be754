"""Fixtures of the configuration's tests."""

from __future__ import annotations

import pytest

from stages.configuration.completion import completed
from stages.configuration.composition import compose
from stages.configuration.schema import Config
from stages.configuration.validation import checked
from tests.configuration.resolving import EXAMPLE, Resolve
from tests.project import Project


@pytest.fixture
def resolve(project: Project, monkeypatch: pytest.MonkeyPatch) -> Resolve:
    """Write params.yaml from keys and group choices, and return what the `config` stage would make of it."""
    monkeypatch.chdir(project.root)

    def resolved(keys: str = "", *choices: str, overrides: tuple[str, ...] = ()) -> Config:
        project.params(keys, *(choices or EXAMPLE))
        return completed(checked(compose(overrides)))

    return resolved
