"""Operations above which no quantizer may move, though they pass quantized data on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from stages.quantization.model.graph import Node, Port, walk
from stages.quantization.placement.plan import TensorName

FAKE_QUANTIZE = "FakeQuantize"
# Operations that a quantizer jumps over by moving to their first input, to all inputs, or to all non-constant inputs.
JUMP_FIRST_INPUT = frozenset(
    {"ReduceMax", "MaxPool", "Reshape", "Squeeze", "Unsqueeze", "Split", "VariadicSplit", "Tile", "Transpose", "StridedSlice"}
    | {"ShuffleChannels", "Broadcast", "Minimum", "Maximum", "DepthToSpace", "Gather"}
)
JUMP_ALL_INPUTS = frozenset({"Concat"})
JUMP_MOVING_INPUTS = frozenset({"Pad", "ConvertLike"})
JUMPABLE = JUMP_FIRST_INPUT | JUMP_ALL_INPUTS | JUMP_MOVING_INPUTS
# What may lie between a branching operation and its quantizers without forbidding a quantizer above the branch.
HARMLESS = JUMPABLE | {"Interpolate", "Result", "AvgPool", "ReduceMean", FAKE_QUANTIZE}
MOST_CUT_OFF = 100.0  # times as large as what an operation passes on may be what it does not; else two or three levels are left


def blocked_nodes(candidates: Iterable[Node], largest: Mapping[TensorName, float], pot_compatible: bool) -> set[Node]:
    """Operations above which a quantizer would reach somebody who reads floating-point data now, or values that they cut off.

    Args:
        candidates: What quantizers may move over, in a graph with all quantizers where they are first put.
        largest: The largest absolute value of tensors, where it is known.
        pot_compatible: Ranges may be as wide as they like, if only they are finite.
    """
    return {node for node in candidates if _reaches_others(node) or _cuts_off(node, largest, pot_compatible)}


def _cuts_off(node: Node, largest: Mapping[TensorName, float], pot_compatible: bool) -> bool:
    """Whether a range above the operation would leave hardly a level to what comes out of it, such as log(0) before a Maximum.
    Or would not hold it: the largest of nothing stands for infinity.
    """

    def known(ports: Iterable[Port]) -> list[float]:
        tensors = (TensorName(port.node.name, port.index) for port in ports)
        return [largest[tensor] for tensor in tensors if tensor in largest]

    above, below = known(node.inputs), known(Port(node, index) for index in range(len(node.consumers)))
    if not above or not below:
        return False
    if math.inf in (max(above), min(below)):
        return max(above) != min(below)
    return not pot_compatible and max(above) > MOST_CUT_OFF * min(below) > 0


def _reaches_others(start: Node) -> bool:
    for node in walk([start], _down):
        if node.type not in HARMLESS:
            return True
        if node.type == "Concat":
            if _concat_reaches_others(node, start):
                return True
            continue
        below = list(walk([node], _down))
        concats = [other for other in below if other.type == "Concat"]
        if concats:
            if any(_concat_reaches_others(other, start) for other in concats):
                return True
        elif any(other.type not in HARMLESS for other in below):
            return True
    return False


def _concat_reaches_others(concat: Node, start: Node, visiting: frozenset[Node] = frozenset()) -> bool:
    """Whether a Concat mixes a branch that cannot be quantized into consumers that are not all quantized."""

    def up(node: Node) -> list[Node]:
        return [p for p in node.producers() if p is not start and not p.constant and p.type not in (FAKE_QUANTIZE, "Constant")]

    if all(node.type in HARMLESS for node in walk([concat], up)):
        return False
    below = list(walk([concat], _down))
    if any(node.type not in HARMLESS for node in below) or not any(node.type == FAKE_QUANTIZE for node in below):
        return True
    visiting |= {concat}
    return any(_concat_reaches_others(node, start, visiting) for node in below if node.type == "Concat" and node not in visiting)


def _down(node: Node) -> Iterator[Node]:
    """The consumers of a node, not looking through quantizers and not counting ShapeOf."""
    if node.type != FAKE_QUANTIZE:
        yield from (edge.node for edge in node.all_consumers() if edge.node.type != "ShapeOf")
