"""Blocks: what is quantized, or returns to floating point, together.

An operation computes in floating point only when none of its inputs is quantized, and a quantizer serves all operations
that read its tensor. So a block is what hangs together through the two: every operation of it shares a quantizer with
another one, and all quantizers on its inputs, weights included, belong to it (as POT 2023.3). Operations
that pass quantized data on are no obstacle: a quantizer knows the operations it serves behind them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from stages.configuration.target_device import ACTIVATIONS
from stages.quantization.model.graph import OPERATIONS_WITH_WEIGHTS, Graph, Node
from stages.quantization.placement.plan import Plan, Quantizer

ACTIVATIONS_ONLY = "activations"


@dataclass(frozen=True)
class Block:
    """Quantizers that are removed together, and the operations that then compute in floating point; both in graph order."""

    quantizers: tuple[str, ...]
    layers: tuple[str, ...]
    cost: float  # multiplications of its operations, what floating point may cost

    @property
    def name(self) -> str:
        """The first of its operations."""
        return self.layers[0]


def blocks_of(graph: Graph, plan: Plan, restore: str) -> tuple[Block, ...]:
    """The blocks of a quantized model, in the order in which they are computed.

    restore: `activations_and_weights`, or `activations` to keep the weights of reverted operations quantized: they stay
    small, and their rounding errors stay, too.
    """
    quantizers = {quantizer.name: quantizer for quantizer in plan.quantizers}
    members: dict[str, list[str]] = {}  # operation -> quantizers on its inputs
    for quantizer in plan.quantizers:
        for name in served_operations(quantizer):
            members.setdefault(name, []).append(quantizer.name)
    blocks, assigned = [], set[str]()
    for node in graph.nodes:
        if node.name not in members or node.name in assigned:
            continue
        layers, names, waiting = {node.name}, dict[str, None](), [node.name]
        while waiting:
            for name in members[waiting.pop()]:
                if name not in names:
                    names[name] = None
                    found = served_operations(quantizers[name]) - layers
                    layers |= found
                    waiting += found
        assigned |= layers
        cut = [name for name in names if restore != ACTIVATIONS_ONLY or quantizers[name].kind == ACTIVATIONS]
        if cut:
            ordered = sorted(layers, key=lambda name: graph.by_name[name].order)
            cost = sum(multiplications(graph.by_name[name]) for name in ordered)
            blocks.append(Block(tuple(sorted(cut)), tuple(ordered), cost))
    return tuple(blocks)


def served_operations(quantizer: Quantizer) -> set[str]:
    """The operations that compute with what the quantizer leaves."""
    return {place.name for place in quantizer.layers or quantizer.consumers}


def multiplications(node: Node) -> float:
    """Roughly how much an operation computes: multiplications of one inference; dynamic sizes count as 1."""
    size = math.prod(abs(length) for length in node.shapes[0] or ())
    if node.type not in OPERATIONS_WITH_WEIGHTS:
        return float(size)
    first, second = (port.node.shapes[port.index] or () for port in node.inputs[:2])
    if node.type == "MatMul":
        inner = first[-2 if node.attributes()["transpose_a"] else -1] if first else 1
        return float(size * abs(inner))
    if node.type.endswith("BackpropData"):
        inputs = math.prod(abs(length) for length in first)
        return float(inputs * math.prod(abs(length) for length in second[2 if node.type.startswith("Group") else 1 :]))
    return float(size * math.prod(abs(length) for length in second[2 if node.type.startswith("Group") else 1 :]))
