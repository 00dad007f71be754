"""Range estimators: which statistic of a sample, how samples are combined, and the defaults per scheme.

The tables follow POT 2023.3.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from stages.configuration import schema
from stages.configuration.target_device import ACTIVATIONS, Scheme
from stages.quantization.placement.plan import Border, Estimator

QUANTILE_TYPES = frozenset({"quantile", "abs_quantile"})
SHARE_TYPES = QUANTILE_TYPES | {"percentile"}  # what outlier_prob is for
# What all samples together are asked for, rather than each: no aggregator combines them.
LEAST_ERROR, PERCENTILE, LEAST_DIVERGENCE = "histogram", "percentile", "entropy"  # NNCF's and ONNX Runtime's names
LARGEST_SQNR = "sqnr"
POOLED_TYPES = frozenset({LEAST_ERROR, PERCENTILE, LEAST_DIVERGENCE, LARGEST_SQNR})
_PRESET_TYPES = {"mse": LEAST_ERROR, "sqnr": LARGEST_SQNR}
UNCLIPPED_MEAN = "mean_unclipped"
DEFAULT_OUTLIER_PROB = 1e-4

Array = NDArray[np.float64]

# (per channel, symmetric) -> borders. A symmetric range needs its lower border only for the sign, hence per tensor.
_ACTIVATION_DEFAULTS = {
    (False, True): Estimator(Border("min", aggregator="min"), Border("abs_max", aggregator="mean")),
    (False, False): Estimator(Border("min", aggregator="mean"), Border("max", aggregator="mean")),
    (True, True): Estimator(Border("min", aggregator="min", granularity="pertensor"), Border("abs_max", aggregator="max")),
    (True, False): Estimator(Border("min", aggregator="min"), Border("max", aggregator="max")),
}
_WEIGHT_DEFAULTS = {
    True: Estimator(Border("min"), Border("abs_max")),
    False: Estimator(Border("min"), Border("max")),
}


def default_estimator(scheme: Scheme, kind: str, preset: str = "default") -> Estimator:
    """The estimator that a preset (default, quantile, mse or sqnr) means for a scheme."""
    table = _ACTIVATION_DEFAULTS[scheme.perchannel, scheme.symmetric] if kind == ACTIVATIONS else _WEIGHT_DEFAULTS[scheme.symmetric]
    lower, upper = table.min, table.max
    pooled = _PRESET_TYPES.get(preset)
    if preset == "default" or (pooled is not None and not can_pool(pooled, scheme, kind)):
        return table
    if pooled is not None:
        return Estimator(lower if scheme.symmetric else Border(pooled), Border(pooled))
    if not scheme.symmetric:
        lower = replace(lower, type="quantile", outlier_prob=DEFAULT_OUTLIER_PROB)
    return Estimator(lower, replace(upper, type="abs_quantile" if scheme.symmetric else "quantile", outlier_prob=DEFAULT_OUTLIER_PROB))


def can_pool(type: str, scheme: Scheme, kind: str) -> bool:
    """Whether enough is known of the values for an estimator that looks at all of them.

    Of the channels of activations only the outermost values are stored. Weights have no samples: only their error is known.
    """
    return type not in POOLED_TYPES or (type == LEAST_ERROR if kind != ACTIVATIONS else not scheme.perchannel)


def resolve_estimator(scheme: Scheme, kind: str, config: schema.RangeEstimator) -> Estimator:
    """The preset's estimator with the configured keys on top."""
    base = default_estimator(scheme, kind, config.preset)

    def refine(side: str, border: Border, given: schema.Estimator) -> Border:
        keys = {key: value for key, value in vars(given).items() if value is not None}
        if not can_pool(keys.get("type", ""), scheme, kind):
            keys = {key: value for key, value in keys.items() if key not in ("type", "outlier_prob")}
        pooled = keys.get("type", border.type) in POOLED_TYPES
        if keys.get("type", border.type) in SHARE_TYPES:
            keys.setdefault("outlier_prob", border.outlier_prob or DEFAULT_OUTLIER_PROB)
        if kind != ACTIVATIONS:
            keys.pop("aggregator", None)
        elif pooled:
            keys["aggregator"] = None
        elif keys.get("aggregator", border.aggregator) is None:
            keys["aggregator"] = getattr(default_estimator(scheme, kind), side).aggregator
        return replace(border, **keys)

    return Estimator(refine("min", base.min, config.min), refine("max", base.max, config.max))


# --------------------------------------------------------------------------------------------------------- aggregators


def aggregate(name: str, values: Array) -> Array:
    """Combine per-sample statistics [N] or [N, C] over the samples: a scalar array or [C]."""
    return _AGGREGATORS[name](np.asarray(values, dtype=np.float64))


def by_batch(values: Array, type: str, aggregator: str, size: int, samples: NDArray[np.integer] | None = None) -> Array:
    """What `aggregate` is to combine where every `size` samples in a row are one batch (as POT 2023.3).

    Of a whole tensor [N] a batch has one extreme. Extremes per channel [N, C], and quantiles, are known of each sample, and
    only the mean tells batches apart: it is the mean of their means. The last batch may be smaller, and counts like the others.

    samples: Which samples the values are of, in order; None: all.
    """
    batches = (np.arange(len(values)) if samples is None else samples) // size
    starts = np.flatnonzero(np.diff(batches, prepend=-1))
    if values.ndim == 1 and type in _EXTREMES:
        return np.asarray(_EXTREMES[type].reduceat(values, starts))
    if aggregator in ("mean", UNCLIPPED_MEAN):
        counts = np.diff(np.append(starts, len(values)))
        return np.asarray(np.add.reduceat(values, starts, axis=0) / counts.reshape(-1, *[1] * (values.ndim - 1)))
    return values


def _without_outliers(values: Array, combine: str) -> Array:
    """Mean or median of what lies between the 1 % and 99 % quantiles (inclusive), per channel; of two samples: both."""
    low, high = np.quantile(values, [0.01, 0.99], axis=0)
    keep = (values >= low) & (values <= high)
    inside = np.where(keep | ~keep.any(axis=0), values, np.nan)
    return np.asarray(np.nanmean(inside, axis=0) if combine == "mean" else np.nanmedian(inside, axis=0))


def _hodges_lehmann(values: Array) -> Array:
    """Half the median of all pairwise sums (Hodges & Lehmann 1963), pairs of different samples; one sample: its value."""
    if len(values) < 2:
        return np.asarray(values[0])
    first, second = np.tril_indices(len(values), k=-1)
    if values.ndim == 1:
        return np.asarray(np.median(values[first] + values[second]) / 2)
    return np.stack([np.median(column[first] + column[second]) / 2 for column in values.T])


_EXTREMES = {"min": np.minimum, "max": np.maximum, "abs_max": np.maximum}
_AGGREGATORS = {
    "mean": lambda values: np.asarray(values.mean(axis=0)),
    UNCLIPPED_MEAN: lambda values: np.asarray(values.mean(axis=0)),  # what it clips is known of all values only (`pooled`)
    "max": lambda values: np.asarray(values.max(axis=0)),
    "min": lambda values: np.asarray(values.min(axis=0)),
    "median": lambda values: np.asarray(np.median(values, axis=0)),
    "mean_no_outliers": lambda values: _without_outliers(values, "mean"),
    "median_no_outliers": lambda values: _without_outliers(values, "median"),
    "hl_estimator": _hodges_lehmann,
}


# ----------------------------------------------------------------------------------------- statistics of known arrays


def array_statistic(values: NDArray[np.floating], border: Border, axis: int | None, *, upper: bool) -> Array:
    """A border's statistic of a constant: over everything (axis None), or per index of `axis` -> [C].

    Quantiles use linear interpolation at outlier_prob for the lower and 1 - outlier_prob for the upper border.
    """
    flat = values.reshape(1, -1) if axis is None else np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    if border.type in ("abs_max", "abs_quantile"):
        flat = np.abs(flat)
    if border.type == "min":
        result = flat.min(axis=1)
    elif border.type in ("max", "abs_max"):
        result = flat.max(axis=1)
    else:
        probability = border.outlier_prob if border.outlier_prob is not None else DEFAULT_OUTLIER_PROB
        result = np.quantile(flat.astype(np.float64), 1 - probability if upper else probability, axis=1)
    return np.asarray(result if axis is not None else result[0], dtype=np.float64)
