"""What the searching stages wrote, as others read it; empty where a stage is disabled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages.common import artifacts


def result(stage: str, build: Path = artifacts.BUILD) -> dict[str, Any]:
    """Content of result.json; empty where the stage is disabled."""
    found: dict[str, Any] = artifacts.read_json(build / stage / "result.json")
    return found if found["enabled"] else {}


def to_deploy() -> str:
    """The model of the last search whose budget holds, else int8."""
    if (tuned := result("tune")) and tuned["best"]["within_budget"]:
        return "tune"
    return "accuracy_aware" if (kept := result("accuracy_aware")) and kept["holds"] else "int8"


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
