"""Borders that a tensor's distribution asks for: of least squared error, of least divergence, or that cut off a share of all values.

All samples count as one. Of each its outermost values are known exactly (`statistics.tails`); further in, where they end, values
are taken to go on becoming more numerous as in the tails of all samples: exponentially. 8-bit ranges of least error cut off about
one value in a hundred thousand, and so hardly ever end further in than the tails do.

The error of what lies inside a range follows from the step between two levels: its square / 12, or the whole square of values
that are rounded to zero. How many those are is known of some values of each sample (`statistics.distribution`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.quantization.solution.ranges import Range, fake_quantize

Array = NDArray[np.float64]

CANDIDATES = 128  # borders that are tried for one side of a range
NARROWEST = 1e-3  # share of the widest border: nothing narrower is tried
STEPS = 64  # step sizes whose error is computed; in between it is interpolated
FINE = 2048  # parts of the widest range in which values are counted for their divergence
ALMOST_NONE = 1e-7  # the share that stands for none: its logarithm must be a number
TINY = 1e-60  # for what must not be zero
FURTHEST = 50.0  # in units of a tail's decay: further in than this nothing is guessed


class Body(NamedTuple):
    """Values that stand for the whole tensor, and the share of each."""

    values: Array
    shares: Array


UNKNOWN = Body(np.array([np.inf]), np.array([1.0]))  # no value is rounded to zero


@dataclass(frozen=True)
class Tail:
    """One side of a tensor in all samples, as magnitudes.

    Attributes:
        known: What the samples' tails hold, from the highest on.
        owners: Which sample each of these values is of.
        ends: [N], the innermost value that a sample's tail holds.
        counts: [N], how many values it holds.
        sizes: [N], how many values the sample has.
        decay: How far beyond its end, as a share of it, a tail goes on average.
    """

    known: Array
    owners: NDArray[np.int64]
    ends: Array
    counts: Array
    sizes: Array
    decay: float

    @property
    def widest(self) -> float:
        """The highest value of all samples, or zero."""
        return max(float(self.known[0]), 0.0)

    def candidates(self) -> Array:
        """Borders to choose among, from the widest on: down to where half of the tails end."""
        narrowest = max(float(np.median(self.ends)), self.widest * NARROWEST)
        return np.geomspace(self.widest, narrowest, CANDIDATES) if 0 < narrowest < self.widest else np.array([self.widest])

    def excess(self, borders: Array) -> tuple[Array, Array]:
        """How many values of all samples lie beyond each border, and the sum of squares of how far."""
        sums, squares = (np.concatenate([[0.0], np.cumsum(values)]) for values in (self.known, self.known**2))
        places = np.searchsorted(-self.known, -borders)  # so many are higher
        error = squares[places] - 2 * borders * sums[places] + borders**2 * places
        hidden = self._hidden(borders)
        return places + hidden[0].sum(axis=0), np.maximum(error, 0.0) + hidden[1].sum(axis=0)

    def excess_by_sample(self, borders: Array) -> Array:
        """The sum of squares [N, borders] of how far a sample's values lie beyond each border; borders from the widest on."""
        samples, count = len(self.ends), len(borders)
        # The widest border that a value lies beyond; it lies beyond all further in as well.
        first = np.searchsorted(-borders, -self.known, side="right")
        places = (self.owners * (count + 1) + first).astype(np.int64)
        size = samples * (count + 1)
        weights = (np.ones_like(self.known), self.known, self.known**2)
        counts, sums, squares = (
            np.cumsum(np.bincount(places, values, size).reshape(samples, count + 1)[:, :count], axis=1) for values in weights
        )
        return np.maximum(squares - 2 * borders * sums + borders**2 * counts, 0.0) + self._hidden(borders)[1]

    def _hidden(self, borders: Array) -> tuple[Array, Array]:
        """How many values [N, borders] lie beyond each border that the tails do not hold, as they end above it, and their squares."""
        depth = np.maximum(self.ends[:, None] - borders, 0.0)  # [N, borders]
        left = (self.sizes - self.counts)[:, None]
        decay = np.maximum(self.decay * np.abs(self.ends), TINY)[:, None]
        reach = np.minimum(depth / decay, FURTHEST)
        growth, held = np.exp(reach), self.counts[:, None]
        count = np.minimum(held * (growth - 1), left)
        # The integral over the depth x of x^2 times the density, held / decay * exp(reach - x / decay).
        error = np.minimum(held * decay**2 * (2 * growth - reach * reach - 2 * reach - 2), left * depth**2)
        return count, np.maximum(error, 0.0)


def read_tail(tails: NDArray[np.floating], sizes: NDArray[np.integer]) -> Tail:
    """A side of a tensor from its samples' tails [N, k], from the extreme inwards, upper ones as they are and lower ones negated.

    NaN in the tails stands for values that a sample does not have.
    """
    values = tails.astype(np.float64)
    held = np.isfinite(values)
    counts = held.sum(axis=1)
    ends = np.take_along_axis(values, np.maximum(counts - 1, 0)[:, None], 1)[:, 0]
    beyond = np.where(held, values - ends[:, None], 0.0).sum(axis=1) / np.maximum(counts - 1, 1)
    magnitude = float(np.abs(ends).sum())
    owners = np.nonzero(held)[0]
    order = np.argsort(-values[held], kind="stable")
    decay = float(beyond.sum()) / magnitude if magnitude else 0.0
    return Tail(values[held][order], owners[order], ends, counts.astype(np.float64), sizes.astype(np.float64), decay)


# What finds two borders among candidates for each: `least_error`, or `sample_error.largest_sqnr`.
Search = Callable[[Array, Array, Sequence[Tail], Body, int], tuple[float, float]]


def rounding_error(body: Body, steps: Array) -> Array:
    """The mean squared error of rounding the values inside a range, for each distance between two levels."""
    squares = np.square(body.values)
    below = np.abs(body.values)[None] < steps[:, None] / 2
    return np.asarray(np.where(below, squares[None], np.square(steps)[:, None] / 12) @ body.shares)


def least_error(upper: Array, lower: Array, tails: Sequence[Tail], body: Body, levels: int) -> tuple[float, float]:
    """The two borders, of the candidates for each, between which `levels` levels make the least squared error.

    Args:
        upper: Candidates, magnitudes.
        lower: The same for the other side.
        tails: Of the upper side, and of the lower one where there is one.
        body: What lies inside.
        levels: Of the range.
    """
    total = float(tails[0].sizes.sum())
    clipped = tails[0].excess(upper)[1][:, None]
    if len(tails) > 1:
        clipped = clipped + tails[1].excess(lower)[1]
    steps = np.maximum((upper[:, None] + lower) / (levels - 1), TINY)
    tried = np.geomspace(steps.min(), steps.max(), STEPS)
    # In units of the step's square the error changes little.
    share = np.interp(np.log(steps), np.log(tried), rounding_error(body, tried) / np.square(tried))
    best = np.unravel_index(np.argmin(clipped + total * share * np.square(steps)), steps.shape)
    return float(upper[best[0]]), float(lower[best[1]])


def best_magnitude(search: Search, tail: Tail, body: Body, levels: int, *, signed: bool) -> float:
    """The border of a range that begins at zero, or is symmetric around it (signed), for the tail of magnitudes."""
    # From -x to x there are as many steps as from zero to 2 x.
    return search(tail.candidates(), np.zeros(1), [tail], body, levels // 2 + 1 if signed else levels)[0]


def share_border(tail: Tail, probability: float) -> float:
    """The border beyond which that share of the values of all samples lies, or the widest candidate with less."""
    candidates = tail.candidates()
    count, _ = tail.excess(candidates)
    return float(candidates[max(int(np.searchsorted(count, probability * tail.sizes.sum(), side="right")) - 1, 0)])


def least_divergence(tail: Tail, body: Body, levels: int) -> float:
    """The border for which the distribution of magnitudes loses least information (Migacz 2017; ONNX Runtime's entropy).

    That is the divergence between the distribution, with what is cut off at its end, and the same with equal chances inside
    each of the steps of `levels` levels.
    """
    magnitudes = np.abs(body.values)
    if not tail.widest or not np.isfinite(magnitudes).all():
        return tail.widest
    order = np.argsort(magnitudes, kind="stable")
    middles = np.cumsum(body.shares[order]) - body.shares[order] / 2
    edges = np.linspace(0.0, tail.widest, FINE + 1)
    reached = np.interp(edges, magnitudes[order], middles, left=0.0, right=1.0)
    reached[0], reached[-1] = 0.0, 1.0
    shares = np.diff(reached)
    return float(edges[min(range(levels, FINE + 1, FINE // CANDIDATES), key=lambda count: _divergence(shares, count, levels))])


def _divergence(shares: Array, count: int, levels: int) -> float:
    """Kullback-Leibler divergence of the first `count` shares from what `levels` levels make of them."""
    original = shares[:count].copy()
    starts = np.arange(levels) * count // levels
    sizes = np.diff(np.append(starts, count))
    quantized = np.repeat(np.add.reduceat(original, starts) / np.maximum(np.add.reduceat((original > 0).astype(float), starts), 1), sizes)
    original[-1] += shares[count:].sum()
    held = original > 0
    quantized = np.maximum(np.where(shares[:count] > 0, quantized, 0.0), ALMOST_NONE)
    return float(np.sum(original[held] * np.log(original[held] / (quantized[held] / quantized.sum()))))


# ------------------------------------------------------------------------------------------------------------- weights


SHARES = np.linspace(1.0, 0.5, 26)  # of the widest range, that are tried on weights
BLOCK = 2**16  # values that are quantized at once: they stay in the processor's cache


def weight_share(values: NDArray[np.floating], borders: Range, levels: int) -> Array:
    """The share [C] of each range for which quantized weights [C, n] differ least from `values`, by their squares."""
    low, high = (np.broadcast_to(np.reshape(border, (-1, 1)), (len(values), 1)) for border in borders)
    rows = max(1, BLOCK // max(values.shape[1], 1))
    best = np.ones(len(values))
    for start in range(0, len(values), rows):
        block = values[start : start + rows].astype(np.float32, copy=False)
        errors = [_error(block, low[start : start + rows] * share, high[start : start + rows] * share, levels) for share in SHARES]
        best[start : start + rows] = SHARES[np.argmin(errors, axis=0)]
    return best


def _error(values: NDArray[np.floating], low: Array, high: Array, levels: int) -> Array:
    difference = fake_quantize(values, Range(low, high), levels)
    difference -= values
    return np.einsum("cn,cn->c", difference, difference, dtype=np.float64)
