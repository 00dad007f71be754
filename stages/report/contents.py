"""What the report says, from the artifacts of the stages alone: every sentence, number and bar, ready to be set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from stages.common import artifacts
from stages.common.units import model_names, number, plural
from stages.configuration.schema import Config
from stages.report import accuracy_aware_section, layers, provenance, results, search_results, tune_section
from stages.report.accuracy_aware_section import BudgetSection
from stages.report.advice import Advice, advice
from stages.report.facts import facts
from stages.report.left_float import by_reason, left_biases, left_float
from stages.report.measured import INT8, models, to_deploy
from stages.report.tradeoff import Picture
from stages.report.tune_section import Tuning


@dataclass(frozen=True)
class Report:
    """Everything on the page, from top to bottom."""

    model: str
    data: str
    preset: str
    device: str
    verdict: str
    advice: tuple[Advice, ...]
    warnings: tuple[str, ...]
    figures: tuple[results.Figure, ...]
    columns: tuple[str, ...]
    chosen: str  # the column of the model to deploy
    results: tuple[results.Row, ...]
    calibration: int
    validation: int
    confidence: str
    precision: str
    rounds: int | None
    picture: Picture | None
    budget: BudgetSection | None
    tuning: Tuning | None
    effects: tuple[layers.Bar, ...]
    effect_blocks: int
    effect_samples: int
    effect_missing: str
    noise: tuple[layers.Bar, ...]
    noise_total: int
    noise_samples: int
    quantized: str
    slowest_layers: tuple[layers.Bar, ...]
    spent: tuple[layers.Bar, ...]
    kept: tuple[layers.FloatGroup, ...]
    kept_total: str
    kept_free: str
    biases: str
    biases_left: tuple[layers.FloatGroup, ...]
    collected: tuple[str, ...]
    layers: tuple[Mapping[str, Any], ...]
    steps: tuple[provenance.Step, ...]
    total_seconds: str
    settings: tuple[provenance.Setting, ...]
    commit: provenance.Commit | None
    identities: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]
    params: str
    config: str
    key: str
    deployable: str
    deploys: bool  # whether the first advice is to deploy it


def contents(config: Config, key: str) -> Report:
    """The report on what is in build/.

    Args:
        config: What was built.
        key: The result's key, which also names its run in MLflow.

    Raises:
        UserError: when an artifact is missing or corrupt.
    """
    folder = artifacts.folder("evaluate")
    evaluation, speed = artifacts.read_json(folder / "evaluation.json"), artifacts.read_json(folder / "latency.json")
    rows = artifacts.read_json(folder / "layers.json")
    quantizers = artifacts.read_json(artifacts.folder("quantize") / "quantizers.json")
    corrections = artifacts.read_json(artifacts.folder("correct_bias") / "corrections.json")
    samples = artifacts.read_json(artifacts.folder("prepare") / "dataset.json")
    model = artifacts.read_json(artifacts.folder("prepare") / "model.json")
    records = {name: artifacts.read_json(artifacts.record(name)) for name in provenance.STAGES if artifacts.record(name).exists()}

    count = samples["calibration"]["count"]
    noise = sorted((row for row in rows if row["sqnr_db"] is not None), key=lambda row: row["sqnr_db"])
    effect = artifacts.read_json(artifacts.REPORTS / "effect.json")
    kept = by_reason(left_float(rows))
    confidence = f"{100 * evaluation['confidence']:g} %"
    kept_budget = accuracy_aware_section.section()
    tuned = tune_section.tuning(evaluation["precisions"]["default"])
    found, steps = models(), tuple(advice(facts()))
    chosen = to_deploy(found)
    floats = [name for key, name in model_names(evaluation["precisions"]).items() if key != INT8]
    return Report(
        model=config.model.name,
        data=config.data.name,
        preset=config.quantization.preset,
        device=config.target_device.name,
        verdict=results.verdict(config, evaluation, chosen),
        advice=steps,
        warnings=(
            *_warnings(samples),
            *records.get("prepare", {}).get("notes", ()),
            *evaluation["warnings"],
            *quantizers["warnings"],
            *_warnings_of_searches(),
        ),
        figures=tuple(results.figures(config, evaluation, speed.get("latency_ms", {}), chosen)),
        columns=(*floats, *(each.name for each in found)),
        chosen=chosen.name,
        results=tuple(results.table(config, evaluation, speed, found, chosen)),
        calibration=min(count, config.quantization.stat_subset_size or count),
        validation=samples["validation"]["count"],
        confidence=confidence,
        precision=evaluation["precisions"]["default"],
        rounds=speed.get("rounds"),
        picture=results.accuracy_against_latency(config, evaluation, speed),
        budget=kept_budget,
        tuning=tuned,
        effects=tuple(layers.effects(effect)),
        effect_blocks=len(effect),
        effect_samples=evaluation["effect"].get("samples", 0),
        effect_missing=layers.effect_missing(evaluation["effect"]),
        noise=tuple(layers.noise(noise)),
        noise_total=len(noise),
        noise_samples=min(config.evaluate.noise_samples, samples["validation"]["count"]),
        quantized=layers.quantized(quantizers),
        slowest_layers=tuple(layers.slowest_layers(rows)),
        spent=tuple(layers.time_spent(rows)),
        kept=tuple(layers.left_group(group) for group in kept),
        kept_total=plural(sum(group.count for group in kept), "operation"),
        kept_free=layers.free_of_cost(kept),
        biases=layers.biases(config, corrections),
        biases_left=tuple(layers.left_group(group) for group in by_reason(left_biases(corrections))),
        collected=tuple(layers.calibration_runs(corrections)),
        layers=tuple(rows),
        steps=tuple(provenance.steps(records)),
        total_seconds=number(sum(record["seconds"] for record in records.values())),
        settings=tuple(provenance.settings(config)),
        commit=provenance.commit(),
        identities=tuple(provenance.identities(model, samples, kept_budget, tuned)),
        versions=tuple(provenance.versions(evaluation)),
        params=provenance.params(),
        config=yaml.safe_dump(provenance.shown_configuration(config), sort_keys=False, allow_unicode=True, width=120),
        key=key,
        deployable=str(chosen.path),
        deploys=steps[0].text.startswith("deploy "),
    )


def _warnings(samples: Mapping[str, Any]) -> Iterator[str]:
    if samples["shared"]:
        yield (
            f"{samples['shared']} of the {samples['validation']['count']} validation samples are calibration samples too: "
            "the drop looks smaller than it is."
        )


def _warnings_of_searches() -> Iterator[str]:
    for stage in ("accuracy_aware", "tune"):
        yield from (f"The model of {stage}: {warning}" for warning in search_results.warnings(stage) if search_results.result(stage))
