"""Operations that INT8 makes no faster, whatever their tensors are: they stay in floating point.

An element-wise operation gains from INT8 between layers with weights: their kernels write what it reads as INT8 and read what it writes,
so its quantizers are no operations of their own, and its tensors are a quarter as large. Anywhere else its quantizers cost time or
precision for nothing: in the variance of a LayerNorm, the boxes of a detector, a mask, an angle, an activation function written out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Set
from dataclasses import dataclass, field

from stages.configuration import schema
from stages.configuration.target_device import ACTIVATIONS, Target, choose
from stages.quantization.model.graph import OPERATIONS_WITH_WEIGHTS, Graph, Node, Port, constant_value, operation_kind
from stages.quantization.model.signs import is_non_negative
from stages.quantization.placement.placing import has_number

NOTHING = "nothing to gain: "

ELEMENTWISE = frozenset(
    {"Add", "Subtract", "Multiply", "Divide", "Maximum", "Minimum", "Power", "SquaredDifference", "FloorMod"}
    | {"Less", "LessEqual", "Greater", "GreaterEqual", "Equal", "NotEqual", "LogicalAnd", "LogicalOr", "LogicalXor", "LogicalNot"}
)
# Computed together with the layer before them.
ACTIVATION_FUNCTIONS = frozenset(
    {"Clamp", "Elu", "Gelu", "HSigmoid", "HSwish", "HardSigmoid", "Mish", "PRelu", "Relu", "Selu", "Sigmoid", "SoftPlus", "SoftSign"}
    | {"Swish", "Tanh"}
)
# Of what activation functions are made; in between, nothing is INT8.
FUNCTIONS = ACTIVATION_FUNCTIONS | {"Abs", "Ceiling", "Cos", "Erf", "Exp", "Floor", "Log", "Negative", "Round", "Sign", "Sin", "Sqrt"}
# Kernels that read and write INT8 themselves.
OTHER_KERNELS = frozenset({"AvgPool", "Interpolate", "MVN", "NormalizeL2"})
# They read INT8, but what they write counts as no layer's output: the mean of a LayerNorm. A model may end with them.
MEANS = frozenset({"ReduceMean"})

# OpenVINO's low-precision transformations, which CPU and GPU share, have no INT8 form of these: they read f32 behind any quantizer.
SHARED_TRANSFORMATIONS = frozenset({"ANY", "CPU", "CPU_SPR", "GPU"})
WITHOUT_INT8 = ELEMENTWISE - {"Add", "Subtract", "Multiply"}
CPUS = frozenset({"ANY", "CPU", "CPU_SPR"})
# Nor has the CPU of these if a range has a zero point.
WITHOUT_ZERO_POINT = frozenset({"MVN", "NormalizeL2"})

# Their kernels do not write INT8: a quantizer behind them is an operation that reads f32 once more. A layer that multiplies each value
# as few times as this does not make up for it: a detector's mean of 16 distances that a softmax weighs multiplies each once.
WITHOUT_QUANTIZED_OUTPUT = frozenset({"Softmax", "LogSoftmax"})
FEW_MULTIPLICATIONS = 8
# A device that computes in integers alone.
INTEGERS_ALONE = frozenset({"GNA"})


def without_gain(graph: Graph, target: Target, config: schema.Quantization) -> dict[Node, str]:
    """The operations that would gain nothing from INT8 on `target`, each with the reason."""
    if config.pot_compatible or target.rules in INTEGERS_ALONE:
        return {}
    rules = _Rules(graph, target, config)
    rules.leave_kernels()
    rules.leave_layers()
    rules.leave_written_out()
    rules.leave_outside()
    return rules.reasons


@dataclass
class _Rules:
    """What gains nothing, rule by rule, as later rules count what earlier ones left.

    reasons: By operation that gains nothing, why.
    candidates: What may gain nothing because of its neighbours.
    inside: What belongs to activation functions that are written out: it passes data on as they would.
    """

    graph: Graph
    target: Target
    config: schema.Quantization
    reasons: dict[Node, str] = field(default_factory=dict)
    inside: set[Node] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.candidates = [
            node
            for node in self.graph.nodes
            if node.type in ELEMENTWISE | MEANS
            and not (node.constant or node.from_shape or _by_number(node))
            and self.target.quantizable(operation_kind(node))
        ]
        self.asymmetric = self._asymmetric()

    def _asymmetric(self) -> bool:
        """Whether activations get ranges with zero points, or may (preset auto)."""
        offered = self.target.alternatives("MatMul", ACTIVATIONS)
        preset = "mixed" if self.config.preset == "auto" else self.config.preset
        chosen = choose(offered, preset, ACTIVATIONS).mode if offered else "symmetric"
        return (self.config.activations.mode or chosen) == "asymmetric"

    # ---------------------------------------------------------------------------------------------- single operations

    def leave_kernels(self) -> None:
        """What has no INT8 kernel, at all or with the ranges that it would get."""
        if self.target.rules in SHARED_TRANSFORMATIONS:
            for node in self.candidates:
                by_constant = node.type == "Divide" and node.inputs[1].node.constant  # a multiplication, once compiled
                if node.type in WITHOUT_INT8 and not by_constant:
                    self.reasons[node] = f"{NOTHING}OpenVINO computes {node.type} in floating point"
        if self.target.rules not in CPUS:
            return
        for node in self.graph.of_type(WITHOUT_ZERO_POINT if self.asymmetric else ()):
            if not is_non_negative(node.inputs[0]):
                self.reasons[node] = f"{NOTHING}the CPU computes {node.type} in floating point where its range is asymmetric"
        for node in self.graph.of_type(["MVN"]):
            if _over_features(node):
                self.reasons.setdefault(node, f"{NOTHING}normalises every place by itself, which the CPU does no faster in INT8")
        for node in self.graph.of_type(["MatMul"]):
            if any(port.node.constant for port in node.inputs):
                continue
            if self.asymmetric and self.config.model_type != "transformer":  # which makes them symmetric
                self.reasons[node] = f"{NOTHING}the CPU multiplies two activations in floating point where their ranges are asymmetric"
            elif is_non_negative(node.inputs[1]):
                self.reasons[node] = f"{NOTHING}the CPU multiplies by an activation that is never negative in floating point"

    def leave_layers(self) -> None:
        """Layers that multiply each value so few times that quantizing their input, as an operation of its own, costs more."""
        for node in self.graph.of_type(OPERATIONS_WITH_WEIGHTS):
            source = node.inputs[0]
            while source.node.type in self.target.pass_through and not source.node.constant:
                source = source.node.inputs[0]
            uses = _multiplications_per_value(node)
            if source.node.type in WITHOUT_QUANTIZED_OUTPUT and uses is not None and uses < FEW_MULTIPLICATIONS:
                self.reasons.setdefault(
                    node, f"{NOTHING}it multiplies a value fewer than {FEW_MULTIPLICATIONS} times, which quantizing all of them outweighs"
                )

    # ------------------------------------------------------------------------------------- activation functions written out

    def leave_written_out(self) -> None:
        """Element-wise operations of several operands that all follow from one tensor: x * sigmoid(x), GELU, a rotary embedding.

        Those with a constant before them, too, where nothing else reads that tensor.
        """
        source: dict[Node, Port] = {}  # of the one tensor that a node's output follows from
        joins: set[Node] = set()
        for node in self.graph.nodes:
            if not self._follows(node):
                continue
            moving = list(_moving(node))
            sources = {source.get(port.node, port) for port in moving}
            if len(sources) == 1:
                source[node] = next(iter(sources))
                if len(moving) > 1 and node.type in ELEMENTWISE:
                    joins.add(node)
        self.inside = set(joins)
        for node in reversed(self.graph.nodes):
            if node in source and all(edge.node in self.inside for edge in node.all_consumers()) and any(node.consumers):
                self.inside.add(node)
        whole = {port for port in source.values() if all(edge.node in self.inside for edge in port.node.consumers[port.index])}
        self.inside = {node for node in self.inside if node in joins or source[node] in whole}
        for node in self.candidates:
            if node in self.inside:
                self.reasons.setdefault(node, f"{NOTHING}part of a function of one tensor, which is one kernel")

    def _follows(self, node: Node) -> bool:
        known = node.type in FUNCTIONS or node.type in ELEMENTWISE or node.type in self.target.pass_through
        return known and not (node.constant or node.from_shape) and any(_moving(node))

    # -------------------------------------------------------------------------------------------- between layers or not

    def leave_outside(self) -> None:
        """Element-wise operations that do not lie between layers with weights.

        All their operands must come from such layers, or be read by one anyway, and the result must reach one: through what passes data
        on, activation functions, kernels of INT8, and element-wise operations that lie between layers themselves. So one that is left
        may leave others outside: all that remains at last supports each other.
        """
        layers = {node for node in self.graph.of_type(OPERATIONS_WITH_WEIGHTS) if node not in self.reasons}
        read = {port for layer in layers for port in self._quantized_for(layer)}
        between = {node: None for node in self.candidates if node not in self.reasons}
        while outside := self._outside(between.keys(), layers, read):
            self.reasons |= outside
            between = {node: None for node in between if node not in outside}

    def _quantized_for(self, layer: Node) -> Iterator[Port]:
        """The tensors that are quantized for a layer: what it reads, and all above that as far as a quantizer may move up."""
        for port in _moving(layer):
            yield port
            while port.node.type in self.target.pass_through and port.node.inputs and not port.node.inputs[0].node.constant:
                port = port.node.inputs[0]
                yield port

    def _outside(self, between: Set[Node], layers: set[Node], read: set[Port]) -> dict[Node, str]:
        """Those that do not lie between layers if all that are still `between` pass data on."""
        behind: set[Node] = set()  # what layers write, passed on
        without_source: set[Node] = set()
        for node in self.graph.nodes:
            sources = [port.node in behind or port in read for port in _moving(node)]
            if node in between and not all(sources):
                without_source.add(node)
            elif node in layers or (node.type not in MEANS and self._passes(node, between) and any(sources)):
                behind.add(node)
        before: set[Node] = set()  # what layers read, passed on
        for node in reversed(self.graph.nodes):
            readers = [edge.node for edge in node.all_consumers()]
            passes = any(reader in layers or (reader in before and self._passes(reader, between)) for reader in readers)
            if passes or (node.type in MEANS and any(reader.type == "Result" for reader in readers)):
                before.add(node)
        return {
            node: NOTHING + ("an operand comes from no layer with weights" if node in without_source else "no layer with weights follows")
            for node in between
            if node in without_source or node not in before
        }

    def _passes(self, node: Node, between: Set[Node]) -> bool:
        if node in self.inside or node in between or _by_number(node):
            return True
        known = node.type in ACTIVATION_FUNCTIONS | OTHER_KERNELS or node.type in self.target.pass_through
        return known and node not in self.reasons


def _by_number(node: Node) -> bool:
    """Arithmetic with a single number, which changes nothing but the scale: it is never quantized."""
    return node.type in ("Add", "Subtract", "Multiply", "Divide") and has_number(node)


def _over_features(node: Node) -> bool:
    """Whether an MVN is a LayerNorm: over the last axis, into which no Reshape put places, as it does for a GroupNorm."""
    source, axes = node.inputs[0], node.inputs[1].node
    shape = source.node.shapes[source.index]
    if shape is None or axes.type != "Constant":
        return False
    if [int(axis) % len(shape) for axis in constant_value(axes).reshape(-1)] != [len(shape) - 1]:
        return False
    if source.node.type != "Reshape":
        return True
    before = source.node.inputs[0].node.shapes[source.node.inputs[0].index] or (-1,)
    return before[-1] == shape[-1] != -1


def _moving(node: Node) -> Iterator[Port]:
    """The tensors that a node reads which depend on the model's inputs, not on their shapes alone."""
    return (port for port in node.inputs if not (port.node.constant or port.node.from_shape))


def _multiplications_per_value(layer: Node) -> float | None:
    """How many times a layer multiplies each value of its input; None where its weights are no constant on the second input."""
    weights = layer.inputs[1]
    shape = weights.node.shapes[weights.index]
    if not weights.node.constant or not shape or len(shape) < 2:
        return None
    attributes = layer.attributes()
    if layer.type == "MatMul":
        return shape[-2 if attributes["transpose_b"] else -1]
    outputs = {"Convolution": 0, "GroupConvolution": 1, "ConvolutionBackpropData": 1, "GroupConvolutionBackpropData": 2}[layer.type]
    kernel = math.prod(shape[3 if layer.type.startswith("Group") else 2 :])
    steps = 1 if layer.type.endswith("BackpropData") else math.prod(attributes["strides"])
    return shape[outputs] * kernel / steps
