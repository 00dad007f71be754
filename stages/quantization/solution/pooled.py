"""The borders of activations that come of all samples together: what of the statistics they need, and what they make of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.common.errors import UserError
from stages.configuration.target_device import ACTIVATIONS
from stages.quantization.placement.plan import Border, Quantizer, TensorName
from stages.quantization.solution.least_error import (
    UNKNOWN,
    Body,
    Tail,
    best_magnitude,
    least_divergence,
    least_error,
    read_tail,
    share_border,
)
from stages.quantization.solution.ranges import SIGN_TOLERANCE
from stages.quantization.solution.sample_error import largest_sqnr
from stages.quantization.statistics.estimators import LARGEST_SQNR, LEAST_ERROR, PERCENTILE
from stages.quantization.statistics.store import Statistics
from stages.quantization.statistics.tails import absolute_tail

Array = NDArray[np.float64]

SEARCHES = {LEAST_ERROR: least_error, LARGEST_SQNR: largest_sqnr}
CLIPPED = 1e-4  # of all values: 8-bit ranges of least error cut off about as many of a normal distribution, and hardly ever more


def pooled_borders(quantizer: Quantizer, statistics: Statistics, low: Array | None, high: Array | None) -> tuple[Array, Array]:
    """The borders of a range for a whole tensor. low, high: what is known of them already; None: asked for."""
    scheme = quantizer.scheme
    lowest, highest, size = tails_of(quantizer, statistics)
    body, levels = body_of(quantizer, statistics), scheme.levels(ACTIVATIONS)
    if scheme.symmetric:
        low = np.asarray(np.nanmin(lowest)) if low is None else low  # for the sign alone
        if high is not None:
            return low, high
        signed = scheme.signed or bool(np.min(low) < -SIGN_TOLERANCE * float(np.nanmax(highest)))
        tail = read_tail(absolute_tail(lowest, highest, size), size)
        return low, np.asarray(_magnitude(tail, quantizer.estimator.max, body, levels, signed=signed))
    tails = read_tail(highest, size), read_tail(-lowest, size)
    positive, negative = (Body(np.maximum(sign * body.values, 0.0), body.shares) for sign in (1, -1))
    upper = _candidates(tails[0], quantizer.estimator.max, high, positive, levels)
    lower = _candidates(tails[1], quantizer.estimator.min, None if low is None else -low, negative, levels)
    types = (quantizer.estimator.min.type, quantizer.estimator.max.type)
    borders = (largest_sqnr if LARGEST_SQNR in types else least_error)(upper, lower, tails, body, levels)
    return np.asarray(-borders[1]), np.asarray(borders[0])


def body_of(quantizer: Quantizer, statistics: Statistics) -> Body:
    """What lies inside of the quantized tensor."""
    known = statistics.body(quantizer.source)
    return UNKNOWN if known is None else Body(*known)


def tails_of(quantizer: Quantizer, statistics: Statistics) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Of the samples for which the tensor is not empty."""
    tensor = quantizer.source
    try:
        lowest, highest, size = statistics.tails(tensor)
    except KeyError:
        raise UserError(
            f"statistics hold nothing of {tensor.name} (output {tensor.port}); run `dvc repro --force collect_statistics`"
        ) from None
    samples = np.flatnonzero(size)
    infinite = samples[~(np.isfinite(lowest[samples, 0]) & np.isfinite(highest[samples, 0]))]
    if len(infinite) or not len(samples):
        raise UserError(unusable(tensor, infinite))
    return lowest[samples], highest[samples], size[samples]


def unusable(tensor: TensorName, infinite: NDArray[np.integer]) -> str:
    """What is wrong with a tensor that has no range. infinite: for which samples it takes infinite values; none: it is empty for all."""
    what = f"takes values that are not finite for calibration sample {infinite[0]}" if len(infinite) else "is empty for all samples"
    return (
        f"{tensor.name} (output {tensor.port}) {what}; quantization.ignored.scope can leave the operations that read it in floating point"
    )


def _magnitude(tail: Tail, border: Border, body: Body, levels: int, *, signed: bool) -> float:
    if border.type in SEARCHES:
        return best_magnitude(SEARCHES[border.type], tail, body, levels, signed=signed)
    return _alone(tail, border, body, levels // 2 if signed else levels)


def _candidates(tail: Tail, border: Border, known: Array | None, body: Body, levels: int) -> Array:
    """Where a side of an asymmetric range may end, as magnitudes."""
    if known is not None:
        return np.maximum(known.reshape(1), 0.0)
    return tail.candidates() if border.type in SEARCHES else np.array([_alone(tail, border, body, levels // 2)])


def _alone(tail: Tail, border: Border, body: Body, levels: int) -> float:
    """The border of a side that does not depend on the other one."""
    if border.type == PERCENTILE:
        return share_border(tail, border.outlier_prob or 0.0)
    return least_divergence(tail, body, levels)


def unclipped(quantizer: Quantizer, border: Border, statistics: Statistics, value: Array, *, upper: bool) -> Array:
    """A mean of the samples' extremes, or what is wider: the border beyond which CLIPPED of all values lie.

    Of samples with many values the mean cuts off fewer. Of few it does not: half of ten samples exceed the mean of their maxima,
    each with one of its few values, and each of these errors is larger than those of rounding.
    """
    lowest, highest, size = tails_of(quantizer, statistics)
    if not np.any(size * CLIPPED < 1.0):
        return value
    tails = absolute_tail(lowest, highest, size) if border.type == "abs_max" else highest if upper else -lowest
    widest = share_border(read_tail(tails, size), CLIPPED)
    return np.maximum(value, widest) if upper else np.minimum(value, -widest)
