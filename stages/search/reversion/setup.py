"""Where the accuracy-aware search starts, and what it must reach, from the configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from stages.common import artifacts
from stages.common.errors import UserError
from stages.configuration.schema import BiasCorrection, Config
from stages.configuration.target_device import read_target
from stages.quantization.model.graph import read_graph
from stages.quantization.placement.plan import Plan, plan_from_json
from stages.quantization.planning import make_plan
from stages.search.candidates import Candidate, digest
from stages.search.evaluator import Rows
from stages.search.problem import Problem
from stages.search.reversion.budget import Budget, Parts, divide, make_goal
from stages.search.setup import base_candidate, make_problem


class Start(NamedTuple):
    """A candidate, and its per-sample rows on all validation samples where they are known."""

    candidate: Candidate
    rows: Rows | None


def make_budget(config: Config, problem: Problem) -> tuple[Budget, Parts]:
    """The accuracy budget, and the validation samples on which it must hold.

    Where every metric has a given baseline, only accuracy_aware.metric_subset_ratio of the samples is compared with it.

    Raises:
        UserError: more samples are asked for than there are, or a relative drop has a baseline of zero.
    """
    settings = config.accuracy_aware
    given = {entry.name: entry for entry in settings.metrics}
    has_baselines = any(entry.baseline_value is not None for entry in settings.metrics)
    count = len(problem.samples)
    parts = divide(count, settings.held_out_ratio, settings.metric_subset_ratio if has_baselines else 1.0, config.seed)
    if settings.ranking_subset_size is not None and settings.ranking_subset_size > len(parts.search):
        raise UserError(
            f"accuracy_aware.ranking_subset_size: {settings.ranking_subset_size} is not allowed; expected at most {len(parts.search)},"
            f" the samples that the search compares models on (of {count} validation samples)"
        )
    goals = []
    for name in given or problem.metrics:
        metric, entry = problem.metrics[name], given.get(name)
        baseline = entry.baseline_value if entry else None
        is_given = baseline is not None
        if baseline is None:
            baseline = metric.value(problem.fp32[name][list(parts.search)])
        drop = settings.maximal_drop if entry is None or entry.maximal_drop is None else entry.maximal_drop
        goals.append(make_goal(name, metric, baseline, drop, settings.drop_type, given=is_given))
    return Budget(tuple(goals)), parts


def accuracy_problem(config: Config) -> Problem:
    """The problem that the search poses, with what accuracy_aware.base_algorithm starts from."""
    settings, accurate = config.accuracy_aware, config.correction_engine is not None
    problem = make_problem(config, calibration=accurate or (settings.tune_hyperparams and config.bias_correction.enabled))
    if settings.base_algorithm != "MinMaxQuantization" or problem.tuned is None:
        return problem
    # Layer-wise tuning sets biases, and ranges for what they give.
    return dataclasses.replace(problem, tuned=None, key=digest([problem.key, "untuned"]))


def start(config: Config, problem: Problem) -> Start:
    """Where accuracy_aware.base_algorithm starts."""
    algorithm = config.accuracy_aware.base_algorithm
    if algorithm == "DefaultQuantization":
        return Start(*base_candidate(config))
    if algorithm == "MinMaxQuantization":
        return Start(Candidate(_plan(config, problem), BiasCorrection(enabled=False), label="MinMaxQuantization"), None)
    path = Path(config.accuracy_aware.quantizers or "")
    try:
        plan = plan_from_json(artifacts.read_json(path))
        _check_names(plan, problem)
    except (KeyError, TypeError) as error:
        raise UserError(f"accuracy_aware.quantizers: {path} does not fit this model or is no quantizers.json ({error})") from None
    return Start(Candidate(plan, config.bias_correction, label=str(path)), None)


def measured_effects(config: Config) -> dict[str, float | None]:
    """By layer, the effect on the outputs that `evaluate` has measured, where the search starts from the model that it was measured of."""
    if config.accuracy_aware.base_algorithm != "DefaultQuantization":
        return {}
    rows = artifacts.read_json(artifacts.folder("evaluate") / "layers.json")
    return {row["layer"].split(" < ")[0].rsplit(":", 1)[0]: row["effect_on"] for row in rows if row["kind"] != "float"}


def mixed_candidate(config: Config, problem: Problem, base: Candidate) -> Candidate | None:
    """What convert_to_mixed_preset tries: None where it is off, or where ranges are asymmetric already, or must be symmetric."""
    if not config.accuracy_aware.convert_to_mixed_preset or not all(entry.scheme.symmetric for entry in base.plan.quantizers):
        return None
    plan = _plan(config, problem, preset="mixed")
    return None if plan.quantizers == base.plan.quantizers else dataclasses.replace(base, plan=plan, corrections=None, label="mixed preset")


def _plan(config: Config, problem: Problem, **changes: str) -> Plan:
    quantization = dataclasses.replace(config.quantization, **changes)  # type: ignore[arg-type]
    if config.accuracy_aware.base_algorithm == "MinMaxQuantization":
        quantization = dataclasses.replace(quantization, use_channel_alignment=False)
    return make_plan(read_graph(problem.model()), read_target(config.target_device), quantization, problem.statistics)


def _check_names(plan: Plan, problem: Problem) -> None:
    """KeyError for the first operation of the plan that the model does not have."""
    nodes: Mapping[str, object] = read_graph(problem.model()).by_name
    for quantizer in plan.quantizers:
        for name in (quantizer.source.name, *(place.name for place in quantizer.consumers)):
            nodes[name]
