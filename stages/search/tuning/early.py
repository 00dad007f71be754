"""When a candidate's evaluation may stop: its loss is beyond the budget, and more samples would hardly change that.

After each chunk of samples the loss so far is tested against the budget. The error that all looks together may make is
spent little by little (K. Lan, D. DeMets, Discrete sequential boundaries for clinical trials, Biometrika 70, 1983, with
Pocock's spending function, which leaves much for early looks); each look tests at what it adds, so that by Bonferroni's
inequality the sum bounds the error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from stages.search.problem import Problem
from stages.search.tuning.objective import Budget, make_budget

GROUPS = 40  # of the jackknife
FEWEST = 40  # samples before the first look: estimates from fewer are no estimates

_NORMAL = NormalDist()


@dataclass(frozen=True)
class BeyondBudget:
    """Give up on a candidate whose loss is beyond the budget (see `evaluator.Stop`).

    Attributes:
        baselines: Metrics of the budget, each with its baseline value (None: FP32's own).
        allowed: The relative loss that is allowed.
        error: Probability with which a candidate within the budget (on all positions) may be given up. It holds where the
            order of the positions is drawn at random.
        chunk: Samples between two looks.
    """

    baselines: tuple[tuple[str, float | None], ...]
    allowed: float
    error: float
    chunk: int = 50

    def hopeless(self, problem: Problem, rows: Mapping[str, NDArray[np.float64]], positions: Sequence[int]) -> bool:
        """Whether the rows [n, k] of the first n positions suffice to say that the loss is beyond the budget."""
        total, seen = len(positions), len(next(iter(rows.values())))
        if not FEWEST <= seen < total:
            return False
        budget = make_budget(
            problem.metrics, {name: problem.fp32[name][list(positions)] for name, _ in self.baselines}, dict(self.baselines)
        )
        before = max(0, seen - self.chunk)
        level = spent(seen / total, self.error) - (spent(before / total, self.error) if before >= FEWEST else 0.0)
        level /= len(self.baselines)
        return any(_beyond(budget, name, rows[name], self.allowed, level) for name, _ in self.baselines)


def _beyond(budget: Budget, name: str, rows: NDArray[np.float64], allowed: float, level: float) -> bool:
    """Whether the loss of the rows seen is beyond what is allowed, at this level of significance (one-sided)."""
    seen, total = len(rows), len(budget.fp32[name])
    loss = budget.metric_loss(name, rows, slice(0, seen))
    if loss <= allowed:
        return False
    groups = np.array_split(np.arange(seen), min(GROUPS, seen))
    left_out = np.array([_loss_without(budget, name, rows, group) for group in groups])
    count = len(groups)
    variance = (count - 1) / count * float(np.sum((left_out - left_out.mean()) ** 2))
    deviation = math.sqrt(variance * (1.0 - seen / total))  # of a finite population only the rest is unknown
    return loss - student_quantile(1.0 - level, count - 1) * deviation > allowed


def _loss_without(budget: Budget, name: str, rows: NDArray[np.float64], group: NDArray[np.intp]) -> float:
    kept = np.setdiff1d(np.arange(len(rows)), group, assume_unique=True)
    return budget.metric_loss(name, rows[kept], kept)


def spent(share: float, error: float) -> float:
    """How much of the error may have been spent when this share of all samples is seen (0 to 1)."""
    return error * math.log(1.0 + (math.e - 1.0) * share)


def student_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t distribution by its expansion around the normal's (Abramowitz and Stegun 26.7.5)."""
    z = _NORMAL.inv_cdf(min(probability, 1.0 - 1e-15))
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / freedom + second / freedom**2
