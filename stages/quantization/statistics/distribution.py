"""The distribution of a tensor's values: a few of each sample, counted in ranges that do not depend on the data.

The tails say where a range may end, and the counts what a step between two levels costs all the values inside it. The ranges
are eighths of powers of two, on either side of zero: counts of any samples can be added, and whole numbers add up to the same
in any order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PICKED = 128  # values of each sample and tensor
_MANTISSA_BITS = 3  # eighths of a power of two
_SHIFT = 23 - _MANTISSA_BITS  # of the bits of an f32
_BINS = 2 ** (32 - _SHIFT)
_GOLDEN = (5**0.5 - 1) / 2

Counts = NDArray[np.int64]  # [2, n]: ranges that hold values, and how many


def picked_places(size: int) -> NDArray[np.int64]:
    """Where in a flat tensor of `size` values some are picked: spread evenly, in step with no axis."""
    if size <= PICKED:
        return np.arange(size, dtype=np.int64)
    return np.unique(np.floor((np.arange(PICKED) * _GOLDEN % 1.0) * size).astype(np.int64))


def counted(values: NDArray[np.floating]) -> NDArray[np.int64]:
    """How many of the values lie in each range."""
    bits = (np.ascontiguousarray(values, np.float32) + np.float32(0)).view(np.uint32)  # -0 + 0 = 0
    return np.bincount(bits.reshape(-1) >> _SHIFT, minlength=_BINS)


def sparse(counts: NDArray[np.int64]) -> Counts:
    """The ranges that hold values."""
    places = np.flatnonzero(counts)
    return np.stack([places, counts[places]])


def representatives(counts: Counts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A value for each range that holds finite ones, and the share of all values that it stands for."""
    low = (counts[0].astype(np.uint32) << np.uint32(_SHIFT)).view(np.float32).astype(np.float64)
    finite = np.isfinite(low)
    low, number = low[finite], counts[1][finite].astype(np.float64)
    # The middle of the range; what begins at zero counts as zero.
    exponent = np.frexp(low)[1]
    middle = low + np.sign(low) * np.ldexp(0.5, exponent - 1 - _MANTISSA_BITS)
    return np.where(np.abs(low) > np.finfo(np.float32).tiny, middle, 0.0), number / max(float(number.sum()), 1.0)
