"""Pairs of convolutions whose channels can be aligned, and why others cannot (as POT 2023.3)."""

from __future__ import annotations

from typing import NamedTuple

from stages.quantization.model.graph import CONVOLUTIONS, OPERATIONS_WITH_WEIGHTS, Graph, Node, bias_add, is_padded
from stages.quantization.model.weights import bias_values, weight_layout
from stages.quantization.placement.plan import TensorName

TAIL = 1e-4  # per-channel quantiles of one sample that count as its range


class Pair(NamedTuple):
    """A convolution fed by a weighted operation and nothing else, bias aside: aligned, unless there is a reason against it."""

    first: Node
    second: Node
    reason: str | None


def alignment_candidates(graph: Graph) -> list[Pair]:
    """Every convolution that reads a weighted operation with no activation between, by name."""
    candidates = []
    for second in sorted(graph.of_type(CONVOLUTIONS), key=lambda node: node.name):
        first = _feeding_layer(second)
        if first is not None:
            candidates.append(Pair(first, second, _reason_against(first, second)))
    return candidates


def alignment_pairs(graph: Graph) -> list[tuple[Node, Node]]:
    """Pairs (first, second): an unpadded convolution fed by nothing but a convolution, with no activation between."""
    return [(pair.first, pair.second) for pair in alignment_candidates(graph) if pair.reason is None]


def aligned_tensor(second: Node) -> TensorName:
    """The tensor between the two operations of a pair."""
    return TensorName(second.inputs[0].node.name, second.inputs[0].index)


def _feeding_layer(second: Node) -> Node | None:
    """The weighted operation whose output, or what an Add with a constant makes of it, `second` reads."""
    node = second.inputs[0].node
    if node.type == "Add":
        moving = [producer for producer in node.producers() if not producer.constant]
        node = moving[0] if len(moving) == 1 else node
    return node if node.type in OPERATIONS_WITH_WEIGHTS and not node.constant else None


def _reason_against(first: Node, second: Node) -> str | None:
    """Why the channels between two weighted operations are left as they are; as POT but for the MatMul."""
    attributes, between = second.attributes(), second.inputs[0]
    if second.type != "Convolution":
        return "the second one is grouped"
    if is_padded(second):
        return "the second one pads its input"  # a shift of the input would not move every output alike
    if any(value != 1 for value in [*attributes["strides"], *attributes["dilations"]]):
        return "the second one has a stride or a dilation"
    if len(between.node.consumers[between.index]) != 1:
        return "something else reads the tensor between them"
    if first.type not in CONVOLUTIONS:
        return f"the channels of a {first.type} lie elsewhere"
    if between.node is not first and (bias_add(first) is not between.node or bias_values(first) is None):
        return "what is added between them is not one value per channel"
    if not all(_owns_weights(node) for node in (first, second)):
        return "weights are computed, or read by something else"
    return None


def _owns_weights(node: Node) -> bool:
    """Whether no other operation reads the Constant that holds the weights."""
    layout = weight_layout(node)
    if layout is None:
        return False
    reader = layout.constant
    while reader is not node:
        consumers = list(reader.all_consumers())
        if len(consumers) != 1:
            return False
        reader = consumers[0].node
    return True
