"""The zoo's models: one YAML file each, and beside it the Python files that its data set and metric are in.

A file holds two documents. The second one is a params.yaml, as a user would write it. The first one says

    about: what it is, in a line, with its licence
    files: Python files beside it that are copied into conf/ (none by default)
    data: folder -> requirement -> patterns: files that are taken out of wheels
    make: commands that make the data, run in the project (none by default)
    variants: name -> what differs from the params.yaml
    least: the FP32 model's primary metric is at least this, or the data do not fit the model
    most: how much of it INT8 loses at most, by the lower end of the interval (0.05 by default)
    small: true where pytest's slow set runs it (false by default)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

MODELS = Path(__file__).parent / "models"


@dataclass(frozen=True)
class Entry:
    """A model of the zoo: see the module."""

    name: str
    params: dict[str, Any]
    about: str
    variants: dict[str, dict[str, Any]]
    files: list[str] = field(default_factory=list)
    data: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    make: list[str] = field(default_factory=list)
    least: float = 0.0
    most: float = 0.05
    small: bool = False


def names() -> list[str]:
    """The models there are."""
    return sorted(file.stem for file in MODELS.glob("*.yaml"))


def read(name: str) -> Entry:
    """The model of that name."""
    about, params = yaml.safe_load_all((MODELS / f"{name}.yaml").read_text("utf-8"))
    return Entry(name, params, **about)


def merged(params: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings put together key by key; what is no mapping is replaced."""
    result = dict(params)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result
