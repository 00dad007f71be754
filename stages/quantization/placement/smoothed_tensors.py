"""Tensors whose features are smoothed before they are quantized, and why others are not.

What MatMuls with constant weights read has features on its last axis. In Transformers a few of them are a hundred times as large as
the others, which then share the few levels that are left between. Divided feature by feature, and the weights multiplied by the
same, the product stays what it is, and both tensors keep more of their levels (G. Xiao et al., SmoothQuant, 2022).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from stages.configuration.target_device import ACTIVATIONS, WEIGHTS
from stages.quantization.model.graph import Graph, Node, Port
from stages.quantization.model.weights import weight_layout
from stages.quantization.placement.plan import NotSmoothed, Quantizer, Smoothed, TensorName


class SmoothingCandidate(NamedTuple):
    """A tensor that MatMuls with weights read on their first input."""

    tensor: Port
    readers: tuple[Node, ...]
    reason: str | None  # why it cannot be smoothed

    @property
    def name(self) -> TensorName:
        return TensorName(self.tensor.node.name, self.tensor.index)


def smoothing_candidates(graph: Graph) -> list[SmoothingCandidate]:
    """Every such tensor, in the graph's order, and its readers by name."""
    readers: dict[Port, list[Node]] = {}
    for node in sorted(graph.of_type(["MatMul"]), key=lambda node: node.name):
        if weight_layout(node) is not None:
            readers.setdefault(node.inputs[0], []).append(node)
    ordered = sorted(readers, key=lambda port: (port.node.order, port.index))
    return [SmoothingCandidate(port, tuple(readers[port]), _reason_against(readers[port])) for port in ordered]


def _reason_against(readers: Iterable[Node]) -> str | None:
    for node in readers:
        layout = weight_layout(node)
        assert layout is not None, node
        if node.attributes()["transpose_a"]:
            return f"{node.name} reads its features on another axis"
        if not node.is_float[0] or len(list(layout.constant.all_consumers())) != 1:
            return f"something else reads the weights of {node.name}"
    return None


def smoothed_tensors(graph: Graph, quantizers: Sequence[Quantizer]) -> tuple[tuple[Smoothed, ...], tuple[NotSmoothed, ...]]:
    """Of the tensors that are quantized for MatMuls with quantized weights, those to smooth, and why the others are not."""
    weights = {(place.name, place.port) for entry in quantizers if entry.kind == WEIGHTS for place in entry.consumers}
    activations = {place[::2]: entry for entry in quantizers if entry.kind == ACTIVATIONS for place in entry.layers}
    smoothed, left = [], []
    for candidate in smoothing_candidates(graph):
        serving = [activations.get((node.name, 0)) for node in candidate.readers]
        if not any(serving):
            continue
        floating = [node.name for node in candidate.readers if (node.name, 1) not in weights]
        reason = candidate.reason or (f"the weights of {floating[0]} stay in floating point" if floating else None)
        reason = reason or _reason_of_quantizers(candidate, serving)
        if reason is None:
            smoothed.append(Smoothed(candidate.name, tuple(node.name for node in candidate.readers)))
        else:
            left.append(NotSmoothed(candidate.name, reason))
    return tuple(smoothed), tuple(left)


def _reason_of_quantizers(candidate: SmoothingCandidate, serving: Sequence[Quantizer | None]) -> str | None:
    """What stands against it in how a tensor is quantized for its readers."""
    first = serving[0]
    if first is None or any(other != first for other in serving):
        return "its readers are not quantized alike"
    if first.source != candidate.name:
        return f"it is quantized further up, behind {first.source.name}"
    readers = {node.name for node in candidate.readers}
    others = [place.name for place in (*first.consumers, *first.layers) if place.name not in readers or place.port != 0]
    if others:
        return f"{others[0]} reads it quantized, too"
    if first.unified_group is not None:
        return "it shares its range with other tensors"
    return "it has a range per channel" if first.scheme.perchannel else None
