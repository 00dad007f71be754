"""Make the plan of a quantized model: placement, schemes, estimators, unified groups, alignment and saturation fix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from stages.common.errors import UserError
from stages.configuration import schema
from stages.configuration.target_device import ACTIVATIONS, WEIGHTS, Scheme, Target, choose, common, extend, restrict
from stages.quantization.model.blocks import ignored_blocks
from stages.quantization.model.graph import (
    CONVOLUTIONS,
    OPERATIONS_WITH_WEIGHTS,
    Edge,
    Graph,
    Node,
    nodes_in_bodies,
    operation_kind,
    walk,
    weight_constant,
)
from stages.quantization.placement.alignment_pairs import alignment_candidates
from stages.quantization.placement.blocking import FAKE_QUANTIZE
from stages.quantization.placement.gain import without_gain
from stages.quantization.placement.ignored import ignored_operations
from stages.quantization.placement.kernel_faults import PER_MATRIX, Only
from stages.quantization.placement.logarithms import before_logarithms
from stages.quantization.placement.placing import ALREADY_QUANTIZED, Placement, place, served
from stages.quantization.placement.plan import Float, NotAligned, Place, Plan, Quantizer, TensorName
from stages.quantization.placement.smoothed_tensors import smoothed_tensors
from stages.quantization.placement.unify import unified_groups
from stages.quantization.solution.choice import choose_activations
from stages.quantization.statistics.estimators import resolve_estimator
from stages.quantization.statistics.masks import magnitudes, masked_sums, readers_without_range
from stages.quantization.statistics.points import has_channels
from stages.quantization.statistics.store import Statistics

AUTO = "auto"  # the preset
SATURATION_DEVICES = frozenset({"ANY", "CPU"})


class PlanOptions(NamedTuple):
    """The plan that the preset chooses, and what the target offers besides.

    schemes: By quantizer name, the quantizer in each scheme that the target can run in its place, fastest first.
    """

    plan: Plan
    schemes: dict[str, tuple[Quantizer, ...]]


def make_plan(graph: Graph, target: Target, config: schema.Quantization, statistics: Statistics | None = None) -> Plan:
    """The configuration of the quantized model that `config` asks for on `target`.

    Operations that read infinite constants, or infinite values according to `statistics`, such as an attention mask, stay in
    floating point (`masks`). Preset auto chooses by `statistics`; without them it is preset performance.
    """
    return make_plan_options(graph, target, config, statistics).plan


def make_plan_options(graph: Graph, target: Target, config: schema.Quantization, statistics: Statistics | None = None) -> PlanOptions:
    """Like `make_plan`, with everything between which a search may choose."""
    ignored = ignored_operations(graph, target, config)
    if not config.pot_compatible:
        ignored = masked_sums(graph) | before_logarithms(graph, target) | ignored
    largest = magnitudes(statistics)
    offer = _offer(graph, target, config, ignored, largest)
    while infinite := readers_without_range(graph, offer.plan, statistics, masks=not config.pot_compatible):
        if not infinite.keys() - ignored.keys():
            break
        ignored = infinite | ignored
        offer = _offer(graph, target, config, ignored, largest)
    if config.preset != AUTO or statistics is None:
        return offer
    configured = config.activations.range_estimator or config.range_estimator
    chosen = choose_activations(graph, statistics, offer.plan, offer.schemes, estimators=configured == schema.RangeEstimator())
    return offer._replace(plan=chosen)


def _offer(
    graph: Graph, target: Target, config: schema.Quantization, ignored: dict[Node, str], largest: Mapping[TensorName, float]
) -> PlanOptions:
    gainless = without_gain(graph, target, config)
    placement = place(graph, target, ignored_blocks(graph, target.rules), ignored, gainless, config.pot_compatible, largest)
    candidates = alignment_candidates(graph) if config.use_channel_alignment else []
    aligned = tuple((pair.first.name, pair.second.name) for pair in candidates if pair.reason is None)
    not_aligned = tuple(NotAligned(pair.first.name, pair.second.name, pair.reason) for pair in candidates if pair.reason is not None)
    doubled = _saturating_layers(graph, target, config, {second for _, second in aligned})
    quantizers, schemes, refused = _quantizers(placement, target, config, doubled)
    floats = _floats(placement, quantizers, refused) + _in_bodies(graph, target)
    smooths = config.use_smooth_quant and config.model_type == "transformer" and not config.pot_compatible
    smoothed, not_smoothed = smoothed_tensors(graph, quantizers) if smooths else ((), ())
    return PlanOptions(
        Plan(tuple(quantizers), tuple(floats), aligned, not_aligned, smoothed, not_smoothed, config.stat_batch_size), schemes
    )


# --------------------------------------------------------------------------------------------------- saturation fix


def _saturating_layers(graph: Graph, target: Target, config: schema.Quantization, aligned_consumers: set[str]) -> set[str]:
    """Names of weighted operations whose weights use only half of the levels, so that 16-bit sums cannot saturate."""
    if config.saturation_fix == "no" or target.rules not in SATURATION_DEVICES:
        return set()
    if not graph.of_type(CONVOLUTIONS) and (config.saturation_fix != "all" or config.pot_compatible):
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
) -> tuple[list[Quantizer], dict[str, tuple[Quantizer, ...]], list[Float]]:
    """A Quantizer per FakeQuantize of the placement, and all that it may be; those that no operation has a scheme for are refused."""
    groups = unified_groups(placement.quantizers, placement.graph.nodes, target)
    group_of = {member: index for index, group in enumerate(groups) for member in group}
    edges = {node: served(node, target) for node in placement.quantizers}
    options = {node: _options(node, edges[node], target, config, placement) for node in placement.quantizers}
    # What the options would be if the device had no faults.
    wanted = {node: _options(node, edges[node], target, config) for node in placement.quantizers}
    for group in groups:
        for schemes_of in (options, wanted):
            shared = _whole_tensor([schemes_of[member] for member in group])
            schemes_of.update((member, shared) for member in group)
    # Where a fault leaves one input of an operation no scheme, quantizing another one for it alone gains nothing.
    for edge in [edge for node in placement.quantizers if wanted[node] and not options[node] for edge in edges[node]]:
        options.update((node, ()) for node in placement.quantizers if [other.node for other in edges[node]] == [edge.node])
    requested = set(placement.requested)
    quantizers: list[Quantizer] = []
    schemes: dict[str, tuple[Quantizer, ...]] = {}
    refused: list[Float] = []
    for node in placement.quantizers:
        layers = [edge for edge in edges[node] if edge in requested]
        members = groups[group_of[node]] if node in group_of else [node]
        faults = [fault for member in members for fault in _restrictions(placement, edges[member], _group(node))]
        if options[node]:
            scheme = choose(options[node], config.preset, _group(node))
            restriction = "; ".join(dict.fromkeys(faults)) if scheme != choose(wanted[node], config.preset, _group(node)) else None
            estimated = scheme
            if config.pot_compatible and node not in group_of:
                # POT estimates ranges that it makes symmetric as those that they would otherwise be, and so clips negative values.
                free = _options(node, edges[node], target, config, placement, symmetric_products=False)
                estimated = choose(free, config.preset, _group(node))
            make = partial(
                _quantizer,
                placement,
                node,
                layers,
                unified_group=group_of.get(node),
                config=config,
                doubled=doubled,
                restriction=restriction,
            )
            quantizers.append(make(scheme, estimated.mode))
            # Of a tensor without channels two schemes may come to the same.
            schemes[quantizers[-1].name] = tuple(dict.fromkeys(make(other, other.mode) for other in options[node]))
        else:
            # A constant that joins tensors before operations without constants of their own, or what only a fault stands against.
            kinds = ", ".join(sorted({operation_kind(edge.node) for edge in layers}))
            missing = f"{target.name} has no quantized {_group(node)} for {kinds}"
            faults = faults or _restrictions(placement, edges[node], None)
            reason = faults[0] if faults and wanted[node] else missing
            refused += [Float(edge.node.name, edge.node.type, edge.index, reason) for edge in node.consumers[0]]
    return quantizers, schemes, refused


def _restrictions(placement: Placement, edges: Iterable[Edge], group: str | None) -> list[str]:
    """Why not all schemes suit the operations that a quantizer serves: faults of the device's kernels. group: None for any."""
    faults = (fault for edge in edges for fault in placement.faults.get(edge.node, ()))
    return [fault.reason for fault in faults if isinstance(fault.helps, Only) and group in (None, fault.helps.group)]


def _whole_tensor(lists: list[tuple[Scheme, ...]]) -> tuple[Scheme, ...]:
    """The schemes with one range per tensor that all lists offer, if need be in place of one per channel."""
    shared = common(lists)
    return tuple(s for s in shared if not s.perchannel) or tuple(s for s in extend(shared) if not s.perchannel)


def _group(quantizer: Node) -> str:
    return WEIGHTS if quantizer.inputs[0].node.constant else ACTIVATIONS


def _options(
    node: Node,
    edges: list[Edge],
    target: Target,
    config: schema.Quantization,
    placement: Placement | None = None,
    symmetric_products: bool = True,
) -> tuple[Scheme, ...]:
    """The schemes that suit every operation that a FakeQuantize serves, fastest first.

    placement: For what the device's kernels get wrong; None: as if they had no faults.
    symmetric_products: with model_type transformer, only symmetric ones for the MatMul of two activations.
    """
    group = _group(node)
    wanted = config.weights if group == WEIGHTS else config.activations
    lists = []
    for edge in edges:
        alternatives = target.alternatives(operation_kind(edge.node), group)
        if not alternatives:
            continue
        kept = restrict(alternatives, wanted, f"quantization.{group} for {edge.node.type} {edge.node.name}", config.allow_unsupported)
        if symmetric_products and group == ACTIVATIONS and config.model_type == "transformer" and _multiplies_activations(edge.node):
            kept = tuple(scheme for scheme in kept if scheme.symmetric) or kept
        faults = placement.faults.get(edge.node, ()) if placement is not None else ()
        limits = [fault.helps for fault in faults if isinstance(fault.helps, Only)]
        lists.append(tuple(scheme for scheme in kept if all(limit.allows(group, scheme) for limit in limits)))
    return common(lists) if lists else ()


def _multiplies_activations(node: Node) -> bool:
    return node.type == "MatMul" and not any(_is_weight_port(node, index) for index in (0, 1))


def _is_weight_port(node: Node, index: int) -> bool:
    producer = node.inputs[index].node
    return producer.constant or (producer.type == FAKE_QUANTIZE and producer.inputs[0].node.constant)


def _quantizer(
    placement: Placement,
    node: Node,
    layers: list[Edge],
    scheme: Scheme,
    estimated_mode: str,
    unified_group: int | None,
    config: schema.Quantization,
    doubled: set[str],
    restriction: str | None,
) -> Quantizer:
    group, port, first = _group(node), node.inputs[0], node.consumers[0][0]
    axis = _channel_axis(node, placement, config.pot_compatible) if scheme.perchannel else None
    if scheme.perchannel and axis is None:
        scheme = replace(scheme, granularity="pertensor")
    section = config.weights if group == WEIGHTS else config.activations
    constant = weight_constant(port) if group == WEIGHTS else None
    source = port.node if constant is None else constant
    name = f"{source.name}/fq_output_{port.index}" if constant is None else f"{first.node.name}/fq_weights_{first.index}"
    return Quantizer(
        name=placement.graph.unused(name),
        kind=group,
        source=TensorName(source.name, port.index if constant is None else 0),
        source_type=source.type,
        consumers=tuple(Place(edge.node.name, edge.node.type, edge.index) for edge in node.consumers[0]),
        layers=tuple(Place(edge.node.name, edge.node.type, edge.index) for edge in layers),
        scheme=scheme,
        estimator=resolve_estimator(replace(scheme, mode=estimated_mode), group, section.range_estimator or config.range_estimator),
        unified_group=unified_group,
        channel_axis=axis,
        doubled=group == WEIGHTS and first.node.name in doubled and first.index == 1 and first.node.type in OPERATIONS_WITH_WEIGHTS,
        restriction=restriction,
    )


def _channel_axis(quantizer: Node, placement: Placement, pot_compatible: bool) -> int | None:
    """The axis of the quantized tensor along which ranges may differ; None where it has none.

    Activations: axis 1. Weights: the output channels of the operation that reads them, in the shape in which it reads
    them. Weights of grouped convolutions [G, O/G, I/G, ...] give the two leading axes together one range each: axis 0
    here. Several matrices on a MatMul's second input: the first axis, where the device gets a range per column wrong.
    pot_compatible: the first axis, too, of one matrix in more than two dimensions and of weights on the first input.
    """
    port = quantizer.inputs[0]
    shape = port.node.shapes[port.index] or ()
    if not port.node.constant:
        return 1 if has_channels(port) else None
    edge = quantizer.consumers[0][0]
    if not shape:
        return None
    if edge.node.type == "ConvolutionBackpropData":
        return 1
    if edge.node.type != "MatMul" or (pot_compatible and (len(shape) != 2 or edge.index == 0)):
        return 0
    if len(shape) == 1:
        return None
    if edge.index == 1 and any(fault.helps == PER_MATRIX for fault in placement.faults.get(edge.node, ())):
        return 0
    transposed = edge.node.attributes()["transpose_b" if edge.index == 1 else "transpose_a"]
    return len(shape) - 1 if (edge.index == 1) != bool(transposed) else len(shape) - 2


# -------------------------------------------------------------------------------------------- what stays in floating point


def _floats(placement: Placement, quantizers: list[Quantizer], refused: list[Float]) -> list[Float]:
    entries = [Float(node.name, node.type, port, reason) for node, port, reason in placement.floats] + refused
    told = {(place.name, place.port) for quantizer in quantizers for place in quantizer.layers} | {(e.name, e.port) for e in entries}
    quantized = [edge for edge in placement.requested if (edge.node.name, edge.index) not in told]
    return entries + [Float(edge.node.name, edge.node.type, edge.index, ALREADY_QUANTIZED) for edge in quantized]


def _in_bodies(graph: Graph, target: Target) -> list[Float]:
    """What could be quantized if it did not lie inside an If, a Loop or a TensorIterator."""
    return [
        Float(path, inner.type, None, f"inside the body of {node.type} {node.name}")
        for node in graph.nodes
        for path, inner in nodes_in_bodies(node)
        if target.quantizable(operation_kind(inner)) and not inner.constant and any(inner.is_float)
    ]


def require_something_to_quantize(plan: Plan) -> None:
    """Raise UserError for a plan without quantizers, saying what the model's operations lack."""
    if plan.quantizers:
        return
    reasons = sorted({entry.reason for entry in plan.floats})
    raise UserError(f"nothing to quantize: {'; '.join(reasons[:5]) or 'the model has no floating-point operation'}")
