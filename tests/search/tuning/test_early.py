"""Stopping early: how often wrongly, how often rightly."""

from __future__ import annotations

import numpy as np
import pytest

from stages.runtime.metrics import Metric
from stages.search.tuning.early import FEWEST, BeyondBudget, spent, student_quantile

COUNT = 1000


class Problem:
    """As much of a problem as the rule looks at."""

    def __init__(self, fp32: np.ndarray) -> None:
        self.metrics = {"m": Metric()}
        self.fp32 = {"m": fp32}


def stopped_at(lost: float, error: float, seed: int, chunk: int = 50) -> int:
    """When a candidate that loses this share of FP32's right answers is given up, with as many changes either way besides."""
    generator = np.random.default_rng(seed)
    fp32 = np.zeros(COUNT)
    fp32[:900] = 1
    other = fp32.copy()
    other[generator.choice(900, round(900 * lost) + 20, replace=False)] = 0
    other[900 + generator.choice(100, 20, replace=False)] = 1
    positions = generator.permutation(COUNT)
    rule = BeyondBudget((("m", None),), 0.01, error, chunk)
    problem = Problem(fp32[:, None])
    for seen in range(chunk, COUNT, chunk):
        if rule.hopeless(problem, {"m": other[positions[:seen], None]}, positions.tolist()):  # type: ignore[arg-type]
            return seen
    return COUNT


def test_rarely_wrong() -> None:
    """A candidate exactly at the budget is given up with at most the stated probability."""
    stopped = [stopped_at(0.01, 0.1, seed) < COUNT for seed in range(80)]
    # Binomial: more than 17 of 80 would happen once in a thousand times if the probability were 0.1.
    assert sum(stopped) <= 17


def test_hopeless_ones_are_given_up_early() -> None:
    half = [stopped_at(0.06, 0.01, seed) for seed in range(20)]
    assert max(half) < COUNT
    assert np.mean(half) < COUNT / 2
    assert max(stopped_at(0.5, 0.01, seed) for seed in range(20)) <= 100


def test_error_decides_how_early() -> None:
    careful, bold = ([stopped_at(0.03, error, seed) for seed in range(15)] for error in (0.001, 0.2))
    assert np.mean(bold) < np.mean(careful)


def test_budget_decides() -> None:
    rule = BeyondBudget((("m", None),), 0.5, 0.2)
    problem, rows = Problem(np.ones((COUNT, 1))), {"m": np.r_[np.ones((60, 1)), np.zeros((40, 1))]}
    assert not rule.hopeless(problem, rows, range(COUNT))  # type: ignore[arg-type]
    assert BeyondBudget((("m", None),), 0.1, 0.2).hopeless(problem, rows, range(COUNT))  # type: ignore[arg-type]
    assert BeyondBudget((("m", 2.0),), 0.5, 0.2).hopeless(problem, rows, range(COUNT))  # type: ignore[arg-type]


def test_no_verdict_on_too_few_samples_or_none_left() -> None:
    rule, problem = BeyondBudget((("m", None),), 0.01, 0.4), Problem(np.ones((COUNT, 1)))
    assert not rule.hopeless(problem, {"m": np.zeros((FEWEST - 1, 1))}, range(COUNT))  # type: ignore[arg-type]
    assert rule.hopeless(problem, {"m": np.zeros((FEWEST, 1))}, range(COUNT))  # type: ignore[arg-type]
    assert not rule.hopeless(problem, {"m": np.zeros((COUNT, 1))}, range(COUNT))  # type: ignore[arg-type]


def test_error_is_spent_in_full_and_not_before() -> None:
    shares = [spent(share, 0.05) for share in np.linspace(0, 1, 11)]
    assert shares[0] == 0
    assert shares[-1] == pytest.approx(0.05)
    assert shares == sorted(shares)


def test_student_quantiles() -> None:
    # Tables of Student's t distribution.
    assert student_quantile(0.975, 10) == pytest.approx(2.228, abs=0.01)
    assert student_quantile(0.995, 39) == pytest.approx(2.708, abs=0.003)
