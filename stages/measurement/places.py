"""The tensors at which a quantized model is compared with what it says (`fidelity`), as further outputs of either."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
from openvino import opset13 as op

from stages.measurement.written_out import is_activation_quantizer

WEIGHTED = frozenset({"MatMul", "Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData"})
# What comes out is in an order, or of a number, that the last bit may change, or random: what is behind it cannot be compared.
UNSTABLE = frozenset(
    {"TopK", "NonZero", "Unique", "Proposal", "DetectionOutput", "MatrixNms", "MulticlassNms", "NonMaxSuppression", "NMSRotated"}
    | {"CTCGreedyDecoder", "CTCGreedyDecoderSeqLen", "RandomUniform", "Multinomial", "ExperimentalDetectronDetectionOutput"}
    | {"ExperimentalDetectronGenerateProposalsSingleImage", "ExperimentalDetectronTopKROIs", "GenerateProposals"}
)


class Place(NamedTuple):
    """A tensor that is compared.

    Attributes:
        tensor: The operation that computes it, or that computes what its quantizer rounds.
        layer: What is to blame when this is the first tensor that differs: the last layer with weights before it, if there is one.
        kind: The layer's type.
        output: Which of the model's outputs it is; None where it is none.
        reader: Where it is read otherwise: name of a quantizer, whose output it is, or of an operation with its input port.
        step: Width of a level of its quantizer; 0 where it has none.
    """

    tensor: str
    layer: str
    kind: str
    output: int | None = None
    reader: tuple[str, int | None] | None = None
    step: float = 0.0


def compared(model: ov.Model) -> list[Place]:
    """The tensors of a quantized model that can be compared, in the order in which they are computed."""
    operations = model.get_ordered_ops()
    position = {node.get_name(): index for index, node in enumerate(operations)}
    unstable: set[str] = set()
    found: list[tuple[int, Place]] = []

    def add(source: ov.Output, **where: Any) -> None:
        node = source.get_node()
        if source.get_element_type() in (ov.Type.f32, ov.Type.f16, ov.Type.f64) and node.get_name() not in unstable:
            blamed = _blamed(source)
            place = Place(node.get_friendly_name(), blamed.get_friendly_name(), blamed.get_type_name(), **where)
            found.append((position[node.get_name()], place))

    for node in operations:
        sources = node.input_values()
        if any(source.get_node().get_name() in unstable for source in sources):
            unstable.add(node.get_name())
        elif node.get_type_name() in UNSTABLE:
            for port, source in enumerate(sources):
                if source.get_node().get_type_name() not in ("Constant", "Parameter") and not is_activation_quantizer(source.get_node()):
                    add(source, reader=(node.get_friendly_name(), port))
            unstable.add(node.get_name())
        elif is_activation_quantizer(node):
            add(sources[0], reader=(node.get_friendly_name(), None), step=_step(node))
    for index, result in enumerate(model.get_results()):
        add(result.input_value(0), output=index)
    return [place for _, place in sorted(found, key=lambda entry: entry[0])]


def with_outputs(model: ov.Model, places: Sequence[Place]) -> ov.Model:
    """A copy of a model, written out or not, that has the places as outputs after its own."""
    clone = model.clone()
    by_name = {node.get_friendly_name(): node for node in clone.get_ops()}
    readers = [place.reader for place in places if place.reader is not None]
    sources = [by_name[name].output(0) if port is None else by_name[name].input_value(port) for name, port in readers]
    clone.add_results([op.result(source) for source in sources])
    return clone


def ending_at(model: ov.Model, place: Place) -> ov.Model:
    """A copy of a model that ends at a place, its only output."""
    clone = with_outputs(model, [place])
    result = clone.get_results()[place.output if place.output is not None else -1]
    return ov.Model([result], clone.get_parameters())


def _step(quantizer: ov.Node) -> float:
    """The width of a quantizer's levels (root mean square over channels)."""
    low, high = (np.asarray(quantizer.input_value(port).get_node().data, np.float64) for port in (3, 4))
    return float(np.sqrt(np.mean((high - low) ** 2))) / (quantizer.get_attributes()["levels"] - 1)


def _blamed(source: ov.Output) -> ov.Node:
    """The last layer with weights between the quantizers before a tensor and the tensor; else what computes the tensor."""
    level, seen = [source.get_node()], set()
    while level:
        for node in level:
            if node.get_type_name() in WEIGHTED:
                return node
        above = [value.get_node() for node in level if not is_activation_quantizer(node) for value in node.input_values()]
        level = [node for node in {node.get_name(): node for node in above}.values() if node.get_name() not in seen]
        seen |= {node.get_name() for node in level}
    return source.get_node()
