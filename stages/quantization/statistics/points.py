"""Which statistics a model needs, whatever is asked of them later.

The points cover every place where a quantizer may end up on the target, under any preset, ignored scope and model
type: all inputs of quantizable operations, and everything on the way up through operations that pass data on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from stages.configuration.target_device import ACTIVATIONS, Target
from stages.quantization.model.blocks import ignored_blocks
from stages.quantization.model.graph import Graph, Node, Port, constant_value, is_padded, operation_kind, weight_constant
from stages.quantization.model.signs import REARRANGING, is_non_negative
from stages.quantization.model.weights import weight_layout
from stages.quantization.placement.alignment_pairs import alignment_pairs
from stages.quantization.placement.blocking import FAKE_QUANTIZE, JUMP_FIRST_INPUT, JUMPABLE
from stages.quantization.placement.smoothed_tensors import smoothing_candidates

# From x * scale + offset in f32, with |offset| up to this many times |scale|, x comes back to about a millionth.
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
    pairs: list[tuple[Node, Node]]  # between which channels may be aligned
    inputs: list[Node]  # weighted operations: mean of the data input per channel
    outputs: list[Node]  # weighted operations: mean of the output per channel, where asked for and arithmetic cannot tell it
    features: list[Port]  # tensors whose features may be smoothed: minimum and maximum per index of the last axis
    derived: dict[Port, Derived]  # tensors that need no collection
    from_zero: frozenset[Port]  # tensors that are never negative and count as beginning at zero


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
    wanted = set(map(rearranged, tensors))
    found: dict[Port, Derived] = {}
    for port in reversed(_in_order(wanted)):
        if port in found:
            continue
        scale, offset, above = 1.0, 0.0, port
        while (step := _scalar_step(above)) is not None:
            above, factor, term = step
            offset += term * scale
            scale *= factor
            if not (0 < abs(scale) < math.inf and abs(offset) <= LARGEST_OFFSET * abs(scale)):
                break
            if above in wanted:
                found.setdefault(above, Derived(port, scale, offset))
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
        if constant is not None and math.prod(constant.shapes[0] or ()) == 1 and not node.inputs[moving].node.constant:
            value = float(constant_value(constant).reshape(-1)[0])
            return (node.inputs[moving], value, 0.0) if node.type == "Multiply" else (node.inputs[moving], 1.0, value)
    return None


def statistics_points(graph: Graph, target: Target, every_channel: bool = False, pot_compatible: bool = False) -> Points:
    """The points of `graph` for `target`.

    Args:
        graph: Of the floating-point model.
        target: The device.
        every_channel: Per-channel minima and maxima of all tensors.
        pot_compatible: Also what only POT's own rules read. Means of outputs: they cost more than all other means, because an
            output that is read before its activation function cannot be fused with that. And how far above zero tensors
            begin that are never negative.
    """
    blocks = ignored_blocks(graph, target.rules)
    tensors: dict[Port, None] = {}
    channels: dict[Port, None] = {}
    for node in graph.nodes:
        kind = operation_kind(node)
        if node.constant or node.from_shape or node in blocks or not target.quantizable(kind):
            continue
        by_channel = every_channel or any(scheme.perchannel for scheme in target.alternatives(kind, ACTIVATIONS))
        for port in node.inputs:
            _climb(port, tensors)
            if by_channel:
                _climb(port, channels)
    pairs = alignment_pairs(graph)
    weighted = [node for node in graph.nodes if weight_layout(node) is not None]
    derived = _derivations(tensors)
    return Points(
        tensors=_in_order(dict.fromkeys(derived[port].port if port in derived else port for port in tensors)),
        perchannel=_in_order({*filter(has_channels, channels), *(second.inputs[0] for _, second in pairs)}),
        pairs=pairs,
        inputs=weighted,
        outputs=[node for node in weighted if pot_compatible and not mean_is_linear(node)],
        features=[candidate.tensor for candidate in smoothing_candidates(graph) if candidate.reason is None],
        derived=derived,
        from_zero=frozenset() if pot_compatible else frozenset(filter(is_non_negative, {*tensors, *channels})),
    )


def mean_is_linear(node: Node) -> bool:
    """Whether the mean output of a weighted operation is its weights times the mean input: every input counts alike."""
    if node.type == "MatMul":
        return True
    kernel = (node.inputs[1].node.shapes[node.inputs[1].index] or ())[3 if node.type == "GroupConvolution" else 2 :]
    return not is_padded(node) and all(size == 1 for size in [*kernel, *node.attributes()["strides"]])


def has_channels(port: Port) -> bool:
    """Whether a tensor has a known number of channels, on axis 1."""
    shape = port.node.shapes[port.index] or ()
    return len(shape) > 1 and shape[1] > 0


def _climb(port: Port, reached: dict[Port, None]) -> None:
    """Add a tensor and those to which a quantizer on it may move up."""
    node = port.node
    if port in reached or node.constant or node.from_shape or node.type == FAKE_QUANTIZE or not node.is_float[port.index]:
        return
    if 0 in (node.shapes[port.index] or ()):
        return  # no values
    reached[port] = None
    if node.type in JUMPABLE:
        for source in node.inputs[:1] if node.type in JUMP_FIRST_INPUT else node.inputs:
            _climb(source, reached)


def _in_order(ports: Iterable[Port]) -> list[Port]:
    """By place in the graph: results appended in another order make inference several times slower."""
    return sorted(ports, key=lambda port: (port.node.order, port.index))
