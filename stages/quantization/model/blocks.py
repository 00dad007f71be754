"""Find the ignored blocks of a model: every way in which a pattern of `patterns` lies in its graph."""

from __future__ import annotations

from collections.abc import Iterator

from stages.quantization.model.graph import OPERATIONS_WITH_WEIGHTS, Graph, Node, walk
from stages.quantization.model.patterns import COMMUTATIVE, PATTERNS, Line

DETECTION_POST_PROCESSING = frozenset({"NonMaxSuppression", "TopK"})


def match(lines: tuple[Line, ...], anchor: Node) -> Iterator[dict[str, Node]]:
    """Every way in which the pattern's last line can be `anchor`: a node per line name."""
    by_name = {line.name: line for line in lines}

    def bind(name: str, node: Node, bound: dict[str, Node]) -> Iterator[dict[str, Node]]:
        if name in bound:
            if bound[name] is node:
                yield bound
            return
        line = by_name[name]
        if node.type not in line.types or node.constant:
            return
        yield from bind_inputs(line.inputs, node, {**bound, name: node}, 0, frozenset())

    def bind_inputs(
        names: tuple[str, ...], node: Node, bound: dict[str, Node], place: int, used: frozenset[int]
    ) -> Iterator[dict[str, Node]]:
        if place == len(names):
            yield bound
            return
        anywhere = node.type in COMMUTATIVE or len(names) == 1
        for index in range(len(node.inputs)):
            if index in used or not (anywhere or index == place):
                continue
            producer = node.inputs[index].node
            if names[place] in ("const", "_"):
                if names[place] == "_" or producer.constant:
                    yield from bind_inputs(names, node, bound, place + 1, used | {index})
            else:
                for result in bind(names[place], producer, bound):
                    yield from bind_inputs(names, node, result, place + 1, used | {index})

    yield from bind(lines[-1].name, anchor, {})


def ignored_blocks(graph: Graph, device: str) -> dict[Node, str]:
    """The nodes that stay in floating point on `device`, each with the name of the pattern that says so."""
    found: dict[Node, str] = {}
    types = {node.type for node in graph.nodes}
    # Most models have nothing of most patterns.
    patterns = [
        candidate
        for candidate in PATTERNS
        if device in candidate.devices and not any(line.types.isdisjoint(types) for line in candidate.lines)
    ]
    for node in graph.nodes:
        for candidate in patterns:
            if node.type not in candidate.anchor.types:
                continue
            for bound in match(candidate.lines, node):
                if candidate.single_consumers_from and not _single_consumers(bound[candidate.single_consumers_from], bound["op"]):
                    continue
                for line in candidate.lines:
                    if line.marked:
                        found.setdefault(bound[line.name], candidate.name)
    found |= {node: "detection post-processing" for node in _detection_post_processing(graph) if node not in found}
    return found


def _single_consumers(node: Node, weighted: Node) -> bool:
    """Whether every producer from `node` up to `weighted` is consumed once."""
    while node is not weighted:
        moving = [producer for producer in node.producers() if not producer.constant]
        if not moving or len(list(moving[0].all_consumers())) != 1:
            return False
        node = moving[0]
    return True


def _detection_post_processing(graph: Graph) -> Iterator[Node]:
    starts = graph.of_type(DETECTION_POST_PROCESSING)

    def up(node: Node) -> list[Node]:
        return [p for p in node.producers() if not p.constant and p.type not in OPERATIONS_WITH_WEIGHTS and p.type != "Parameter"]

    yield from starts
    yield from walk(starts, up)
