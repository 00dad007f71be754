"""A quantized model is a pure function of the floating-point model, the statistics and the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as op
from openvino._offline_transformations import compress_quantize_weights_transformation

from stages import schema
from stages.quantization.graph import Edge, Graph, Node, bias_add, bias_constant_port, constant_value, output_channel_axis, read_graph
from stages.quantization.plan import Plan, Quantizer, plan_to_json
from stages.quantization.schemes import WEIGHTS
from stages.quantization.solve import Solved, range_shape, solve
from stages.quantization.statistics import Statistics


def build(
    model: ov.Model,
    statistics: Statistics,
    plan: Plan,
    bias_correction: schema.BiasCorrection | None = None,
    pot_compatible: bool = False,
) -> tuple[ov.Model, Solved]:
    """A quantized copy of `model` (which stays as it is), with FakeQuantizes on weights and activations, and its numbers."""
    clone = model.clone()
    graph = read_graph(clone)
    solved = solve(graph, statistics, plan, bias_correction, pot_compatible)
    for name, bias in solved.biases.items():
        _set_bias(graph.by_name[name], bias)
    for quantizer in plan.quantizers:
        if quantizer.kind == WEIGHTS:
            _quantize_weights(graph, quantizer, solved)
        else:
            _quantize_activation(graph, quantizer, solved)
    quantized = {quantizer.source.name for quantizer in plan.quantizers if quantizer.kind == WEIGHTS}
    for name, value in solved.weights.items():
        if name not in quantized:
            _replace_constant(graph.by_name[name], value)
    clone.validate_nodes_and_infer_types()
    return clone, solved


def _fake_quantize(source: ov.Output, borders: list[NDArray[np.float32]], levels: int, name: str) -> ov.Output:
    constants = []
    for border, role in zip(borders, ("input_low", "input_high", "output_low", "output_high"), strict=True):
        constant = op.constant(border)
        constant.set_friendly_name(f"{name}/{role}")
        constants.append(constant)
    node = op.fake_quantize(source, *constants, levels)
    node.set_friendly_name(name)
    return node.output(0)


def _borders(graph: Graph, quantizer: Quantizer, solved: Solved, tensor_shape: tuple[int, ...]) -> list[NDArray[np.float32]]:
    """Input low and high, output low and high, in a shape that broadcasts to the tensor."""
    shape = range_shape(graph, quantizer, tensor_shape)
    borders = [np.broadcast_to(np.asarray(border, np.float32).reshape(shape if np.size(border) > 1 else ()), shape) for border in solved.ranges[quantizer.name]]
    share = np.float32(2.0 if quantizer.doubled else 1.0)
    return [np.ascontiguousarray(border) for border in (*borders, *(border * share for border in borders))]


def _quantize_activation(graph: Graph, quantizer: Quantizer, solved: Solved) -> None:
    source = graph.by_name[quantizer.source.name]
    output = source.operation.output(quantizer.source.port)
    shape = source.shapes[quantizer.source.port] or ()
    quantized = _fake_quantize(output, _borders(graph, quantizer, solved, shape), quantizer.scheme.levels(quantizer.kind), quantizer.name)
    for place in quantizer.consumers:
        graph.by_name[place.name].operation.input(place.port).replace_source_output(quantized)


def _quantize_weights(graph: Graph, quantizer: Quantizer, solved: Solved) -> None:
    constant = graph.by_name[quantizer.source.name]
    value = solved.weights.get(constant.name, constant_value(constant))
    if quantizer.doubled:
        value = value / value.dtype.type(2)
    new = op.constant(value.astype(constant_value(constant).dtype, copy=False))
    new.set_friendly_name(f"{quantizer.name}/constant")
    output = new.output(0)
    for place in quantizer.consumers:
        edge, chain = _constant_chain(graph.by_name[place.name], place.port)
        source = output
        if not np.issubdtype(constant_value(constant).dtype, np.float32):
            convert = op.convert(source, "f32")
            convert.set_friendly_name(f"{quantizer.name}/convert")
            source = convert.output(0)
        quantized = _fake_quantize(source, _borders(graph, quantizer, solved, value.shape), quantizer.scheme.levels(quantizer.kind), quantizer.name)
        for reshape in chain:
            again = op.reshape(quantized, reshape.operation.input_value(1), reshape.attributes()["special_zero"])
            again.set_friendly_name(f"{quantizer.name}/reshape")
            quantized = again.output(0)
        edge.node.operation.input(edge.index).replace_source_output(quantized)


def _constant_chain(node: Node, port: int) -> tuple[Edge, list[Node]]:
    """The edge that reads a weight constant, and the Reshapes between, from the constant down."""
    reshapes = []
    producer = node.inputs[port].node
    while producer.type != "Constant":
        if producer.type == "Reshape":
            reshapes.append(producer)
        producer = producer.inputs[0].node
    return Edge(node, port), reshapes[::-1]


def _set_bias(node: Node, bias: NDArray[np.float64]) -> None:
    """Give a layer a new bias [C]; a layer without one gets an Add."""
    add = bias_add(node)
    rank = len(node.shapes[0] or ())
    if add is None:
        shape = [1] * rank
        shape[output_channel_axis(node)] = -1
        constant = op.constant(bias.astype(np.float32).reshape(shape))
        constant.set_friendly_name(f"{node.name}/bias/constant")
        edges = list(node.all_consumers())
        new = op.add(node.operation.output(0), constant)
        new.set_friendly_name(f"{node.name}/bias")
        for edge in edges:
            edge.node.operation.input(edge.index).replace_source_output(new.output(0))
        node.operation = new  # quantizers on this layer's output sit after its bias
        return
    port = bias_constant_port(add)
    old = add.inputs[port].node
    shape = old.shapes[add.inputs[port].index] or ()
    constant = op.constant(bias.astype(np.float32).reshape(shape))
    constant.set_friendly_name(f"{old.name}/corrected" if old.type != "Constant" else old.name)
    add.operation.input(port).replace_source_output(constant.output(0))


def _replace_constant(node: Node, value: NDArray[np.float32]) -> None:
    constant = op.constant(value.astype(constant_value(node).dtype, copy=False))
    constant.set_friendly_name(node.name)
    for edge in node.all_consumers():
        edge.node.operation.input(edge.index).replace_source_output(constant.output(0))


# ------------------------------------------------------------------------------------------------------------- storage


def quantizers_json(plan: Plan, solved: Solved, preset: str, target_device: str) -> dict[str, Any]:
    """The plan with the computed ranges: what `quantizers.json` holds."""
    data = plan_to_json(plan)
    for entry, quantizer in zip(data["quantizers"], plan.quantizers, strict=True):
        low, high = (np.asarray(border, np.float32).reshape(-1).tolist() for border in solved.ranges[quantizer.name])
        entry |= {"levels": quantizer.scheme.levels(quantizer.kind), "input_low": low, "input_high": high}
        if quantizer.doubled:
            entry |= {"output_low": [2 * value for value in low], "output_high": [2 * value for value in high]}
    return {"preset": preset, "target_device": target_device, **data}


def corrections_json(solved: Solved) -> dict[str, Any]:
    """Per layer the shift of its bias, or why it was left."""
    corrected, left = [], []
    for entry in solved.corrections:
        if entry.bias is None:
            left.append({"name": entry.name, "type": entry.type, "reason": entry.reason})
        else:
            shifts = {"largest_shift": entry.largest_shift, "largest_relative_shift": entry.largest_relative_shift}
            corrected.append({"name": entry.name, "type": entry.type, **shifts, "bias": entry.bias.astype(np.float32).tolist()})
    return {"corrected": corrected, "left": left}


def compress_weights(model: ov.Model) -> None:
    """Fold weight FakeQuantizes into int8 constants, in place, under names that do not depend on the process."""
    quantizers = {node.get_friendly_name() for node in model.get_ops() if node.get_type_name() == "FakeQuantize"}
    before = {node.get_name() for node in model.get_ops()}
    compress_quantize_weights_transformation(model)
    counters: dict[str, int] = {}
    for node in model.get_ordered_ops():
        if node.get_name() in before or node.get_friendly_name() in quantizers:
            continue
        kind = node.get_type_name()
        counters[kind] = counters.get(kind, 0) + 1
        node.set_friendly_name(f"compressed_weights/{kind}_{counters[kind]}")


def save_model(model: ov.Model, folder: Path) -> None:
    """Write model.xml and model.bin with weights compressed to int8."""
    compressed = model.clone()
    compress_weights(compressed)
    ov.serialize(compressed, str(folder / "model.xml"), str(folder / "model.bin"))
