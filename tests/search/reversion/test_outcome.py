"""What the accuracy-aware search reports of its model."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from stages.configuration.schema import AccuracyAware, Config, Evaluate
from stages.search.evaluator import Task, evaluate
from stages.search.problem import Problem
from stages.search.reversion.budget import Budget, divide, make_goal
from stages.search.reversion.outcome import precision_json, report, result_json, trace_json
from tests.built import config as built_config
from tests.search.problems import small_candidate, small_problem
from tests.search.reverting import searched

COUNT = 60
PARTS = divide(COUNT, 0.5, 1.0, 1)


@pytest.fixture(scope="module")
def problem() -> Problem:
    """FP32 itself misses one sample in ten."""
    return small_problem(COUNT, reference=True)


def reported(problem: Problem, name: str = "accuracy", confidence: float = 0.95, **aware: Any) -> dict[str, Any]:
    """result.json of a search in which the fully quantized model keeps the budget."""
    settings = AccuracyAware(enabled=True, **aware)
    config: Config = dataclasses.replace(built_config(), accuracy_aware=settings, evaluate=Evaluate(confidence=confidence))
    fp32 = problem.metrics[name].value(problem.fp32[name][list(PARTS.search)])
    budget = Budget((make_goal(name, problem.metrics[name], fp32, settings.maximal_drop, settings.drop_type),))
    found = searched(problem, budget, positions=PARTS.search, **aware)
    rows = evaluate(problem, Task(small_candidate(problem))).rows
    result = result_json(config, problem, budget, PARTS, found.search, found.best, rows)
    assert trace_json(found.search.trace, budget)[0]["limit"] == pytest.approx(budget.goals[0].limit)
    return result


def test_a_relative_limit_is_relative_to_the_baseline_of_the_samples_that_are_judged(problem: Problem) -> None:
    found = reported(problem, maximal_drop=0.5, drop_type="relative")["metrics"]["accuracy"]
    assert found["baseline"] != found["held_out"]["baseline"]  # or nothing is shown
    for numbers in (found, found["held_out"]):
        assert numbers["limit"] == pytest.approx(0.5 * numbers["baseline"])
    absolute = reported(problem, maximal_drop=0.5)["metrics"]["accuracy"]
    assert (absolute["limit"], absolute["held_out"]["limit"]) == (0.5, 0.5)


@pytest.mark.parametrize(("holds", "precision_drop", "told"), [(False, 0.046, True), (False, 0.004, False), (True, 0.046, False)])
def test_what_the_precision_loses_no_reversion_brings_back(holds: bool, precision_drop: float, told: bool) -> None:
    shortfall = "" if holds else "accuracy drops by 5.10 points where 1.00 is allowed; there is nothing left to revert"
    result = {"holds": holds, "shortfall": shortfall, "metrics": {"accuracy": {"limit": 0.01}}}
    evaluation = {
        "precisions": {"fp32": "f32", "default": "bf16", "int8": "bf16"},
        "metrics": {"accuracy": {"share": True, "precision_drop": precision_drop}},
    }
    found = precision_json(result, evaluation, "default")
    assert found["precision"] == "bf16"
    assert found["shortfall"].startswith(shortfall)
    assert ("bf16 alone, without any quantization, makes accuracy worse by 4.60 points" in found["shortfall"]) is told
    assert precision_json(result, evaluation, "f32")["precision"] == "f32"


def test_intervals_are_those_of_the_configured_confidence(problem: Problem) -> None:
    sure, bold = (reported(problem, "error", confidence, maximal_drop=0.9) for confidence in (0.99, 0.5))
    assert (sure["confidence"], bold["confidence"]) == (0.99, 0.5)
    wide, narrow = (found["metrics"]["error"] for found in (sure, bold))
    assert wide["drop_low"] < narrow["drop_low"] <= narrow["drop"] <= narrow["drop_high"] < wide["drop_high"]
    error, accuracy = sure["judged"]["error"], sure["judged"]["accuracy"]
    shown = {"error": error["int8"], "error.drop": error["drop"], "accuracy": accuracy["int8"], "accuracy.drop": accuracy["drop"]}
    assert report(sure) == shown | {"holds": 1, "reverted_layers": len(sure["reverted"])}
