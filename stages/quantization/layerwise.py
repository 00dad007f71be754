"""Layer-wise tuning: bring each quantized layer's outputs closer to the floating-point ones (mean squared error).

Layers are independent of each other: each learns from sampled output positions, with the floating-point model's input
(or the quantized model's) and the floating-point model's output as its target. The rows of as many layers as fit into
`STORED_BYTES` are collected together, in one pass of inference over the samples used; then each of them is tuned.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as op

from stages import schema
from stages.errors import UserError
from stages.quantization.biases import Correction
from stages.quantization.build import build
from stages.quantization.graph import Graph, Node, bias_add, constant_value, input_channel_axis, read_graph
from stages.quantization.layer_samples import Rows, joined, positions, row_bytes, rows_at
from stages.quantization.layer_tuning import Grid, Layer, Settings, tune
from stages.quantization.noise import aligned_model
from stages.quantization.plan import Plan, Quantizer
from stages.quantization.ranges import Range
from stages.quantization.schemes import ACTIVATIONS, WEIGHTS
from stages.quantization.solve import Solved, correctable, obstacle
from stages.quantization.statistics import Statistics
from stages.quantization.tuned import Tuned, TunedLayer, alignment_of
from stages.quantization.weights import Layout, bias_values, weight_layout
from stages.runtime import engine
from stages.runtime.datasets import Sample

STORED_BYTES = 1 << 28  # of the rows of the layers that are tuned together
TENSOR_BYTES = 1 << 26  # of these layers' inputs and outputs in one inference; a few inferences run at once


@dataclass(frozen=True)
class LayerTuning:
    """What became of one layer: its mean squared error on held-out rows before and after, or why it was left alone."""

    name: str
    type: str
    rows: int = 0
    loss_before: float | None = None
    loss_after: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class _Subject:
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


def used_samples(samples: int, config: schema.LayerwiseTuning) -> list[int]:
    """The numbers of the calibration samples to learn from: `calibration_indices_pool` of them, drawn by seed."""
    size = min(samples, config.calibration_indices_pool)
    return sorted(int(index) for index in np.random.default_rng(config.seed).permutation(samples)[:size])


def tune_layers(
    model: ov.Model,
    statistics: Statistics,
    plan: Plan,
    config: schema.LayerwiseTuning,
    samples: Sequence[Sample],
    *,
    bias_correction: schema.BiasCorrection | None = None,
    pot_compatible: bool = False,
    corrections: Sequence[Correction] = (),
    settings: schema.Engine | None = None,
    advance: Callable[[int], object] = lambda layers: None,
) -> tuple[Tuned, list[LayerTuning]]:
    """Tune what `build` makes of the same arguments; its `tuned`, and for every layer what came of it, in topological order.

    Args:
        samples: all calibration samples, bound to the model; `used_samples` of them are run.
        settings: how to run the models, always in f32.
        advance: called with the number of layers that are done.

    Raises:
        UserError: the model keeps a state between inferences, or computes values that are not finite.
    """
    graph = read_graph(model)
    if graph.of_type(["ReadValue"]):
        raise UserError(
            "the model keeps a state (ReadValue), so that samples cannot be run one by one: set layerwise_tuning.use_layerwise_tuning to false"
        )
    chosen = [samples[index] for index in used_samples(len(samples), config)]

    def quantized(tuned: Tuned | None = None) -> tuple[ov.Model, Solved]:
        return build(model, statistics, plan, bias_correction, pot_compatible, corrections, tuned)

    _, solved = quantized()
    results: dict[str, LayerTuning] = {}
    subjects = []
    for node, quantizer in correctable(graph, plan, all_nodes=False):
        subject = _subject(graph, plan, solved, node, quantizer, config, len(chosen))
        results[node.name] = LayerTuning(node.name, node.type, reason=subject if isinstance(subject, str) else None)
        if isinstance(subject, _Subject):
            subjects.append(subject)
    advance(len(results) - len(subjects))
    aligned = aligned_model(model, statistics, plan)
    levels = [subjects] if config.use_only_fp_inputs else _levels(graph, subjects)
    tuned: list[TunedLayer] = []
    for group in (group for level in levels for group in _groups(level, statistics, len(chosen))):
        sources = None if config.use_only_fp_inputs else quantized(Tuned(tuple(tuned)))[0]
        for subject, rows in zip(group, _collected(group, aligned, sources, chosen, config, settings or schema.Engine()), strict=True):
            found, result = _tuned(subject, rows, plan, config)
            tuned += found
            results[subject.name] = result
            advance(1)
    return Tuned(tuple(tuned)), list(results.values())


def tuning_json(results: Sequence[LayerTuning], samples: int) -> dict[str, Any]:
    """Per layer the mean squared error before and after, or why it was left: what `layerwise.json` holds."""
    tuned = [
        {"name": entry.name, "type": entry.type, "rows": entry.rows, "loss_before": entry.loss_before, "loss_after": entry.loss_after}
        for entry in results
        if entry.reason is None
    ]
    left = [
        {"name": entry.name, "type": entry.type, "reason": entry.reason}
        | ({} if entry.loss_before is None else {"rows": entry.rows, "loss": entry.loss_before})
        for entry in results
        if entry.reason is not None
    ]
    return {"samples": samples, "tuned": tuned, "left": left}


# ------------------------------------------------------------------------------------------------------ what is tuned


def _subject(
    graph: Graph, plan: Plan, solved: Solved, node: Node, quantizer: Quantizer | None, config: schema.LayerwiseTuning, samples: int
) -> _Subject | str:
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
    return _Subject(layout, layer, quantizer, own, max(1, min(config.positions_per_sample, room)))


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


def _levels(graph: Graph, subjects: Sequence[_Subject]) -> list[list[_Subject]]:
    """Layers by how many others come one after another before them: those of one level do not depend on each other."""
    names = {subject.name for subject in subjects}
    depth: dict[Node, int] = {}
    for node in graph.nodes:
        depth[node] = max((depth[before] + (before.name in names) for before in node.producers()), default=0)
    levels: dict[int, list[_Subject]] = {}
    for subject in subjects:
        levels.setdefault(depth[graph.by_name[subject.name]], []).append(subject)
    return [levels[level] for level in sorted(levels)]


def _groups(subjects: Sequence[_Subject], statistics: Statistics, samples: int) -> Iterator[list[_Subject]]:
    """Layers whose rows, and whose tensors in one inference, fit into memory together, in topological order."""
    group: list[_Subject] = []
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


# --------------------------------------------------------------------------------------------------- what is learned from


def _collected(
    group: Sequence[_Subject],
    aligned: ov.Model,
    quantized: ov.Model | None,
    samples: Sequence[Sample],
    config: schema.LayerwiseTuning,
    settings: schema.Engine,
) -> list[Rows]:
    """The rows of some layers, in one pass. quantized: the model whose inputs they get, if not those of the aligned one."""
    nodes = [subject.layout.node for subject in group]
    targets = _outputs_of(aligned, nodes, inputs=quantized is None, outputs=True)
    runs = [engine.infer(engine.compile(targets, settings, "f32"), samples)]
    if quantized is not None:
        sources = _outputs_of(quantized, nodes, inputs=True, outputs=False)
        runs.append(engine.infer(engine.compile(sources, settings, "f32"), samples))
    parts: list[list[Rows]] = [[] for _ in group]
    for sample, values in enumerate(zip(*runs, strict=True)):
        outputs = values[0][-len(group) :]
        for subject, part, source, output in zip(group, parts, values[-1], outputs, strict=False):
            rows = _rows(subject, source, output, sample, config.seed)
            if not (np.isfinite(rows.inputs).all() and np.isfinite(rows.outputs).all()):
                raise UserError(f"the model computes values that are not finite at {subject.name} for calibration sample {sample}")
            part.append(rows)
    return [joined(part) for part in parts]


def _rows(subject: _Subject, source: NDArray[np.floating], output: NDArray[np.floating], sample: int, seed: int) -> Rows:
    """Rows of one sample, drawn by seed, layer and sample: the same ones whatever layers are collected together."""
    count = positions(subject.layout, output)
    generator = np.random.default_rng([seed, zlib.crc32(subject.name.encode()), sample])
    places = generator.choice(count, min(count, subject.rows_per_sample), replace=False, shuffle=False)
    return rows_at(subject.layout, source, output, np.sort(places), sample)


def _outputs_of(model: ov.Model, nodes: Sequence[Node], *, inputs: bool, outputs: bool) -> ov.Model:
    """A copy of a model whose outputs are the inputs of layers before their own quantizer, then their biased outputs, in f32."""
    clone = model.clone()
    graph = read_graph(clone)
    found: list[ov.Output] = []
    if inputs:
        found += [_before_quantizer(graph.by_name[node.name]) for node in nodes]
    if outputs:
        found += [(bias_add(graph.by_name[node.name]) or graph.by_name[node.name]).operation.output(0) for node in nodes]
    for result in list(clone.get_results()):
        clone.remove_result(result)
    clone.add_results([op.result(_in_f32(output)) for output in found])
    clone.validate_nodes_and_infer_types()
    return clone


def _before_quantizer(node: Node) -> ov.Output:
    """The data input of a layer, before the FakeQuantize that is right before it."""
    port = node.inputs[0]
    while port.node.type == "FakeQuantize" or (port.node.type == "Convert" and port.node.inputs[0].node.type == "FakeQuantize"):
        port = port.node.inputs[0]
    return port.node.operation.output(port.index)


def _in_f32(output: ov.Output) -> ov.Output:
    return output if output.get_element_type() == ov.Type.f32 else op.convert(output, "f32").output(0)


# ------------------------------------------------------------------------------------------------------------- tuning


def _tuned(subject: _Subject, rows: Rows, plan: Plan, config: schema.LayerwiseTuning) -> tuple[list[TunedLayer], LayerTuning]:
    """Tune one layer; nothing, and the reason, where it gets no better."""
    name, kind = subject.name, subject.layout.node.type
    if len(rows) < 2:
        return [], LayerTuning(name, kind, len(rows), reason="the samples have only one row of it")
    generator = np.random.default_rng([config.seed, zlib.crc32(name.encode())])
    rates = config.learning_rate
    settings = Settings(
        config.optimizer,
        max(1, config.num_samples_for_tuning // config.batch_size),
        config.batch_size,
        rates.weights,
        rates.bias,
        rates.weight_fq,
        rates.input_fq,
        config.weight_decay,
    )
    outcome = tune(subject.layer, rows, settings, generator)
    if outcome.layer is None:
        reason = "it has no error" if outcome.loss_before == 0.0 else "tuning made it no better on held-out samples"
        return [], LayerTuning(name, kind, len(rows), outcome.loss_before, reason=reason)
    layer, layout = outcome.layer, subject.layout
    canonical = layer.weights.reshape(layout.value().shape)
    shrunk = np.float32(0.5 if layer.doubled else 1.0)
    found = TunedLayer(
        name,
        subject.quantizer,
        layout.restored(canonical),
        _range(layer.weight_grid, shrunk),
        layer.bias.reshape(-1).astype(np.float64),
        subject.own,
        _range(layer.input_grid) if subject.own is not None and layer.input_grid is not None else None,
        alignment_of(name, plan),
    )
    return [found], LayerTuning(name, kind, len(rows), outcome.loss_before, outcome.loss_after)


def _range(grid: Grid, factor: np.float32 = np.float32(1.0)) -> Range:
    """A grid's borders as a range: scalars, or [C]."""
    low, high = ((border * factor).reshape(-1).astype(np.float64) for border in (grid.low, grid.high))
    return Range(low, high) if low.size > 1 else Range(low.reshape(()), high.reshape(()))
