"""Borders for which the samples' signal-to-quantization-noise ratios are largest on average, in decibels.

A sum of squared errors (`least_error`) is made by the loudest samples: what it takes for their few largest values, all the others pay
for with wider steps. Here every sample counts by how many times larger or smaller its own error becomes, so a quiet one as much as a
loud one. What a sample's signal is need not be known: it is the same for all borders.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stages.quantization.solution.least_error import TINY, Body, Tail, rounding_error

Array = NDArray[np.float64]

DECIBELS = 10.0 / np.log(10.0)  # per unit of a natural logarithm of power
ROUNDS = 8  # of improving one border for the other; two or three are enough


def mean_error(excess: Array, sizes: Array, rounding: Array) -> Array:
    """The mean over samples of the error's power in decibels, for each border.

    Args:
        excess: [N, borders], sum of squares of what a sample's values lie beyond each border.
        sizes: [N], how many values the sample has.
        rounding: [borders], mean squared error of what lies inside.
    """
    return np.asarray(DECIBELS * np.log(np.maximum(excess / sizes[:, None] + rounding, TINY)).mean(axis=0))


def range_error(upper: float, lower: float, tails: Sequence[Tail], body: Body, levels: int) -> float:
    """The mean over samples of the error's power in decibels between two borders, as magnitudes; tails: upper, lower."""
    excess = tails[0].excess_by_sample(np.array([upper])) + tails[1].excess_by_sample(np.array([lower]))
    step = max((upper + lower) / (levels - 1), TINY)
    return float(mean_error(excess, tails[0].sizes, rounding_error(body, np.array([step])))[0])


def largest_sqnr(upper: Array, lower: Array, tails: Sequence[Tail], body: Body, levels: int) -> tuple[float, float]:
    """The two borders, of the candidates for each (from the widest on), with the least mean error in decibels.

    One is improved for the other in turns, so the pair is the best of its row and of its column.

    Args:
        upper: Candidates, magnitudes.
        lower: The same for the other side.
        tails: Of the upper side, and of the lower one where there is one.
        body: What lies inside.
        levels: Of the range.
    """
    sizes = tails[0].sizes
    above = tails[0].excess_by_sample(upper)
    below = tails[1].excess_by_sample(lower) if len(tails) > 1 else np.zeros((len(sizes), len(lower)))

    def best(excess: Array, widths: Array) -> int:
        return int(np.argmin(mean_error(excess, sizes, rounding_error(body, np.maximum(widths / (levels - 1), TINY)))))

    high, low = 0, 0
    for _ in range(ROUNDS):
        before = high, low
        high = best(above + below[:, low : low + 1], upper + lower[low])
        low = best(below + above[:, high : high + 1], lower + upper[high])
        if (high, low) == before:
            break
    return float(upper[high]), float(lower[low])
