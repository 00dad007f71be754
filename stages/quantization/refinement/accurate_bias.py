"""BiasCorrection: walk the layers with inference, and give each the bias that restores its mean output.

Unlike FastBiasCorrection, a layer sees the inputs that the quantized and already corrected layers before it produce, so
it also makes up for what their corrections leave. Weights are quantized, activations are not (as POT 2023.3).

Layers that do not depend on each other are corrected together. The tensors at which such a level ends are kept for every
sample, and the next level starts from them, so that every operation runs once. Where they would take more than
`STORED_BYTES`, they are not kept, and the next level starts further up: memory stays bounded at the price of time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as op
from openvino.passes import ConstantFolding, Manager

from stages.common.errors import UserError
from stages.configuration import schema
from stages.configuration.target_device import WEIGHTS
from stages.quantization.build import set_bias
from stages.quantization.model.graph import Graph, Node, Port, bias_add, bias_constant_port, constant_value, output_channel_axis, read_graph
from stages.quantization.model.weights import bias_values, weight_layout
from stages.quantization.noise import aligned_model
from stages.quantization.placement.plan import Plan
from stages.quantization.solution.biases import Correction, decide, threshold
from stages.quantization.solution.solve import Solved, correctable_layers, dequantized_weights, obstacle, quantized_constant, solve
from stages.quantization.statistics.means import Means, channel_mean
from stages.quantization.statistics.store import Statistics
from stages.runtime import engine
from stages.runtime.datasets import Sample

Array = NDArray[np.float64]

STREAMS = "a state goes on in streams, where layers cannot be run one by one"
SHARE = 0.2  # of the calibration samples, as POT
STORED_BYTES = 1 << 29  # of the tensors kept between two levels; while one runs, there are those before and those after it


def used_samples(samples: int) -> int:
    """How many of the calibration samples, from the first, the correction runs on."""
    return max(1, int(SHARE * samples))


def accurate_corrections(
    model: ov.Model,
    statistics: Statistics,
    plan: Plan,
    config: schema.BiasCorrection,
    samples: Sequence[Sample],
    *,
    pot_compatible: bool = False,
    settings: schema.Engine | None = None,
    advance: Callable[[int], object] = lambda layers: None,
) -> list[Correction]:
    """The corrections for `build`, layers in topological order.

    Args:
        samples: all calibration samples, bound to the model; `used_samples` of them are run.
        pot_compatible: leave layers without a bias or with zeros in it alone; then, as POT does, later layers see the
            floating-point weights of such a layer.
        settings: how to run the model, always in f32.
        advance: called with the number of layers that are done.

    Raises:
        UserError: the model keeps a state and samples are parts of streams, or it computes values that are not finite.
    """
    graph = read_graph(model)
    if reason := reason_against(model, samples):
        raise UserError(f"{reason}: set bias_correction.use_fast_bias to true")
    solved = solve(graph, statistics, plan, None, pot_compatible)
    results: dict[str, Correction] = {}
    old: dict[str, Array | None] = {}
    for node, _ in correctable_layers(graph, plan, config.apply_for_all_nodes):
        old[node.name] = solved.biases.get(node.name, bias_values(node))
        if reason := obstacle(node, old[node.name]):
            results[node.name] = Correction(node.name, node.type, reason=reason)
    layers = [name for name in old if name not in results]
    advance(len(results))
    if layers:
        run = _Runner(samples[: used_samples(len(samples))], settings or schema.Engine())
        aligned = with_initial_state(aligned_model(model, statistics, plan))
        expected = _float_means(aligned, layers, run)
        walk = _walk(aligned, plan, solved, layers, run)
        for level in walk.levels():
            means = walk.means(level)
            shifts = {}
            for name in level:
                node, bias = graph.by_name[name], old[name]
                if name not in expected or name not in means:
                    results[name] = Correction(name, node.type, reason="it has no output for any sample")
                    continue
                shift = expected[name] - means[name]
                corrected = shift + (0.0 if bias is None else bias)
                results[name] = decide(node, bias, corrected, threshold(config), config.correct_zero_biases and not pot_compatible)
                if results[name].bias is not None:
                    shifts[name] = shift
            walk.finish_level(shifts, [name for name in level if name not in shifts] if pot_compatible else [])
            advance(len(level))
    return [results[name] for name in old]


def reason_against(model: ov.Model, samples: Sequence[Sample]) -> str | None:
    """Why the correction is not possible."""
    return STREAMS if model.get_sinks() and samples[0].part is not None else None


def with_initial_state(model: ov.Model) -> ov.Model:
    """A copy of a model that has its initial state in place of one that it keeps; the model itself where it keeps none."""
    if not model.get_sinks():
        return model
    clone = model.clone()
    for node in clone.get_ops():
        if node.get_type_name() == "ReadValue":
            initial = node.input_value(0) if node.get_input_size() else _zeros(node)
            node.output(0).replace(_as(initial, node.get_output_element_type(0)))
    for sink in clone.get_sinks():
        clone.remove_sink(sink)
    return clone


def _zeros(node: ov.Node) -> ov.Output:
    """What a state begins with that the model gives no initial value; a size that is not known is none."""
    shape = [size.get_length() if size.is_static else 0 for size in node.get_output_partial_shape(0)]
    return op.constant(np.zeros(shape, np.float32)).output(0)


# ------------------------------------------------------------------------------------------------------------- running


@dataclass(frozen=True)
class _Runner:
    """Runs parts of the model on the samples."""

    samples: Sequence[Sample]
    settings: schema.Engine

    def __call__(
        self, outputs: Sequence[ov.Output], parameters: Sequence[ov.Node], sources: Sequence[int | Sequence[NDArray]]
    ) -> Iterator[list[NDArray]]:
        """The outputs for each sample. sources: per parameter the arrays of all samples, or the number of a model input."""
        part = ov.Model([op.result(output) for output in outputs], list(parameters))
        compiled = engine.compile(part, self.settings, "f32")

        def inputs() -> Iterator[Sample]:
            reads = any(isinstance(source, int) for source in sources)
            for position in range(len(self.samples)):
                given = list(self.samples[position].inputs.values()) if reads else []
                arrays = [given[source] if isinstance(source, int) else source[position] for source in sources]
                yield Sample({str(index): array for index, array in enumerate(arrays)})

        return engine.infer(compiled, inputs())


def _float_means(aligned: ov.Model, layers: Sequence[str], run: _Runner) -> dict[str, Array]:
    """What the layers' mean outputs [C] are in floating point, with their biases."""
    clone = aligned.clone()
    graph = read_graph(clone)
    nodes = [graph.by_name[name] for name in layers]
    outputs = [channel_mean(Port(bias_add(node) or node, 0), output_channel_axis(node), ov.Type.f32) for node in nodes]
    total = _Totals(layers, [marked for _, marked in outputs])
    for values in run([output for output, _ in outputs], clone.get_parameters(), range(len(clone.inputs))):
        total.add(values)
    return total.value()


class _Totals:
    """The mean over samples of one array per layer."""

    def __init__(self, layers: Sequence[str], marked: Sequence[bool]) -> None:
        self._layers = list(zip(layers, marked, strict=True))
        self._means = Means()
        self.samples = 0

    def add(self, values: Sequence[NDArray]) -> None:
        for (name, marked), value in zip(self._layers, values, strict=True):
            self._means.add(name, self.samples, value[None], marked=marked)
        self.samples += 1

    def value(self) -> dict[str, Array]:
        return self._means.value()


# ------------------------------------------------------------------------------------------------------------- walking


@dataclass
class _Walk:
    """A model with quantized weights, of which more and more is behind, replaced by the tensors that it left.

    Attributes:
        layers: Name -> the Add of its bias.
        floats: Layer -> the input that reads its weights, and the floating-point ones.
        depth: Node -> the level in which it runs: how many layers that are corrected come one after another before it.
            Only nodes on which such a layer depends.
        entries: Tensors from which the rest of the model can be computed -> the Parameters that stand for them there.
        kept: The same tensors -> their values for every sample; a model input's number instead.
    """

    graph: Graph
    layers: dict[str, Node]
    floats: dict[str, tuple[ov.Input, ov.Output]]
    depth: dict[Node, int]
    run: _Runner
    entries: dict[Port, ov.Node]
    kept: dict[Port, int | list[NDArray]]
    level: int = 0
    fresh: dict[Port, list[NDArray]] | None = field(default_factory=dict)  # what the level leaves; None: it was too much

    def levels(self) -> Iterator[list[str]]:
        """The names of the layers of each level."""
        for level in range(max(self.depth.values()) + 1):
            self.level = level
            yield [name for name, end in self.layers.items() if self.depth[end] == level]

    def means(self, level: Sequence[str]) -> dict[str, Array]:
        """The mean outputs [C] of a level's layers; keeps what it leaves."""
        new = [port for port in self._frontier() if port not in self.entries]
        means = [channel_mean(Port(self.layers[name], 0), output_channel_axis(self.graph.by_name[name]), ov.Type.f32) for name in level]
        used = self._entries_before([*(Port(self.layers[name], 0) for name in level), *new])
        outputs = [*(mean for mean, _ in means), *(_as(_output(port), _kept_type(port)) for port in new)]
        total = _Totals(level, [marked for _, marked in means])
        self.fresh, size, carried = {port: [] for port in new}, 0, self._size(self._frontier())
        for values in self.run(outputs, [self.entries[port] for port in used], [self.kept[port] for port in used]):
            total.add(values[: len(means)])
            if self.fresh is None:
                continue
            for port, value in zip(new, values[len(means) :], strict=True):
                self.fresh[port].append(value.copy())
                size += value.nbytes
            if carried + size * len(self.run.samples) / total.samples > STORED_BYTES:
                self.fresh = None
        return total.value()

    def finish_level(self, shifts: dict[str, Array], floats: Sequence[str]) -> None:
        """Shift biases of the level, give layers their floating-point weights back, and let the next level start after this one."""
        for name, shift in shifts.items():
            end = self.layers[name]
            shift = shift.reshape(_spread(self.graph.by_name[name]))
            reader = end.operation.input(bias_constant_port(end))
            added = op.constant(shift, dtype=reader.get_element_type())
            reader.replace_source_output(op.add(reader.get_source_output(), added).output(0))
            for value in (self.fresh or {}).get(Port(end, 0), ()):
                value += shift.astype(np.float32)
        for name in set(floats) & set(self.floats):
            reader, weights = self.floats[name]
            reader.replace_source_output(weights)
            self.fresh = None  # was computed with the others
        if self.fresh is None:
            return
        frontier = self._frontier()
        for port in frontier:
            if port not in self.entries:
                self._enter(port)
        inputs: dict[Port, int | list[NDArray]] = {port: source for port, source in self.kept.items() if isinstance(source, int)}
        self.kept = inputs | {port: self.fresh[port] if port in self.fresh else self.kept[port] for port in frontier}
        self.entries = {port: self.entries[port] for port in self.kept}
        self.fresh = None

    def _frontier(self) -> list[Port]:
        """The tensors that the levels so far leave to those to come, but for the model's inputs, which can be read again."""
        return [
            Port(node, index)
            for node, depth in self.depth.items()
            if depth <= self.level and node.type != "Parameter"
            for index, edges in enumerate(node.consumers)
            if any(self.depth.get(edge.node, -1) > self.level for edge in edges)
        ]

    def _enter(self, port: Port) -> None:
        """Let what comes after the level read a tensor from a Parameter."""
        element_type = port.node.operation.get_output_element_type(port.index)
        parameter = op.parameter(port.node.operation.get_output_partial_shape(port.index), _kept_type(port))
        source = _as(parameter.output(0), element_type)
        for edge in port.node.consumers[port.index]:
            if self.depth.get(edge.node, -1) > self.level:
                edge.node.operation.input(edge.index).replace_source_output(source)
        self.entries[port] = parameter

    def _entries_before(self, outputs: Sequence[Port]) -> list[Port]:
        """The entries that outputs are computed from."""
        waiting, seen, found = list(outputs), set(outputs), []
        while waiting:
            port = waiting.pop()
            if port in self.entries:
                found.append(port)
                continue
            before = [before for before in port.node.inputs if before not in seen and not before.node.constant]
            seen.update(before)
            waiting += before
        return found

    def _size(self, ports: Sequence[Port]) -> int:
        kept = (self.kept.get(port, 0) for port in ports)
        return sum(array.nbytes for arrays in kept if not isinstance(arrays, int) for array in arrays)


def _walk(aligned: ov.Model, plan: Plan, solved: Solved, layers: Sequence[str], run: _Runner) -> _Walk:
    """The start of the walk: a copy of the aligned model with quantized weights, and a bias for every layer."""
    clone = aligned.clone()
    graph = read_graph(clone)
    floats = {}
    for quantizer in plan.quantizers:
        if quantizer.kind != WEIGHTS:
            continue
        place = quantizer.consumers[0]
        reader = graph.by_name[place.name].operation.input(place.port)
        floats[place.name] = (reader, reader.get_source_output())
        stored = constant_value(quantized_constant(graph, quantizer))
        value = dequantized_weights(graph, quantizer, stored, solved.ranges[quantizer.name]).reshape(tuple(reader.get_shape()))
        weights = op.constant(np.ascontiguousarray(value, np.float32)).output(0)
        reader.replace_source_output(_as(weights, reader.get_element_type()))
    for name in layers:
        node = graph.by_name[name]
        if bias_add(node) is None:
            set_bias(graph, node, np.zeros(_outputs(node)))
    # What is known of shapes must not come from a Parameter later on.
    passes = Manager()
    passes.register_pass(ConstantFolding())
    passes.run_passes(clone)
    graph = read_graph(clone)
    ends = {name: _end(graph.by_name[name]) for name in layers}
    inputs = [graph.by_name[node.get_friendly_name()] for node in clone.get_parameters()]
    entries = {Port(node, 0): node.operation for node in inputs}
    return _Walk(graph, ends, floats, _depths(graph, set(ends.values())), run, entries, {port: i for i, port in enumerate(entries)})


def _end(node: Node) -> Node:
    add = bias_add(node)
    assert add is not None, node
    return add


def _depths(graph: Graph, ends: set[Node]) -> dict[Node, int]:
    """For every node that some layer's end depends on: the longest row of other ends before it."""
    needed = set(ends)
    for node in reversed(graph.nodes):
        if node in needed:
            needed.update(producer for producer in node.producers() if not producer.constant)
    depth: dict[Node, int] = {}
    for node in graph.nodes:
        if node in needed:
            depth[node] = max((depth[before] + (before in ends) for before in node.producers() if not before.constant), default=0)
    return depth


def _outputs(node: Node) -> int:
    layout = weight_layout(node)
    assert layout is not None, node
    return layout.outputs


def _spread(node: Node) -> tuple[int, ...]:
    """The shape in which one value per output channel broadcasts to the layer's output."""
    rank = len(node.shapes[0] or ())
    channel = output_channel_axis(node) % rank
    return tuple(-1 if axis == channel else 1 for axis in range(rank))


def _kept_type(port: Port) -> ov.Type:
    return ov.Type.f32 if port.node.is_float[port.index] else port.node.operation.get_output_element_type(port.index)


def _as(output: ov.Output, element_type: ov.Type) -> ov.Output:
    return output if output.get_element_type() == element_type else op.convert(output, element_type.to_string()).output(0)


def _output(port: Port) -> ov.Output:
    return port.node.operation.output(port.index)
