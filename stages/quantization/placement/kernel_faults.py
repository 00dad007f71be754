"""Operations that OpenVINO's CPU plugin gets wrong in INT8, as data: which ones, what goes wrong, and what helps.

An entry is about operations of some types that meet a condition, and says what helps:

    FLOAT         the operation is not quantized
    BEHIND        it passes quantized data on elsewhere, but here quantizers stay behind it
    PER_MATRIX    one range per matrix of its weights instead of one per output channel
    Only(...)     only schemes of this kind for its weights or its activations

Entries apply to target devices whose models run on a CPU. They also apply under `pot_compatible`, since a model that computes garbage
agrees with nobody, except where `like_pot` says so: there POT's quantizers matter more, and the fidelity check tells.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from stages.configuration.target_device import ACTIVATIONS, WEIGHTS, Scheme
from stages.quantization.model.graph import Graph, Node, constant_value
from stages.runtime.kernel_faults import KernelFault

RUN_ON_CPU = frozenset({"ANY", "CPU", "CPU_SPR"})
EVERY_DEVICE = RUN_ON_CPU | {"GPU", "NPU", "GNA"}
FLOAT, BEHIND, PER_MATRIX = "float", "behind", "per matrix"


class Only(NamedTuple):
    """Schemes of weights or of activations that the kernel gets right."""

    group: str
    bits: int | None = None

    def allows(self, group: str, scheme: Scheme) -> bool:
        """Whether a scheme is one of them: symmetric, and of this many bits."""
        return group != self.group or (scheme.symmetric and self.bits in (None, scheme.bits))


@dataclass(frozen=True)
class PlacementFault(KernelFault):
    """A fault that placement avoids.

    Attributes:
        operations: Types of operations.
        when: Which of these, in the graph of the floating-point model.
        helps: FLOAT, BEHIND, PER_MATRIX or Only(...).
        reason: As quantizers.json has it.
        devices: Target devices for which it is avoided.
        like_pot: Whether `pot_compatible` follows POT all the same.
    """

    operations: frozenset[str] = frozenset()
    when: Callable[[Node], bool] = lambda node: True
    helps: str | Only = FLOAT
    reason: str = ""
    devices: frozenset[str] = RUN_ON_CPU
    like_pot: bool = False


# ---------------------------------------------------------------------------------------------------------- conditions


def _shape(node: Node, port: int) -> tuple[int, ...] | None:
    source = node.inputs[port]
    return source.node.shapes[source.index]


def _constant_on_the_left(node: Node) -> bool:
    return node.inputs[0].node.constant


def _several_matrices(node: Node) -> bool:
    """Whether the weights are several matrices."""
    return any(math.prod((_shape(node, port) or ())[:-2]) != 1 for port in (0, 1) if node.inputs[port].node.constant)


def _several_matrices_on_a_dynamic_batch(node: Node) -> bool:
    shapes = [_shape(node, port) for port in (0, 1)]
    return _several_matrices(node) and any(shape is None or -1 in shape[:-2] for shape in shapes)


def _one_matrix_of_rank_4(node: Node) -> bool:
    """Whether the weights are a single matrix with two leading dimensions or more."""
    shape = _shape(node, 1) or ()
    return node.inputs[1].node.constant and len(shape) > 3 and math.prod(shape[:-2]) == 1


def _is_grouped_in_one_dimension(node: Node) -> bool:
    shape = _shape(node, 1) or ()
    return len(shape) == 4 and shape[1] > 1


def _reads_vector(node: Node) -> bool:
    return any(len(_shape(node, port) or (1, 1)) == 1 for port in (0, 1) if not node.inputs[port].node.constant)


def _counts_its_padding(node: Node) -> bool:
    attributes = node.attributes()
    padded = any([*attributes["pads_begin"], *attributes["pads_end"]]) or attributes["auto_pad"] in ("same_upper", "same_lower")
    return padded and not attributes["exclude-pad"]


def _pads_with_something(node: Node) -> bool:
    """Whether a Pad fills in another constant than zero, or one that is not known."""
    if node.attributes()["pad_mode"] != "constant" or len(node.inputs) < 4:
        return False
    value = node.inputs[3].node
    return value.type != "Constant" or bool(constant_value(value) != 0)


def _pads_channels(node: Node) -> bool:
    """Whether a Pad with a constant adds channels (or samples), or may."""
    if node.attributes()["pad_mode"] != "constant":
        return False
    amounts = [port.node for port in node.inputs[1:3]]
    return any(amount.type != "Constant" or bool(constant_value(amount)[:2].any()) for amount in amounts)


def _has_large_eps(node: Node) -> bool:
    return bool(node.attributes()["eps"] > 1e-5)


def _reads_shapes(node: Node) -> bool:
    return any(producer.from_shape for producer in node.producers())


def _per_channel_after_product(node: Node) -> bool:
    """Whether a constant with one value per index of axis 1 meets a MatMul of two tensors, or one with its constant on the left.

    Functions and other element-wise constants between them are no hindrance.
    """
    constants = [port for port in (0, 1) if node.inputs[port].node.constant]
    rank = len(node.shapes[0] or ())
    if len(constants) != 1 or rank < 3:
        return False
    shape = _shape(node, constants[0]) or ()
    aligned = (1,) * (rank - len(shape)) + shape
    if aligned[1] == 1 or math.prod(aligned) != aligned[1]:
        return False
    above = node.inputs[1 - constants[0]].node
    while above.type in ELEMENTWISE | FUNCTIONS:
        moving = [producer for producer in above.producers() if not producer.constant]
        if len(moving) != 1:
            return False
        above = moving[0]
    return above.type == "MatMul" and not above.inputs[1].node.constant


# ----------------------------------------------------------------------------------------------------------- the table

ELEMENTWISE = frozenset(
    {"Add", "Subtract", "Multiply", "Divide", "Maximum", "Minimum", "FloorMod", "Less", "LessEqual", "Greater", "GreaterEqual"}
    | {"Equal", "NotEqual", "LogicalAnd", "LogicalOr", "LogicalXor", "LogicalNot"}
)
FUNCTIONS = frozenset(
    {"Relu", "PRelu", "Sigmoid", "Tanh", "Swish", "HSwish", "HSigmoid", "HardSigmoid", "Gelu", "Elu", "Selu", "Mish", "SoftPlus", "Exp"}
    | {"Clamp", "Abs", "Sqrt", "Power", "Negative", "Round", "Erf", "Log", "Reshape"}
)
MATMUL = frozenset({"MatMul"})

FAULTS: tuple[PlacementFault, ...] = (
    PlacementFault(
        name="recurrent cells",
        wrong="the state is kept on the levels of the input: behind a ReLU negative states become zero (error 0.7 of 0.7)",
        seen="2026.4 with AMX",
        operations=frozenset({"LSTMSequence", "GRUSequence"}),
        reason="a recurrent cell, whose state the CPU clips in INT8",
        like_pot=True,
    ),
    PlacementFault(
        name="element-wise with values computed from shapes",
        wrong="garbage",
        seen="2026.4 with AMX",
        operations=ELEMENTWISE,
        when=_reads_shapes,
        reason="element-wise with values computed from shapes",
        devices=EVERY_DEVICE,
        like_pot=True,
    ),
    PlacementFault(
        name="a vector times a matrix",
        wrong="the result has another shape",
        seen="2026.4 with AVX2 and AMX",
        operations=MATMUL,
        when=_reads_vector,
        reason="a vector times a matrix, whose shape the CPU gets wrong in INT8",
        devices=EVERY_DEVICE,
    ),
    PlacementFault(
        name="several weight matrices with a range per column",
        wrong="garbage",
        seen="2026.4 with AMX",
        operations=MATMUL,
        when=_several_matrices,
        helps=PER_MATRIX,
        reason="one range per matrix: with one per column the CPU computes garbage",
        devices=EVERY_DEVICE,
    ),
    PlacementFault(
        name="several weight matrices with zero points or few bits",
        wrong="errors of 50 to 760 in about every second compilation with hint THROUGHPUT, none with LATENCY",
        seen="2026.4 with AVX2 and AMX",
        operations=MATMUL,
        when=_several_matrices,
        helps=Only(WEIGHTS, bits=8),
        reason="symmetric 8-bit weights: of several weight matrices the CPU gets other ones wrong",
    ),
    PlacementFault(
        name="several weight matrices on a dynamic batch",
        wrong="inference stops: the output's shape is taken from the weights",
        seen="2026.4 with AVX2",
        operations=MATMUL,
        when=_several_matrices_on_a_dynamic_batch,
        reason="several weight matrices on a dynamic batch, whose shape the CPU gets wrong in INT8",
    ),
    PlacementFault(
        name="a weight matrix of rank 4 with zero points or few bits",
        wrong="does not compile (ConvertFullyConnectedToFullyConnectedCompressed)",
        seen="2026.4 with AVX2 and AMX",
        operations=MATMUL,
        when=_one_matrix_of_rank_4,
        helps=Only(WEIGHTS, bits=8),
        reason="symmetric 8-bit weights: other ones of rank 4 and more the CPU does not compile",
    ),
    PlacementFault(
        name="a constant on the left",
        wrong="what is not run on integers: asymmetric ranges, zero points, few bits, and with AVX2 non-negative ranges; errors of 100 to"
        " 1200 in 22 of 30 compilations with hint THROUGHPUT, none with LATENCY",
        seen="2026.4 with AVX2 and AMX",
        operations=MATMUL,
        when=_constant_on_the_left,
        reason="a MatMul with the constant on the left, which the CPU gets wrong in INT8",
    ),
    PlacementFault(
        name="an element-wise constant per channel after a product",
        wrong="the constant is laid along the last axis: 0.8 to 3.4 instead of 0.03 where both are of one size, else it does not compile",
        seen="2026.4 with AVX2 and AMX",
        operations=frozenset({"Add", "Subtract", "Multiply", "Divide"}),
        when=_per_channel_after_product,
        reason="a constant per channel after a MatMul, which the CPU lays along the last axis in INT8",
    ),
    PlacementFault(
        name="a deconvolution with zero-point weights",
        wrong="errors of 0.2 to 1.2, always",
        seen="2026.4 with AMX",
        operations=frozenset({"ConvolutionBackpropData", "GroupConvolutionBackpropData"}),
        helps=Only(WEIGHTS),
        reason="symmetric weights: the CPU gets zero points of a deconvolution's weights wrong",
    ),
    PlacementFault(
        name="a grouped convolution in one dimension with zero-point weights",
        wrong="does not compile (GroupConvolutionTransformation)",
        seen="2026.4 with AVX2",
        operations=frozenset({"GroupConvolution"}),
        when=_is_grouped_in_one_dimension,
        helps=Only(WEIGHTS),
        reason="symmetric weights: with zero points the CPU does not compile grouped convolutions in one dimension",
    ),
    PlacementFault(
        name="an average over counted padding of an asymmetric range",
        wrong="0.15 instead of 0.005: the padding counts as the lowest level instead of as zero",
        seen="2026.4 with AVX2 and AMX",
        operations=frozenset({"AvgPool"}),
        when=_counts_its_padding,
        helps=Only(ACTIVATIONS),
        reason="symmetric: the CPU pads an asymmetric range with its lowest level instead of zero",
    ),
    PlacementFault(
        name="NormalizeL2 or MVN with an eps that counts",
        wrong="eps is added to squares of levels, as if it were next to zero: 0.13 instead of 0.004 with NormalizeL2, eps 0.5, mode max;"
        " 0.19 instead of 0.01 with MVN, eps 0.01, of values around 0.2",
        seen="2026.4 with AVX2",
        operations=frozenset({"NormalizeL2", "MVN"}),
        when=_has_large_eps,
        reason="an eps that counts, which the CPU adds to squares of levels in INT8",
    ),
    PlacementFault(
        name="a Pad with another value than zero",
        wrong="does not compile where the value is below the range; else the value is taken as a level (1.5 instead of 0.03)",
        seen="2026.4 with AVX2 and AMX",
        operations=frozenset({"Pad"}),
        when=_pads_with_something,
        helps=BEHIND,
        reason="a Pad with another value than zero, which the CPU fills in without quantizing it",
    ),
    PlacementFault(
        name="a Pad of channels",
        wrong="a Convolution behind it reads zero as the lowest level where there are negative values: 3 instead of 0.02",
        seen="2026.4 with AVX2",
        operations=frozenset({"Pad"}),
        when=_pads_channels,
        helps=BEHIND,
        reason="a Pad of channels, whose zeros the CPU takes for the lowest level in INT8",
    ),
)


def known_faults(graph: Graph, rules: str, pot_compatible: bool = False) -> dict[Node, tuple[PlacementFault, ...]]:
    """By operation what the device gets wrong there, where it gets anything wrong.

    graph: Of the floating-point model, without quantizers.
    rules: Whose rules apply (target_device.rules).
    """
    entries = [fault for fault in FAULTS if rules in fault.devices and fault.present and not (pot_compatible and fault.like_pot)]
    found = {}
    for node in graph.nodes:
        if here := tuple(fault for fault in entries if node.type in fault.operations and fault.when(node)):
            found[node] = here
    return found
