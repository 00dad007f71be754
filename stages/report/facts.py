"""What `advice` goes by, read from the artifacts of a result."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.common import artifacts
from stages.report.advice import Facts
from stages.report.choice import Candidate, losses
from stages.report.measured import Model, models, to_deploy

SHAPE_TYPES = ("ShapeOf", "Broadcast")
CHANCE = "a drop from there says nothing about quantization"  # in the warnings of evaluation.json


def facts(build: Path = artifacts.BUILD) -> Facts:
    """What was measured of the model to deploy.

    Args:
        build: The project's, or that of a copy.

    Raises:
        UserError: an artifact is missing or corrupt.
    """
    config, found = artifacts.read_json(build / artifacts.CONFIG.name), models(build)
    evaluation = artifacts.read_json(build / "evaluate" / "evaluation.json")
    samples = artifacts.read_json(build / "prepare" / "dataset.json")
    chosen = to_deploy(found)
    fidelity = chosen.fidelity
    parts = bool(fidelity.get("warning")) and "ratio" in fidelity
    first = (fidelity.get("first") or {}) if parts else {}
    kinds = {model.kind: model.kept for model in found}
    return Facts(
        model=candidate(chosen, config, evaluation),
        path=str(chosen.path),
        default=evaluation["precisions"]["default"],
        smaller=evaluation["size_bytes"]["fp32"] / chosen.size,
        preset=config["quantization"]["preset"],
        budget=kinds.get("accuracy_aware"),
        tuned="tune" in kinds,
        at_chance=any(CHANCE in warning for warning in evaluation["warnings"]),
        saturates=bool(fidelity.get("saturates")),
        saturation_fix=config["quantization"]["saturation_fix"],
        faulty_layer=first.get("layer") if not fidelity.get("saturates") else None,
        one_shape=samples.get("one_shape", {}),
        shape_operations=_counts(chosen.path) if samples.get("one_shape") else {},
    )


def candidate(model: Model, config: Mapping[str, Any], evaluation: Mapping[str, Any]) -> Candidate:
    """A measured model as one that may be deployed.

    Args:
        model: The model.
        config: Content of config.json.
        evaluation: Content of evaluation.json.
    """
    primary = config["evaluate"]["primary_metric"]
    judged = losses(model.metrics, evaluation["samples"], budget_of(model.kind, config, primary or next(iter(model.metrics))), primary)
    ratio = model.speed["speed_up"]["default"] if model.speed else None
    return Candidate(model.name, judged, ratio, wrong(model.fidelity), model.kept)


def budget_of(kind: str, config: Mapping[str, Any], primary: str) -> Mapping[str, Any]:
    """What a model may lose: what its search was told, else what accuracy_aware would be.

    Args:
        kind: The stage that made it.
        config: Content of config.json.
        primary: The metric that counts where no other is named.
    """
    if kind != "tune":
        return dict(config["accuracy_aware"])
    tune = config["tune"]
    names = [entry["name"] for entry in tune["metrics"]] or [primary]
    return {
        "maximal_drop": tune["accuracy_loss"] / 100,
        "drop_type": "relative",
        "metrics": [{"name": name, "maximal_drop": None} for name in names],
    }


def wrong(fidelity: Mapping[str, Any]) -> bool:
    """Whether a compilation as one deploys it computes something else at the outputs than the model says.

    Not where sums saturate: they do so in every compilation, and what that costs is part of the accuracy that was measured.
    """
    return not fidelity.get("saturates") and at_the_outputs(fidelity)


def at_the_outputs(fidelity: Mapping[str, Any]) -> bool:
    """Whether the outputs of a compilation without further outputs differ by more than rounding explains."""
    plain = [entry["ratio"] for entry in fidelity.get("compilations", ()) if not entry["instrumented"]]
    return any(ratio > fidelity["limit"] for ratio in plain)


def _counts(path: Path) -> dict[str, int]:
    """How many operations of the types that open sizes cost an IR has."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return {name: len(re.findall(rf'\btype="{name}"', text)) for name in SHAPE_TYPES}
