"""Models in which blocks are quantized, or not, by an input: one compilation measures many models.

The input says which of a few blocks differs from the others: with all of a model in floating point, the one that is quantized; with
all of it quantized, the one that is not. Quantization is written out in f32 arithmetic (`written_out`). What none of these blocks
changes, the part of the model before them, is a model of its own, which runs once per sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
from openvino import opset13 as op

from stages.configuration.target_device import WEIGHTS
from stages.measurement.places import Place
from stages.measurement.written_out import written_out
from stages.quantization.effect.blocks import Block
from stages.quantization.model.graph import OPERATIONS_WITH_WEIGHTS, Node, bias_add, bias_constant_port, read_graph
from stages.quantization.placement.plan import Plan, Quantizer

CHOICE = "block"
NONE = -1  # the choice of no block


class Pair(NamedTuple):
    """The same model twice, its operations named alike: neither is changed here.

    Attributes:
        quantized: As `build` makes it, or as it is stored: FakeQuantizes on activations are named like their quantizers.
        floating: After channel alignment, with the biases it had (`aligned_model`).
        plan: Of `quantized`.
    """

    quantized: ov.Model
    floating: ov.Model
    plan: Plan


class Switched(NamedTuple):
    """A model in two parts.

    Attributes:
        before: What no choice changes: the model's inputs -> `crossing` tensors, and outputs. None where that is nothing at all.
        after: The crossing tensors, and the choice as its last input -> the other outputs.
        crossing: How many of the outputs of `before` are the inputs of `after`.
        outputs: Of the model: where each is found, (False, index) in `before` behind the crossing ones, (True, index) in `after`.
    """

    before: ov.Model
    after: ov.Model
    crossing: int
    outputs: tuple[tuple[bool, int], ...]


def switched(pair: Pair, blocks: Sequence[Block], places: Sequence[Place], *, quantized: bool) -> Switched:
    """The model in which the choice of number i quantizes `blocks[i]` alone, or, where all are `quantized`, leaves it alone float.

    Its outputs are the model's own, then those of `places` that are none of these.
    """
    whole, floating = pair.quantized.clone(), pair.floating.clone()
    choice = op.parameter([], np.int32, name=CHOICE)
    chosen = {name: op.equal(choice, np.int32(index)) for index, block in enumerate(blocks) for name in block.quantizers}
    _merge(whole, floating, pair, chosen, quantized=quantized)
    by_name = {node.get_friendly_name(): node for node in whole.get_ops()}
    extra = [by_name[name].output(0) if port is None else by_name[name].input_value(port) for name, port in _readers(places)]
    outputs = [result.input_value(0) for result in whole.get_results()] + extra
    merged = ov.Model([op.result(output) for output in outputs], [*whole.get_parameters(), choice])
    return _divided(written_out(merged))


def _readers(places: Iterable[Place]) -> list[tuple[str, int | None]]:
    return [place.reader for place in places if place.reader is not None]


# ------------------------------------------------------------------------------------------------------ quantized or not


def _merge(whole: ov.Model, floating: ov.Model, pair: Pair, chosen: dict[str, Any], *, quantized: bool) -> None:
    """Put the floating-point layers in the places of the quantized ones, or beside them where a choice decides. Both are changed."""
    ours, theirs = read_graph(whole), read_graph(floating)

    def select(name: str, when_quantized: ov.Output, when_float: ov.Output) -> ov.Output:
        sides = (when_float, when_quantized) if quantized else (when_quantized, when_float)
        return op.select(chosen[name], *sides).output(0)

    concerned = [quantizer for quantizer in pair.plan.quantizers if quantizer.name in chosen or not quantized]
    # Of a model in floating point, biases that were corrected for other layers' sake go back, too.
    of_layer: dict[str, list[Quantizer]] = {} if quantized else {node.name: [] for node in ours.of_type(OPERATIONS_WITH_WEIGHTS)}
    for quantizer in concerned:
        if quantizer.kind == WEIGHTS:
            of_layer.setdefault(quantizer.consumers[0].name, []).append(quantizer)
    biases = {name: (bias_add(ours.by_name[name]), bias_add(theirs.by_name[name])) for name in of_layer}
    for quantizer in concerned:
        if quantizer.kind != WEIGHTS:
            node = ours.by_name[quantizer.name].operation
            readers, source = node.output(0).get_target_inputs(), node.input_value(0)
            _redirect(readers, select(quantizer.name, node.output(0), source) if quantizer.name in chosen else source)
    for name, quantizers in of_layer.items():
        own, twin = (_Layer(graph.by_name[name].operation, bias) for graph, bias in zip((ours, theirs), biases[name], strict=True))
        ports = {quantizer.consumers[0].port for quantizer in quantizers}
        if quantizers and quantizers[0].name in chosen:
            for port in set(range(own.node.get_input_size())) - ports:
                twin.node.input(port).replace_source_output(own.node.input_value(port))
            readers = own.end.get_target_inputs()
            _redirect(readers, select(quantizers[0].name, own.end, twin.end))
            continue
        for port in ports:
            own.node.input(port).replace_source_output(twin.node.input_value(port))
        if own.bias is not None and twin.bias is not None:
            own.bias_input.replace_source_output(twin.bias_input.get_source_output())
        elif own.bias is not None:
            _redirect(own.end.get_target_inputs(), own.node.output(0))
    for node in theirs.nodes:
        node.operation.set_friendly_name(f"{node.name}/float")


class _Layer(NamedTuple):
    """A layer with the Add of its bias, where it has one."""

    node: ov.Node
    bias: Node | None

    @property
    def end(self) -> ov.Output:
        """What the layer gives, with its bias."""
        return (self.node if self.bias is None else self.bias.operation).output(0)

    @property
    def bias_input(self) -> Any:
        """Where the bias comes in."""
        assert self.bias is not None
        return self.bias.operation.input(bias_constant_port(self.bias))


def _redirect(readers: Iterable[Any], source: ov.Output) -> None:
    for reader in readers:
        reader.replace_source_output(source)


# -------------------------------------------------------------------------------------------------------- before and after


def _divided(model: ov.Model) -> Switched:
    """Cut a model (which is used up) where the choice begins to count."""
    operations = model.get_ordered_ops()
    parameters = model.get_parameters()
    choice = next(node for node in parameters if node.get_friendly_name() == CHOICE)
    after = _reached(operations, lambda node: node.get_name() == choice.get_name())
    moving = _reached(operations, lambda node: node.get_type_name() in ("Parameter", "ReadValue", "RandomUniform"))
    crossing: dict[tuple[str, int], ov.Output] = {}
    for node in operations:
        if node.get_name() in after:
            for source in node.input_values():
                name = source.get_node().get_name()
                if name in moving and name not in after:
                    crossing[name, source.get_index()] = source
    results = [result.input_value(0) for result in model.get_results()]
    later = [output.get_node().get_name() in after for output in results]
    kept = [output for output, is_later in zip(results, later, strict=True) if not is_later]
    inputs = [node for node in parameters if node.get_name() != choice.get_name()]
    before = ov.Model([op.result(output) for output in (*crossing.values(), *kept)], inputs).clone()
    carried = []
    for output in crossing.values():
        parameter = op.parameter(output.get_partial_shape(), output.get_element_type())
        carried.append(parameter)
        _redirect([reader for reader in output.get_target_inputs() if reader.get_node().get_name() in after], parameter.output(0))
    ends = [result for result, is_later in zip(model.get_results(), later, strict=True) if is_later]
    behind = ov.Model([op.result(result.input_value(0)) for result in ends], [*carried, choice])
    counters = {False: 0, True: 0}
    where = []
    for is_later in later:
        where.append((is_later, counters[is_later]))
        counters[is_later] += 1
    return Switched(before, behind, len(carried), tuple(where))


def _reached(operations: Iterable[ov.Node], starts: Callable[[ov.Node], bool]) -> set[str]:
    """The operations, in topological order, that start something, and all that depend on these."""
    reached: set[str] = set()
    for node in operations:
        if starts(node) or any(source.get_node().get_name() in reached for source in node.input_values()):
            reached.add(node.get_name())
    return reached
