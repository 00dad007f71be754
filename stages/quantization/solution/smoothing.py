"""Smoothing: divide the features of what a MatMul reads, and multiply its weights by the same.

Each feature is divided by |x|^a / |w|^(1 - a), with the largest magnitudes of its values and of its weights (G. Xiao et al.,
SmoothQuant, 2022, equation 4), rounded to a power of two: so the floating-point model computes the same to the bit. The exponent
a is, for every tensor by itself, the one with which rounding to eight bits is expected to harm the products least; where none is
better than no smoothing at all, a tensor stays as it is. Everything that statistics say of the tensor follows by arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from stages.common.errors import UserError
from stages.quantization.model.graph import Graph, constant_value
from stages.quantization.model.weights import weight_layout
from stages.quantization.placement.plan import Plan, TensorName
from stages.quantization.statistics.store import Statistics

EXPONENTS = tuple(step / 20 for step in range(6, 21))  # from 0.3 to 1
LEAST_GAIN = 0.9  # times the error without smoothing: less is not worth an operation
SMALLEST = 1e-5  # of the largest feature: smaller ones count as so large
LEVELS = 256

Array = NDArray[np.float64]
Table = TypeVar("Table")


class Smoothing(NamedTuple):
    """What smoothing changes."""

    factors: dict[TensorName, Array]  # by tensor [F]: what its features are divided by
    weights: dict[str, NDArray[np.float32]]  # by Constant name, in the Constant's shape
    statistics: Statistics


def smooth(graph: Graph, statistics: Statistics, plan: Plan, weights: Mapping[str, NDArray[np.float32]]) -> Smoothing:
    """Factors, weights and statistics of the model after the plan's smoothing. weights: what alignment has changed already.

    UserError where the plan names what the model or the statistics do not have.
    """
    factors: dict[TensorName, Array] = {}
    scaled: dict[str, NDArray[np.float32]] = {}
    for tensor, readers in plan.smoothed:
        layouts = [layout for name in readers if (layout := weight_layout(graph.by_name[name])) is not None]
        if len(layouts) != len(readers):
            raise UserError(f"quantizers.json smooths what {', '.join(readers)} read, which have no constant weights in this model")
        if tensor not in statistics.features:
            raise UserError(f"statistics hold no features of {tensor.name}; run `dvc repro --force collect_statistics`")
        values = [layout.canonical(weights.get(layout.constant.name, constant_value(layout.constant))) for layout in layouts]
        found = smoothing_factors(statistics.features[tensor].astype(np.float64), np.concatenate(values).astype(np.float64))
        if found is None:
            continue
        factors[tensor] = found
        for layout, value in zip(layouts, values, strict=True):
            scaled[layout.constant.name] = layout.restored((value * found).astype(np.float32))
        statistics = smoothed_statistics(statistics, tensor, readers, found)
    return Smoothing(factors, scaled, statistics)


def smoothing_factors(features: Array, weights: Array) -> Array | None:
    """What to divide each feature by [F]; None where nothing is expected to be better than the tensor as it is.

    features: the lowest and highest values per sample [N, 2, F]. weights: of all that reads them [O, F].
    """
    features = features[np.isfinite(features).all(axis=(1, 2))]
    largest = np.abs(features).max(axis=(0, 1), initial=0.0)
    of_weights = np.abs(weights).max(axis=0, initial=0.0)
    if not largest.any() or not of_weights.any():
        return None
    largest, of_weights = (np.maximum(values, SMALLEST * values.max()) for values in (largest, of_weights))
    candidates = [np.ones_like(largest)]
    for exponent in EXPONENTS:
        logarithm = exponent * np.log2(largest) - (1 - exponent) * np.log2(of_weights)
        candidates.append(2.0 ** np.round(logarithm - logarithm.mean()))
    errors = expected_errors(features, weights, candidates)
    best = int(np.argmin(errors))
    return candidates[best] if errors[best] < LEAST_GAIN * errors[0] else None


def expected_errors(features: Array, weights: Array, candidates: Sequence[Array]) -> list[float]:
    """For each choice of factors the mean squared error of a product, summed over its elements, when both sides are rounded to
    symmetric 8-bit levels.

    Rounding makes errors that are spread evenly over a step. So are the values of a feature assumed to be, between the lowest and the
    highest one of a sample; the mean of the samples' largest magnitudes is the range of all.
    """
    # All that a choice does to what is summed up over samples and outputs is a factor: they are gone through once.
    low, high = features[:, 0], features[:, 1]
    largest, power = np.maximum(np.abs(low), np.abs(high)), ((low**2 + low * high + high**2) / 3).mean(axis=0)
    magnitudes, squares = np.abs(weights).astype(np.float32), np.sum(weights**2, axis=0)
    errors = []
    for factors in candidates:
        step = 2 * (largest / factors).max(axis=1).mean() / (LEVELS - 1)
        steps = 2 * (magnitudes * factors.astype(np.float32)).max(axis=1).astype(np.float64) / (LEVELS - 2)
        errors.append(float(step**2 * (squares @ factors**2) + np.sum(steps**2) * np.sum(power / factors**2)) / 12)
    return errors


def smoothed_statistics(statistics: Statistics, tensor: TensorName, readers: tuple[str, ...], factors: Array) -> Statistics:
    """The statistics with the features of `tensor` divided by `factors`, and the mean inputs of its readers.

    What follows from the tensor elsewhere in the model stays what it is. Of the tensor itself only the extremes of each feature are
    known then: quantiles of it are those of these.
    """
    features = (statistics.features[tensor] / factors).astype(np.float32)
    other = TensorName(f"{tensor.name}/unsmoothed", tensor.port)

    def moved(table: dict[TensorName, Table]) -> dict[TensorName, Table]:
        return {other if key == tensor else key: values for key, values in table.items()}

    _, _, size = statistics.tails(tensor)
    means = {name: statistics.input_mean[name] / factors for name in readers if name in statistics.input_mean}
    return replace(
        statistics,
        lowest=moved(statistics.lowest) | {tensor: np.sort(features[:, 0], axis=1)},
        highest=moved(statistics.highest) | {tensor: -np.sort(-features[:, 1], axis=1)},
        size=moved(statistics.size) | {tensor: size},
        distribution=moved(statistics.distribution),
        derived={
            key: (other if source == tensor else source, scale, offset)
            for key, (source, scale, offset) in statistics.derived.items()
            if key != tensor
        },
        features=statistics.features | {tensor: features},
        input_mean=statistics.input_mean | means,
    )
