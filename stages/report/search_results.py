"""What the searching stages wrote, as others read it; empty where a stage is disabled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.common import artifacts


def result(stage: str, build: Path = artifacts.BUILD) -> dict[str, Any]:
    """Content of result.json; empty where the stage is disabled."""
    found: dict[str, Any] = artifacts.read_json(build / stage / "result.json")
    return found if found["enabled"] else {}


def table(stage: str, name: str) -> list[dict[str, Any]]:
    """One of a stage's tables, e.g. `trials`; empty where the stage is disabled."""
    rows: list[dict[str, Any]] = artifacts.read_json(artifacts.folder(stage) / f"{name}.json")
    return rows


def speed(stage: str, build: Path = artifacts.BUILD) -> dict[str, Any]:
    """What was measured of the chosen model, beside those that it is compared with; empty without a benchmark."""
    path = build / stage / "latency.json"
    found: dict[str, Any] = artifacts.read_json(path) if path.exists() else {}
    return found


def fidelity(stage: str, build: Path = artifacts.BUILD) -> dict[str, Any]:
    """Whether the chosen model computes what it says; empty where that was not looked at."""
    path = build / stage / "fidelity.json"
    found: dict[str, Any] = artifacts.read_json(path) if path.exists() else {}
    return found


def warnings(stage: str) -> list[str]:
    """What a user must know of the chosen model."""
    return list(filter(None, [fidelity(stage).get("warning")]))


def how_sure(acceptance: Mapping[str, Any] | None) -> str:
    """In which sense a budget holds; empty where only the search's samples were asked."""
    if acceptance is None:
        return ""
    return f" with {100 * acceptance['confidence']:g} % confidence" if acceptance["holds"] else " on these samples, not for sure on others"


def uncertainty(acceptance: Mapping[str, Any], bounds: Mapping[str, str]) -> str:
    """How large the drop may be on samples that nobody has seen, and how many samples would make sure.

    Args:
        acceptance: Of a result.
        bounds: By metric, the largest drop in words.
    """
    highest = ", ".join(f"{name} by up to {bound}" for name, bound in bounds.items())
    samples = f"; about {acceptance['samples']} samples to search with would make sure of it" if acceptance["samples"] else ""
    where = f"{100 * acceptance['confidence']:g} % confidence, chosen among {acceptance['models']} models"
    return f"others may lose more, {highest} ({where}){samples}"
