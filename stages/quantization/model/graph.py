"""A light, pure-Python view of an `ov.Model` for the algorithms that only read the graph's structure.

Walking an `ov.Model` through its Python bindings costs microseconds per step; the algorithms take hundreds of thousands
of steps. One pass over the model fills plain lists, everything else works on those.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import openvino as ov

from stages.common.errors import UserError

# Their values are not known from constant inputs alone.
NEVER_CONSTANT = frozenset({"ReadValue", "RandomUniform", "Multinomial"})
CONVOLUTIONS = frozenset({"Convolution", "GroupConvolution"})
OPERATIONS_WITH_WEIGHTS = frozenset(
    {"Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul"}
)


class Port(NamedTuple):
    """An output of a node: the tensor that it produces."""

    node: Node
    index: int  # type: ignore[assignment]  # hides tuple.index


class Edge(NamedTuple):
    """An input of a node: the place where a tensor is consumed."""

    node: Node
    index: int  # type: ignore[assignment]


@dataclass(eq=False, slots=True)
class Node:
    """One operation: its inputs as producer ports, and per output the edges that consume it."""

    name: str
    type: str
    inputs: list[Port] = field(default_factory=list)
    consumers: list[list[Edge]] = field(default_factory=list)
    shapes: list[tuple[int, ...] | None] = field(default_factory=list)  # per output; -1: dynamic; None: dynamic rank
    is_float: list[bool] = field(default_factory=list)  # per output
    operation: Any = None  # the ov.Node; None for nodes that only exist in this view
    constant: bool = False  # computed from constants alone
    from_shape: bool = False  # computed from tensor shapes alone
    order: int = 0  # place in topological order

    def __repr__(self) -> str:
        return f"{self.type} {self.name}"

    def all_consumers(self) -> Iterator[Edge]:
        """Consumers of every output."""
        for edges in self.consumers:
            yield from edges

    def producers(self) -> Iterator[Node]:
        """The nodes that feed this one, in port order."""
        return (port.node for port in self.inputs)

    def attributes(self) -> dict[str, Any]:
        """The operation's attributes as OpenVINO reports them."""
        return dict(self.operation.get_attributes()) if self.operation is not None else {}


@dataclass(eq=False)
class Graph:
    """All nodes of a model in topological order."""

    nodes: list[Node]

    def __post_init__(self) -> None:
        self.by_name = {node.name: node for node in self.nodes}
        if len(self.by_name) < len(self.nodes):
            repeated = next(name for name, count in Counter(node.name for node in self.nodes).items() if count > 1)
            raise UserError(f"the model has several operations named {repeated}")

    def copy(self) -> Graph:
        """A copy whose structure can be edited; the nodes share their operations with this graph's."""
        twins = {node: replace(node, inputs=[], consumers=[]) for node in self.nodes}
        for node, twin in twins.items():
            twin.inputs = [Port(twins[port.node], port.index) for port in node.inputs]
            twin.consumers = [[Edge(twins[edge.node], edge.index) for edge in edges] for edges in node.consumers]
        return Graph(list(twins.values()))

    def unused(self, name: str) -> str:
        """`name`, with as many underscores after it as it takes to be the name of no operation."""
        while name in self.by_name:
            name += "_"
        return name

    def of_type(self, types: Iterable[str]) -> list[Node]:
        """Nodes of the given types in topological order."""
        wanted = set(types)
        return [node for node in self.nodes if node.type in wanted]


def read_graph(model: ov.Model) -> Graph:
    """The structure of `model`: one node per operation."""
    return Graph(_read_nodes(model))


def nodes_in_bodies(node: Node) -> Iterator[tuple[str, Node]]:
    """The operations inside an If, a Loop or a TensorIterator, those of bodies within bodies too, each with the path to it."""
    for body, model in _bodies(node):
        for inner in _read_nodes(model):
            path = f"{node.name}/{body}/{inner.name}"
            yield path, inner
            yield from nodes_in_bodies(replace(inner, name=path))


def _bodies(node: Node) -> list[tuple[str, ov.Model]]:
    if node.type == "If":
        return [("then", node.operation.get_then_body()), ("else", node.operation.get_else_body())]
    return [("body", node.operation.get_function())] if node.type in ("Loop", "TensorIterator") else []


def _read_nodes(model: ov.Model) -> list[Node]:
    nodes: list[Node] = []
    by_id: dict[str, Node] = {}
    for order, operation in enumerate(model.get_ordered_ops()):
        node = Node(operation.get_friendly_name(), operation.get_type_name(), operation=operation, order=order)
        for output in operation.outputs():
            partial = output.get_partial_shape()
            node.shapes.append(tuple(d.get_length() if d.is_static else -1 for d in partial) if partial.rank.is_static else None)
            node.is_float.append(bool(output.get_element_type().is_real()))
            node.consumers.append([])
        for index, source in enumerate(operation.input_values()):
            port = Port(by_id[source.get_node().get_name()], source.get_index())
            node.inputs.append(port)
            port.node.consumers[port.index].append(Edge(node, index))
        node.constant = node.type == "Constant" or (
            bool(node.inputs) and node.type not in NEVER_CONSTANT and all(producer.constant for producer in node.producers())
        )
        moving = [producer for producer in node.producers() if not producer.constant]
        node.from_shape = node.type == "ShapeOf" or (bool(moving) and all(producer.from_shape for producer in moving))
        by_id[operation.get_name()] = node
        nodes.append(node)
    return nodes


def walk(start: Iterable[Node], step: Callable[[Node], Iterable[Node]]) -> Iterator[Node]:
    """Breadth-first walk: yields every node reached from `start` by `step`, each once, without those of `start`."""
    queue = deque(start)
    seen = set(queue)
    while queue:
        for node in step(queue.popleft()):
            if node not in seen:
                seen.add(node)
                queue.append(node)
                yield node


# --------------------------------------------------------------------------------------------- weights, biases, kinds


def weight_constant(port: Port) -> Node | None:
    """The floating-point Constant behind a weight input, looked for through Convert (FP16 storage) and Reshape (grouped weights)."""
    node = port.node
    while node.type in ("Convert", "Reshape") and node.constant:
        node = node.inputs[0].node
    return node if node.type == "Constant" and node.is_float[0] else None


def constant_value(node: Node) -> np.ndarray:
    """The value of a Constant."""
    if node.operation.get_element_type() == ov.Type.bf16:  # numpy has none: OpenVINO would show its bits as float16
        return np.asarray(node.operation.get_data(dtype=np.float32))
    return np.asarray(node.operation.data)


def is_depthwise(node: Node) -> bool:
    """A grouped convolution with one input and one output channel per group."""
    if node.type != "GroupConvolution":
        return False
    shape = node.inputs[1].node.shapes[node.inputs[1].index]
    return shape is not None and shape[1] == 1 and shape[2] == 1


def operation_kind(node: Node) -> str:
    """The name under which a target device lists the operation."""
    if node.type == "GroupConvolution":
        return "DepthWiseConvolution" if is_depthwise(node) else "Convolution"
    return node.type


def bias_add(node: Node) -> Node | None:
    """The Add that gives `node` its bias: the only consumer of the output, with a constant on one input."""
    consumers = list(node.all_consumers())
    if len(consumers) != 1 or consumers[0].node.type != "Add":
        return None
    add = consumers[0].node
    return add if any(port.node.constant for port in add.inputs) else None


def bias_constant_port(add: Node) -> int:
    """The input of a bias Add that holds the constant."""
    return 1 if add.inputs[1].node.constant else 0


def input_channel_axis(node: Node) -> int:
    """The axis of a weighted operation's data input that its weights contract (negative for MatMul)."""
    if node.type != "MatMul":
        return 1
    return -2 if node.attributes()["transpose_a"] else -1


def output_channel_axis(node: Node) -> int:
    """The axis of a weighted operation's output that holds its output channels."""
    return -1 if node.type == "MatMul" else 1


def is_padded(node: Node) -> bool:
    """Whether a convolution pads its input."""
    attributes = node.attributes()
    explicit = any([*attributes["pads_begin"], *attributes["pads_end"]])
    return attributes["auto_pad"] in ("same_upper", "same_lower") or (attributes["auto_pad"] == "explicit" and explicit)
