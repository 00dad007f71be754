"""How sure a measured accuracy drop is: intervals from the per-sample values of two models on the same samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000

Value = Callable[[NDArray[np.float64]], float]


class Drop(NamedTuple):
    """How much worse a model is than its baseline; positive is worse, whatever the metric's direction.

    Attributes:
        value: Difference of the two metric values, in the metric's own unit.
        low: Lower end of the confidence interval; None where the metric is undefined on some resamples.
        high: Upper end of the confidence interval, or None like `low`.
        relative: `value` as a share of the baseline's magnitude; None for a baseline of zero.
    """

    value: float
    low: float | None
    high: float | None
    relative: float | None


def paired_drop(
    value: Value,
    baseline: NDArray[np.float64],
    candidate: NDArray[np.float64],
    *,
    higher_is_better: bool,
    confidence: float,
    generator: np.random.Generator,
    resamples: int = RESAMPLES,
) -> Drop:
    """The drop from baseline to candidate with the percentile interval of a paired bootstrap.

    Every resample draws samples, not single measurements, so both models are judged on the same draw and what they have
    in common cancels out (B. Efron, R. Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13). It holds
    for metrics that are no mean of samples, such as mean IoU, because `value` is applied to the resampled rows. It cannot
    see what the samples do not show: where the models agree on every sample the interval has no width.

    Args:
        value: The metric's value of per-sample rows `[N, k]`.
        baseline: Per-sample rows of the baseline, `[N, k]`.
        candidate: Per-sample rows of the other model for the same samples in the same order, `[N, k]`.
        higher_is_better: The metric's direction.
        confidence: Probability that the interval should cover the true drop, e.g. 0.95.
        generator: Source of the draws.
        resamples: Number of draws.
    """
    if baseline.shape != candidate.shape:
        raise ValueError(f"per-sample values of {baseline.shape} and {candidate.shape} are not paired")
    sign = 1.0 if higher_is_better else -1.0
    reference = value(baseline)
    drop = sign * (reference - value(candidate))
    relative = drop / abs(reference) if reference else None
    count = len(baseline)
    draws = np.empty(resamples)
    for draw in range(resamples):
        rows = generator.integers(0, count, count)
        draws[draw] = sign * (value(baseline[rows]) - value(candidate[rows]))
    if not np.all(np.isfinite(draws)):
        return Drop(drop, None, None, relative)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Drop(drop, float(low), float(high), relative)
