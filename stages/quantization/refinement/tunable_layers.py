"""Layers that can be tuned, with their numbers and grids, in the order and the groups in which they are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from stages.configuration import schema
from stages.configuration.target_device import ACTIVATIONS, WEIGHTS
from stages.quantization.model.graph import Graph, Node, constant_value, input_channel_axis
from stages.quantization.model.weights import Layout, bias_values, weight_layout
from stages.quantization.placement.plan import Plan, Quantizer
from stages.quantization.refinement.layer_samples import row_bytes
from stages.quantization.refinement.layer_tuning import Grid, Layer
from stages.quantization.solution.solve import Solved, obstacle
from stages.quantization.statistics.store import Statistics

STORED_BYTES = 1 << 28  # of the rows of the layers that are tuned together
TENSOR_BYTES = 1 << 26  # of these layers' inputs and outputs in one inference; a few inferences run at once


@dataclass(frozen=True)
class TunableLayer:
    """A layer to tune.

    Attributes:
        layer: With its numbers before tuning.
        quantizer: Of its weights.
        own: The quantizer of its input, where it serves this layer alone.
        rows_per_sample: As many as asked for, unless a single layer would not fit into `STORED_BYTES`.
    """

    layout: Layout
    layer: Layer
    quantizer: Quantizer
    own: Quantizer | None
    rows_per_sample: int

    @property
    def name(self) -> str:
        return self.layout.node.name


def tunable_layer(
    graph: Graph, plan: Plan, solved: Solved, node: Node, quantizer: Quantizer | None, config: schema.LayerwiseTuning, samples: int
) -> TunableLayer | str:
    """A layer with its numbers, or why it is left alone."""
    layout, bias = weight_layout(node), solved.biases.get(node.name, bias_values(node))
    if reason := obstacle(node, bias):
        return reason
    assert layout is not None and quantizer is not None  # or there would be an obstacle, or no quantizer of weights
    groups, outputs = layout.groups, layout.outputs
    borders = [np.asarray(border, np.float32).reshape(-1) for border in solved.ranges[quantizer.name]]
    if borders[0].size not in (1, outputs):
        return "its weights have a range per index of another axis than the output channels"
    spread = (groups, -1, 1) if borders[0].size > 1 else (1, 1, 1)
    low, high = (border.reshape(spread) * np.float32(1 + quantizer.doubled) for border in borders)
    inputs = _input_quantizers(plan, node)
    input_grid = None
    if inputs:
        input_grid = _input_grid(inputs, solved, layout)
        if input_grid is None:
            return "its input has a range per index of another axis than the channels"
    own = inputs[0] if len(inputs) == 1 and _serves_only(inputs[0], node) else None
    stored = solved.weights.get(layout.constant.name, constant_value(layout.constant))
    layer = Layer(
        weights=np.ascontiguousarray(layout.canonical(stored).reshape(groups, outputs // groups, -1)),
        bias=np.asarray(np.zeros(outputs) if bias is None else bias, np.float32).reshape(groups, 1, -1),
        weight_grid=Grid(low, high, quantizer.scheme.levels(WEIGHTS)),
        input_grid=input_grid,
        tune_input=own is not None,
        doubled=quantizer.doubled,
    )
    room = STORED_BYTES // (row_bytes(layout) * samples)
    return TunableLayer(layout, layer, quantizer, own, max(1, min(config.positions_per_sample, room)))


def _input_quantizers(plan: Plan, node: Node) -> list[Quantizer]:
    """The quantizers that serve a layer's data input, directly or through operations that pass data on."""
    return [
        quantizer
        for quantizer in plan.quantizers
        if quantizer.kind == ACTIVATIONS and any((place.name, place.port) == (node.name, 0) for place in quantizer.layers)
    ]


def _serves_only(quantizer: Quantizer, node: Node) -> bool:
    return quantizer.unified_group is None and [(place.name, place.port) for place in quantizer.consumers] == [(node.name, 0)]


def _input_grid(quantizers: Sequence[Quantizer], solved: Solved, layout: Layout) -> Grid | None:
    """The grid on which the layer's input lies; None where it differs along another axis than the input channels."""
    borders = [solved.ranges[quantizer.name] for quantizer in quantizers]
    levels = {quantizer.scheme.levels(ACTIVATIONS) for quantizer in quantizers}
    low, high = (np.asarray(border, np.float32).reshape(-1) for border in borders[0])
    if len(levels) > 1 or any(
        not np.array_equal(other, border) for others in borders for other, border in zip(others, borders[0], strict=True)
    ):
        return None
    if low.size == 1:
        return Grid(low.reshape(1, 1, 1, 1), high.reshape(1, 1, 1, 1), levels.pop())
    node = layout.node
    rank = len(node.inputs[0].node.shapes[node.inputs[0].index] or ())
    direct = (node.name, 0) in [(place.name, place.port) for place in quantizers[0].consumers]
    if not direct or not rank or quantizers[0].channel_axis != input_channel_axis(node) % rank:
        return None
    return Grid(low.reshape(layout.groups, 1, -1, 1), high.reshape(layout.groups, 1, -1, 1), levels.pop())


def by_level(graph: Graph, subjects: Sequence[TunableLayer]) -> list[list[TunableLayer]]:
    """Layers by how many others come one after another before them: those of one level do not depend on each other."""
    names = {subject.name for subject in subjects}
    depth: dict[Node, int] = {}
    for node in graph.nodes:
        depth[node] = max((depth[before] + (before.name in names) for before in node.producers()), default=0)
    levels: dict[int, list[TunableLayer]] = {}
    for subject in subjects:
        levels.setdefault(depth[graph.by_name[subject.name]], []).append(subject)
    return [levels[level] for level in sorted(levels)]


def by_memory(subjects: Sequence[TunableLayer], statistics: Statistics, samples: int) -> Iterator[list[TunableLayer]]:
    """Layers whose rows, and whose tensors in one inference, fit into memory together, in topological order."""
    group: list[TunableLayer] = []
    stored = tensors = 0
    for subject in subjects:
        own = samples * subject.rows_per_sample * row_bytes(subject.layout)
        shown = _tensor_bytes(subject.layout, statistics)
        if group and (stored + own > STORED_BYTES or tensors + shown > TENSOR_BYTES):
            yield group
            group, stored, tensors = [], 0, 0
        group.append(subject)
        stored, tensors = stored + own, tensors + shown
    if group:
        yield group


def _tensor_bytes(layout: Layout, statistics: Statistics) -> int:
    """About what a layer's input and output take in one inference."""
    node = layout.node
    source = math.prod(statistics.input_shape.get(node.name, ()))
    channels = layout.groups * math.prod(layout.shape) // layout.outputs // math.prod(layout.kernel)
    shape = node.shapes[0] or (-1,)
    output = math.prod(shape) if -1 not in shape else source // channels * layout.outputs
    return 4 * (source + output)
