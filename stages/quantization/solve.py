"""The numbers of a quantized model: aligned weights, ranges and corrected biases, from statistics and a plan alone.

No inference and no OpenVINO model is involved; `build` writes the result into one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from stages import schema
from stages.errors import UserError
from stages.quantization.alignment import TAIL, Alignment, aligned_port, bias_values, compute_alignment
from stages.quantization.biases import Correction, decide, mean_output
from stages.quantization.estimators import aggregate, array_statistic
from stages.quantization.graph import CONVOLUTIONS, Graph, Node, bias_add, bias_constant_port, constant_value, weight_constant
from stages.quantization.plan import Border, Plan, Quantizer, TensorName
from stages.quantization.points import mean_is_linear
from stages.quantization.ranges import (
    SIGN_TOLERANCE,
    Range,
    asymmetric_range,
    clip_range,
    fake_quantize,
    symmetric_activation_range,
    symmetric_weight_range,
    zero_on_level,
)
from stages.quantization.schemes import ACTIVATIONS, WEIGHTS
from stages.quantization.statistics import Statistics
from stages.quantization.tails import absolute_tail, tail_quantile
from stages.quantization.weights import weight_layout

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Solved:
    """What `build` writes: per quantizer its range, per operation new weights and biases where they change."""

    ranges: dict[str, Range]  # by quantizer name; scalars or [C] along the quantizer's channel axis
    weights: dict[str, NDArray[np.float32]]  # by Constant name, stored shape: aligned weights
    biases: dict[str, Array]  # by operation name [C]: aligned or corrected biases
    corrections: list[Correction] = field(default_factory=list)


def solve(
    graph: Graph,
    statistics: Statistics,
    plan: Plan,
    bias_correction: schema.BiasCorrection | None = None,
    pot_compatible: bool = False,
) -> Solved:
    """Everything that is computed for `plan`. pot_compatible: POT's rules where ours differ on purpose (README)."""
    weights, biases, statistics = _align(graph, statistics, plan)
    ranges = {
        quantizer.name: _weight_range(graph, quantizer, weights, pot_compatible)
        if quantizer.kind == WEIGHTS
        else _activation_range(quantizer, statistics, pot_compatible)
        for quantizer in plan.quantizers
    }
    ranges |= _unified(plan, ranges, pot_compatible)
    solved = Solved(ranges, weights, biases)
    if bias_correction is None or not bias_correction.enabled:
        return solved
    corrections = [
        _correct(graph, node, quantizer, solved, statistics, bias_correction, pot_compatible)
        for node, quantizer in _correctable(graph, plan, bias_correction.apply_for_all_nodes)
    ]
    corrected = {entry.name: entry.bias for entry in corrections if entry.bias is not None}
    return replace(solved, biases=biases | corrected, corrections=corrections)


# ------------------------------------------------------------------------------------------------ channel alignment


def _align(graph: Graph, statistics: Statistics, plan: Plan) -> tuple[dict[str, NDArray[np.float32]], dict[str, Array], Statistics]:
    """Weights, biases and statistics of the model after channel alignment."""
    weights: dict[str, NDArray[np.float32]] = {}
    biases: dict[str, Array] = {}
    for first_name, second_name in plan.aligned:
        first, second = graph.by_name[first_name], graph.by_name[second_name]
        first_layout, second_layout = weight_layout(first), weight_layout(second)
        if first_layout is None or second_layout is None:
            raise UserError(f"quantizers.json aligns {first_name} and {second_name}, which have no constant weights in this model")
        port = aligned_port(second)
        tensor = TensorName(port.node.name, port.index)
        first_bias, second_bias = (biases.get(node.name, bias_values(node)) for node in (first, second))
        low, high = (tail_quantile(table[tensor], statistics.channel_size[tensor][:, None], TAIL) for table in (statistics.channel_lowest, statistics.channel_highest))
        alignment = compute_alignment(low, high, can_shift=first_bias is not None and second_bias is not None)
        first_weights = first_layout.canonical(weights.get(first_layout.constant.name, constant_value(first_layout.constant)))
        second_weights = second_layout.canonical(weights.get(second_layout.constant.name, constant_value(second_layout.constant)))
        if first_bias is not None and second_bias is not None:
            kernel_axes = tuple(range(2, second_weights.ndim))
            biases[second_name] = second_bias + second_weights.astype(np.float64).sum(axis=kernel_axes) @ alignment.shift
        if first_bias is not None:
            biases[first_name] = (first_bias - alignment.shift) / alignment.scale
        scale = alignment.scale
        along_first = (-1, *([1] * (first_weights.ndim - 1)))
        along_second = (1, -1, *([1] * (second_weights.ndim - 2)))
        weights[first_layout.constant.name] = first_layout.restored((first_weights / scale.reshape(along_first)).astype(np.float32))
        weights[second_layout.constant.name] = second_layout.restored((second_weights * scale.reshape(along_second)).astype(np.float32))
        statistics = _aligned_statistics(statistics, tensor, first_name, second_name, alignment)
    return weights, biases, statistics


def _aligned_statistics(statistics: Statistics, tensor: TensorName, first: str, second: str, alignment: Alignment) -> Statistics:
    """The statistics with the channels of `tensor` shifted and scaled; its quantiles are unknown after that."""
    lowest, highest = (
        ((table[tensor] - alignment.shift[:, None]) / alignment.scale[:, None]).astype(np.float32)
        for table in (statistics.channel_lowest, statistics.channel_highest)
    )
    means = {
        "input_mean": {second: (statistics.input_mean[second] - alignment.shift) / alignment.scale},
        "output_mean": {first: (statistics.output_mean[first] - alignment.shift) / alignment.scale} if first in statistics.output_mean else {},
    }
    return replace(
        statistics,
        lowest=statistics.lowest | {tensor: lowest[:, :, 0].min(axis=1, keepdims=True)},
        highest=statistics.highest | {tensor: highest[:, :, 0].max(axis=1, keepdims=True)},
        size=statistics.size | {tensor: statistics.channel_size[tensor] * lowest.shape[1]},
        channel_lowest=statistics.channel_lowest | {tensor: lowest},
        channel_highest=statistics.channel_highest | {tensor: highest},
        input_mean=statistics.input_mean | means["input_mean"],
        output_mean=statistics.output_mean | means["output_mean"],
    )


# --------------------------------------------------------------------------------------------------------------- ranges


def _weight_range(graph: Graph, quantizer: Quantizer, weights: dict[str, NDArray[np.float32]], pot_compatible: bool) -> Range:
    name = quantizer.source.name
    values = weights.get(name, constant_value(graph.by_name[name])).astype(np.float32, copy=False)
    axis = quantizer.channel_axis
    if axis is not None and values.ndim <= axis:
        axis = None
    lower, upper = quantizer.estimator.min, quantizer.estimator.max
    if _is_grouped_storage(graph, quantizer):
        values = values.reshape(-1, *values.shape[2:])
    high = array_statistic(values, upper, axis, upper=True)
    if quantizer.scheme.symmetric:
        borders = symmetric_weight_range(high)
    else:
        low = array_statistic(values, lower, axis, upper=False)
        borders = asymmetric_range(low, high, quantizer.scheme.bits, not pot_compatible)
    return clip_range(borders, lower.clipping_value, upper.clipping_value)


def _is_grouped_storage(graph: Graph, quantizer: Quantizer) -> bool:
    """Weights stored as [G, O/G, I/G, ...]: both leading axes together are the output channels."""
    consumer = graph.by_name[quantizer.consumers[0].name]
    if consumer.type != "GroupConvolution":
        return False
    constant = graph.by_name[quantizer.source.name]
    return constant.shapes[0] == consumer.inputs[1].node.shapes[consumer.inputs[1].index]


def _activation_range(quantizer: Quantizer, statistics: Statistics, pot_compatible: bool) -> Range:
    scheme = quantizer.scheme
    low, high = (_aggregated(quantizer, border, statistics, upper=upper) for border, upper in ((quantizer.estimator.min, False), (quantizer.estimator.max, True)))
    if scheme.symmetric:
        tolerance = 0.0 if pot_compatible else SIGN_TOLERANCE
        borders = symmetric_activation_range(low, high, scheme.levels(ACTIVATIONS), scheme.signed, tolerance)
    else:
        borders = asymmetric_range(low, high, scheme.bits, not pot_compatible)
    return clip_range(borders, quantizer.estimator.min.clipping_value, quantizer.estimator.max.clipping_value)


def _aggregated(quantizer: Quantizer, border: Border, statistics: Statistics, *, upper: bool) -> Array:
    """A border's statistic, combined over the samples: scalar or [C]."""
    perchannel = (border.granularity or quantizer.scheme.granularity) == "perchannel"
    tensor = quantizer.source
    try:
        if perchannel:
            lowest, highest, size = statistics.channel_lowest[tensor], statistics.channel_highest[tensor], statistics.channel_size[tensor][:, None]
        else:
            lowest, highest, size = statistics.tails(tensor)
        values = _statistic(lowest, highest, size, border, upper=upper)
    except KeyError:
        what = f"{border.type}{' per channel' if perchannel else ''}{f' at {border.outlier_prob:g}' if border.outlier_prob else ''}"
        raise UserError(f"statistics hold no {what} of {tensor.name} (output {tensor.port}); run `dvc repro --force collect_statistics`") from None
    return aggregate(border.aggregator or "mean", values.astype(np.float64))


def _statistic(lowest: NDArray[np.floating], highest: NDArray[np.floating], size: NDArray[np.int64], border: Border, *, upper: bool) -> NDArray[np.floating]:
    """A border's statistic from tails [..., k] of `size` values."""
    if border.type == "abs_quantile":
        return tail_quantile(absolute_tail(lowest, highest), size, border.outlier_prob or 0.0)
    if border.type == "quantile":
        return tail_quantile(highest if upper else lowest, size, border.outlier_prob or 0.0)
    low, high = lowest[..., 0], highest[..., 0]
    return low if border.type == "min" else high if border.type == "max" else np.maximum(np.abs(low), np.abs(high))


def _unified(plan: Plan, ranges: dict[str, Range], pot_compatible: bool) -> dict[str, Range]:
    """One range for all quantizers of a group: the union of theirs, with zero on a level again."""
    groups: dict[int, list[Quantizer]] = {}
    for quantizer in plan.quantizers:
        if quantizer.unified_group is not None:
            groups.setdefault(quantizer.unified_group, []).append(quantizer)
    result = {}
    for members in groups.values():
        low = np.min([np.min(ranges[member.name].low) for member in members])
        high = np.max([np.max(ranges[member.name].high) for member in members])
        borders = Range(np.asarray(low), np.asarray(high))
        if not pot_compatible and low < 0 < high:
            scheme = members[0].scheme
            levels = scheme.levels(ACTIVATIONS)
            borders = (
                symmetric_activation_range(low, np.maximum(high, -low * (levels - 2) / levels), levels, signed=True)
                if scheme.symmetric
                else zero_on_level(*borders, scheme.bits)
            )
        result.update((member.name, borders) for member in members)
    return result


# ------------------------------------------------------------------------------------------------------ bias correction


def _correctable(graph: Graph, plan: Plan, all_nodes: bool) -> list[tuple[Node, Quantizer | None]]:
    """Layers in topological order with the quantizer of their weights."""
    of_weights = {place.name: quantizer for quantizer in plan.quantizers if quantizer.kind == WEIGHTS for place in quantizer.consumers if place.port == 1}
    return [
        (node, of_weights.get(node.name))
        for node in graph.nodes
        if (node.type in CONVOLUTIONS or node.type == "MatMul") and (node.name in of_weights or (all_nodes and weight_layout(node)))
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
    layout = weight_layout(node)
    if layout is None:
        return Correction(node.name, node.type, reason="its weights are a batch of matrices")
    if node.name not in statistics.input_mean:
        return Correction(node.name, node.type, reason="no mean of its input was collected")
    bias = solved.biases.get(node.name, bias_values(node))
    add = bias_add(node)
    if add is not None and bias is None:
        return Correction(node.name, node.type, reason="its bias is not one value per channel")
    if pot_compatible and add is not None and not _has_pots_bias_shape(node, add):
        return Correction(node.name, node.type, reason="the bias has another rank than the output")
    stored = solved.weights.get(layout.constant.name, constant_value(layout.constant))
    weights = layout.canonical(stored)
    quantized = layout.canonical(dequantized_weights(graph, quantizer, stored, solved.ranges[quantizer.name])) if quantizer else weights
    mean_input, shape = statistics.input_mean[node.name], statistics.input_shape[node.name]
    if mean_is_linear(node):
        target = mean_output(layout, weights, mean_input, shape) + (0.0 if bias is None else bias)
    else:
        target = statistics.output_mean[node.name]
    corrected = target - mean_output(layout, quantized, mean_input, shape)
    return decide(node, bias, corrected, config.threshold, config.correct_zero_biases and not pot_compatible)


def _has_pots_bias_shape(node: Node, add: Node) -> bool:
    port = add.inputs[bias_constant_port(add)]
    shape, rank = port.node.shapes[port.index] or (), len(add.shapes[0] or ())
    channel = 1 if node.type in CONVOLUTIONS else rank - 1
    return len(shape) == rank and all(size == 1 for axis, size in enumerate(shape) if axis != channel)


def dequantized_weights(graph: Graph, quantizer: Quantizer, stored: NDArray[np.floating], borders: Range) -> Array:
    """The weights that the quantized model computes with, in the stored shape."""
    shape = range_shape(graph, quantizer, stored.shape)
    spread = Range(*(np.reshape(border, shape) if np.size(border) > 1 else border for border in borders))
    share = np.float32(2.0 if quantizer.doubled else 1.0)
    return fake_quantize(stored.astype(np.float32) / share, spread, quantizer.scheme.levels(quantizer.kind)) * share


def range_shape(graph: Graph, quantizer: Quantizer, tensor_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in which a per-channel range [C] broadcasts to the quantized tensor."""
    axis = quantizer.channel_axis
    if axis is None or not tensor_shape or axis >= len(tensor_shape):
        return ()
    if quantizer.kind == WEIGHTS and _is_grouped_storage(graph, quantizer):
        return (*tensor_shape[:2], *([1] * (len(tensor_shape) - 2)))
    return tuple(size if index == axis else 1 for index, size in enumerate(tensor_shape))


def quantized_constant(graph: Graph, quantizer: Quantizer) -> Node:
    """The Constant that a weights quantizer quantizes, in `graph`."""
    consumer = graph.by_name[quantizer.consumers[0].name]
    constant = weight_constant(consumer.inputs[quantizer.consumers[0].port])
    if constant is None:
        raise UserError(f"{consumer} has no constant weights in this model")
    return constant
