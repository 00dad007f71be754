"""Where FakeQuantize nodes go: insertion before quantizable operations, then movement up, merging and removal.

Works on a private copy of the graph view with FakeQuantize nodes in it (as POT 2023.3).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import openvino as ov

from stages.configuration.target_device import ACTIVATIONS, WEIGHTS, Target
from stages.quantization.model.graph import OPERATIONS_WITH_WEIGHTS, Edge, Graph, Node, Port, operation_kind, weight_constant
from stages.quantization.placement.blocking import FAKE_QUANTIZE, JUMP_ALL_INPUTS, JUMP_FIRST_INPUT, JUMP_MOVING_INPUTS, blocked_nodes
from stages.quantization.placement.kernel_faults import BEHIND, FLOAT, PlacementFault, known_faults
from stages.quantization.placement.plan import TensorName

ALREADY_QUANTIZED = "already quantized in the model"
FROM_SHAPES = "input is computed from shapes"

FIRST_PORT_ONLY = frozenset({"Interpolate", "Power", "ReduceMean", "NormalizeL2", "MVN"})
RECURRENT_PORTS = {"LSTMSequence": (0, 1, 4, 5), "GRUSequence": (0, 1, 3, 4)}
TWO_OPERANDS = frozenset({"Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul"})


@dataclass
class Placement:
    """The graph with FakeQuantize nodes, and why other inputs have none."""

    graph: Graph
    quantizers: list[Node]
    floats: list[tuple[Node, int | None, str]]  # node, port (None: the whole operation), reason
    requested: list[Edge]  # inputs of operations before which a quantizer was first put
    faults: dict[Node, tuple[PlacementFault, ...]]  # of the device's kernels, by operation


def place(
    graph: Graph,
    target: Target,
    skipped: dict[Node, str],
    ignored: dict[Node, str],
    without_gain: Mapping[Node, str] = MappingProxyType({}),
    pot_compatible: bool = False,
    largest: Mapping[TensorName, float] | None = None,
) -> Placement:
    """Put FakeQuantize nodes into a copy of `graph`.

    Args:
        graph: Stays as it is.
        target: What the device can run.
        skipped: Nodes of ignored blocks with the reason; they get no quantizer and none moves up through them.
        ignored: Nodes that the user (or the model type) excludes; they get no quantizer, but others may move through them.
        without_gain: Nodes that INT8 would not make faster; like those.
        pot_compatible: Also quantize what POT does and gains nothing: element-wise operations with a single number (on quantized data
            they are merged into the scale, on other data the quantizer is one operation more); and what `kernel_faults` says.
        largest: The largest absolute value of tensors, where it is known: quantizers stay below what cuts extreme values off.
    """
    original = graph.nodes
    graph = graph.copy()
    twin = dict(zip(original, graph.nodes, strict=True))
    skipped, ignored, gainless = ({twin[node]: why for node, why in entries.items()} for entries in (skipped, ignored, without_gain))
    faults = {twin[node]: here for node, here in known_faults(Graph(original), target.rules, pot_compatible).items()}
    work = _Insertion(graph, target, skipped, ignored, faults, gainless, pot_compatible, largest or {})
    work.insert_all()
    work.move_up()
    work.merge_siblings()
    if target.rules == "CPU_SPR":
        work.leave_residuals()
    return Placement(graph, work.quantizers(), work.floats, work.requested, faults)


def is_scale_shift(node: Node) -> bool:
    """A Multiply with a constant whose consumer adds a constant: a batch normalisation of its own."""
    if node.type != "Multiply" or not node.inputs[1].node.constant:
        return False
    first = next(node.all_consumers(), None)
    return first is not None and first.node.type == "Add" and first.node.inputs[1].node.constant


class _Insertion:
    def __init__(
        self,
        graph: Graph,
        target: Target,
        skipped: dict[Node, str],
        ignored: dict[Node, str],
        faults: dict[Node, tuple[PlacementFault, ...]],
        without_gain: dict[Node, str],
        pot_compatible: bool,
        largest: Mapping[TensorName, float],
    ) -> None:
        self.graph = graph
        self.target = target
        self.skipped = skipped
        self.ignored = self._with_consumers_of_agnostic(ignored)
        self.faults = faults
        self.without_gain = without_gain
        self.pot_compatible = pot_compatible
        self.largest = largest
        self.floats: list[tuple[Node, int | None, str]] = []
        self.requested: list[Edge] = []
        self.inserted: list[Node] = []

    def agnostic(self, node: Node) -> bool:
        return node.type in self.target.pass_through

    def quantizers(self) -> list[Node]:
        """The FakeQuantize nodes that are still in the graph, by name."""
        return sorted((node for node in self.inserted if node.consumers[0]), key=lambda node: node.name)

    def _with_consumers_of_agnostic(self, ignored: dict[Node, str]) -> dict[Node, str]:
        result = dict(ignored)
        for node, reason in ignored.items():
            if self.agnostic(node):
                for edge in node.all_consumers():
                    result.setdefault(edge.node, f"consumes {node.name}: {reason}")
        return result

    # ------------------------------------------------------------------------------------------------ insertion

    def insert_all(self) -> None:
        """One FakeQuantize per input of every quantizable operation, and a reason for every input without."""
        for node in list(self.graph.nodes):
            if node.constant or node.type in ("Parameter", "Result", "ShapeOf", FAKE_QUANTIZE):
                continue
            if self.agnostic(node):
                if reason := self._fault(node, BEHIND):
                    self.floats.append((node, None, reason))
                continue
            reason = self._reason_against(node)
            if reason:
                self.floats.append((node, None, reason))
                continue
            for port in self._ports(node):
                against = self._reason_against_port(node, port)
                if against:
                    self.floats.append((node, port, against))
                else:
                    self._insert(Edge(node, port))
                    self.requested.append(Edge(node, port))
            if is_scale_shift(node):
                self.floats.append((node, 1, "the constant of a scale and shift"))

    def _reason_against(self, node: Node) -> str | None:
        if node.from_shape:
            return "computes shapes"
        if not any(port.node.is_float[port.index] for port in node.inputs):
            return "works on integers"
        if node in self.skipped:
            return f"ignored block: {self.skipped[node]}"
        if node in self.ignored:
            return self.ignored[node]
        if not self.target.quantizable(operation_kind(node)):
            return f"{self.target.name} has no quantized {operation_kind(node)}"
        if node.type in RECURRENT_PORTS and (reason := self._reason_against_recurrent(node)):
            return reason
        if any(not node.inputs[port].node.is_float[node.inputs[port].index] for port in self._ports(node)):
            return "works on integers"
        if not self.pot_compatible and _is_elementwise(node) and has_number(node):
            return "element-wise with a single number"
        return self._fault(node, FLOAT) or self.without_gain.get(node)

    def _fault(self, node: Node, helps: str) -> str | None:
        """Why an operation is treated so: a fault against which this helps."""
        return next((fault.reason for fault in self.faults.get(node, ()) if fault.helps == helps), None)

    def _reason_against_recurrent(self, node: Node) -> str | None:
        if node.attributes().get("linear_before_reset"):
            return "a recurrent cell with linear_before_reset"
        if reason := self._fault(node, FLOAT):
            return reason
        # OpenVINO compiles no recurrent cell of which the weights alone are quantized.
        for port in (port for port in self._ports(node) if not node.inputs[port].node.constant):
            reason = self._reason_against_port(node, port)
            if reason == FROM_SHAPES:
                # A state of known size becomes a constant. With another OpenVINO's CPU does not compile a cell of which the
                # weights are quantized and the state is not.
                shape = node.inputs[port].node.shapes[node.inputs[port].index]
                reason = "a recurrent cell with a state of dynamic size" if shape is None or -1 in shape else None
            if reason and reason != ALREADY_QUANTIZED:
                return reason
        return None

    def _reason_against_port(self, node: Node, port: int) -> str | None:
        producer = node.inputs[port]
        source = producer.node
        if source.from_shape:
            return FROM_SHAPES
        if source.type == FAKE_QUANTIZE:
            return ALREADY_QUANTIZED
        group = WEIGHTS if source.constant else ACTIVATIONS
        if not self.target.alternatives(operation_kind(node), group):
            return f"{self.target.name} has no quantized {group} for {operation_kind(node)}"
        if source.constant and weight_constant(producer) is None:
            return "a constant that is computed, not stored in floating point"
        return _reason_against_tensor(producer)

    def _ports(self, node: Node) -> Iterable[int]:
        if node.type in TWO_OPERANDS:
            return (0, 1)
        if node.type in RECURRENT_PORTS:
            return RECURRENT_PORTS[node.type]
        if node.type in FIRST_PORT_ONLY or is_scale_shift(node):
            return (0,)
        return range(len(node.inputs))

    def _insert(self, edge: Edge) -> Node:
        """A new FakeQuantize on one input."""
        producer = edge.node.inputs[edge.index]
        word = "weights" if producer.node.constant else "input"
        quantizer = Node(
            name=f"{edge.node.name}/fq_{word}_{edge.index}",
            type=FAKE_QUANTIZE,
            inputs=[producer],
            consumers=[[edge]],
            shapes=[producer.node.shapes[producer.index]],
            is_float=[True],
            order=producer.node.order,
        )
        edges = producer.node.consumers[producer.index]
        edges[edges.index(edge)] = Edge(quantizer, 0)
        edge.node.inputs[edge.index] = Port(quantizer, 0)
        self.inserted.append(quantizer)
        return quantizer

    def _remove(self, quantizer: Node) -> None:
        """Take a FakeQuantize out: its consumers read its producer again."""
        producer = quantizer.inputs[0]
        edges = producer.node.consumers[producer.index]
        place = edges.index(Edge(quantizer, 0))
        edges[place : place + 1] = quantizer.consumers[0]
        for edge in quantizer.consumers[0]:
            edge.node.inputs[edge.index] = producer
        quantizer.consumers[0] = []

    # ------------------------------------------------------------------------------------------------ moving up

    def move_up(self) -> None:
        """Move quantizers above operations that pass quantized data on, as far as nobody else would be affected."""
        candidates = [node for node in self.graph.nodes if self.agnostic(node) and not node.constant]
        blocked = blocked_nodes(candidates, self.largest, self.pot_compatible)
        queue = deque(self.quantizers())
        while queue:
            quantizer = queue.popleft()
            if not quantizer.consumers[0]:
                continue
            producer = quantizer.inputs[0].node
            if producer.type == FAKE_QUANTIZE:
                self._remove(quantizer)
            elif (
                self.agnostic(producer)
                and not (producer in blocked or producer in self.skipped or producer.constant)
                and not self._fault(producer, BEHIND)
            ):
                ports = self._jump_ports(producer)
                if ports:
                    self._remove(quantizer)
                    queue.extend(self._insert(Edge(producer, port)) for port in ports)

    def _jump_ports(self, node: Node) -> list[int]:
        """The inputs to which a quantizer moves from the output of an operation that passes data on; none: it stays."""
        if node.type in JUMP_FIRST_INPUT:
            # Of two tensors that a Minimum or Maximum compares, one quantized is not enough.
            compares = node.type in ("Minimum", "Maximum") and not node.inputs[1].node.constant
            return [] if compares or not self._can_sit_on(node.inputs[0]) else [0]
        if node.type in JUMP_ALL_INPUTS:
            return list(range(len(node.inputs))) if all(map(self._can_sit_on, node.inputs)) else []
        if node.type in JUMP_MOVING_INPUTS:
            moving = [index for index, port in enumerate(node.inputs) if not port.node.constant and port.node.is_float[port.index]]
            return moving if all(self._can_sit_on(node.inputs[index]) for index in moving) else []
        return []

    def _can_sit_on(self, port: Port) -> bool:
        if port.node.from_shape or _reason_against_tensor(port):
            return False
        return not port.node.constant or weight_constant(port) is not None

    # ------------------------------------------------------------------------------------------------ merging

    def merge_siblings(self) -> None:
        """One quantizer per tensor: all that sit on the same output become the alphabetically first."""
        first: dict[Port, Node] = {}
        for quantizer in self.quantizers():
            port = quantizer.inputs[0]
            keeper = first.setdefault(port, quantizer)
            if keeper is quantizer or port.node.constant:
                continue
            for edge in quantizer.consumers[0]:
                edge.node.inputs[edge.index] = Port(keeper, 0)
            keeper.consumers[0].extend(quantizer.consumers[0])
            quantizer.consumers[0] = []
            port.node.consumers[port.index].remove(Edge(quantizer, 0))

    # ------------------------------------------------------------------------------------------------ residual additions

    def leave_residuals(self) -> None:
        """Leave one input of an Add of two quantized tensors float: it joins the convolution before it as an accumulator."""
        for add in self.graph.of_type(["Add"]):
            pair = [port.node for port in add.inputs]
            ours = [node for node in pair if node.type == FAKE_QUANTIZE and node.operation is None and not node.inputs[0].node.constant]
            if len(ours) != 2 or pair[0] is pair[1]:
                continue
            fewer, more = sorted(pair, key=lambda quantizer: len(quantizer.consumers[0]))
            if len(more.consumers[0]) > 1 and len(fewer.consumers[0]) == 1 and _is_weighted(fewer.inputs[0].node):
                self._leave(fewer)
            elif all(_ends_weighted(quantizer) for quantizer in pair):
                self._leave(max(reversed(pair), key=_size))

    def _leave(self, quantizer: Node) -> None:
        edges = served(quantizer, self.target)
        self._remove(quantizer)
        still = {edge for other in self.quantizers() for edge in served(other, self.target)}
        self.floats += [(edge.node, edge.index, "accumulated in floating point") for edge in edges if edge not in still]


def _reason_against_tensor(port: Port) -> str | None:
    """Why a tensor can have no quantizer, whatever reads it."""
    shape, operation = port.node.shapes[port.index], port.node.operation
    if shape == () and not port.node.constant:
        return "a single number"  # of which the CPU would make a tensor of rank 1
    if shape is not None and 0 in shape:
        return "an empty tensor"
    if operation is not None and operation.get_output_element_type(port.index) == ov.Type.f64:
        return "double precision"
    return None


def _is_elementwise(node: Node) -> bool:
    """Whether all inputs of a quantizable operation are tensors of the same kind, unlike weights, states or attributes."""
    return not (node.type in OPERATIONS_WITH_WEIGHTS or node.type in RECURRENT_PORTS or node.type in FIRST_PORT_ONLY)


def has_number(node: Node) -> bool:
    """Whether an operation has a constant of a single element."""
    return any(port.node.constant and math.prod(port.node.shapes[port.index] or ()) == 1 for port in node.inputs)


def _is_weighted(node: Node) -> bool:
    """A weighted operation, or its bias."""
    moving = [producer for producer in node.producers() if not producer.constant and producer.type != FAKE_QUANTIZE]
    if node.type == "Add" and len(moving) == 1 and len(node.inputs) == 2:
        node = moving[0]
    return node.type in OPERATIONS_WITH_WEIGHTS


def _ends_weighted(quantizer: Node) -> bool:
    """Whether a single chain of operations leads up to a weighted operation."""
    node = quantizer.inputs[0].node
    while node.type not in OPERATIONS_WITH_WEIGHTS:
        moving = [producer for producer in node.producers() if not producer.constant]
        if len(moving) != 1:
            return False
        node = moving[0]
    return True


def _size(quantizer: Node) -> int:
    return math.prod(quantizer.shapes[0] or ())


def served(quantizer: Node, target: Target) -> list[Edge]:
    """The inputs of non-agnostic operations that a quantizer reaches through operations that pass data on."""
    found: list[Edge] = []
    seen: set[Node] = set()
    queue = deque(quantizer.consumers[0])
    while queue:
        edge = queue.popleft()
        if edge.node.type in target.pass_through:
            if edge.node not in seen:
                seen.add(edge.node)
                queue.extend(edge.node.all_consumers())
        elif edge.node.type not in ("ShapeOf", FAKE_QUANTIZE):
            found.append(edge)
    return found
