"""Tensors that must share one range: what meets in a Concat, and the inputs of recurrent cells (as POT 2023.3)."""

from __future__ import annotations

from collections.abc import Iterator

from stages.configuration.target_device import Target
from stages.quantization.model.graph import Node, is_depthwise, walk
from stages.quantization.placement.blocking import FAKE_QUANTIZE

SCALE_CONSUMERS = frozenset({"Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul"})
RECURRENT_PAIRS = {"LSTMSequence": ((0, 1), (4, 5)), "GRUSequence": ((0, 1), (3, 4))}


def unified_groups(quantizers: list[Node], nodes: list[Node], target: Target) -> list[list[Node]]:
    """Groups of activation quantizers (FakeQuantize nodes of the placement graph) that share one range."""
    activations = [quantizer for quantizer in quantizers if not quantizer.inputs[0].node.constant]
    groups: list[list[Node]] = []
    assigned: set[Node] = set()
    for start in activations:
        if start in assigned:
            continue
        reached = {start: None} | dict.fromkeys(walk([start], lambda node: _neighbours(node, target)))
        members = [node for node in activations if node in reached]
        bridges = [node for node in reached if node.type in target.unified_scales and not any(p.constant for p in node.producers())]
        if len(members) > 1 and any(_scales_matter(bridge, target) for bridge in bridges):
            groups.append(members)
            assigned.update(members)
    for node in nodes:
        for pair in RECURRENT_PAIRS.get(node.type, ()):
            sources = list(dict.fromkeys(node.inputs[index].node for index in pair))
            if len(sources) > 1 and all(s.type == FAKE_QUANTIZE and not s.inputs[0].node.constant and s not in assigned for s in sources):
                groups.append(sources)
                assigned.update(sources)
    return groups


def _neighbours(node: Node, target: Target) -> Iterator[Node]:
    for other in (*node.producers(), *(edge.node for edge in node.all_consumers())):
        of_activation = other.type == FAKE_QUANTIZE and not other.inputs[0].node.constant
        if not other.constant and (other.type in target.pass_through or of_activation):
            yield other


def _scales_matter(concat: Node, target: Target) -> bool:
    """A Concat of quantized tensors that feeds a weighted operation, and none with a range per channel."""

    def up(node: Node) -> Iterator[Node]:
        return (p for p in node.producers() if not p.constant and (node is concat or p.type in target.pass_through))

    def down(node: Node) -> Iterator[Node]:
        if node is concat or node.type in target.pass_through or node.type == FAKE_QUANTIZE:
            yield from (edge.node for edge in node.all_consumers())

    above = any(node.type == FAKE_QUANTIZE or node.type in target.unified_scales for node in walk([concat], up))
    below = list(walk([concat], down))
    return above and any(node.type in SCALE_CONSUMERS for node in below) and not any(is_depthwise(node) for node in below)
