"""A quantized model with its quantization written out: plain floating-point arithmetic that no INT8 kernel takes part in."""

from __future__ import annotations

import numpy as np
import openvino as ov
from openvino import opset13 as op
from openvino.passes import ConstantFolding, Manager

FAKE_QUANTIZE = "FakeQuantize"
UNFOLDED = "DisableConstantFolding_0"  # how OpenVINO marks weights in the memory of the process that has compressed them


def written_out(model: ov.Model, shift: ov.Node | None = None) -> ov.Model:
    """A copy of `model` in which FakeQuantizes are clamping and rounding by plain operations, and weights are stored as they count.

    It says what the model means, and OpenVINO's plugins find nothing in it to run on integers. Bodies of loops and branches too.

    Args:
        model: Stays as it is. Weights may be folded to integers, or not yet.
        shift: A scalar Parameter that becomes the model's last input and is added to whatever is rounded (not in bodies), in levels:
            tells how much hangs on values that lie between two levels.
    """
    clone = model.clone()
    for node in _all_nodes(clone):
        if UNFOLDED in (information := node.get_rt_info()):
            del information[UNFOLDED]
    passes = Manager()
    passes.register_pass(ConstantFolding())
    passes.run_passes(clone)
    own = {node.get_name() for node in clone.get_ops()}
    for node in _all_nodes(clone):
        if node.get_type_name() == FAKE_QUANTIZE:
            _replace(node, shift if node.get_name() in own else None)
    if shift is not None:
        clone.add_parameters([shift])
    clone.validate_nodes_and_infer_types()
    return clone


def is_activation_quantizer(node: ov.Node) -> bool:
    """Whether a node is a FakeQuantize on something else than a constant."""
    return node.get_type_name() == FAKE_QUANTIZE and node.input_value(0).get_node().get_type_name() != "Constant"


def _all_nodes(model: ov.Model) -> list[ov.Node]:
    """The operations of a model, and those inside of each If, Loop and TensorIterator."""
    nodes = []
    for node in model.get_ordered_ops():
        nodes.append(node)
        for body in _bodies(node):
            nodes += _all_nodes(body)
    return nodes


def _bodies(node: ov.Node) -> list[ov.Model]:
    if node.get_type_name() == "If":
        return [node.get_then_body(), node.get_else_body()]
    return [node.get_function()] if node.get_type_name() in ("Loop", "TensorIterator") else []


def _replace(node: ov.Node, shift: ov.Node | None) -> None:
    """Put the arithmetic of a FakeQuantize in its place, under its name, in f32."""
    value, low, high, output_low, output_high = (_as(source, ov.Type.f32) for source in node.input_values())
    steps = np.float32(node.get_attributes()["levels"] - 1)
    clamped = op.minimum(op.maximum(value, op.minimum(low, high)), op.maximum(low, high))
    level = op.multiply(op.divide(op.subtract(clamped, low), op.subtract(high, low)), steps)
    whole = op.round(level if shift is None else op.add(level, shift), "half_to_even")
    result = op.add(op.multiply(op.divide(whole, steps), op.subtract(output_high, output_low)), output_low)
    ended = _as(result.output(0), node.get_output_element_type(0))
    ended.get_node().set_friendly_name(node.get_friendly_name())
    node.output(0).replace(ended)


def _as(output: ov.Output, element_type: ov.Type) -> ov.Output:
    return output if output.get_element_type() == element_type else op.convert(output, element_type.to_string()).output(0)
