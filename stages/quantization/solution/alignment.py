"""ActivationChannelAlignment: equalise the ranges of channels between a convolution and the pointwise convolution after it.

Only the outputs of the first convolution are shifted and scaled, so everything that statistics say about the tensor
between the two follows by arithmetic (as POT 2023.3).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.common.errors import UserError
from stages.quantization.model.graph import Graph, Node, bias_add, constant_value
from stages.quantization.model.weights import Layout, bias_values, weight_layout
from stages.quantization.placement.alignment_pairs import TAIL, aligned_tensor
from stages.quantization.placement.plan import Plan, TensorName
from stages.quantization.statistics.store import Statistics
from stages.quantization.statistics.tails import tail_quantile

SMALLEST_SCALE, LARGEST_SCALE = 0.01, 100.0

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Alignment:
    """What is subtracted from, and then divided out of, each channel between two convolutions [C]."""

    shift: Array
    scale: Array


class Aligned(NamedTuple):
    """What alignment changes."""

    weights: dict[str, NDArray[np.float32]]  # by Constant name, in the Constant's shape
    biases: dict[str, Array]  # by operation name [C]
    statistics: Statistics


# ---------------------------------------------------------------------------------------------------------- arithmetic


def compute_alignment(low: Array, high: Array, can_shift: bool) -> Alignment:
    """Shift and scale per channel from the channels' tail quantiles per sample, low and high [N, C].

    The median over the samples counts. can_shift: the shift can be subtracted from one bias and added to the other.
    """
    low, high = np.median(low, axis=0), np.median(high, axis=0)
    shift = (low + high) / 2 if can_shift else np.zeros_like(low)
    spread = high - low
    if not np.any(spread > 0):
        return Alignment(shift, np.ones_like(spread))
    scale = spread / np.median(spread[spread > 0])
    scale[spread <= 0] = 1.0
    return Alignment(shift, np.clip(scale, SMALLEST_SCALE, LARGEST_SCALE))


def pair_alignment(first: Node, second: Node, statistics: Statistics) -> Alignment:
    """The alignment of a pair. UserError if nothing was collected for it."""
    tensor = aligned_tensor(second)
    try:
        samples = np.flatnonzero(statistics.channel_size[tensor])  # of the others it is empty
        tables = (statistics.channel_lowest[tensor], statistics.channel_highest[tensor])
        if not len(samples):
            return Alignment(np.zeros(tables[0].shape[1]), np.ones(tables[0].shape[1]))
        size = statistics.channel_size[tensor][samples, None]
        low, high = (tail_quantile(table[samples], size, TAIL) for table in tables)
    except KeyError:
        raise UserError(f"statistics hold no channels of {tensor.name}; run `dvc repro --force collect_statistics`") from None
    return compute_alignment(low, high, can_shift=all(_bias(node) is not None for node in (first, second)))


def align(graph: Graph, statistics: Statistics, plan: Plan) -> Aligned:
    """Weights, biases and statistics of the model after the plan's channel alignment."""
    weights: dict[str, NDArray[np.float32]] = {}
    biases: dict[str, Array] = {}
    for names in plan.aligned:
        first, second = (graph.by_name[name] for name in names)
        alignment = pair_alignment(first, second, statistics)
        shift, scale = alignment.shift, alignment.scale
        first_layout, second_layout = (_layout(node) for node in (first, second))
        first_weights, second_weights = (
            layout.canonical(weights.get(layout.constant.name, constant_value(layout.constant))) for layout in (first_layout, second_layout)
        )
        first_bias, second_bias = (biases.get(node.name, _bias(node)) for node in (first, second))
        if second_bias is not None and shift.any():
            kernel = tuple(range(2, second_weights.ndim))
            biases[second.name] = second_bias + second_weights.sum(axis=kernel, dtype=np.float64) @ shift
        if first_bias is not None and (shift.any() or first_bias.any()):
            biases[first.name] = (first_bias - shift) / scale
        of_first, of_second = scale.reshape(-1, *[1] * (first_weights.ndim - 1)), scale.reshape(1, -1, *[1] * (second_weights.ndim - 2))
        weights[first_layout.constant.name] = first_layout.restored((first_weights / of_first).astype(np.float32))
        weights[second_layout.constant.name] = second_layout.restored((second_weights * of_second).astype(np.float32))
        statistics = aligned_statistics(statistics, aligned_tensor(second), first.name, second.name, alignment)
    return Aligned(weights, biases, statistics)


def _bias(node: Node) -> Array | None:
    """The bias [C] that a shift is added to: zeros where there is none; None where it is not one value per channel."""
    return np.zeros(_layout(node).outputs) if bias_add(node) is None else bias_values(node)


def _layout(node: Node) -> Layout:
    layout = weight_layout(node)
    if layout is None:
        raise UserError(f"quantizers.json aligns the channels of {node}, which has no constant weights in this model")
    return layout


def aligned_statistics(statistics: Statistics, tensor: TensorName, first: str, second: str, alignment: Alignment) -> Statistics:
    """The statistics with the channels of `tensor`, between `first` and `second`, shifted and scaled."""
    shift, scale = alignment.shift, alignment.scale
    lowest, highest = (
        ((table[tensor] - shift[:, None]) / scale[:, None]).astype(np.float32)
        for table in (statistics.channel_lowest, statistics.channel_highest)
    )
    size = statistics.channel_size[tensor]
    means = {
        quantity: {name: (table[name] - shift) / scale for name in names if name in table}
        for quantity, table, names in (("input", statistics.input_mean, [second]), ("output", statistics.output_mean, [first]))
    }
    return replace(
        statistics,
        lowest=statistics.lowest | {tensor: _tails_of_all(lowest, size)},
        highest=statistics.highest | {tensor: -_tails_of_all(-highest, size)},
        size=statistics.size | {tensor: size * lowest.shape[1]},
        channel_lowest=statistics.channel_lowest | {tensor: lowest},
        channel_highest=statistics.channel_highest | {tensor: highest},
        input_mean=statistics.input_mean | means["input"],
        output_mean=statistics.output_mean | means["output"],
        distribution={name: counts for name, counts in statistics.distribution.items() if name != tensor},
    )


def _tails_of_all(lowest: NDArray[np.float32], size: NDArray[np.int64]) -> NDArray[np.float32]:
    """The lowest values [N, m] of whole tensors from those of their channels [N, C, k] with `size` [N] values each.

    As many as the channels' tails surely hold: k of a tensor are at most k of one channel.
    """
    ordered = np.sort(lowest.reshape(len(lowest), -1), axis=1)  # what a sample has not is NaN and comes last
    return ordered[:, : lowest.shape[2]] if np.any(size > lowest.shape[2]) else ordered
