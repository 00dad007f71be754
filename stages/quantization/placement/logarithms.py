"""What ends in a logarithm stays in floating point: there a value of a thousandth counts as much as one of a thousand.

Eight bits over a range know differences, not ratios: all below half a step becomes the same. Audio front ends (spectrum, mel bands,
constant-Q transform, then decibels) are made so: with them in INT8 a music transcriber found 56 % of its notes, without 90 % of 92.
"""

from __future__ import annotations

import numpy as np

from stages.configuration.target_device import Target
from stages.quantization.model.graph import OPERATIONS_WITH_WEIGHTS, Graph, Node, constant_value, operation_kind

REASON = "small values count: what it computes ends in a logarithm"

# What a small value stays small through: linear operations, magnitudes, powers, sums. Not activation functions: behind them is
# another network.
PROPORTIONAL = OPERATIONS_WITH_WEIGHTS | frozenset(
    {"Abs", "Add", "AvgPool", "Clamp", "Divide", "Maximum", "MaxPool", "Minimum", "Multiply", "Negative", "Power", "Sqrt", "Subtract"}
    | {"ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceSum", "SquaredDifference"}
)
# A sum with a number beyond this, or a border there, hides what is small.
HIDING = 0.01


def before_logarithms(graph: Graph, target: Target) -> dict[Node, str]:
    """The operations that could be quantized and from which small values reach a Log, each with the reason."""
    reached: set[Node] = set()
    waiting = graph.of_type(["Log"])
    while waiting:
        for producer in waiting.pop().producers():
            known = producer.type in PROPORTIONAL or producer.type in target.pass_through
            if producer in reached or producer.constant or producer.from_shape or not known or _hides_small_values(producer):
                continue
            reached.add(producer)
            waiting.append(producer)
    return {node: REASON for node in graph.nodes if node in reached and target.quantizable(operation_kind(node))}


def _hides_small_values(node: Node) -> bool:
    """Whether a constant operand, or a border, is so large that values near zero are not told apart behind it: log(1 + x)."""
    if node.type == "Clamp":
        return not 0.0 < float(node.attributes()["min"]) <= HIDING  # with its lowest value at zero it is an activation function
    if node.type not in ("Add", "Maximum", "Subtract"):
        return False
    constants = [port.node for port in node.inputs if port.node.type == "Constant"]
    return any(float(np.min(np.abs(constant_value(constant)), initial=np.inf)) > HIDING for constant in constants)
