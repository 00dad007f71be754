"""Tensors without a range: they hold infinity or values that stand for it, as masks, logarithms and quotients do, or no values.

A range that reaches to infinity leaves nothing of all other values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from stages.configuration.target_device import WEIGHTS
from stages.quantization.model.graph import Graph, Node, constant_value, walk
from stages.quantization.placement.plan import Plan, Quantizer, TensorName
from stages.quantization.statistics.store import Statistics

EMPTY = "reads what is empty for every calibration sample"
NOT_FINITE = "reads values that are not finite"
STAND_IN = "reads values beyond 1e30, which stand for infinity"
MASK = "adds a mask to what a softmax reads"
MASKS = (NOT_FINITE, STAND_IN, MASK)
ADVICE = "the model masks attention scores, so it seems to be a transformer: quantization.model_type transformer suits those better"

BEYOND = np.float32(1e30)  # finfo.min of f32 and bf16 are -3.4e38, and the CPU computes a FakeQuantize of such a range wrongly
HIDDEN = -1e4  # the usual ones: -1e4, -65504 (finfo.min of f16), -1e9
LEAST_SHARE = 0.01  # of a mask's depth that the values which it leaves reach: such scores would be a few levels in 8 bits

SOFTMAXES = frozenset({"Softmax", "SoftMax", "LogSoftmax", "Exp", "ScaledDotProductAttention"})
# What scores may go through between a mask and the softmax.
SUMS = frozenset({"Add", "Subtract", "Select", "Maximum", "Minimum", "ReduceMax", "Clamp", "Convert", "ConvertLike", "Concat"})
REARRANGED = frozenset({"Broadcast", "Gather", "Pad", "Reshape", "Slice", "Split", "Squeeze", "StridedSlice", "Tile", "Transpose"})
ON_THE_WAY = SUMS | REARRANGED | {"Unsqueeze", "VariadicSplit"}


def magnitudes(statistics: Statistics | None) -> dict[TensorName, float]:
    """The largest absolute value of each tensor over all samples; infinite where one is, or stands for it."""
    if statistics is None:
        return {}
    found = {}
    for tensor in (*statistics.lowest, *statistics.derived):
        extremes = _extremes_of(statistics, tensor)
        found[tensor] = math.inf if _beyond(extremes) else float(np.max(np.abs(extremes), initial=0.0))
    return found


def readers_without_range(graph: Graph, plan: Plan, statistics: Statistics | None, masks: bool = True) -> dict[Node, str]:
    """The operations that cannot be quantized for what their constants, or their inputs for some sample, hold: something like infinity.
    Or nothing: what a model computes for what it finds, where it finds nothing in any sample.

    Args:
        graph: Of the floating-point model.
        plan: With the quantizers.
        statistics: Of the calibration samples; None: only constants are looked at.
        masks: Also what adds large negative numbers to the scores that a softmax reads.

    Returns:
        Why they stay in floating point.
    """
    found: dict[Node, str] = {}
    for quantizer in plan.quantizers:
        extremes = _extremes(graph, quantizer, statistics)
        readers = [graph.by_name[place.name] for place in quantizer.layers or quantizer.consumers]
        if not extremes.size and _is_collected(statistics, quantizer):
            found |= dict.fromkeys(readers, EMPTY)
        elif _beyond(extremes):
            found |= dict.fromkeys(readers, STAND_IN if np.isfinite(extremes).all() else NOT_FINITE)
        elif masks and _hides(extremes):
            found |= dict.fromkeys((node for node in readers if _is_read_by_softmax(node)), MASK)
    return found


def masked_sums(graph: Graph) -> dict[Node, str]:
    """The sums before a softmax in which a constant of the model hides scores, whether or not a sample has any to hide.

    Returns:
        Why they stay in floating point.
    """

    def up(node: Node) -> Iterable[Node]:
        return node.producers() if node.type in ON_THE_WAY or node.type == "Multiply" else ()

    def hides(node: Node) -> bool:
        return node.type == "Constant" and node.is_float[0] and _hides(constant_value(node))

    sums = (node for node in graph.of_type({"Add", "Subtract"}) if not node.constant and _is_read_by_softmax(node))
    return {node: MASK for node in sums if any(map(hides, walk([node], up)))}


def warnings(graph: Graph, plan: Plan, model_type: str) -> list[str]:
    """What to tell who quantizes a transformer as if it were none."""
    left = [graph.by_name[entry.name] for entry in plan.floats if entry.reason in MASKS and entry.name in graph.by_name]
    return [ADVICE] if model_type == "none" and any(map(_is_read_by_softmax, left)) else []


def _beyond(extremes: NDArray[np.floating]) -> bool:
    return bool(np.any(~(np.abs(extremes) < BEYOND)))


def _hides(extremes: NDArray[np.floating]) -> bool:
    lowest, highest = float(np.min(extremes, initial=0.0)), float(np.max(extremes, initial=0.0))
    return lowest <= HIDDEN and highest <= -lowest * LEAST_SHARE


def _is_read_by_softmax(node: Node) -> bool:
    """Whether softmaxes are all that the result of a sum comes to."""

    def down(node: Node) -> Iterable[Node]:
        return (edge.node for edge in node.all_consumers() if edge.node.type != "ShapeOf") if node.type in ON_THE_WAY else ()

    ends = {reached.type for reached in walk([node], down) if reached.type not in ON_THE_WAY}
    return node.type in SUMS and bool(ends) and ends <= SOFTMAXES


def _extremes(graph: Graph, quantizer: Quantizer, statistics: Statistics | None) -> NDArray[np.floating]:
    """Values that are finite if all are that the quantizer is on, among them the extremes; none where they are not known."""
    if quantizer.kind == WEIGHTS:
        return constant_value(graph.by_name[quantizer.source.name])
    return np.empty(0) if statistics is None else _extremes_of(statistics, quantizer.source)


def _is_collected(statistics: Statistics | None, quantizer: Quantizer) -> bool:
    return statistics is not None and (quantizer.source in statistics.lowest or quantizer.source in statistics.derived)


def _extremes_of(statistics: Statistics, tensor: TensorName) -> NDArray[np.floating]:
    try:
        lowest, highest, size = statistics.tails(tensor)
    except KeyError:
        return np.empty(0)  # not collected: whoever needs it says so
    return np.asarray([table[size > 0, 0] for table in (lowest, highest)])
