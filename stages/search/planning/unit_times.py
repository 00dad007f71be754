"""How long each unit of layers takes in a compiled model, from the times of the nodes that it executes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from stages.measurement.latency import NodeTime
from stages.quantization.layer_table import DEQUANTIZATION


def unit_times(nodes: Iterable[NodeTime], unit_of: Mapping[str, str], milliseconds: float) -> dict[str, float]:
    """Milliseconds by unit.

    The times of nodes are biased by being taken, all by about the same factor: they are scaled to what the whole model takes.
    A node counts where the first of its operations that belongs to any unit does; conversions and quantizers that stand alone
    belong to the unit whose they are.

    Args:
        nodes: Executed nodes.
        unit_of: By name of an operation or of a quantizer, its unit.
        milliseconds: That one inference takes, measured without counters.
    """
    known = list(nodes)
    total = sum(node.microseconds for node in known)
    found: dict[str, float] = {}
    for node in known:
        names = (name.removesuffix(DEQUANTIZATION) for name in node.layers)
        unit = next((unit_of[name] for name in names if name in unit_of), None)
        if unit is not None and total > 0:
            found[unit] = found.get(unit, 0.0) + node.microseconds / total * milliseconds
    return found
