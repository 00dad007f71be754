"""What makes a configuration better: POT's loss, and losses of accuracy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from stages.common.errors import UserError
from stages.runtime.metrics import Accuracy, CharacterAccuracy, ReferenceError
from stages.search.tuning.objective import BEYOND_BUDGET, TOO_SLOW, Score, Target, make_budget, pot_loss

FULL = Score(accuracy_loss=0.25, speed_up=1.6, quantized=1.0)
TARGET = Target(accuracy_loss=0.01, speed_up=1.0, quantized_weight=1.0)


def test_worked_example_of_pot() -> None:
    assert pot_loss(Score(0.09375, 1 / 0.7, 7 / 9), FULL, TARGET) == pytest.approx(81.21611664530215, abs=1e-13)


def test_scales_lie_between_fp32_and_fully_quantized() -> None:
    only_speed = Target(accuracy_loss=1.0)
    assert pot_loss(replace(FULL, accuracy_loss=0.0), FULL, only_speed) == pytest.approx(0.0)
    assert pot_loss(Score(0.0, 1.0, 0.0), FULL, only_speed) == pytest.approx(10.0)
    beyond = pot_loss(FULL, FULL, Target(accuracy_loss=0.01, latency_weight=0.0))
    assert beyond == pytest.approx(10.0 + BEYOND_BUDGET)


def test_each_weight_and_threshold_counts() -> None:
    score = Score(0.05, 1.2, 0.8)
    base = pot_loss(score, FULL, TARGET)
    others = [
        replace(TARGET, accuracy_weight=2.0),
        replace(TARGET, latency_weight=2.0),
        replace(TARGET, quantized_weight=2.0),
        replace(TARGET, expected_quantized=0.7),
        replace(TARGET, accuracy_loss=0.06),
    ]
    assert len({round(value, 9) for value in [base, *(pot_loss(score, FULL, other) for other in others)]}) == 6
    inside = replace(TARGET, accuracy_loss=0.06)
    slow = pot_loss(score, FULL, replace(inside, speed_up=1.3)) - pot_loss(score, FULL, inside)
    assert slow == pytest.approx(TOO_SLOW)
    # Within the budget accuracy does not count.
    assert pot_loss(replace(score, accuracy_loss=0.01), FULL, inside) == pot_loss(score, FULL, inside)


def test_an_error_may_become_thousands_of_times_what_it_was() -> None:
    worse, worst = (pot_loss(Score(loss, 1.0, 1.0), Score(0.5, 2.0, 1.0), TARGET) for loss in (5.0, 5000.0))
    assert worse < worst < math.inf
    assert math.isfinite(pot_loss(Score(0.1, 1.0, 1.0), Score(5000.0, 2.0, 1.0), TARGET))


def test_no_division_by_zero() -> None:
    """Where POT divided by zero: nothing lost, nothing gained."""
    for full in (Score(0.0, 1.0, 1.0), Score(0.0, 1.6, 1.0), Score(0.25, 1.0, 1.0), Score(-0.1, 0.5, 1.0)):
        for target in (TARGET, Target(accuracy_loss=0.0, speed_up=1.0)):
            assert math.isfinite(pot_loss(Score(0.02, 1.1, 0.5), full, target))


def test_target_is_met_with_accuracy_and_speed() -> None:
    target = Target(accuracy_loss=0.01, speed_up=1.3)
    assert target.met(Score(0.01, 1.3, 1.0))
    assert not target.met(Score(0.011, 1.3, 1.0))
    assert not target.met(Score(0.01, 1.29, 1.0))


def test_loss_is_a_share_of_the_baseline_and_paired_with_fp32() -> None:
    fp32 = {"a": np.array([[1.0], [1.0], [0.0], [1.0]])}
    budget = make_budget({"a": Accuracy()}, fp32, {"a": None})
    assert budget.losses({"a": np.array([[1.0], [0.0], [0.0], [1.0]])}) == {"a": pytest.approx(0.25 / 0.75)}
    # Of the first two samples one is lost, which FP32 has: half of them, of FP32's value on all.
    assert budget.losses({"a": np.array([[1.0], [0.0]])}) == {"a": pytest.approx(0.5 / 0.75)}
    given = make_budget({"a": Accuracy()}, fp32, {"a": 0.5})
    assert given.losses({"a": fp32["a"]}) == {"a": pytest.approx(-0.5)}


def test_lower_is_better_and_rows_that_are_no_mean() -> None:
    rows = {"e": np.array([[0.2], [0.4]]), "c": np.array([[1.0, 10.0], [0.0, 30.0]])}
    budget = make_budget({"e": ReferenceError(), "c": CharacterAccuracy()}, rows, {"e": 0.3, "c": None})
    losses = budget.losses({"e": np.array([[0.2], [0.7]]), "c": np.array([[1.0, 10.0], [2.0, 30.0]])})
    assert losses == {"e": pytest.approx(0.5), "c": pytest.approx((2 / 40) / (39 / 40))}


def test_no_share_of_nothing() -> None:
    with pytest.raises(UserError, match=r"^metric e is 0 for the FP32 model.*baseline_value"):
        make_budget({"e": ReferenceError()}, {"e": np.zeros((3, 1))}, {"e": None})
    with pytest.raises(UserError, match=r"^tune\.metrics: baseline_value of e: 0 is not allowed; expected a number"):
        make_budget({"e": ReferenceError()}, {"e": np.ones((3, 1))}, {"e": 0.0})
