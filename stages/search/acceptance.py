"""Whether a model keeps an accuracy budget on samples that nobody has seen, although it was chosen because it does on these.

The best of many models on some samples is partly the luckiest one on them, so the drop of a chosen model flatters, and so does an
interval that knows of this model only. Here a bound on the drop holds for all models of a search at once, whichever of them is chosen:
the critical value is that of the largest of all their errors, by a multiplier bootstrap (V. Chernozhukov, D. Chetverikov, K. Kato, Gaussian
approximations and multiplier bootstrap for maxima of sums of high-dimensional random vectors, Annals of Statistics 41, 2013).
Variants of one model err on the same samples, so sixty of them cost far less than Bonferroni's inequality has it. Models that are surely
beyond the budget cannot be accepted by mistake, and do not count (J. Romano, A. Shaikh, M. Wolf, A practical two-step method for testing
moment inequalities, Econometrica 82, 2014).

Cross-fitting over folds would be the other way. It judges a way of choosing, not the model that is chosen in the end, needs a search per
fold, and has fewer samples for each choice; here every sample serves both purposes, and nothing is evaluated again.

What it assumes: validation samples are drawn like those to come, and independently of each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.runtime.metrics import Metric

POINT, CONFIDENT = "point", "confident"
RESAMPLES = 4000  # a half of them mirrors the other one
MOST_DRAWN = 1000  # samples, or groups of them
GROUPS = 40  # of the jackknife, for metrics that are no mean over samples
SCREENED = 0.1  # share of the allowed error that may be spent on leaving out models that are surely beyond the budget
ROUNDING = 1e-9
UNKNOWN = 1e100  # a loss where the metric is not defined on a part of the samples
MOST_SAMPLES = 10**9

Rows = Mapping[str, NDArray[np.float64]]


class Criterion(NamedTuple):
    """One metric's part of a budget.

    Attributes:
        metric: The metric.
        fp32: Per-sample rows of the floating-point model; None where the baseline is a number of the user's.
        baseline: What drops are counted from.
        limit: The drop that is allowed, in the metric's own unit.
    """

    metric: Metric
    fp32: NDArray[np.float64] | None
    baseline: float
    limit: float


@dataclass
class Family:
    """All models among which a search chooses.

    Attributes:
        criteria: The budget, by metric.
        confidence: With which bounds hold for all models together.
        seed: Of the bootstrap.
    """

    criteria: Mapping[str, Criterion]
    confidence: float = 0.95
    seed: int = 0
    _losses: dict[str, list[NDArray[np.float64]]] = field(default_factory=dict)  # by model, of each criterion
    _samples: int = 0
    _critical: float | None = None

    def __len__(self) -> int:
        return len(self._losses)

    def __iter__(self) -> Iterator[str]:
        return iter(self._losses)

    def __contains__(self, key: object) -> bool:
        return key in self._losses

    def add(self, key: str, rows: Rows) -> None:
        """Make a model known by its rows on all samples; where some of them were not run, those of the model that it was made from."""
        self._losses[key] = [losses(criterion, rows[name]) for name, criterion in self.criteria.items()]
        self._samples = max(len(rows[name]) for name in self.criteria)
        self._critical = None

    def bounds(self, key: str) -> dict[str, float]:
        """By metric, the drop that a model has at most, at the family's confidence."""
        critical = self._critical_value()
        return {
            name: float(values.mean() + critical * _standard_error(values))
            for name, values in zip(self.criteria, self._losses[key], strict=True)
        }

    def excess(self, key: str) -> float:
        """How far the bound that is worst off is beyond its limit, in units of the limit; at most 0: the budget is kept."""
        found = []
        for name, bound in self.bounds(key).items():
            _, _, baseline, limit = self.criteria[name]
            over = bound - limit
            found.append(over / (abs(limit) or abs(baseline) or 1.0) if over > ROUNDING * max(abs(baseline), limit) else min(over, 0.0))
        return max(found)

    def samples_needed(self, key: str) -> int | None:
        """Roughly how many samples like these would make sure of a model; None where no number would, as it drops by more than allowed."""
        critical, needed = self._critical_value(), 0.0
        for criterion, values in zip(self.criteria.values(), self._losses[key], strict=True):
            if len(values) < 3:
                return None  # not defined
            spare = criterion.limit - float(values[:-2].mean())
            if spare <= 0:
                return None
            needed = max(needed, self._samples * (critical * _standard_error(values) / spare) ** 2)
        return _rounded_up(needed) if needed < MOST_SAMPLES else None

    def _critical_value(self) -> float:
        if self._critical is None:
            columns = [values for found in self._losses.values() for values in found]
            limits = [criterion.limit for _ in self._losses for criterion in self.criteria.values()]
            self._critical = critical_value(columns, limits, self.confidence, self.seed)
        return self._critical


def certainty_json(family: Family, key: str, *, sure: bool) -> dict[str, Any]:
    """What a result says of the model that was chosen, as far as samples that nobody has seen are concerned."""
    return {
        "holds": sure,
        "confidence": family.confidence,
        "models": len(family),
        "bounds": {name: float(f"{bound:.8g}") for name, bound in family.bounds(key).items()},
        "samples": None if sure else family.samples_needed(key),
    }


def replaced_rows(rows: Rows, places: NDArray[np.intp], new: Rows) -> dict[str, NDArray[np.float64]]:
    """Rows of all samples, with those at some places replaced."""
    result = {name: values.copy() for name, values in rows.items()}
    for name, values in result.items():
        values[places] = new[name][: len(places)]
    return result


def losses(criterion: Criterion, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each sample contributes to the drop of a model, whose mean is the drop, and two samples more.

    Of those two the model loses one wholly and gains the other one: what did not occur in n samples may occur in the next (D. Bonett,
    R. Price, Adjusted Wald confidence interval for a difference of binomial proportions based on paired data, Journal of Educational
    and Behavioral Statistics 37, 2012). Metrics that are no mean over samples contribute by groups (jackknife pseudo-values).
    """
    metric, fp32, baseline, _ = criterion
    sign = 1.0 if metric.higher_is_better else -1.0
    score = metric.score(rows)
    if math.isclose(sign * metric.value(rows), float(np.mean(score)), rel_tol=1e-9, abs_tol=1e-12):
        found = np.asarray((sign * baseline if fp32 is None else metric.score(fp32)) - score, np.float64)
    else:
        found = _pseudo_values(metric, fp32, baseline, rows)
    if not np.all(np.isfinite(found)):
        return np.array([UNKNOWN, -UNKNOWN])
    largest = float(np.abs(found).max())
    if np.all((score >= 0) & (score <= 1)):
        largest = max(largest, len(found) / len(rows))  # what one sample can make of a share
    return np.append(found, [largest, -largest])


def critical_value(columns: list[NDArray[np.float64]], limits: list[float], confidence: float, seed: int) -> float:
    """How many standard errors a bound lies above each column's mean, so that all bounds hold together.

    Args:
        columns: Each model's losses of each metric; columns of the same length are drawn together.
        limits: The limit of each.
        confidence: With which they hold.
        seed: Of the draws.
    """
    allowed = 1.0 - confidence
    known = np.array([[values.mean(), _standard_error(values)] for values in columns])
    surely = _largest_of(columns, 1.0 - SCREENED * allowed, seed)
    lowest = known[:, 0] - surely * known[:, 1]
    left = [values for values, low, limit in zip(columns, lowest, limits, strict=True) if low <= limit] or columns
    return _largest_of(left, 1.0 - (1.0 - SCREENED) * allowed, seed)


def _largest_of(columns: list[NDArray[np.float64]], confidence: float, seed: int) -> float:
    """The quantile of the largest standardised error of any column; at least that of one alone."""
    alone = NormalDist().inv_cdf(confidence)
    if len(columns) == 1:
        return alone
    largest = np.full(RESAMPLES, -np.inf)
    for length in sorted({len(values) for values in columns}):
        matrix = _in_groups(np.stack([values - values.mean() for values in columns if len(values) == length], axis=1))
        spread = np.sqrt(np.mean(matrix**2, axis=0))
        matrix = matrix[:, spread > 0] / spread[spread > 0]
        if matrix.size:
            errors = _draws(seed, len(matrix)) @ matrix.astype(np.float32) / math.sqrt(len(matrix))
            largest = np.maximum(largest, np.concatenate([errors.max(axis=1), -errors.min(axis=1)]))
    return round(max(alone, float(np.quantile(largest, confidence))), 4) if np.all(np.isfinite(largest)) else alone


def _in_groups(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of samples where there are many: their errors are those of the samples, in fewer numbers."""
    if len(matrix) <= MOST_DRAWN:
        return matrix
    return np.add.reduceat(matrix, np.linspace(0, len(matrix), MOST_DRAWN, endpoint=False).astype(np.intp), axis=0)


@lru_cache(maxsize=2)
def _draws(seed: int, count: int) -> NDArray[np.float32]:
    return np.random.default_rng([11, seed]).standard_normal((RESAMPLES // 2, count), np.float32)


def _standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std() / math.sqrt(len(values)))


def _pseudo_values(metric: Metric, fp32: NDArray[np.float64] | None, baseline: float, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Jackknife pseudo-values of the drop, one for each group of samples; their mean is the drop of all samples."""
    sign = 1.0 if metric.higher_is_better else -1.0

    def drop(chosen: NDArray[np.intp]) -> float:
        return sign * ((baseline if fp32 is None else metric.value(fp32[chosen])) - metric.value(rows[chosen]))

    everything = np.arange(len(rows))
    count = min(GROUPS, len(rows))
    whole = drop(everything)
    if count < 2:
        return np.array([whole])
    without = np.array([drop(everything[everything % count != group]) for group in range(count)])
    found = count * whole - (count - 1) * without
    return found - found.mean() + whole


def _rounded_up(count: float) -> int:
    """To two significant digits: more nobody knows."""
    unit = 10 ** max(0, int(math.log10(max(count, 1.0))) - 1)
    return math.ceil(count / unit) * unit
