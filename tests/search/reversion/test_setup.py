"""Where the accuracy-aware search starts, and on which samples which budget must hold."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import openvino as ov
import pytest
from openvino import opset13 as op

from stages.configuration.schema import AccuracyAware, BiasCorrection, BudgetMetric, Config, Engine, Quantization, TargetDevice
from stages.quantization.solution.tuned import Tuned
from stages.search.problem import Problem
from stages.search.reversion import setup
from stages.search.reversion.budget import divide
from stages.search.reversion.setup import accuracy_problem, make_budget, mixed_candidate, start
from stages.search.setup import Base
from tests.built import config as built_config
from tests.quantization.reference_runs import composed
from tests.quantization.small import constant, convolution, named, parameter, random
from tests.search.problems import CLASSES, small_candidate
from tests.search.reverting import problem_of

COUNT = 60


@cache
def aligned_problem() -> Problem:
    """Of a net with two convolutions, and no activation between them, whose channels can be aligned."""
    source = parameter()
    first = convolution(source, random(8, 3, 3, 3), "first", bias=random(8), pads_begin=[1], pads_end=[1])
    second = named(op.relu(convolution(first, random(8, 8, 1, 1, seed=1), "second", bias=random(8))), "relu")
    flat = named(op.reshape(second, constant([1, -1], "shape", "int64"), False), "flat")
    head = named(op.matmul(flat, constant(random(8 * 64, CLASSES, seed=9), "head/weights"), False, False), "head")
    result = op.result(head)
    head.output(0).set_names({"scores"})
    return problem_of(ov.Model([result], [source], "aligned"), COUNT, "aligned")


@pytest.fixture
def problem(monkeypatch: pytest.MonkeyPatch) -> Problem:
    """Without a build folder."""
    problem = aligned_problem()
    monkeypatch.setattr(setup, "base_candidate", lambda config: Base(small_candidate(problem), problem.fp32))
    return problem


def config(quantization: Quantization | None = None, correction: BiasCorrection | None = None, **aware: Any) -> Config:
    """A configuration with these settings of `accuracy_aware`."""
    return dataclasses.replace(
        built_config(),
        target_device=TargetDevice(**composed("any")),
        quantization=quantization or Quantization(),
        bias_correction=correction or BiasCorrection(),
        accuracy_aware=AccuracyAware(enabled=True, **aware),
    )


# ------------------------------------------------------------------------------------------------ where it starts


def test_the_default_starts_from_the_model_of_correct_bias_and_its_evaluation(problem: Problem) -> None:
    candidate, rows = start(config(), problem)
    assert candidate.plan.aligned == (("first", "second"),) and candidate.bias_correction.enabled
    assert rows is problem.fp32


def test_minmax_neither_aligns_channels_nor_corrects_biases(problem: Problem) -> None:
    candidate, rows = start(config(base_algorithm="MinMaxQuantization"), problem)
    assert (candidate.plan.aligned, candidate.bias_correction.enabled, rows) == ((), False, None)
    assert {entry.name for entry in candidate.plan.quantizers} == {entry.name for entry in small_candidate(problem).plan.quantizers}
    mixed = mixed_candidate(config(base_algorithm="MinMaxQuantization", convert_to_mixed_preset=True), problem, candidate)
    assert mixed is not None and not mixed.plan.aligned and not mixed.bias_correction.enabled


def test_mixed_is_the_base_with_asymmetric_activations(problem: Problem) -> None:
    base = small_candidate(problem)
    mixed = mixed_candidate(config(convert_to_mixed_preset=True), problem, base)
    assert mixed is not None and mixed.plan == small_candidate(problem, preset="mixed").plan
    assert mixed_candidate(config(), problem, base) is None


@pytest.mark.parametrize("preset", ["mixed", "accuracy"])
def test_where_ranges_are_asymmetric_already_there_is_nothing_to_convert(problem: Problem, preset: str) -> None:
    """An earlier tuning result may be: what it chose would be lost."""
    assert mixed_candidate(config(convert_to_mixed_preset=True), problem, small_candidate(problem, preset=preset)) is None


def test_calibration_samples_are_loaded_where_biases_may_be_found_with_them(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def made(config: Config, *, calibration: bool) -> Problem:
        asked.append(calibration)
        return problem

    monkeypatch.setattr(setup, "make_problem", made)
    for settings in (
        config(),
        config(tune_hyperparams=True, correction=BiasCorrection(enabled=False)),
        config(tune_hyperparams=True),
        dataclasses.replace(config(), correction_engine=Engine()),
    ):
        assert accuracy_problem(settings) is problem
    assert asked == [False, False, True, True]


def test_minmax_forgets_what_layerwise_tuning_found(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = dataclasses.replace(problem, tuned=Tuned(), key="tuned")
    monkeypatch.setattr(setup, "make_problem", lambda config, calibration: tuned)
    assert accuracy_problem(config()) is tuned
    plain = accuracy_problem(config(base_algorithm="MinMaxQuantization"))
    assert plain.tuned is None and plain.key != tuned.key


# ------------------------------------------------------------------------------------------------ the budget


def goals(problem: Problem, **aware: Any) -> dict[str, tuple[float, float]]:
    """Baseline and limit by metric."""
    return {goal.metric: (goal.baseline, goal.limit) for goal in make_budget(config(**aware), problem)[0].goals}


def test_the_budget_is_that_of_each_metric(problem: Problem) -> None:
    accuracy, error = BudgetMetric("accuracy"), BudgetMetric("error", maximal_drop=0.3)
    assert goals(problem, maximal_drop=0.02) == {"accuracy": (1.0, 0.02), "error": (0.0, 0.02)}
    assert goals(problem, maximal_drop=0.02, metrics=[accuracy]) == {"accuracy": (1.0, 0.02)}
    assert goals(problem, maximal_drop=0.02, metrics=[error, accuracy]) == {"error": (0.0, 0.3), "accuracy": (1.0, 0.02)}
    given = BudgetMetric("accuracy", baseline_value=0.5)
    assert goals(problem, maximal_drop=0.02, metrics=[given]) == {"accuracy": (0.5, 0.02)}
    assert goals(problem, maximal_drop=0.02, metrics=[given], drop_type="relative") == {"accuracy": (0.5, 0.01)}


def test_the_samples_are_divided_by_ratio_and_seed(problem: Problem) -> None:
    given = [BudgetMetric("accuracy", baseline_value=0.5)]
    for settings, expected in (
        (config(), divide(COUNT, 0.2, 1.0, 0)),
        (config(held_out_ratio=0.5), divide(COUNT, 0.5, 1.0, 0)),
        (config(metric_subset_ratio=0.3), divide(COUNT, 0.2, 1.0, 0)),  # FP32's own value on them is the baseline
        (config(metric_subset_ratio=0.3, metrics=given), divide(COUNT, 0.2, 0.3, 0)),
        (dataclasses.replace(config(), seed=5), divide(COUNT, 0.2, 1.0, 5)),
    ):
        assert make_budget(settings, problem)[1] == expected
    assert divide(COUNT, 0.2, 1.0, 0) != divide(COUNT, 0.2, 1.0, 5)
