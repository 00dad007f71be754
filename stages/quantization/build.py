"""A quantized model is a pure function of the floating-point model, the statistics and the plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as op
from openvino._offline_transformations import compress_quantize_weights_transformation

from stages.configuration import schema
from stages.configuration.target_device import WEIGHTS
from stages.quantization.model.graph import Graph, Node, bias_add, bias_constant_port, constant_value, output_channel_axis, read_graph
from stages.quantization.placement.plan import Plan, Quantizer, Smoothed, plan_to_json
from stages.quantization.solution.biases import Correction
from stages.quantization.solution.ranges import Range, fake_quantize, range_json
from stages.quantization.solution.solve import Solved, range_shape, solve
from stages.quantization.solution.tuned import Tuned
from stages.quantization.statistics.store import Statistics

UNFOLDED = "DisableConstantFolding_0"


def build(
    model: ov.Model,
    statistics: Statistics,
    plan: Plan,
    bias_correction: schema.BiasCorrection | None = None,
    pot_compatible: bool = False,
    corrections: Sequence[Correction] = (),
    tuned: Tuned | None = None,
) -> tuple[ov.Model, Solved]:
    """A quantized copy of `model` (which stays as it is), with FakeQuantizes on weights and activations, and its numbers.

    corrections: of biases, found with inference (accurate_bias), where bias_correction does not ask for those that `solve` computes.
    tuned: what layer-wise tuning found; layers that the plan quantizes as it did then get their tuned values.
    """
    clone = model.clone()
    _name_unnamed(clone, "added")  # a copy of a Pad without a value gets one
    graph = read_graph(clone)
    solved = solve(graph, statistics, plan, bias_correction, pot_compatible).with_corrections(corrections)
    if tuned is not None:
        solved = tuned.fitting(plan).applied(solved)
    for name, value in solved.weights.items():
        _replace_constant(graph.by_name[name], value)
    for entry in plan.smoothed:
        if entry.tensor in solved.smoothing:
            _smooth(graph, entry, solved.smoothing[entry.tensor])
    for quantizer in plan.quantizers:
        if quantizer.kind == WEIGHTS:
            _quantize_weights(graph, quantizer, solved)
        else:
            _quantize_activation(graph, quantizer, solved)
    # Last: an Add for a new bias goes between a layer and everything that reads it, quantizers too.
    for name, bias in solved.biases.items():
        set_bias(graph, graph.by_name[name], bias)
    clone.validate_nodes_and_infer_types()
    return clone, solved


# ---------------------------------------------------------------------------------------------------------- quantizers


def _quantize_activation(graph: Graph, quantizer: Quantizer, solved: Solved) -> None:
    source, port = graph.by_name[quantizer.source.name], quantizer.source.port
    output = source.operation.output(port)
    if quantizer.source in solved.smoothing:
        first = quantizer.consumers[0]
        output = graph.by_name[first.name].operation.input_value(first.port)
    quantized = _fake_quantize(graph, quantizer, solved, output, source.shapes[port] or ())
    for place in quantizer.consumers:
        graph.by_name[place.name].operation.input(place.port).replace_source_output(quantized)


def _quantize_weights(graph: Graph, quantizer: Quantizer, solved: Solved) -> None:
    """Give the operation a Constant of its own, in the shape in which it reads the weights, with a FakeQuantize on it."""
    place = quantizer.consumers[0]
    reader = graph.by_name[place.name].operation.input(place.port)
    constant = graph.by_name[quantizer.source.name]
    value = solved.own_weights.get(quantizer.name, solved.weights.get(constant.name, constant_value(constant)))
    if quantizer.doubled:
        value = value * value.dtype.type(0.5)
    shape = tuple(reader.get_shape())
    stored = _constant(value.reshape(shape), f"{quantizer.name}/constant")
    reader.replace_source_output(_fake_quantize(graph, quantizer, solved, stored, shape, reader.get_element_type()))


def _smooth(graph: Graph, smoothed: Smoothed, factors: NDArray[np.float64]) -> None:
    """Divide the features of a tensor for those that read it with weights; others read it as it is."""
    source = graph.by_name[smoothed.tensor.name].operation.output(smoothed.tensor.port)
    inverse = op.constant((1.0 / factors).astype(np.float32), dtype=source.get_element_type())
    divided = op.multiply(source, inverse)
    divided.set_friendly_name(graph.unused(f"{smoothed.tensor.name}/smoothed"))
    inverse.set_friendly_name(f"{divided.get_friendly_name()}/factors")
    for name in smoothed.readers:
        graph.by_name[name].operation.input(0).replace_source_output(divided.output(0))


def _fake_quantize(
    graph: Graph, quantizer: Quantizer, solved: Solved, source: ov.Output, shape: tuple[int, ...], result_type: ov.Type | None = None
) -> ov.Output:
    """A FakeQuantize on a tensor of `shape`, in f32 whatever the tensor's type is; the result has the tensor's or the given type."""
    name, result_type = quantizer.name, result_type or source.get_element_type()
    spread = range_shape(graph, quantizer, shape)
    borders = [np.asarray(border, np.float32) for border in solved.ranges[name]]
    borders = [border.reshape(spread) if border.size > 1 else np.broadcast_to(border, spread) for border in borders]
    inputs = [_constant(border, f"{name}/{role}") for border, role in zip(borders, ("input_low", "input_high"), strict=True)]
    outputs = inputs
    if quantizer.doubled:
        outputs = [_constant(2 * border, f"{name}/{role}") for border, role in zip(borders, ("output_low", "output_high"), strict=True)]
    node = op.fake_quantize(_as(source, ov.Type.f32, f"{name}/to_f32"), *inputs, *outputs, quantizer.scheme.levels(quantizer.kind))
    node.set_friendly_name(name)
    return _as(node.output(0), result_type, f"{name}/from_f32")


def _as(output: ov.Output, element_type: ov.Type, name: str) -> ov.Output:
    if output.get_element_type() == element_type:
        return output
    convert = op.convert(output, element_type.to_string())
    convert.set_friendly_name(name)
    return convert.output(0)


def _constant(value: NDArray[np.floating], name: str) -> ov.Output:
    constant = op.constant(np.ascontiguousarray(value))
    constant.set_friendly_name(name)
    return constant.output(0)


# -------------------------------------------------------------------------------------------------- weights and biases


def _replace_constant(node: Node, value: NDArray[np.float32]) -> None:
    """Another value for a Constant, in its type."""
    constant = op.constant(value, dtype=node.operation.get_element_type())
    constant.set_friendly_name(node.name)
    for edge in node.all_consumers():
        edge.node.operation.input(edge.index).replace_source_output(constant.output(0))


def set_bias(graph: Graph, node: Node, bias: NDArray[np.float64]) -> None:
    """Give a layer a new bias [C]; a layer without one gets an Add."""
    output, add = node.operation.output(0), bias_add(node)
    shape = [1] * len(node.shapes[0] or ())
    shape[output_channel_axis(node)] = -1
    constant = op.constant(bias.reshape(shape), dtype=output.get_element_type())
    constant.set_friendly_name(graph.unused(f"{node.name}/new_bias"))
    if add is not None:
        add.operation.input(bias_constant_port(add)).replace_source_output(constant.output(0))
        return
    readers, names = output.get_target_inputs(), output.get_names()
    biased = op.add(output, constant)
    biased.set_friendly_name(graph.unused(f"{node.name}/bias"))
    for reader in readers:
        reader.replace_source_output(biased.output(0))
    # A model's outputs go by these names.
    output.set_names(set())
    biased.output(0).set_names(names)


# ------------------------------------------------------------------------------------------------------------- storage


def quantizers_json(plan: Plan, solved: Solved, preset: str, target_device: str, warnings: Sequence[str] = ()) -> dict[str, Any]:
    """The plan with the computed ranges: what `quantizers.json` holds. warnings: what the summary is to say of it."""
    data = plan_to_json(plan)
    for entry, quantizer in zip(data["quantizers"], plan.quantizers, strict=True):
        entry["levels"] = quantizer.scheme.levels(quantizer.kind)
        entry |= range_json(solved.ranges[quantizer.name], quantizer.doubled)
    for entry, smoothed in zip(data["smoothed"], plan.smoothed, strict=True):
        entry["factors"] = solved.smoothing[smoothed.tensor].tolist() if smoothed.tensor in solved.smoothing else None
    return {"preset": preset, "target_device": target_device, "warnings": list(warnings), **data}


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
    """Fold weight FakeQuantizes into int8 constants, in place: the model is then as if it were read from its file.

    The transformation marks what it makes as not to be folded, which no file holds. Where a layer with such weights does not run in
    int8, as its input is not quantized, OpenVINO 2026.4's CPU with several streams then computes it wrongly in 1 of 15 compilations.
    """
    _keep_zero_points(model)
    compress_quantize_weights_transformation(model)
    for node in model.get_ops():
        if node.get_type_name() == "Convert" and UNFOLDED in (information := node.get_rt_info()):
            del information[UNFOLDED]
    _clear_padding(model)
    _name_unnamed(model, "compressed_weights")


def _keep_zero_points(model: ov.Model) -> None:
    """Fold those 4-bit weights that have no room for their zero point: the transformation subtracts it from them all the same,
    and what then needs five bits comes out 16 steps away.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "FakeQuantize" or not 2 < (levels := node.get_attributes()["levels"]) <= 16:
            continue
        data = node.input_value(0).get_node()
        sources = [data.input_value(0).get_node() if data.get_type_name() == "Convert" else data]
        sources += [node.input_value(index).get_node() for index in range(1, 5)]
        if any(source.get_type_name() != "Constant" for source in sources):
            continue
        values, low, high, lowest, highest = (source.data.astype(np.float32) for source in sources)
        scale, below = (highest - lowest) / np.float32(levels - 1), np.float32(levels // 2)
        zero_point = -below - lowest / scale
        stored = np.round((fake_quantize(values, Range(low, high), levels) - low) / (high - low) * (levels - 1)) - below
        moved = np.round(stored - zero_point)
        if np.all(lowest >= 0) or (moved.min() >= -8 and moved.max() <= 7):
            continue
        packed = op.convert(op.constant(stored.astype(np.int8), dtype=ov.Type.i4), node.get_element_type().to_string())
        centred = op.subtract(packed, op.constant(zero_point, dtype=node.get_element_type()))
        weights = op.multiply(centred, op.constant(scale, dtype=node.get_element_type()))
        weights.set_friendly_name(node.get_friendly_name())
        for port in node.output(0).get_target_inputs():
            port.replace_source_output(weights.output(0))


def _clear_padding(model: ov.Model) -> None:
    """Zero the half byte behind an odd number of 4-bit weights that were just made: it holds what the memory held before."""
    for node in model.get_ops():
        made = node.get_type_name() == "Constant" and node.get_friendly_name() == node.get_name()
        if made and node.get_element_type().bitwidth == 4 and math.prod(node.shape) % 2:
            values = ov.Tensor(node.get_element_type(), node.output(0).get_shape())  # unlike one made of an array it owns its memory
            values.data[:] = node.data
            values.data[-1] &= 0x0F
            for port in node.output(0).get_target_inputs():
                port.replace_source_output(op.constant(values).output(0))


def _name_unnamed(model: ov.Model, prefix: str) -> None:
    """Name the operations that go by their running number, which depends on what the process did before."""
    operations = model.get_ordered_ops()
    taken = {node.get_friendly_name() for node in operations}
    counters: dict[str, int] = {}
    for node in operations:
        if node.get_friendly_name() != node.get_name():
            continue
        kind, name = node.get_type_name(), ""
        while not name or name in taken:
            counters[kind] = counters.get(kind, 0) + 1
            name = f"{prefix}/{kind}_{counters[kind]}"
        taken.add(name)
        node.set_friendly_name(name)


def save_model(model: ov.Model, folder: Path) -> None:
    """Write model.xml and model.bin with weights compressed to int8."""
    compressed = model.clone()
    compress_weights(compressed)
    ov.serialize(compressed, str(folder / "model.xml"), str(folder / "model.bin"))
