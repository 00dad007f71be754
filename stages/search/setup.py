"""What the searching stages share: their problem, the configuration they start from, and the writing of what they found."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import openvino as ov

from stages.common import artifacts
from stages.common.errors import UserError
from stages.configuration import schema
from stages.configuration.loading import create
from stages.configuration.schema import Config
from stages.measurement import baseline, fidelity
from stages.quantization.build import build, compress_weights, corrections_json, quantizers_json, save_model
from stages.quantization.placement.plan import plan_from_json
from stages.quantization.solution.biases import Correction
from stages.quantization.solution.tuned import FILE as TUNED_FILE
from stages.quantization.solution.tuned import load_tuned
from stages.quantization.statistics.store import load
from stages.runtime import engine
from stages.runtime.samples import calibration_samples, validation_samples
from stages.search.candidates import Candidate, digest
from stages.search.evaluator import Rows
from stages.search.executors import Start
from stages.search.problem import Problem, code_key


class Base(NamedTuple):
    """The configuration that a search starts from, and its per-sample rows, which `evaluate` found."""

    candidate: Candidate
    rows: Rows


def make_problem(config: Config, *, calibration: bool = False) -> Problem:
    """The problem that the configuration and the artifacts of the earlier stages pose.

    calibration: whether candidates need inference over calibration samples (the accurate BiasCorrection does).
    """
    prepare, statistics = artifacts.folder("prepare"), artifacts.folder("collect_statistics")
    model = engine.read_artifact(prepare)
    xml, weights = ((prepare / name).read_bytes() for name in ("model.xml", "model.bin"))
    primary = config.evaluate.primary_metric or next(iter(config.metric))
    names = sorted(config.metric, key=lambda name: name != primary)
    metrics = {name: create(config.metric[name], f"metric.{name}") for name in names}
    for metric in metrics.values():
        metric.bind(model)
    tuned_file = artifacts.folder("correct_bias") / TUNED_FILE
    identity = [
        baseline.baseline_key(config, metrics.values()),
        [artifacts.file_sha256(statistics / name) for name in ("statistics.npz", "index.json")],
        artifacts.read_json(prepare / "dataset.json")["calibration"]["sha256"],
        dataclasses.asdict(config.engine),
        config.quantization.pot_compatible,
        tuned_file.exists() and artifacts.file_sha256(tuned_file),
        code_key(),
    ]
    return Problem(
        key=digest(identity),
        xml=xml,
        weights=weights,
        statistics=load(statistics),
        samples=validation_samples(config),
        metrics=metrics,
        engine=config.engine,
        pot_compatible=config.quantization.pot_compatible,
        fp32=evaluated("fp32", names),
        calibration=calibration_samples(config) if calibration else None,
        tuned=load_tuned(artifacts.folder("correct_bias")),
    )


def cluster_start(cluster: schema.Cluster) -> Start | None:
    """What makes the Dask cluster that `cluster.start` names; None where it names none."""
    return None if cluster.start is None else partial(create, cluster.start, "cluster.start")


def base_candidate(config: Config) -> Base:
    """The model of the stage `correct_bias` as a candidate, so that searches need not evaluate it."""
    plan = plan_from_json(artifacts.read_json(artifacts.folder("quantize") / "quantizers.json"))
    corrections: tuple[Correction, ...] = ()
    if config.bias_correction.enabled and not config.bias_correction.use_fast_bias:  # found with inference
        corrections = read_corrections(artifacts.read_json(artifacts.folder("correct_bias") / "corrections.json"))
    candidate = Candidate(plan, config.bias_correction, corrections, label=f"{config.quantization.preset} preset")
    return Base(candidate, evaluated("int8", list(config.metric)))


def read_corrections(data: dict[str, Any]) -> tuple[Correction, ...]:
    """The corrected biases of a corrections.json."""
    import numpy as np

    return tuple(
        Correction(
            name=entry["name"],
            type=entry["type"],
            bias=np.asarray(entry["bias"], np.float64),
            largest_shift=entry["largest_shift"],
            largest_relative_shift=entry["largest_relative_shift"],
        )
        for entry in data["corrected"]
    )


def write_candidate(config: Config, problem: Problem, candidate: Candidate, preset: str, folder: Path) -> ov.Model:
    """Build a candidate's model and write it with its quantizers.json and corrections.json; preset: what the former calls it."""
    correction = candidate.bias_correction
    model, solved = build(
        problem.model(), problem.statistics, candidate.plan, correction, problem.pot_compatible, candidate.corrections or (), problem.tuned
    )
    algorithm = ("FastBiasCorrection" if correction.use_fast_bias else "BiasCorrection") if correction.enabled else None
    save_model(model, folder)
    artifacts.write_json(folder / "quantizers.json", quantizers_json(candidate.plan, solved, preset, config.target_device.name))
    artifacts.write_json(folder / "corrections.json", {"algorithm": algorithm} | corrections_json(solved))
    return model


def write_fidelity(config: Config, problem: Problem, model: ov.Model | None, folder: Path) -> None:
    """Write fidelity.json: whether the chosen model computes what it says.

    model: None where it is that of `correct_bias`, of which `evaluate` has found it out.
    """
    if model is None:
        found = artifacts.read_json(artifacts.folder("evaluate") / "evaluation.json")["fidelity"]
    elif config.evaluate.fidelity_samples:
        stored = model.clone()
        compress_weights(stored)
        samples = list(problem.samples[: config.evaluate.fidelity_samples])
        found = fidelity.check(stored, config.engine, samples, engine.int8_precision(stored, config.engine))
    else:
        found = {}
    artifacts.write_json(folder / "fidelity.json", found)


def write_rows(problem: Problem, name: str, rows: Rows, folder: Path) -> None:
    """Write samples.npz: per-sample rows of FP32, of the model that the search started from, and of the one it found (`name`)."""
    everything = {"fp32": problem.fp32, "int8": evaluated("int8", list(problem.metrics)), name: rows}
    baseline.save({model: dict(values) for model, values in everything.items()}, folder / "samples.npz")


def evaluated(model: str, metrics: list[str]) -> Rows:
    """The per-sample rows that the stage `evaluate` found of a model (`fp32`, `int8`)."""
    values = baseline.load(artifacts.folder("evaluate") / "samples.npz", [model], metrics)
    if not values:
        raise UserError(f"{artifacts.folder('evaluate')}/samples.npz cannot be read; run `dvc repro --force evaluate`")
    return values[model]
