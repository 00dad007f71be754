"""Make the plan of a quantized model: placement, schemes, estimators, unified groups, alignment and saturation fix."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

from stages import schema
from stages.errors import ConfigError, UserError
from stages.quantization.alignment import alignment_pairs
from stages.quantization.estimators import resolve_estimator
from stages.quantization.graph import (
    CONVOLUTIONS,
    OPERATIONS_WITH_WEIGHTS,
    Edge,
    Graph,
    Node,
    operation_kind,
    walk,
    weight_constant,
)
from stages.quantization.patterns import ignored_blocks
from stages.quantization.placement import FAKE_QUANTIZE, Placement, place, served
from stages.quantization.plan import Float, Place, Plan, Quantizer, TensorName
from stages.quantization.schemes import ACTIVATIONS, WEIGHTS, Scheme, Target, choose, common, describe, restrict
from stages.quantization.unify import unified_groups

# With model_type transformer these stay in floating point (Multiply not on CPU_SPR), and activations that meet in a
# MatMul of two activations are symmetric.
TRANSFORMER_FLOAT = frozenset({"Add", "Power", "Squeeze", "Subtract", "ReduceMean", "SquaredDifference", "MVN"})
SATURATION_DEVICES = frozenset({"ANY", "CPU"})


def make_plan(graph: Graph, target: Target, config: schema.Quantization) -> Plan:
    """The configuration of the quantized model that `config` asks for on `target`."""
    ignored = ignored_operations(graph, target, config)
    placement = place(graph, target, ignored_blocks(graph, target.rules), ignored)
    pairs = alignment_pairs(graph) if config.use_channel_alignment else []
    doubled = _saturating_layers(graph, target, config, {second.name for _, second in pairs})
    quantizers, refused = _quantizers(placement, target, config, doubled)
    floats = _floats(placement, quantizers, refused, target)
    return Plan(tuple(quantizers), tuple(floats), tuple((first.name, second.name) for first, second in pairs))


# ------------------------------------------------------------------------------------------------- what is ignored


def ignored_operations(graph: Graph, target: Target, config: schema.Quantization) -> dict[Node, str]:
    """Operations that the user or the model type excludes, with the reason."""
    found: dict[Node, str] = {}
    names = [node.name for node in graph.nodes if not node.constant]
    for entry in config.ignored.scope:
        if entry.startswith("re:"):
            try:
                expression = re.compile(entry[3:])
            except re.error as error:
                raise ConfigError(f"quantization.ignored.scope: {entry!r} is not a regular expression: {error}") from None
            matched = [node for node in graph.nodes if not node.constant and expression.fullmatch(node.name)]
        else:
            matched = [graph.by_name[entry]] if entry in graph.by_name else []
        if not matched:
            near = difflib.get_close_matches(entry.removeprefix("re:"), names, n=3, cutoff=0.3)
            raise ConfigError(f"quantization.ignored.scope: {entry!r} matches no operation; nearest names: {', '.join(near) or 'none'}")
        found.update((node, "quantization.ignored.scope") for node in matched)
    for operation in config.ignored.operations:
        matched = [node for node in graph.of_type([operation.type]) if _attributes_equal(node, operation.attributes)]
        if not matched:
            raise ConfigError(
                f"quantization.ignored.operations: no {operation.type} with attributes {operation.attributes};"
                f" operation types of the model: {', '.join(sorted({node.type for node in graph.nodes}))}"
            )
        found.update((node, "quantization.ignored.operations") for node in matched)
    if config.model_type == "transformer":
        types = TRANSFORMER_FLOAT if target.rules == "CPU_SPR" else TRANSFORMER_FLOAT | {"Multiply"}
        for node in graph.of_type(types):
            found.setdefault(node, "model_type transformer")
    return found


def _attributes_equal(node: Node, wanted: dict[str, Any]) -> bool:
    actual = node.attributes()
    return all(key in actual and _same_value(actual[key], value) for key, value in wanted.items())


def _same_value(actual: Any, wanted: Any) -> bool:
    if isinstance(wanted, list | tuple):
        return len(wanted) == len(actual) and all(_same_value(a, w) for a, w in zip(actual, wanted, strict=True))
    if isinstance(wanted, bool) or isinstance(actual, bool):
        return isinstance(wanted, bool) and isinstance(actual, bool) and actual == wanted
    if isinstance(wanted, int | float):
        return isinstance(actual, int | float) and float(actual) == float(wanted)
    return str(actual).lower() == str(wanted).lower()


# --------------------------------------------------------------------------------------------------- saturation fix


def _saturating_layers(graph: Graph, target: Target, config: schema.Quantization, aligned_consumers: set[str]) -> set[str]:
    """Names of weighted operations whose weights use only half of the levels, so that 16-bit sums cannot saturate."""
    if config.saturation_fix == "no" or target.rules not in SATURATION_DEVICES or not graph.of_type(CONVOLUTIONS):
        return set()
    if config.saturation_fix == "all":
        return {node.name for node in graph.of_type(OPERATIONS_WITH_WEIGHTS)} | aligned_consumers

    def down(node: Node) -> Iterable[Node]:
        return () if node.type in CONVOLUTIONS else (edge.node for edge in node.all_consumers())

    reached = walk(graph.of_type(["Parameter"]), down)
    return {node.name for node in reached if node.type in CONVOLUTIONS} | aligned_consumers


# --------------------------------------------------------------------------------------------------------- schemes


def _quantizers(
    placement: Placement, target: Target, config: schema.Quantization, doubled: set[str]
) -> tuple[list[Quantizer], list[tuple[Node, int | None, str]]]:
    """A Quantizer per FakeQuantize of the placement; those without a common scheme are refused with the reason."""
    groups = unified_groups(placement.quantizers, placement.graph.nodes, target)
    group_of = {member: index for index, group in enumerate(groups) for member in group}
    edges = {node: served(node, target) for node in placement.quantizers}
    options = {node: _options(node, edges[node], target, config) for node in placement.quantizers}
    for group in groups:
        shared = tuple(s for s in common([options[member] for member in group if options[member]]) if not s.perchannel)
        options.update((member, shared) for member in group)
    quantizers: list[Quantizer] = []
    refused: list[tuple[Node, int | None, str]] = []
    for node in placement.quantizers:
        layers = [edge for edge in edges[node] if target.quantizable(operation_kind(edge.node))]
        if not options[node]:
            schemes = {describe(s) for edge in layers for s in target.alternatives(operation_kind(edge.node), _group(node))}
            refused.extend((edge.node, edge.index, f"no scheme suits all consumers: {'; '.join(sorted(schemes)) or 'none offered'}") for edge in layers)
            continue
        scheme = choose(options[node], config.preset, _group(node))
        quantizers.append(_quantizer(node, layers, scheme, group_of.get(node), config, doubled))
    return quantizers, refused


def _group(quantizer: Node) -> str:
    return WEIGHTS if quantizer.inputs[0].node.constant else ACTIVATIONS


def _options(node: Node, edges: list[Edge], target: Target, config: schema.Quantization) -> tuple[Scheme, ...]:
    """The schemes that suit every operation that a FakeQuantize serves, fastest first."""
    group = _group(node)
    wanted = config.weights if group == WEIGHTS else config.activations
    lists = []
    for edge in edges:
        alternatives = target.alternatives(operation_kind(edge.node), group)
        if not alternatives:
            continue
        kept = restrict(alternatives, wanted, f"quantization.{group} for {edge.node.type} {edge.node.name}", config.allow_unsupported)
        if group == ACTIVATIONS and config.model_type == "transformer" and _multiplies_activations(edge.node):
            kept = tuple(scheme for scheme in kept if scheme.symmetric) or kept
        lists.append(kept)
    return common(lists) if lists else ()


def _multiplies_activations(node: Node) -> bool:
    return node.type == "MatMul" and not any(_is_weight_port(node, index) for index in (0, 1))


def _is_weight_port(node: Node, index: int) -> bool:
    producer = node.inputs[index].node
    return producer.constant or (producer.type == FAKE_QUANTIZE and producer.inputs[0].node.constant)


def _quantizer(
    node: Node, layers: list[Edge], scheme: Scheme, unified_group: int | None, config: schema.Quantization, doubled: set[str]
) -> Quantizer:
    group = _group(node)
    section = config.weights if group == WEIGHTS else config.activations
    estimator = resolve_estimator(scheme, group, section.range_estimator or config.range_estimator)
    port = node.inputs[0]
    first = node.consumers[0][0]
    constant = weight_constant(port) if group == WEIGHTS else None
    source = constant if constant is not None else port.node
    name = f"{first.node.name}/fq_weights_{first.index}" if constant is not None else f"{source.name}/fq_output_{port.index}"
    return Quantizer(
        name=name,
        kind=group,
        source=TensorName(source.name, 0 if constant is not None else port.index),
        source_type=source.type,
        consumers=tuple(Place(edge.node.name, edge.node.type, edge.index) for edge in node.consumers[0]),
        layers=tuple(Place(edge.node.name, edge.node.type, edge.index) for edge in layers),
        scheme=scheme,
        estimator=estimator,
        unified_group=unified_group,
        channel_axis=_channel_axis(node, scheme),
        doubled=group == WEIGHTS and first.node.name in doubled and first.index == 1 and first.node.type in OPERATIONS_WITH_WEIGHTS,
    )


def _channel_axis(quantizer: Node, scheme: Scheme) -> int | None:
    """The axis of the quantized tensor along which ranges differ.

    Activations: axis 1. Weights: the output channels of the operation that consumes them. Weights of grouped
    convolutions [G, O/G, I/G, ...] give the two leading axes together one range each (see `build`): axis 0 here.
    """
    if not scheme.perchannel:
        return None
    port = quantizer.inputs[0]
    shape = port.node.shapes[port.index]
    if not port.node.constant:
        return 1
    edge = quantizer.consumers[0][0]
    rank = len(shape or ())
    if rank == 0:
        return None
    if edge.node.type == "ConvolutionBackpropData":
        return 1
    if edge.node.type == "MatMul":
        if rank == 1:
            return None
        transposed = edge.node.attributes()["transpose_b" if edge.index == 1 else "transpose_a"]
        columns_out = (edge.index == 1) != bool(transposed)
        return rank - 1 if columns_out else rank - 2
    return 0


# -------------------------------------------------------------------------------------------- what stays in floating point


def _floats(
    placement: Placement, quantizers: list[Quantizer], refused: list[tuple[Node, int | None, str]], target: Target
) -> list[Float]:
    entries = [Float(node.name, node.type, port, reason) for node, port, reason in (*placement.floats, *refused)]
    covered = {(place.name, place.port) for quantizer in quantizers for place in quantizer.layers}
    known = {(entry.name, entry.port) for entry in entries} | {(entry.name, None) for entry in entries if entry.port is None}
    for edge in placement.requested:
        if (edge.node.name, edge.index) not in covered and not {(edge.node.name, edge.index), (edge.node.name, None)} & known:
            entries.append(Float(edge.node.name, edge.node.type, edge.index, "input preprocessing: scale and shift of a model input"))
    return entries


def require_something_to_quantize(plan: Plan) -> None:
    """Raise UserError for a plan without quantizers, saying what the model's operations lack."""
    if plan.quantizers:
        return
    reasons = sorted({entry.reason for entry in plan.floats})
    raise UserError(f"nothing to quantize: {'; '.join(reasons[:5]) or 'the model has no floating-point operation'}")
