"""Which statistics a model needs, whatever is asked of them later.

The points cover every place where a quantizer may end up on the target, under any preset, ignored scope and model
type: all inputs of quantizable operations, and everything on the way up through operations that pass data on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stages.quantization.alignment import aligned_port, alignment_pairs
from stages.quantization.graph import Graph, Node, Port, constant_value, operation_kind, weight_constant
from stages.quantization.patterns import ignored_blocks
from stages.quantization.placement import JUMP_ALL_INPUTS, JUMP_FIRST_INPUT, JUMP_MOVING_INPUTS
from stages.quantization.schemes import ACTIVATIONS, Target
from stages.quantization.weights import weight_layout

# Operations that only rearrange values: what is known of a whole tensor is known of their input.
REARRANGING = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze"})
# x * scale + offset with |offset| up to this many times |scale| gives x back to a millionth.
LARGEST_OFFSET = 16.0


class Derived(NamedTuple):
    """Where the values of a tensor follow from: x = (y - offset) / scale of each value y of another tensor, rearranged."""

    port: Port
    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class Points:
    """What one inference pass collects."""

    tensors: list[Port]  # the lowest and highest values of the whole tensor
    perchannel: list[Port]  # minimum and maximum per channel (axis 1)
    aligned: list[Port]  # tail quantiles per channel, for channel alignment
    inputs: list[Node]  # weighted operations: mean of the data input per channel
    outputs: list[Node]  # weighted operations: mean of the output per channel, where arithmetic cannot tell it
    derived: dict[Port, Derived]  # tensors that need no collection


def rearranged(port: Port) -> Port:
    """The tensor with the same values further up, above operations that only rearrange them."""
    while port.node.type in REARRANGING and not port.node.inputs[0].node.constant:
        port = port.node.inputs[0]
    return port


def _derivations(tensors: Iterable[Port]) -> dict[Port, Derived]:
    """How the tensors follow from fewer of them.

    Of a tensor and its scaled and shifted version the latter is collected: it is the end of one fused kernel, and asking
    for the former would break that up.
    """
    wanted = dict.fromkeys(rearranged(port) for port in tensors)
    found: dict[Port, Derived] = {}
    for port in wanted:
        scale, offset, below = 1.0, 0.0, port
        while (step := _scalar_step(below)) is not None:
            below, factor, term = step
            offset += term * scale
            scale *= factor
            if below in wanted and scale and abs(offset) <= LARGEST_OFFSET * abs(scale):
                found[below] = Derived(port, scale, offset)
    for port, (source, scale, offset) in list(found.items()):
        if source in found:  # in turn derived from a tensor further down
            last = found[source]
            found[port] = Derived(last.port, scale * last.scale, offset * last.scale + last.offset)
    for port in tensors:
        top = rearranged(port)
        if top != port:
            found[port] = found.get(top, Derived(top))
    return found


def _scalar_step(port: Port) -> tuple[Port, float, float] | None:
    """For a tensor y = x * factor + term with numbers for factor and term: x, factor and term."""
    node = port.node
    if node.type not in ("Multiply", "Add"):
        return None
    for moving, other in ((0, 1), (1, 0)):
        constant = weight_constant(node.inputs[other])
        if constant is not None and not node.inputs[moving].node.constant and constant_value(constant).size == 1:
            value = float(constant_value(constant).reshape(-1)[0])
            if np.isfinite(value):
                return (node.inputs[moving], value, 0.0) if node.type == "Multiply" else (node.inputs[moving], 1.0, value)
    return None


def statistics_points(graph: Graph, target: Target, every_channel: bool = False) -> Points:
    """The points of `graph` for `target`. every_channel: per-channel minima and maxima of all tensors."""
    blocks = ignored_blocks(graph, target.rules)
    tensors: dict[Port, None] = {}
    perchannel: dict[Port, None] = {}
    for node in graph.nodes:
        kind = operation_kind(node)
        if node.constant or node.from_shape or node in blocks or not target.quantizable(kind):
            continue
        by_channel = every_channel or any(scheme.perchannel for scheme in target.alternatives(kind, ACTIVATIONS))
        for port in node.inputs:
            _climb(port, by_channel, tensors, perchannel)
    pairs = alignment_pairs(graph)
    weighted = [node for node in graph.nodes if weight_layout(node) is not None]
    between = [aligned_port(second) for _, second in pairs]
    perchannel.update(dict.fromkeys(between))
    derived = _derivations(tensors)
    return Points(
        tensors=_in_order(dict.fromkeys(derived[port].port if port in derived else port for port in tensors)),
        perchannel=_in_order(port for port in perchannel if len(port.node.shapes[port.index] or ()) >= 3 or port in between),
        aligned=_in_order(between),
        inputs=weighted,
        outputs=[node for node in weighted if not mean_is_linear(node)],
        derived=derived,
    )


def mean_is_linear(node: Node) -> bool:
    """Whether the mean output of a weighted operation is its weights times the mean input: every input counts alike."""
    if node.type == "MatMul":
        return True
    attributes = node.attributes()
    kernel = (weight_layout(node) or _missing(node)).kernel
    padded = any([*attributes["pads_begin"], *attributes["pads_end"]]) or attributes.get("auto_pad", "explicit") not in ("explicit", "valid")
    return not padded and all(size == 1 for size in [*kernel, *attributes["strides"]])


def _missing(node: Node) -> None:
    raise ValueError(f"{node} has no constant weights")


def _climb(port: Port, by_channel: bool, tensors: dict[Port, None], perchannel: dict[Port, None]) -> None:
    """Add a tensor and those to which a quantizer on it may move up."""
    node = port.node
    if node.constant or node.from_shape or not node.is_float[port.index] or (port in tensors and (port in perchannel or not by_channel)):
        return
    tensors[port] = None
    if by_channel:
        perchannel[port] = None
    if node.type in JUMP_FIRST_INPUT:
        _climb(node.inputs[0], by_channel, tensors, perchannel)
    elif node.type in JUMP_ALL_INPUTS | JUMP_MOVING_INPUTS:
        for source in node.inputs:
            _climb(source, by_channel, tensors, perchannel)


def _in_order(ports: Iterable[Port]) -> list[Port]:
    """By place in the graph: results appended in another order make inference several times slower."""
    return sorted(ports, key=lambda port: (port.node.order, port.index))
