"""The numbers of a quantized model: aligned weights, ranges and corrected biases, from statistics and a plan alone.

No inference and no OpenVINO model is involved; `build` writes the result into one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from stages.common.errors import UserError
from stages.configuration import schema
from stages.configuration.target_device import ACTIVATIONS, WEIGHTS
from stages.quantization.model.graph import (
    OPERATIONS_WITH_WEIGHTS,
    Graph,
    Node,
    bias_add,
    bias_constant_port,
    constant_value,
    output_channel_axis,
    weight_constant,
)
from stages.quantization.model.weights import bias_values, weight_layout
from stages.quantization.placement.plan import Border, Plan, Quantizer, TensorName
from stages.quantization.solution.alignment import align
from stages.quantization.solution.biases import Correction, decide, mean_output, threshold
from stages.quantization.solution.least_error import weight_share
from stages.quantization.solution.pooled import pooled_borders, unclipped, unusable
from stages.quantization.solution.ranges import (
    SIGN_TOLERANCE,
    Range,
    asymmetric_range,
    clip_range,
    clip_with_zero,
    fake_quantize,
    signed_range,
    symmetric_activation_range,
    symmetric_weight_range,
    zero_on_level,
)
from stages.quantization.solution.smoothing import smooth
from stages.quantization.statistics.estimators import (
    LEAST_ERROR,
    POOLED_TYPES,
    QUANTILE_TYPES,
    UNCLIPPED_MEAN,
    aggregate,
    array_statistic,
    by_batch,
)
from stages.quantization.statistics.points import mean_is_linear
from stages.quantization.statistics.store import Statistics
from stages.quantization.statistics.tails import absolute_tail, tail_quantile

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Solved:
    """What `build` writes: per quantizer its range, per operation new weights and biases where they change."""

    ranges: dict[str, Range]  # by quantizer name; scalars or [C] along the quantizer's channel axis
    weights: dict[str, NDArray[np.float32]]  # by Constant name, in its shape: aligned weights
    biases: dict[str, Array]  # by operation name [C]: aligned or corrected biases
    corrections: list[Correction] = field(default_factory=list)
    own_weights: dict[str, NDArray[np.float32]] = field(default_factory=dict)  # by quantizer name: what it quantizes instead
    smoothing: dict[TensorName, Array] = field(default_factory=dict)  # by tensor [F]: what its features are divided by

    def with_corrections(self, corrections: Sequence[Correction]) -> Solved:
        """The same with these corrections of biases besides."""
        biases = self.biases | {entry.name: entry.bias for entry in corrections if entry.bias is not None}
        return replace(self, biases=biases, corrections=[*self.corrections, *corrections])


def solve(
    graph: Graph,
    statistics: Statistics,
    plan: Plan,
    bias_correction: schema.BiasCorrection | None = None,
    pot_compatible: bool = False,
) -> Solved:
    """Everything that is computed for `plan`. pot_compatible: POT's rules where ours differ on purpose (stages/README.md).

    Biases are corrected by FastBiasCorrection only: the accurate one needs inference (accurate_bias).
    """
    weights, biases, statistics = align(graph, statistics, plan)
    factors, smoothed_weights, statistics = smooth(graph, statistics, plan, weights)
    weights |= smoothed_weights
    ranges = {
        quantizer.name: _weight_range(graph, quantizer, weights, pot_compatible)
        if quantizer.kind == WEIGHTS
        else activation_range(quantizer, statistics, plan.stat_batch_size, pot_compatible)
        for quantizer in plan.quantizers
    }
    ranges |= unified_ranges(plan.quantizers, ranges, pot_compatible)
    solved = Solved(ranges, weights, biases, smoothing=factors)
    if bias_correction is None or not bias_correction.enabled or not bias_correction.use_fast_bias:
        return solved
    corrections = [
        _correct(graph, node, quantizer, solved, statistics, bias_correction, pot_compatible)
        for node, quantizer in correctable_layers(graph, plan, bias_correction.apply_for_all_nodes)
    ]
    return solved.with_corrections(corrections)


# --------------------------------------------------------------------------------------------------------------- ranges


def _weight_range(graph: Graph, quantizer: Quantizer, weights: dict[str, NDArray[np.float32]], pot_compatible: bool) -> Range:
    name = quantizer.source.name
    values, axis = weights.get(name, constant_value(graph.by_name[name])), quantizer.channel_axis
    if axis is not None:
        values = values.reshape(_shape_of_weights(graph, quantizer))
        if _is_grouped(graph, quantizer):
            values = values.reshape(-1, *values.shape[2:])
    symmetric, levels = quantizer.scheme.symmetric, quantizer.scheme.levels(WEIGHTS)
    least = LEAST_ERROR in (quantizer.estimator.min.type, quantizer.estimator.max.type)
    lower, upper = (_widest(border, symmetric, side) for side, border in vars(quantizer.estimator).items())
    high = array_statistic(values, upper, axis, upper=True)
    if symmetric:
        borders = symmetric_weight_range(high, levels)
    else:
        borders = asymmetric_range(array_statistic(values, lower, axis, upper=False), high, levels, pot_compatible)
    if least and not quantizer.doubled:
        # Weights that leave half of the levels unused, lest sums saturate, would use them if their range were narrower.
        # Both sides by the same factor: zero stays on a level.
        rows = values.reshape(1, -1) if axis is None else np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
        share = weight_share(rows, borders, levels).reshape(np.shape(borders.high))
        borders = Range(borders.low * share, borders.high * share)
    return _clipped(quantizer, borders, pot_compatible)


def _widest(border: Border, symmetric: bool, side: str) -> Border:
    """The border from which a range of least error is searched inwards."""
    return replace(border, type="abs_max" if symmetric and side == "max" else side) if border.type == LEAST_ERROR else border


def activation_range(quantizer: Quantizer, statistics: Statistics, batch_size: int, pot_compatible: bool) -> Range:
    """The range of a quantizer of activations by itself."""
    scheme, levels = quantizer.scheme, quantizer.scheme.levels(ACTIVATIONS)
    low, high = _activation_borders(quantizer, statistics, batch_size)
    if scheme.symmetric:
        borders = symmetric_activation_range(low, high, levels, scheme.signed, 0.0 if pot_compatible else SIGN_TOLERANCE)
    else:
        borders = asymmetric_range(low, high, levels, pot_compatible)
    return _clipped(quantizer, borders, pot_compatible)


def _activation_borders(quantizer: Quantizer, statistics: Statistics, batch_size: int) -> tuple[Array, Array]:
    """What the estimator says of the samples."""

    def of_samples(border: Border, *, upper: bool) -> Array | None:
        if border.type in POOLED_TYPES:
            return None
        value = _aggregated(quantizer, border, statistics, batch_size, upper=upper)
        if border.aggregator == UNCLIPPED_MEAN and not value.ndim and border.type not in QUANTILE_TYPES:
            return unclipped(quantizer, border, statistics, value, upper=upper)
        return value

    low = of_samples(quantizer.estimator.min, upper=False)
    high = of_samples(quantizer.estimator.max, upper=True)
    if low is not None and high is not None:
        return low, high
    return pooled_borders(quantizer, statistics, low, high)


def _clipped(quantizer: Quantizer, borders: Range, pot_compatible: bool) -> Range:
    lowest, highest = quantizer.estimator.min.clipping_value, quantizer.estimator.max.clipping_value
    if pot_compatible:
        return clip_range(borders, lowest, highest)
    clipped = clip_with_zero(borders, lowest, highest, quantizer.scheme.levels(quantizer.kind), quantizer.scheme.symmetric)
    if not np.all((clipped.low <= 0) & (clipped.high >= 0) & (clipped.low < clipped.high)):
        raise UserError(f"{quantizer.name}: the clipping values {lowest} and {highest} leave no range around zero")
    return clipped


def _aggregated(quantizer: Quantizer, border: Border, statistics: Statistics, batch_size: int, *, upper: bool) -> Array:
    """A border's statistic, combined over the samples: scalar or [C]."""
    perchannel = (border.granularity or quantizer.scheme.granularity) == "perchannel"
    tensor = quantizer.source
    try:
        if perchannel:
            low, high, size = statistics.channel_lowest[tensor], statistics.channel_highest[tensor], statistics.channel_size[tensor]
        else:
            low, high, size = statistics.tails(tensor)
        samples = np.flatnonzero(size)  # of the others the tensor is empty
        sizes = size[samples].reshape(-1, *[1] * (low.ndim - 2))
        values = _statistic(low[samples], high[samples], sizes, border, upper=upper) if len(samples) else np.empty(0)
    except KeyError:
        what = f"{border.type}{' per channel' if perchannel else ''}{f' at {border.outlier_prob:g}' if border.outlier_prob else ''}"
        raise UserError(
            f"statistics hold no {what} of {tensor.name} (output {tensor.port}); run `dvc repro --force collect_statistics`"
        ) from None
    infinite = samples[~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))]
    if len(infinite) or not len(samples):
        raise UserError(unusable(tensor, infinite))
    aggregator = border.aggregator or "mean"
    return aggregate(aggregator, by_batch(values.astype(np.float64, copy=False), border.type, aggregator, batch_size, samples))


def _statistic(
    lowest: NDArray[np.floating], highest: NDArray[np.floating], size: NDArray[np.int64], border: Border, *, upper: bool
) -> NDArray[np.floating]:
    """A border's statistic from tails [..., k] of `size` values."""
    if border.type == "abs_quantile":
        return tail_quantile(absolute_tail(lowest, highest, size), size, border.outlier_prob or 0.0)
    if border.type == "quantile":
        return tail_quantile(highest if upper else lowest, size, border.outlier_prob or 0.0)
    low, high = lowest[..., 0], highest[..., 0]
    return low if border.type == "min" else high if border.type == "max" else np.maximum(np.abs(low), np.abs(high))


def unified_ranges(quantizers: Sequence[Quantizer], ranges: dict[str, Range], pot_compatible: bool) -> dict[str, Range]:
    """One range for all quantizers of a group: the union of theirs, with zero on a level again."""
    groups: dict[int, list[Quantizer]] = {}
    for quantizer in quantizers:
        if quantizer.unified_group is not None:
            groups.setdefault(quantizer.unified_group, []).append(quantizer)
    result: dict[str, Range] = {}
    for members in groups.values():
        low = np.asarray(min(np.min(ranges[member.name].low) for member in members))
        high = np.asarray(max(np.max(ranges[member.name].high) for member in members))
        borders, levels = Range(low, high), members[0].scheme.levels(ACTIVATIONS)
        if not pot_compatible and low < 0:
            below = -signed_range(np.asarray(1.0), levels).low  # share of the upper border
            borders = (
                signed_range(np.maximum(high, -low / below), levels) if members[0].scheme.symmetric else zero_on_level(low, high, levels)
            )
        result.update((member.name, borders) for member in members)
    return result


# ------------------------------------------------------------------------------------------------------ bias correction


def correctable_layers(graph: Graph, plan: Plan, all_nodes: bool) -> list[tuple[Node, Quantizer | None]]:
    """Layers in topological order with the quantizer of their weights."""
    of_weights = {
        place.name: quantizer
        for quantizer in plan.quantizers
        if quantizer.kind == WEIGHTS
        for place in quantizer.consumers
        if graph.by_name[place.name].type in OPERATIONS_WITH_WEIGHTS
    }
    return [
        (node, of_weights.get(node.name))
        for node in graph.nodes
        if node.name in of_weights or (all_nodes and weight_layout(node) is not None)
    ]


def _correct(
    graph: Graph,
    node: Node,
    quantizer: Quantizer | None,
    solved: Solved,
    statistics: Statistics,
    config: schema.BiasCorrection,
    pot_compatible: bool,
) -> Correction:
    def left(reason: str) -> Correction:
        return Correction(node.name, node.type, reason=reason)

    layout, add = weight_layout(node), bias_add(node)
    bias = solved.biases.get(node.name, bias_values(node))
    if reason := obstacle(node, bias):
        return left(reason)
    assert layout is not None  # or there would be an obstacle
    if node.name not in statistics.input_mean:
        return left("no mean of its input was collected")
    if pot_compatible and add is not None and not _has_pots_bias_shape(node, add, layout.outputs):
        return left("the bias has another shape than the output's channels")
    stored = solved.weights.get(layout.constant.name, constant_value(layout.constant))
    weights = layout.canonical(stored)
    quantized = layout.canonical(dequantized_weights(graph, quantizer, stored, solved.ranges[quantizer.name])) if quantizer else weights
    mean_input, shape = statistics.input_mean[node.name], statistics.input_shape[node.name]
    if pot_compatible and not mean_is_linear(node):
        # Besides the error of the weights this holds what the mean input does not say of the mean output.
        if node.name not in statistics.output_mean:
            raise UserError("statistics hold no mean outputs, which pot_compatible asks for; run `dvc repro --force collect_statistics`")
        corrected = statistics.output_mean[node.name] - mean_output(layout, quantized, mean_input, shape)
    else:
        corrected = mean_output(layout, weights - quantized, mean_input, shape) + (0.0 if bias is None else bias)
    return decide(node, bias, corrected, threshold(config), config.correct_zero_biases and not pot_compatible)


def obstacle(node: Node, bias: Array | None) -> str | None:
    """Why a layer cannot get a new bias at all. bias: its own [C], if it has one that `bias_values` knows."""
    if weight_layout(node) is None:
        return "not a convolution or a MatMul with one matrix of weights on its second input"
    if bias_add(node) is not None and bias is None:
        return "its bias is not one value per channel"
    return None


def _has_pots_bias_shape(node: Node, add: Node, outputs: int) -> bool:
    port = add.inputs[bias_constant_port(add)]
    rank = len(add.shapes[0] or ())
    channel = output_channel_axis(node) % rank
    return port.node.shapes[port.index] == tuple(outputs if axis == channel else 1 for axis in range(rank))


# ------------------------------------------------------------------------------------------------------------- weights


def dequantized_weights(graph: Graph, quantizer: Quantizer, stored: NDArray[np.floating], borders: Range) -> NDArray[np.floating]:
    """The weights that the quantized model computes with, in the shape of `stored`."""
    shape = _shape_of_weights(graph, quantizer)
    spread = range_shape(graph, quantizer, shape)
    low, high = (np.reshape(border, spread) if np.size(border) > 1 else border for border in borders)
    values, half = stored.astype(np.float32, copy=False).reshape(shape), np.float32(0.5)
    quantized = fake_quantize(values * half if quantizer.doubled else values, Range(low, high), quantizer.scheme.levels(quantizer.kind))
    return (quantized / half if quantizer.doubled else quantized).reshape(stored.shape)


def range_shape(graph: Graph, quantizer: Quantizer, tensor_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in which a per-channel range [C] broadcasts to the quantized tensor."""
    axis = quantizer.channel_axis
    if axis is None:
        return ()
    if quantizer.kind == WEIGHTS and _is_grouped(graph, quantizer):
        return (*tensor_shape[:2], *([1] * (len(tensor_shape) - 2)))
    return tuple(size if index == axis else 1 for index, size in enumerate(tensor_shape))


def quantized_constant(graph: Graph, quantizer: Quantizer) -> Node:
    """The Constant that a weights quantizer quantizes, in `graph`."""
    consumer = graph.by_name[quantizer.consumers[0].name]
    constant = weight_constant(consumer.inputs[quantizer.consumers[0].port])
    if constant is None:
        raise UserError(f"{consumer} has no constant weights in this model")
    return constant


def _shape_of_weights(graph: Graph, quantizer: Quantizer) -> tuple[int, ...]:
    """The shape in which the operation reads the weights: that of the Constant, or of a Reshape after it."""
    place = quantizer.consumers[0]
    port = graph.by_name[place.name].inputs[place.port]
    return port.node.shapes[port.index] or ()


def _is_grouped(graph: Graph, quantizer: Quantizer) -> bool:
    """Weights read as [G, O/G, I/G, ...]: both leading axes together are the output channels."""
    return graph.by_name[quantizer.consumers[0].name].type == "GroupConvolution" and quantizer.consumers[0].port == 1
